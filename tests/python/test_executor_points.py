"""Which calls an artifact is tried with: one for each segment, at sizes at which its guards hold, as a dispatcher takes them."""

from __future__ import annotations

from typing import Any

import executor_harness as h
from piecewised_executor.points import LARGEST_SIZE, Picker, Point, describe, points_to_check

N, M = h.symbol("s0"), h.symbol("s1")
GRAPH: dict[str, Any] = {"nodes": [], "symbols": [{"name": "s0"}, {"name": "s1", "hint": 16}]}


def segment(low: int, high: int, *guards: Any) -> dict[str, Any]:
    return {"range": [low, high], "entry": f"e{low}", "guards": list(guards)}


def multiple_of(symbol: Any, n: int) -> Any:
    return h.call("eq", h.call("mod", symbol, h.number(n)), h.number(0))


def sizes(segments: list[dict[str, Any]], hint: int | None) -> list[int | None]:
    return [point.size for point in points_to_check(GRAPH, "s0", segments, hint)]


def test_the_hint_and_the_ends_and_each_segment() -> None:
    assert sizes([segment(1, 1), segment(2, 4), segment(5, 64)], 32) == [32, 1, 64, 4]
    assert sizes([segment(1, 16)], None) == [1, 16]
    assert sizes([{"range": None, "entry": "e0", "guards": []}], None) == [None]
    assert sizes([segment(1, 2**31 - 1)], 64) == [64, 1, LARGEST_SIZE]
    assert sizes([segment(1, 64), segment(100_000, 200_000)], 8) == [8, 1, 100_000]


def test_sizes_that_nothing_runs_are_not_tried() -> None:
    by_eight = [segment(16, 4095, multiple_of(N, 8)), segment(8, 8)]
    assert sizes(by_eight, 63) == [8, 4088]
    picker = Picker(GRAPH, "s0", by_eight)
    assert [picker.pick(Point(size)) for size in (7, 8, 16, 17, 4095, 4096)] == [None, 1, 0, None, None, None]


def test_other_symbols_get_values_at_which_guards_hold() -> None:
    wide, narrow, rest = (
        segment(2, 16, h.call("ge", M, h.number(12))),
        segment(2, 16, h.call("lt", M, h.number(4))),
        segment(2, 16),
    )
    found = points_to_check(GRAPH, "s0", [wide, narrow, rest], 8)
    picker = Picker(GRAPH, "s0", [wide, narrow, rest])
    assert [(point.size, dict(point.others)) for point in found[:3]] == [(8, {}), (2, {}), (16, {})]
    assert [(picker.pick(point), set(point.others)) for point in found[3:]] == [(1, {"s1"}), (2, {"s1"})]


def test_what_no_size_is_found_for_has_no_point() -> None:
    never = segment(2, 16, h.call("gt", N, N))
    nothing = segment(2, 16, h.call("eq", h.call("mod", N, h.number(0)), h.number(0)))
    assert sizes([never, nothing, segment(2, 16)], 8) == [8, 2, 16]
    assert sizes([never], 8) == []
    assert describe(segment(2, 16, multiple_of(N, 8))) == "[2, 16] where Eq(Mod(s0, 8), 0)"
