"""For which sizes compiled code is right: read from what the compile left in its ShapeEnv.

Whatever the compiler took for granted about a symbol is either a narrower value range or a guard. Each is decided for
every size of the interval that the code is meant for, never for a sample: by interval arithmetic over ever smaller
parts, down to single sizes, which are evaluated exactly. Nothing is proven where that ends without an answer.
"""

from __future__ import annotations

from dataclasses import dataclass

import sympy
from torch.utils._sympy.interp import sympy_interp
from torch.utils._sympy.numbers import int_oo
from torch.utils._sympy.reference import PythonReferenceAnalysis
from torch.utils._sympy.value_ranges import ValueRanges, bound_sympy

from .errors import UnprovenRange
from .symbols import Bounds, Symbols

# Parts of one interval that are looked at, and intervals that come out, before giving up. A guard that needs more
# (multiples of 8 in a range of thousands) is one that a dispatcher of ranges can't express.
MAX_STEPS = 4096
MAX_INTERVALS = 32

Interval = tuple[int, int]


@dataclass(frozen=True)
class Proof:
    """Where the code is right: sorted intervals, and what excluded the rest, as text."""

    intervals: list[Interval]
    guards: list[str]


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


def prove(symbols: Symbols, dispatched: sympy.Symbol | None, interval: Interval | None) -> Proof:
    """The part of `interval` for which every condition holds, whatever the other symbols are within their bounds.

    Without a dispatched symbol there is nothing to choose by: every condition must hold, and the proof is empty.
    Raises UnprovenRange for conditions that no size of the interval is known to meet.
    """
    open_conditions = conditions(symbols)
    ranges = {symbol: _range(bounds) for symbol, bounds in symbols.bounds.items()}
    if dispatched is None or interval is None:
        for condition in open_conditions:
            if _decide(condition, ranges) is not True:
                raise UnprovenRange(f"the compiled code is only right where {condition}, which is not known to hold")
        return Proof([], [])
    found: list[Interval] = []
    guards = [str(condition) for condition in open_conditions if dispatched in condition.free_symbols]
    try:
        _Search(dispatched, ranges, found).run(open_conditions, interval)
    except _GaveUp:
        raise UnprovenRange(
            f"the compiled code for sizes {interval[0]} to {interval[1]} is only right where "
            f"{_text(open_conditions)}, and that cannot be decided size by size with a bounded effort"
        ) from None
    if not found:
        raise UnprovenRange(
            f"the compiled code for sizes {interval[0]} to {interval[1]} is only right where "
            f"{_text(open_conditions)}, which is not known to hold for any of them"
        )
    return Proof(found, guards)


def remainder(interval: Interval, proven: list[Interval]) -> list[Interval]:
    """What is left of `interval` without the sorted, disjoint intervals `proven`."""
    left: list[Interval] = []
    low, high = interval
    for start, end in proven:
        if low < start:
            left.append((low, start - 1))
        low = end + 1
    if low <= high:
        left.append((low, high))
    return left


class _Search:
    """Appends to `found`, in ascending order, the parts of an interval where all conditions hold."""

    def __init__(self, symbol: sympy.Symbol, ranges: dict[sympy.Symbol, ValueRanges], found: list[Interval]) -> None:
        self._symbol = symbol
        self._ranges = ranges
        self._found = found
        self._n_steps = 0

    def run(self, open_conditions: list[sympy.Basic], interval: Interval) -> None:
        self._n_steps += 1
        if self._n_steps > MAX_STEPS:
            raise _GaveUp
        low, high = interval
        ranges = {**self._ranges, self._symbol: ValueRanges(sympy.Integer(low), sympy.Integer(high))}
        decided = [(condition, _decide(condition, ranges)) for condition in open_conditions]
        if any(answer is False for _, answer in decided):
            return
        undecided = [condition for condition, answer in decided if answer is None]
        if not undecided:
            self._add(low, high)
        elif low < high:
            middle = (low + high) // 2
            self.run(undecided, (low, middle))
            self.run(undecided, (middle + 1, high))

    def _add(self, low: int, high: int) -> None:
        if self._found and self._found[-1][1] == low - 1:
            self._found[-1] = (self._found[-1][0], high)
        elif len(self._found) == MAX_INTERVALS:
            raise _GaveUp
        else:
            self._found.append((low, high))


def _decide(condition: sympy.Basic, ranges: dict[sympy.Symbol, ValueRanges]) -> bool | None:
    """Whether the condition holds (or fails) for all values of its symbols within `ranges`; None: not known."""
    free = condition.free_symbols
    if any(symbol not in ranges for symbol in free):
        return None
    if all(ranges[symbol].is_singleton() for symbol in free):
        values = {symbol: int(ranges[symbol].lower) for symbol in free}
        return bool(sympy_interp(PythonReferenceAnalysis, values, condition))
    answer = bound_sympy(condition, {symbol: ranges[symbol] for symbol in free})
    return bool(answer.lower) if answer.is_singleton() else None


def _range(bounds: Bounds) -> ValueRanges:
    low = -int_oo if bounds.low is None else sympy.Integer(bounds.low)
    high = int_oo if bounds.high is None else sympy.Integer(bounds.high)
    return ValueRanges(low, high)


def _text(open_conditions: list[sympy.Basic]) -> str:
    return " and ".join(str(condition) for condition in open_conditions) or "true"
