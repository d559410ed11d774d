"""What a compile left in its ShapeEnv, decided over whole intervals. No compile here: the guards are made by asking."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import executor_harness as h  # Puts the executor's source on the path, too.
import pytest
import sympy
from piecewised_executor.errors import UnprovenRange
from piecewised_executor.guards import Guards
from piecewised_executor.prove import counterexamples, prove, remainder, sizes_to_try
from piecewised_executor.symbols import Bounds, Symbols
from torch.utils._sympy.functions import Mod

HUGE = 2**31 - 1


def _proof(
    interval: tuple[int, int],
    hint: int,
    ask: Callable[[Any, Any], Any],
    other: dict[str, int] | None = None,
) -> Any:
    """The intervals proven after `ask(n, m)` was answered with the hints, n dispatched on and m another symbol."""
    symbols = _asked(interval, hint, ask, other)
    return prove(symbols, symbols.by_name["n"], interval).intervals


def _parts(
    interval: tuple[int, int],
    hint: int,
    ask: Callable[[Any, Any], Any],
    other: dict[str, int] | None = None,
) -> list[tuple[tuple[int, int], list[str]]]:
    """As `_proof`, where a call can decide what stays undecided: each part with its conditions."""
    symbols = _asked(interval, hint, ask, other)
    names = {symbol: sympy.Symbol(name) for name, symbol in symbols.by_name.items()}
    proof = prove(symbols, symbols.by_name["n"], interval, lambda condition: True)
    return [(part.interval, [str(condition.xreplace(names)) for condition in part.conditions]) for part in proof.parts]


def _asked(
    interval: tuple[int, int], hint: int, ask: Callable[[Any, Any], Any], other: dict[str, int] | None
) -> Symbols:
    declared = [{"name": "n"}, {"name": "m", "hint": 8, **(other or {})}]
    symbols = Symbols(declared, {"n": Bounds(*interval)}, {}, {"n": hint})
    n, m = (symbols.integer({"symbol": name}) for name in ("n", "m"))
    # Several questions, as a compile asks them.
    for answer in asked if isinstance(asked := ask(n, m), tuple) else (asked,):
        bool(answer)
    return symbols


@pytest.mark.parametrize(
    ("interval", "hint", "ask", "proven"),
    [
        ((1, 16), 8, lambda n, m: n > 0, [(1, 16)]),
        ((1, 16), 8, lambda n, m: n == 1, [(2, 16)]),
        ((1, 16), 1, lambda n, m: n == 1, [(1, 1)]),
        ((2, 16), 8, lambda n, m: n < 12, [(2, 11)]),
        ((2, 16), 8, lambda n, m: n == 5, [(2, 4), (6, 16)]),
        ((1, 64), 16, lambda n, m: n % 8 == 0, [(n, n) for n in range(8, 65, 8)]),
        ((1, 64), 9, lambda n, m: 2 * n + 1 > 20, [(1, 9)]),
        ((1, HUGE), 8192, lambda n, m: n == 1, [(2, HUGE)]),
        ((1, HUGE), 8192, lambda n, m: n * 4096 < 2**31, [(1, 2**19 - 1)]),
    ],
)
def test_the_proven_part_is_exactly_where_the_guards_hold(
    interval: tuple[int, int], hint: int, ask: Callable[[Any, Any], Any], proven: list[tuple[int, int]]
) -> None:
    assert _proof(interval, hint, ask) == proven


def test_the_proven_part_agrees_with_trying_every_size() -> None:
    ask = lambda n, m: (n * n) // 7 % 3 == 1  # noqa: E731
    proven = _proof((1, 60), 4, ask)
    sizes = {n for low, high in proven for n in range(low, high + 1)}
    truth = ask(4, 0)
    assert sizes == {n for n in range(1, 61) if ask(n, 0) == truth}


def test_a_guard_that_needs_too_many_intervals_is_not_proven() -> None:
    with pytest.raises(UnprovenRange, match="Mod"):
        _proof((1, 16384), 64, lambda n, m: n % 8 == 0)


def test_another_symbol_is_decided_by_its_declared_range() -> None:
    assert _proof((1, 16), 8, lambda n, m: n < m, {"hint": 64, "min": 32, "max": 128}) == [(1, 16)]
    assert _proof((1, 16), 2, lambda n, m: n < m, {"hint": 64, "min": 8, "max": 128}) == [(1, 7)]


def test_another_symbol_without_a_range_is_not_decided() -> None:
    with pytest.raises(UnprovenRange, match="not known to hold"):
        _proof((2, 16), 4, lambda n, m: n < m)
    with pytest.raises(UnprovenRange, match="not known to hold"):
        _proof((2, 16), 4, lambda n, m: m != 3)


def test_the_remainder_is_what_no_interval_has() -> None:
    assert remainder((1, 16), [(2, 4), (6, 16)]) == [(1, 1), (5, 5)]
    assert remainder((1, 16), [(1, 16)]) == []
    assert remainder((1, 16), [(3, 10)]) == [(1, 2), (11, 16)]
    assert remainder((5, 8), [(1, 5), (2, 6), (9, 12)]) == [(7, 8)]
    assert remainder((5, 8), [(9, 12)]) == [(5, 8)]


MULTIPLE = "Eq(Mod(n, 8), 0)"


def test_what_is_not_decided_is_left_to_the_call() -> None:
    assert _parts((1, 4096), 64, lambda n, m: n % 8 == 0) == [((1, 4096), [MULTIPLE])]
    # Few intervals are split, with or without a call that could decide.
    assert _parts((1, 16), 8, lambda n, m: n % 8 == 0) == [((8, 8), []), ((16, 16), [])]
    assert _parts((2, 16), 4, lambda n, m: n < m) == [((2, 16), ["n < m", "m >= 3"])]
    assert _parts((2, 16), 4, lambda n, m: m != 3) == [((2, 16), ["Ne(m, 3)"])]


def test_other_conditions_narrow_what_is_left_to_the_call() -> None:
    assert _parts((1, 4096), 64, lambda n, m: (n % 8 == 0, n < 1000, n > 20)) == [((21, 999), [MULTIPLE])]
    assert _parts((1, 4096), 64, lambda n, m: (n % 8 == 0, n < 100)) == [((n, n), []) for n in range(8, 100, 8)]
    other = {"hint": 64, "min": 32, "max": 128}
    assert _parts((1, 512), 8, lambda n, m: n < m, other) == [((1, 31), []), ((32, 127), ["n < m"])]


def test_a_stretch_that_is_excluded_is_excluded_although_the_rest_is_left_to_the_call() -> None:
    other = {"hint": 64, "min": 32, "max": 4000}
    parts = _parts((1, HUGE), 8, lambda n, m: n < m, other)
    assert parts[0] == ((1, 31), []) and parts[-1][1] == ["n < m"]
    assert parts[-1][0][1] < HUGE // 16, "the upper parts are known to fail"


def test_a_single_size_has_guards_on_the_others() -> None:
    symbols = Symbols([{"name": "n"}, {"name": "m", "hint": 8}], {}, {"n": 5}, {})
    assert symbols.integer({"symbol": "n"}) == 5
    assert symbols.integer({"symbol": "m"}) % 8 == 0
    (part,) = prove(symbols, None, (5, 5), lambda condition: True).parts
    assert part.interval == (5, 5) and len(part.conditions) == 1
    with pytest.raises(UnprovenRange, match="not known to hold"):
        prove(symbols, None, (5, 5))
    with pytest.raises(UnprovenRange, match="not known to hold"):
        prove(symbols, None, None, lambda condition: True)


def test_a_guard_is_written_with_the_graphs_own_names() -> None:
    graph = {
        "nodes": [
            h.int_input("n", h.symbol("n")),
            h.tensor_input("x", [h.symbol("n"), h.number(2), h.symbol("m")], [h.number(1)] * 3),
            h.tensor_input("y", [h.call("add", h.symbol("k"), h.number(1))], [h.number(1)]),
        ]
    }
    symbols = Symbols([{"name": name, "hint": 8} for name in ("n", "m", "k")], {}, {}, {})
    n, m, k = (symbols.by_name[name] for name in ("n", "m", "k"))
    guards = Guards(graph)
    condition = sympy.Lt(m, n)
    assert guards.of((condition,), symbols) == [h.call("lt", h.symbol("m"), h.symbol("n"))]
    assert guards.symbols() == [
        {"name": "n", "argument": 0, "dimension": None},
        {"name": "m", "argument": 1, "dimension": 2},
    ]
    assert guards.can_be(condition, symbols)
    for no_guard in (
        sympy.Lt(k, 3),  # No argument is k.
        sympy.Lt(sympy.Symbol("u0"), 3),  # Made by the compile.
        sympy.Lt(n / 2, 3),  # A fraction.
        sympy.Eq(sympy.Mod(n, 8, evaluate=False), 0),  # Not torch's Mod.
        sympy.Eq(sympy.Pow(n, -1) * m, 1),
        sympy.Lt(n, 2**63),
    ):
        assert not guards.can_be(no_guard, symbols), no_guard


def test_the_next_compile_thinks_of_what_the_guards_exclude() -> None:
    symbols = Symbols([{"name": "n", "hint": 16}, {"name": "m", "hint": 8, "min": 8}], {"n": Bounds(1, 64)}, {}, {})
    n, m = symbols.by_name["n"], symbols.by_name["m"]
    assert counterexamples([sympy.Ne(m, 9)], symbols) == [{"m": 9}]
    assert counterexamples([sympy.Ge(m, 8)], symbols) == []
    # 20 breaks one, 17 both.
    assert counterexamples([sympy.Eq(Mod(n, 4), 0), sympy.Eq(Mod(n, 8), 0)], symbols) == [{"n": 20}, {"n": 17}]
    conditions = [sympy.Eq(Mod(n, 8), 0), sympy.Ge(n, 16)]
    assert sizes_to_try(conditions, symbols, "n", (1, 15)) == [{"n": 8}, {"n": 15}]
    assert sizes_to_try(conditions, symbols, "n", (1, 1)) == [{"n": 1}]
