"""What a compile left in its ShapeEnv, decided over whole intervals. No compile here: the guards are made by asking."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import executor_harness  # noqa: F401  (puts the executor's source on the path)
import pytest
from piecewised_executor.errors import UnprovenRange
from piecewised_executor.prove import prove, remainder
from piecewised_executor.symbols import Bounds, Symbols

HUGE = 2**31 - 1


def _proof(
    interval: tuple[int, int], hint: int, ask: Callable[[Any, Any], Any], other: dict[str, int] | None = None
) -> Any:
    """Proves what remains after `ask(n, m)` was answered with the hints, n dispatched on and m another symbol."""
    declared = [{"name": "n"}, {"name": "m", "hint": 8, **(other or {})}]
    symbols = Symbols(declared, {"n": Bounds(*interval)}, {}, {"n": hint})
    n, m = (symbols.integer({"symbol": name}) for name in ("n", "m"))
    bool(ask(n, m))
    return prove(symbols, symbols.by_name["n"], interval).intervals


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
