"""For which sizes compiled code is right: read from what the compile left in its ShapeEnv.

Whatever the compiler took for granted about a symbol is either a narrower value range or a guard. Each is decided for
every size of the interval that the code is meant for, never for a sample: by interval arithmetic over ever smaller
parts, down to single sizes, which are evaluated exactly. What cannot be decided that way (too many intervals, another
symbol) may be left to whoever knows a call's sizes, as a guard; where it may not, nothing is proven.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import sympy
from torch.utils._sympy.interp import sympy_interp
from torch.utils._sympy.numbers import int_oo
from torch.utils._sympy.reference import PythonReferenceAnalysis
from torch.utils._sympy.value_ranges import ValueRanges, bound_sympy

from .errors import UnprovenRange
from .runtime.bounds import Bounds
from .symbols import Symbols

# Parts of one interval that are looked at for one condition, and intervals that come out, before giving up. What needs more
# (multiples of 8 in a range of thousands) is better said by the condition itself.
MAX_STEPS = 4096
MAX_INTERVALS = 32

# How many sizes are looked at to find some to think of, and how many those are.
MAX_CANDIDATES = 64
MAX_WAYS = 4

Interval = tuple[int, int]


@dataclass(frozen=True)
class Part:
    """Sizes for which the code is right, wherever `conditions` hold; none: proven. `interval` None: there is no size."""

    interval: Interval | None
    conditions: tuple[sympy.Basic, ...] = ()


@dataclass(frozen=True)
class Proof:
    """Where the code is right: sorted, disjoint parts, and all that it relies on."""

    parts: list[Part]
    conditions: list[sympy.Basic]

    @property
    def intervals(self) -> list[Interval]:
        """What is proven."""
        return [part.interval for part in self.parts if part.interval and not part.conditions]


class _GaveUp(Exception):
    pass


def conditions(symbols: Symbols) -> list[sympy.Basic]:
    """Everything that the compile relied on beyond the bounds that it was given."""
    shape_env = symbols.shape_env
    found: list[sympy.Basic] = [guard.expr for guard in shape_env.guards]
    for symbol, bounds in symbols.bounds.items():
        now = shape_env.var_to_range[symbol]
        given = _range(bounds)
        if now.lower > given.lower:
            found.append(sympy.Ge(symbol, now.lower, evaluate=False))
        if now.upper < given.upper:
            found.append(sympy.Le(symbol, now.upper, evaluate=False))
    return [condition for condition in found if condition is not sympy.true]


def prove(
    symbols: Symbols,
    dispatched: sympy.Symbol | None,
    interval: Interval | None,
    can_guard: Callable[[sympy.Basic], bool] = lambda condition: False,
) -> Proof:
    """The part of `interval` for which every condition holds, whatever the other symbols are within their bounds.

    A condition that stays undecided is left in the parts that it belongs to where `can_guard` says that it can be decided
    later; elsewhere nothing is proven. Without a dispatched symbol there is nothing to split: the interval is one size, or
    None. Raises UnprovenRange for conditions that no size of the interval is known to meet.
    """
    open_conditions = conditions(symbols)
    ranges = {symbol: _range(bounds) for symbol, bounds in symbols.bounds.items()}
    parts = [Part(interval)]
    gave_up: list[_Refined] = []
    for condition in open_conditions:
        refined = _Refined(condition, dispatched, ranges, can_guard)
        try:
            parts = refined.exactly(parts)
        except _GaveUp:
            gave_up.append(refined)
    for refined in gave_up:
        # The other conditions may have narrowed the sizes to few enough.
        try:
            parts = refined.exactly(parts)
        except _GaveUp:
            parts = refined.coarsely(parts)
    if not parts:
        where = f"for sizes {interval[0]} to {interval[1]} " if interval else ""
        raise UnprovenRange(
            f"the compiled code {where}is only right where {_text(open_conditions)}, which is not known to hold for any of them"
        )
    return Proof(parts, open_conditions)


def is_right(symbols: Symbols, values: Mapping[str, int]) -> bool:
    """Whether every condition is known to hold for these values of the symbols, by name."""
    ranges = {
        symbol: ValueRanges(sympy.Integer(values[name]), sympy.Integer(values[name]))
        for name, symbol in symbols.by_name.items()
        if isinstance(symbol, sympy.Symbol)
    }
    return all(_decide(condition, ranges) is True for condition in conditions(symbols))


def remainder(interval: Interval, proven: list[Interval]) -> list[Interval]:
    """What is left of `interval` without the intervals `proven`, which are sorted."""
    left: list[Interval] = []
    low, high = interval
    for start, end in proven:
        if low < start:
            left.append((low, min(start - 1, high)))
        low = max(low, end + 1)
        if low > high:
            return left
    left.append((low, high))
    return left


class _Refined:
    """Parts of which one more condition is known: it holds there, or it is left among their conditions."""

    def __init__(
        self,
        condition: sympy.Basic,
        symbol: sympy.Symbol | None,
        ranges: dict[sympy.Symbol, ValueRanges],
        can_guard: Callable[[sympy.Basic], bool],
    ) -> None:
        self._condition = condition
        self._symbol = symbol
        self._ranges = ranges
        self._is_about_sizes = symbol in condition.free_symbols
        self._has_other_symbols = bool(condition.free_symbols - {symbol})
        self._can_guard = can_guard(condition)
        self._n_steps = 0

    def exactly(self, parts: list[Part]) -> list[Part]:
        """Down to single sizes. Raises _GaveUp."""
        self._n_steps = 0
        found: list[Part] = []
        for part in parts:
            self._split(part, 1, found)
            if len(found) > MAX_INTERVALS:
                raise _GaveUp
        return found

    def coarsely(self, parts: list[Part]) -> list[Part]:
        """Down to pieces of an interval, with the condition left where they are not decided."""
        if not self._can_guard:
            raise UnprovenRange(
                f"the compiled code is only right where {self._condition}, and that cannot be decided size by size with a "
                f"bounded effort, nor at a call"
            )
        self._n_steps = 0
        found: list[Part] = []
        for part in parts:
            smallest = max(1, (part.interval[1] - part.interval[0] + 1) // MAX_INTERVALS) if part.interval else 1
            self._split(part, smallest, found)
        return found if len(found) <= MAX_INTERVALS else [self._left(part) for part in parts]

    def _split(self, part: Part, smallest: int, found: list[Part]) -> None:
        self._n_steps += 1
        if self._n_steps > MAX_STEPS or len(found) > 2 * MAX_INTERVALS:
            raise _GaveUp
        answer = self._answer(part.interval)
        if answer is False:
            return
        if answer is True:
            _append(found, part)
            return
        low, high = part.interval or (0, 0)
        if high - low < smallest or not self._is_about_sizes or self._is_never_decided(low, high):
            if self._can_guard and part.interval:
                _append(found, self._left(part))
            return
        middle = (low + high) // 2
        self._split(Part((low, middle), part.conditions), smallest, found)
        self._split(Part((middle + 1, high), part.conditions), smallest, found)

    def _answer(self, interval: Interval | None) -> bool | None:
        if not self._is_about_sizes or interval is None or self._symbol is None:
            return _decide(self._condition, self._ranges)
        sizes = ValueRanges(sympy.Integer(interval[0]), sympy.Integer(interval[1]))
        return _decide(self._condition, {**self._ranges, self._symbol: sizes})

    def _is_never_decided(self, low: int, high: int) -> bool:
        """Whether single sizes are not decided either, since other symbols are: seen at three, and then not worth more."""
        return self._has_other_symbols and all(
            self._answer((size, size)) is None for size in (low, (low + high) // 2, high)
        )

    def _left(self, part: Part) -> Part:
        return Part(part.interval, (*part.conditions, self._condition))


def _append(found: list[Part], part: Part) -> None:
    """Adds a part behind the others; to the last of them, where they are alike and neighbours."""
    last = found[-1] if found else None
    if (
        last is not None
        and last.interval
        and part.interval
        and last.interval[1] == part.interval[0] - 1
        and last.conditions == part.conditions
    ):
        found[-1] = Part((last.interval[0], part.interval[1]), part.conditions)
    else:
        found.append(part)


def counterexamples(conditions: Sequence[sympy.Basic], symbols: Symbols) -> list[dict[str, int]]:
    """Hints, each by the name of one symbol, for which the conditions do not all hold; in the order of :func:`_ways_to_fail`."""
    names = {symbol: name for name, symbol in symbols.by_name.items()}
    free = set().union(*(condition.free_symbols for condition in conditions)) & symbols.hints.keys()
    near: list[tuple[sympy.Symbol, int]] = []
    for symbol in sorted(free, key=lambda symbol: names[symbol]):
        hint, bounds = symbols.hints[symbol], symbols.bounds[symbol]
        values = (hint + sign * distance for distance in range(1, MAX_CANDIDATES) for sign in (1, -1))
        near += [(symbol, value) for value in values if bounds.clamp(value) == value]
    return [{names[symbol]: value} for symbol, value in _ways_to_fail(conditions, symbols, near)]


def sizes_to_try(
    conditions: Sequence[sympy.Basic],
    symbols: Symbols,
    dispatched: str,
    interval: Interval,
    settled: Sequence[Interval] = (),
) -> list[dict[str, int]]:
    """Hints for a compile of sizes where the conditions of another do not hold; in the order of :func:`_ways_to_fail`. None of them is
    `settled`: those sizes have code."""
    symbol = symbols.by_name[dispatched]
    low, high = interval
    low = next((start for start, _ in remainder(interval, list(settled))), low)
    if not isinstance(symbol, sympy.Symbol):
        return [{dispatched: low}]
    hint = symbols.hints[symbol]
    ends = {*range(low, min(low + MAX_CANDIDATES, high + 1)), *range(max(high - MAX_CANDIDATES, low), high + 1)}
    ends = {size for size in ends if not any(start <= size <= end for start, end in settled)}
    near = [(symbol, size) for size in sorted(ends, key=lambda size: (abs(size - hint), size))]
    return [{dispatched: size} for _, size in _ways_to_fail(conditions, symbols, near)] or [{dispatched: low}]


def _ways_to_fail(
    conditions: Sequence[sympy.Basic], symbols: Symbols, candidates: Sequence[tuple[sympy.Symbol, int]]
) -> list[tuple[sympy.Symbol, int]]:
    """The first candidate for each combination of conditions that do not hold; the smallest combinations first, and few.

    Some conditions are there because the graph takes nothing else, some because a compile made something special (a size of
    1, two that are equal). Which is which only shows where a compile for the others is tried.
    """
    found: dict[tuple[int, ...], tuple[sympy.Symbol, int]] = {}
    for symbol, value in candidates:
        values = {**symbols.hints, symbol: value}
        ranges = {other: ValueRanges(sympy.Integer(size), sympy.Integer(size)) for other, size in values.items()}
        failing = tuple(i for i, condition in enumerate(conditions) if _decide(condition, ranges) is False)
        if failing:
            found.setdefault(failing, (symbol, value))
    return [found[failing] for failing in sorted(found, key=len)][:MAX_WAYS]


def _decide(condition: sympy.Basic, ranges: dict[sympy.Symbol, ValueRanges]) -> bool | None:
    """Whether the condition holds (or fails) for all values of its symbols within `ranges`; None: not known."""
    free = condition.free_symbols
    if any(symbol not in ranges for symbol in free):
        return None
    if all(ranges[symbol].is_singleton() for symbol in free):
        values = {symbol: int(ranges[symbol].lower) for symbol in free}
        try:
            return bool(sympy_interp(PythonReferenceAnalysis, values, condition))
        except ArithmeticError:
            # What has no value does not hold.
            return False
    answer = bound_sympy(condition, {symbol: ranges[symbol] for symbol in free})
    return bool(answer.lower) if answer.is_singleton() else None


def _range(bounds: Bounds) -> ValueRanges:
    low = -int_oo if bounds.low is None else sympy.Integer(bounds.low)
    high = int_oo if bounds.high is None else sympy.Integer(bounds.high)
    return ValueRanges(low, high)


def _text(open_conditions: list[sympy.Basic]) -> str:
    return " and ".join(str(condition) for condition in open_conditions) or "true"
