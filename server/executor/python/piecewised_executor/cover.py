"""How one range is covered by several compiles, and the segments that come of it.

A first compile is made for the whole range. What it is not right for is compiled apart:

* sizes that its conditions exclude: each stretch of them by itself while there are few, else all of them at once;
* sizes among those that a guard decides: once, thinking of a size for which the guard is false.

So the compiles of one range are bounded. Sizes that the graph's own operators refuse are left in no segment: nothing can run
them. Sizes that nothing was proven for although the graph takes them fail the range; where a guard stands before them, the
dispatcher says so at the call.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from .errors import JobError, OperatorRefused, Outside, UnprovenRange, Unsupported
from .guards import Guards
from .prove import Interval, Proof, counterexamples, remainder, sizes_to_try
from .symbols import Symbols

# How often one range is compiled, and how often its graph is rebuilt to try. A graph whose operators refuse costs little.
MAX_COMPILES = 8
MAX_TRIES = 64


@dataclass(frozen=True)
class Task:
    """One compile to make: for these sizes (None: there is nothing to dispatch on)."""

    interval: Interval | None
    #: What to think of, by the symbol's name.
    hints: dict[str, int] = field(default_factory=dict)
    #: What to think of where the graph's operators refuse that.
    other_hints: tuple[dict[str, int], ...] = ()
    #: Its remainder is not compiled again.
    is_last: bool = False
    #: It is only worth something where it succeeds: a guard stands before these sizes.
    is_optional: bool = False


class Cover:
    """The segments of one range, as compiles come in. Take `next`, then say `add` or `failed`, until there is none.

    `settle` says beforehand what runs some of the sizes: those are left to it, and only the others are covered.
    """

    def __init__(self, whole: Interval | None, dispatched: str | None, guards: Guards) -> None:
        self._whole = whole
        self._dispatched = dispatched
        self._guards = guards
        self._pending = [Task(whole)]
        self._n_tries = 0
        self._n_compiles = 0
        self._settled: list[Interval] = []
        self._plain: list[dict[str, Any]] = []
        self._guarded: list[dict[str, Any]] = []
        self._refused: list[Interval] = []
        self._reasons: list[str] = []

    def settle(self, interval: Interval | None, entry: str) -> None:
        """Sizes that are proven for code which is there already."""
        self._plain.append(_segment(interval, entry, []))
        if interval:
            self._settled = sorted([*self._settled, interval])
        if interval is None or (self._whole and not remainder(self._whole, self._settled)):
            self._pending = []

    def next(self) -> Task | None:
        """The next compile."""
        if not self._pending or self._n_compiles == MAX_COMPILES or self._n_tries == MAX_TRIES:
            return None
        self._n_tries += 1
        self._n_compiles += 1
        return self._pending.pop(0)

    def add(self, task: Task, entry: str, proof: Proof, symbols: Symbols) -> bool:
        """A compile came out. Whether it is used."""
        self._reasons += [str(condition) for condition in proof.conditions]
        n_before = len(self._plain) + len(self._guarded)
        for part in proof.parts:
            if part.conditions:
                pieces = remainder(part.interval, self._settled) if part.interval else []
                guards = self._guards.of(part.conditions, symbols) if pieces else []
                pieces = [piece for piece in pieces if not self._never_runs(piece, guards)]
                self._guarded += [_segment(piece, entry, guards) for piece in pieces]
            elif part.interval is None:
                self._plain.append(_segment(None, entry, []))
            else:
                for piece in remainder(part.interval, _intervals(self._plain)):
                    self._plain.append(_segment(piece, entry, []))
        if task.interval and not task.is_last:
            self._follow_up(task.interval, proof, symbols)
        return len(self._plain) + len(self._guarded) > n_before

    def failed(self, task: Task, error: JobError) -> None:
        """A compile failed. Raises where the range fails by it."""
        if self._n_tries == 1 or task.interval is None or isinstance(error, (*Outside, Unsupported)):
            raise error
        if isinstance(error, OperatorRefused):
            self._n_compiles -= 1
            if task.other_hints:
                hints, *others = task.other_hints
                self._pending.insert(0, replace(task, hints=hints, other_hints=tuple(others)))
            elif not task.is_optional:
                self._refused.append(task.interval)
        elif not task.is_optional:
            # The first compile said what it needs; that these sizes do not compile apart is the lesser news.
            raise UnprovenRange(self._not_covered(task.interval, f"compiling them apart failed: {error}")) from error

    def segments(self) -> list[dict[str, Any]]:
        """Those with guards first, since where they take a call nothing else is asked. Raises UnprovenRange."""
        if self._whole:
            settled = [*_intervals(self._plain), *_intervals(self._guarded), *self._refused]
            left = remainder(self._whole, sorted(settled))
            if left:
                raise UnprovenRange(self._not_covered(left[0], f"after {self._n_compiles} compiles"))
        return [*self._guarded, *sorted(self._plain, key=lambda segment: segment["range"] or [])]

    def _never_runs(self, interval: Interval, guards: list[dict[str, Any]]) -> bool:
        """Whether a segment before it takes every call that it would."""
        return any(
            segment["range"][0] <= interval[0]
            and interval[1] <= segment["range"][1]
            and all(guard in guards for guard in segment["guards"])
            for segment in self._guarded
        )

    def _follow_up(self, interval: Interval, proof: Proof, symbols: Symbols) -> None:
        covered = [*(part.interval for part in proof.parts if part.interval), *self._settled]
        gaps = remainder(interval, sorted(covered))
        if self._dispatched:
            if is_last := len(gaps) > MAX_COMPILES - self._n_compiles:
                gaps = [(gaps[0][0], gaps[-1][1])]
            for gap in gaps:
                hints, *others = sizes_to_try(proof.conditions, symbols, self._dispatched, gap, self._settled)
                self._pending.append(Task(gap, hints, tuple(others), is_last))
        guarded = [
            part
            for part in proof.parts
            if part.conditions and part.interval and remainder(part.interval, self._settled)
        ]
        if guarded and (hints := counterexamples(guarded[0].conditions, symbols)):
            intervals = [part.interval for part in guarded if part.interval]
            hull = (intervals[0][0], intervals[-1][1])
            self._pending.append(Task(hull, hints[0], tuple(hints[1:]), is_last=True, is_optional=True))

    def _not_covered(self, interval: Interval, why: str) -> str:
        needed = "; ".join(dict.fromkeys(self._reasons)) or "none"
        return f"sizes {interval[0]} to {interval[1]} remain unproven {why}; guards of what was compiled: {needed}"


def _segment(interval: Interval | None, entry: str, guards: list[dict[str, Any]]) -> dict[str, Any]:
    return {"range": list(interval) if interval else None, "entry": entry, "guards": guards}


def _intervals(segments: list[dict[str, Any]]) -> list[Interval]:
    return sorted((segment["range"][0], segment["range"][1]) for segment in segments)
