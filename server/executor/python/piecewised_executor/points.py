"""Calls to try an artifact with: sizes at which its segments run, found by evaluating guards as a dispatcher does.

A point is a size of the dispatched symbol with values for other symbols; those that it does not name are as
`fixed_values` has them. Guards are data in the handle and are evaluated from it, not from what the compile knew: what
is tried is what a dispatcher will run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import sympy

from .runtime.bounds import declared_bounds, fixed_values
from .runtime.expressions import NoForm, from_tree

# Sizes beyond this are not run: what an encoder's last range allows is no size that any model sees.
LARGEST_SIZE = 1 << 16
# How many sizes are looked at on each side of an end or a hint, and how many values of another symbol.
_MAX_NEIGHBOURS = 64
_MAX_VALUES = 32


@dataclass(frozen=True)
class Point:
    """`others`: values by the symbol's name, where they are not the usual ones."""

    size: int | None
    others: Mapping[str, int] = field(default_factory=dict)

    @property
    def identity(self) -> tuple[Any, ...]:
        """Equal for equal points."""
        return (self.size, *sorted(self.others.items()))

    def at(self, size: int | None) -> Point:
        """The same with another size."""
        return Point(size, self.others)

    def __str__(self) -> str:
        others = [f"{name} = {value}" for name, value in sorted(self.others.items())]
        return ", ".join([f"size {self.size}", *others])


class Picker:
    """Says which segment runs a point."""

    def __init__(self, graph: dict[str, Any], dispatched: str | None, segments: list[dict[str, Any]]) -> None:
        self._graph = graph
        self._dispatched = dispatched
        self._segments = segments

    def pick(self, point: Point) -> int | None:
        """The position of the first segment that has the size and whose guards all hold; None: there is none."""
        values: dict[str, int] | None = None
        for i, segment in enumerate(self._segments):
            span = segment["range"]
            if span is not None and point.size is not None and not span[0] <= point.size <= span[1]:
                continue
            guards = segment.get("guards") or []
            if guards and values is None:
                values = fixed_values(self._graph, self._dispatched, point.size, point.others)
            if all(_holds(guard, values or {}) for guard in guards):
                return i
        return None


def points_to_check(
    graph: dict[str, Any], dispatched: str | None, segments: list[dict[str, Any]], hint: int | None
) -> list[Point]:
    """The range's ends and its hint, and for each segment at least one point where there is one within a bounded search; most
    important first. Every point has a segment that runs it."""
    spans = [segment["range"] for segment in segments if segment["range"] is not None]
    if not spans:
        return [Point(None)]
    picker = Picker(graph, dispatched, segments)
    low = min(span[0] for span in spans)
    high = max(min(max(span[1] for span in spans), LARGEST_SIZE), low)
    found: dict[tuple[Any, ...], tuple[Point, int]] = {}

    def take(candidates: Iterator[Point], wanted: int | None = None) -> None:
        for point in candidates:
            picked = picker.pick(point)
            if picked is not None and picked == (picked if wanted is None else wanted):
                found.setdefault(point.identity, (point, picked))
                return

    take(Point(size) for size in ([] if hint is None else [hint]))
    # The ends may be sizes that the graph does not take: then the nearest that it does.
    take(Point(size) for size in range(low, min(low + _MAX_NEIGHBOURS, high + 1)))
    take(Point(size) for size in range(high, max(high - _MAX_NEIGHBOURS, low - 1), -1))
    for i in range(len(segments)):
        if all(picked != i for _, picked in found.values()):
            take(_candidates(graph, dispatched, segments[: i + 1], hint), i)
    return [point for point, _ in found.values()]


def describe(segment: dict[str, Any]) -> str:
    """As messages name a segment."""
    guards = [_text(guard) for guard in segment.get("guards") or []]
    return f"{segment['range']}" + (f" where {' and '.join(guards)}" if guards else "")


def _candidates(
    graph: dict[str, Any], dispatched: str | None, segments: list[dict[str, Any]], hint: int | None
) -> Iterator[Point]:
    """Points for the last of the segments, the likelier first; the others are asked before it."""
    low, high = segments[-1]["range"]
    high = max(min(high, LARGEST_SIZE), low)
    inside = min(max(hint if hint is not None else low, low), high)
    middle = (low + high) // 2
    few = list(dict.fromkeys([inside, low, high, middle]))
    near = [inside + sign * distance for distance in range(1, _MAX_NEIGHBOURS) for sign in (1, -1)]
    ends = [*range(low, low + _MAX_NEIGHBOURS), *range(high, high - _MAX_NEIGHBOURS, -1)]
    powers = [1 << k for k in range(high.bit_length() + 1)]
    sizes = dict.fromkeys(size for size in [*few, *powers, *near, *ends] if low <= size <= high)
    yield from (Point(size) for size in sizes)
    named = {name for segment in segments for guard in segment.get("guards") or [] for name in _names(guard)} - {
        dispatched
    }
    for symbol in graph.get("symbols", []):
        if symbol["name"] not in named:
            continue
        bounds = declared_bounds(symbol)
        usual = fixed_values(graph, dispatched, None)[symbol["name"]]
        values = [*range(1, _MAX_VALUES), *(usual + i for i in range(-_MAX_VALUES, _MAX_VALUES)), *powers]
        for value in dict.fromkeys(value for value in values if value >= 1 and bounds.clamp(value) == value):
            yield from (Point(size, {symbol["name"]: value}) for size in few)


def _holds(guard: dict[str, Any], values: Mapping[str, int]) -> bool:
    try:
        return from_tree(guard, lambda name: sympy.Integer(values[name])) is sympy.true
    except (ArithmeticError, AssertionError, ValueError, TypeError, KeyError, NoForm):
        # What has no value does not hold.
        return False


def _names(guard: dict[str, Any]) -> set[str]:
    if "symbol" in guard:
        return {guard["symbol"]}
    return set().union(*(_names(operand) for operand in guard["call"][1])) if "call" in guard else set()


def _text(guard: dict[str, Any]) -> str:
    return str(from_tree(guard, lambda name: sympy.Symbol(name, integer=True)))
