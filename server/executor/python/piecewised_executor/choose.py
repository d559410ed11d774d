"""Which candidate runs which sizes, from measured times: pure, and the same for the same numbers.

The rules: no size that was measured becomes slower than with the generic code, nor one between two of which one would; the
best over the range wins; a range is divided where another candidate wins by more than noise, and not otherwise, since each
part is another program to load.

docs/tuning.md of the project has the measurements that the numbers below come from.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

Interval = tuple[int, int]


@dataclass(frozen=True)
class Trust:
    """How far medians are believed, as fractions. Slower than the generic code by less than `noise` is not slower: medians of equal code
    differ by so much. `min_gain` is what one more part has to win, summed over the sizes that it runs."""

    noise: float
    min_gain: float


# Kernels replayed on a GPU that does nothing else, and calls on a CPU that others use too.
GPU = Trust(noise=0.01, min_gain=0.01)
CPU = Trust(noise=0.05, min_gain=0.15)


@dataclass(frozen=True)
class Measured:
    """A candidate: the sizes it is proven for, and what it takes at the sizes that were measured."""

    intervals: list[Interval]
    times_us: dict[int, float]

    def covers(self, interval: Interval) -> bool:
        """Whether it is proven for all of the interval."""
        return any(low <= interval[0] and interval[1] <= high for low, high in self.intervals)


def choose(candidates: list[Measured], interval: Interval, trust: Trust) -> list[tuple[Interval, int]]:
    """Divides `interval` and gives for each part, in order, the position of the candidate that runs it.

    The first candidate is the generic one, which the others are held against; where it was not measured or is not proven,
    the best is taken. Sizes that no candidate is proven for are in no part.
    """
    parts: list[tuple[Interval, int]] = []
    for piece in _elementary(candidates, interval):
        eligible = [i for i, candidate in enumerate(candidates) if candidate.covers(piece)]
        if eligible:
            parts += _divide(candidates, eligible, piece, trust)
    return _joined(parts)


def _elementary(candidates: list[Measured], interval: Interval) -> list[Interval]:
    """The interval, cut wherever some candidate's proof begins or ends."""
    low, high = interval
    starts = {low}
    for candidate in candidates:
        for start, end in candidate.intervals:
            starts.update(cut for cut in (start, end + 1) if low < cut <= high)
    ordered = sorted(starts)
    return [(start, end - 1) for start, end in zip(ordered, [*ordered[1:], high + 1], strict=True)]


def _divide(
    candidates: list[Measured], eligible: list[int], piece: Interval, trust: Trust
) -> list[tuple[Interval, int]]:
    sizes = sorted({size for i in eligible for size in candidates[i].times_us if piece[0] <= size <= piece[1]})
    if not sizes:
        # Nothing is known: the code that was narrowed to the range, if there is one, else the generic code.
        return [(piece, eligible[min(1, len(eligible) - 1)])]
    costs = [_costs(candidates, eligible, size, trust.noise) for size in sizes]
    # The cheapest way to run sizes[:k + 1] that ends with candidate i, and the candidate before the last change.
    best: list[dict[int, tuple[float, int]]] = [{i: (cost, i) for i, cost in costs[0].items()}]
    for cost in costs[1:]:
        before = best[-1]
        leader = min(before, key=lambda i: (before[i][0], i))
        row = {}
        for i, own in cost.items():
            stay = before[i][0] if i in before else math.inf
            change = before[leader][0] + trust.min_gain
            row[i] = (stay + own, i) if stay <= change else (change + own, leader)
        best.append(row)
    last = min(best[-1], key=lambda i: (best[-1][i][0], i))
    chosen = [last]
    for row in reversed(best[1:]):
        chosen.append(row[chosen[-1]][1])
    chosen.reverse()
    parts = []
    start = piece[0]
    for k, (now, then) in enumerate(itertools.pairwise(chosen)):
        for end, candidate in _change(sizes[k], sizes[k + 1], now, then, costs[k : k + 2]):
            if start <= end:
                parts.append(((start, end), candidate))
                start = end + 1
    return [*parts, ((start, piece[1]), last)]


def _change(low: int, high: int, now: int, then: int, costs: Sequence[dict[int, float]]) -> Iterator[tuple[int, int]]:
    """Who runs up to which size where `now` runs `low` and `then` runs `high`, the next size that was measured.

    Times between the two are not known, and change in steps (code for tiles of 64 rows takes twice as long from 65 rows up): a
    candidate runs sizes between two only where it may run both. `costs`: of those that may, at `low` and at `high`.
    """
    now_may, then_may = now in costs[1], then in costs[0]
    if now == then:
        yield high - 1, now
    elif now_may == then_may:
        if not now_may and 0 in costs[0] and 0 in costs[1]:
            yield low, now
            yield high - 1, 0
        else:
            # To the nearer, by ratio.
            yield max(int(math.sqrt(low * high)), low), now
    else:
        yield (high - 1 if now_may else low), now


def _costs(candidates: list[Measured], eligible: list[int], size: int, noise: float) -> dict[int, float]:
    """By candidate, the logarithm of its time over the generic one's; without those that are slower than it."""
    times = {i: candidates[i].times_us[size] for i in eligible if size in candidates[i].times_us}
    reference = times.get(0)
    if reference is not None:
        times = {i: time for i, time in times.items() if i == 0 or time <= reference * (1 + noise)}
    base = reference if reference is not None else min(times.values())
    return {i: math.log(time / base) for i, time in times.items()}


def _joined(parts: list[tuple[Interval, int]]) -> list[tuple[Interval, int]]:
    joined: list[tuple[Interval, int]] = []
    for (start, end), candidate in parts:
        if joined and joined[-1][1] == candidate and joined[-1][0][1] == start - 1:
            joined[-1] = ((joined[-1][0][0], end), candidate)
        else:
            joined.append(((start, end), candidate))
    return joined
