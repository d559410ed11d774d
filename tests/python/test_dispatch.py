"""Plans and dispatch in Python: the rules, on the same code as everywhere else."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import piecewised
import pytest
import torch
from piecewised import _core


def handle(span: tuple[int, int] | None, *segments: tuple[int, int] | None, argument: int | None = 0) -> str:
    """A handle for a range with these segments, named e0, e1, ..."""
    toolchain = dict.fromkeys(
        ["fingerprint", "python_version", "torch_version", "torch_git_version", "triton_version", "cuda_version"], ""
    )
    return json.dumps(
        {
            "key": "00" * 32,
            "graph_digest": "00" * 32,
            "range": span,
            "digest": "00" * 32,
            "size_bytes": 1,
            "format": "inductor",
            "toolchain": {**toolchain, "executable": ""},
            "device": {"type": "cpu", "name": "", "capability": ""},
            "segments": [{"range": segment, "entry": f"e{i}"} for i, segment in enumerate(segments)],
            "dispatch_argument": argument,
            "hint": None,
            "returns_tuple": True,
            "n_arguments": 2,
            "timings": {"total_s": 0.0, "cpu_s": 0.0, "phases": []},
            "created_unix_ms": 0,
        }
    )


def guarded(
    span: tuple[int, int], *segments: tuple[tuple[int, int], str, str, str], places: dict[str, list[Any]]
) -> str:
    """A handle whose segments have one guard each, `a < b` as (sizes, "lt", a, b). ``places``: argument and dimension by symbol."""
    made = json.loads(handle(span, *(sizes for sizes, *_ in segments)))
    for segment, (_, function, *operands) in zip(made["segments"], segments, strict=True):
        segment["guards"] = [{"call": [function, [{"symbol": name} for name in operands]]}]
    made["guard_symbols"] = [
        {"name": name, "argument": argument, "dimension": dimension} for name, (argument, dimension) in places.items()
    ]
    return json.dumps(made)


def piece(handles: list[str]) -> piecewised.Piece:
    """A piece whose parts answer with (handle, entry, arguments)."""

    def part(index: int, entry: str) -> Callable[..., Any]:
        return lambda *args: (index, entry, args)

    targets = _core.Dispatcher(handles).targets
    return piecewised.Piece(handles, {(index, entry): part(index, entry) for index, entry in targets})


def test_the_plan_is_ranges_then_sizes() -> None:
    assert piecewised.plan_entries([(17, 128), (1, 16)], [4, 1, 4]) == [(1, 16), (17, 128), (1, 1), (4, 4)]
    assert piecewised.plan_entries([(1, 16), (20, 20)], [20]) == [(1, 16), (20, 20)]
    assert piecewised.ranges_from_endpoints([128, 16, 16]) == [(1, 16), (17, 128)]


@pytest.mark.parametrize(
    ("ranges", "sizes", "reason"),
    [
        ([], [], "EMPTY_PLAN"),
        ([(5, 4)], [], "BAD_RANGE"),
        ([(0, 4)], [], "BAD_RANGE"),
        ([(1, 16), (16, 20)], [], "OVERLAPPING_RANGES"),
        ([], [0], "BAD_SIZE"),
    ],
)
def test_a_plan_that_breaks_a_rule_is_an_error(ranges: list[tuple[int, int]], sizes: list[int], reason: str) -> None:
    with pytest.raises(piecewised.PlanError) as raised:
        piecewised.plan_entries(ranges, sizes)
    assert raised.value.reason == reason
    assert isinstance(raised.value, ValueError)


def test_an_exact_size_beats_its_range() -> None:
    table = piecewised.DispatchTable([(1, 16), (17, 128), (4, 4)])
    assert [table.lookup(size) for size in (1, 3, 4, 5, 16, 17, 128)] == [0, 0, 2, 0, 0, 1, 1]
    for size in (0, -1, 129, 2**63 - 1):
        with pytest.raises(piecewised.NotCovered, match=rf"size {size} .*\[1, 16\], \[17, 128\], \[4, 4\]") as raised:
            table.lookup(size)
        assert isinstance(raised.value, LookupError)


def test_a_piece_calls_what_was_compiled_for_the_size() -> None:
    compiled = piece([handle((1, 16), (1, 1), (2, 16)), handle((17, 128), (17, 128)), handle((4, 4), (4, 4))])
    for _ in range(2):
        assert compiled(1, "x") == (0, "e0", (1, "x"))
        assert compiled(2, "x") == (0, "e1", (2, "x"))
        assert compiled(4, "x") == (2, "e0", (4, "x"))
        assert compiled(128, "x") == (1, "e0", (128, "x"))
        with pytest.raises(piecewised.NotCovered, match="size 129 is outside"):
            compiled(129, "x")


def test_the_argument_that_decides_may_be_any() -> None:
    compiled = piece([handle((1, 16), (1, 16), argument=1)])
    assert compiled("x", 3) == (0, "e0", ("x", 3))


def test_guards_on_other_values_are_decided_for_each_call() -> None:
    places = {"n": [0, None], "m": [1, 1]}
    compiled = piece(
        [
            guarded((1, 16), ((1, 16), "lt", "n", "m"), ((1, 8), "gt", "n", "m"), places=places),
            handle((17, 32), (17, 32)),
        ]
    )
    x = {columns: torch.empty(3, columns) for columns in (4, 5, 6)}
    for _ in range(2):
        assert compiled(5, x[6])[1] == "e0"
        assert compiled(5, x[4])[1] == "e1"
        assert compiled(17, None)[:2] == (1, "e0"), "where there is no guard, nothing is read from a call"
        for n, columns in ((5, 5), (9, 4)):
            with pytest.raises(piecewised.NotCovered, match=rf"n = {n}, m = {columns}") as raised:
                compiled(n, x[columns])
            assert raised.value.reason == "GUARD_FAILED"


def test_guards_on_the_size_alone_cost_a_lookup_only() -> None:
    from piecewised.guards import finder

    dispatcher = _core.Dispatcher(
        [guarded((1, 16), ((2, 16), "lt", "n", "n"), ((1, 16), "le", "n", "n"), places={"n": [0, None]})]
    )
    assert dispatcher.places == []
    targets: list[Callable[..., Any]] = [lambda *args: "first", lambda *args: "second"]
    assert finder(dispatcher, targets.__getitem__)(4) is targets[1], "the callable itself"
    with pytest.raises(piecewised.NotCovered):
        finder(dispatcher, targets.__getitem__)(17)


def test_a_piece_without_a_symbolic_input_has_one_answer() -> None:
    compiled = piece([handle(None, None, argument=None)])
    assert compiled.argument is None
    assert compiled("a", "b") == (0, "e0", ("a", "b"))


def test_handles_that_contradict_each_other_are_refused() -> None:
    for handles in (
        [],
        [handle(None, None, argument=None)] * 2,
        [handle((1, 4), (1, 5))],
        [handle((1, 4), (1, 4)), handle((1, 4), (1, 4), argument=1)],
    ):
        with pytest.raises(piecewised.ArtifactError):
            _core.Dispatcher(handles)
    with pytest.raises(piecewised.FormatError):
        _core.Dispatcher(["{}"])


def test_a_part_that_is_missing_is_an_error_when_the_piece_is_made() -> None:
    with pytest.raises(piecewised.ArtifactError, match="e0"):
        piecewised.Piece([handle((1, 16), (1, 16))], {})
