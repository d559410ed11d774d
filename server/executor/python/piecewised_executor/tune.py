"""`tuning: full`: several ways to compile each interval, timed over it on the device, and the best of each size kept.

Candidates, each with a cache of its own (Inductor's caches know neither hint nor range):

* `generic`: what torch.compile does that knows nothing of ranges. The others are held against it.
* `range`: narrowed to the interval, with the hint of the request; on a CPU also with the interval's ends as hints.
* `autotuned` (GPUs): narrowed, with max_autotune and coordinate descent, at the hint and at the interval's ends; twice
  where these are all one size.

They are measured in one process that loads them as a worker does, in turn, on the same inputs, at the interval's ends, its
hint and the powers of two between. `choose` has the rules. A candidate that does not compile, or not for all sizes, costs
only itself.

Only what is proven is measured and chosen: code that is right under guards runs the calls that they let through, and two such
codes are not comparable. Sizes for which no candidate is proven are in no part; `cover` sees to them.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from . import check
from .choose import CPU, GPU, Measured, choose
from .errors import Interrupted, JobError, describe
from .pack import Container
from .parts import Job, Part, Recipe, compile_interval, stock_recipe
from .prove import Interval, remainder
from .runtime import fingerprint
from .trials import Nursery

_AUTOTUNED = {"max_autotune": True, "coordinate_descent_tuning": True}
# Coordinate descent takes the first improvement that it sees in times that are never quite the same, and ends in another optimum
# each time: two searches over the same kernels gave code of 118 and 126 us. Over a range other hints are searches enough.
_N_SEARCHES = 2
# How many sizes of an interval are measured, and the largest of them.
_MAX_SIZES = 12
_LARGEST_SIZE = 1 << 16
# Compiles of one job: intervals are divided by what candidates are proven for, and each part has candidates of its own.
_MAX_CANDIDATES = 48
# In more stretches than this lie sizes that the graph does not take; they have nothing to tune.
_MAX_STRETCHES = 4


@dataclass
class Candidate:
    """One compile and what became of it. `entries` is filled in when the artifact is packed."""

    recipe: Recipe
    compile_s: float
    part: Part | None = None
    #: What the part is proven for; empty: any call of a graph without symbolic input.
    intervals: list[Interval] = field(default_factory=list)
    failure: str = ""
    latencies: list[dict[str, Any]] | None = None
    entries: list[str] | None = None

    def report(self) -> dict[str, Any]:
        """As in the handle."""
        return {
            "name": self.recipe.name,
            "hint": self.recipe.hint,
            "compile_s": self.compile_s,
            "latencies": self.latencies or [],
            "entries": self.entries or [],
            "failure": self.failure,
        }


@dataclass
class Tuned:
    """`chosen`: what runs which sizes (None: any), ascending. `narrowed`: the compile of all sizes that `cover` would begin with, where
    there is one."""

    chosen: list[tuple[Interval | None, Candidate]]
    candidates: list[Candidate]
    notes: list[str]
    seconds: float
    narrowed: Part | None = None

    def report(self) -> dict[str, Any]:
        """The TuningReport of the handle."""
        return {
            "mode": "full",
            "candidates": [candidate.report() for candidate in self.candidates],
            "seconds": self.seconds,
            "note": "; ".join(dict.fromkeys(note for note in self.notes if note)),
        }


def tune(job: Job, nursery: Nursery, whole: Interval | None) -> Tuned:
    """Compiles, measures and chooses for the sizes of `whole` for which a candidate is proven. Raises JobError where none compiles."""
    started = time.monotonic()
    tuned = Tuned([], [], [], 0.0)
    pending: list[Interval | None] = [whole]
    while pending:
        interval = pending.pop(0)
        is_first = not tuned.candidates
        try:
            candidates = _compile_all(job, interval, _MAX_CANDIDATES - len(tuned.candidates))
        except Interrupted:
            raise
        except JobError:
            if is_first:
                raise
            continue
        tuned.candidates += candidates
        if is_first:
            narrowed = (candidate.part for candidate in candidates if candidate.recipe.name == "range")
            tuned.narrowed = next((part for part in narrowed if part is not None), None)
        working = [candidate for candidate in candidates if candidate.part is not None and _is_proven(candidate.part)]
        tuned.notes += [candidate.part.note for candidate in working if candidate.part is not None]
        with job.phases.phase("tune"):
            tuned.notes += _measure(job, nursery, interval, working)
        if not working:
            continue
        if interval is None:
            tuned.chosen.append((None, min(working, key=_median)))
            continue
        measured = [_measured(candidate) for candidate in working]
        chosen = choose(measured, interval, GPU if job.on_gpu else CPU)
        tuned.chosen += [(sizes, working[i]) for sizes, i in chosen]
        left = remainder(interval, [sizes for sizes, _ in chosen])
        # What nothing was chosen for is not tried the same way again: it is left to `cover`.
        pending += left if left != [interval] and len(left) <= _MAX_STRETCHES else []
    tuned.chosen.sort(key=lambda item: item[0] or (0, 0))
    tuned.seconds = time.monotonic() - started
    return tuned


def recipes(interval: Interval | None, hint: int | None, on_gpu: bool) -> list[Recipe]:
    """The ways to compile an interval that are tried; the generic one first."""
    if interval is None:
        return [Recipe("generic", None), *(_searches(None) if on_gpu else [])]
    low, high = interval
    inside = min(max(hint if hint is not None else low, low), high)
    ends = [max(low, min(2, high)), min(high, _LARGEST_SIZE)]
    hints = list(dict.fromkeys([inside, *ends]))
    # Stock's code is not proven for size 1 and less.
    stock = [stock_recipe()] if high >= 2 else []
    if not on_gpu:
        return [*stock, *(Recipe("range", hint) for hint in hints)]
    autotuned = [_autotuned(hint) for hint in hints] if low < high else _searches(inside)
    return [*stock, Recipe("range", inside), *autotuned]


def _searches(hint: int | None) -> list[Recipe]:
    return [_autotuned(hint, search) for search in range(_N_SEARCHES)]


def _autotuned(hint: int | None, search: int = 0) -> Recipe:
    return Recipe("autotuned", hint, patches=_AUTOTUNED, search=search)


def sizes_to_measure(interval: Interval, hint: int | None) -> list[int]:
    """The interval's ends, the hint, and powers of two between: the ends first, then outwards from the middle."""
    low, high = interval[0], max(min(interval[1], _LARGEST_SIZE), interval[0])
    powers = [1 << k for k in range(low.bit_length() - 1, high.bit_length()) if low < 1 << k < high]
    wanted = [low, high, *([hint] if hint is not None and low <= hint <= high else [])]
    room = _MAX_SIZES - len(set(wanted))
    if len(powers) > room:
        step = len(powers) / room
        powers = [powers[int(i * step)] for i in range(room)]
    return sorted({*wanted, *powers})


def _is_proven(part: Part) -> bool:
    """Whether there are sizes that it runs without a guard."""
    return any(not proven.conditions for proven in part.proof.parts)


def _compile_all(job: Job, interval: Interval | None, room: int) -> list[Candidate]:
    candidates: list[Candidate] = []
    first: JobError | None = None
    for recipe in recipes(interval, job.hint, job.on_gpu)[: max(room, 2)]:
        started = time.monotonic()
        try:
            part = compile_interval(job, interval, recipe)
            # Static code has nothing to prove: it is for the one size that it was made for.
            intervals = part.proof.intervals or ([interval] if interval is not None else [])
            failure = "" if _is_proven(part) else "its code is right under guards only, so that it is not compared"
            candidates.append(Candidate(recipe, part.seconds, part, intervals, failure))
        except Interrupted:
            # Whatever this one would have been: a try without it would choose differently.
            raise
        except JobError as error:
            # The narrowed code's own words are the ones that a caller without tuning would hear.
            first = error if first is None or recipe.name == "range" else first
            candidates.append(Candidate(recipe, time.monotonic() - started, failure=describe(error)[:2000]))
    if first is not None and all(candidate.part is None for candidate in candidates):
        raise first
    return candidates


def _measure(job: Job, nursery: Nursery, interval: Interval | None, working: list[Candidate]) -> list[str]:
    """Fills in the latencies; gives notes."""
    if len(working) < 2:
        return []
    containers = []
    for candidate in working:
        assert candidate.part is not None
        container = Container(job.format)
        container.add("e0", candidate.part.rebuilt, candidate.part.program)
        spans: list[Any] = [list(sizes) for sizes in candidate.intervals] or [None]
        segments = [{"range": span, "entry": "e0", "guards": []} for span in spans]
        artifact = container.to_bytes(fingerprint.toolchain(), job.request["device"])
        containers.append((artifact, segments))
    sizes: list[int | None] = [None] if interval is None else list(sizes_to_measure(interval, job.hint))
    latencies, notes = check.measure(nursery, job.request, job.dispatched, containers, sizes)
    for candidate, times in zip(working, latencies, strict=True):
        candidate.latencies = times
    return notes


def _measured(candidate: Candidate) -> Measured:
    times = {latency["size"]: latency["median_us"] for latency in candidate.latencies or []}
    return Measured(candidate.intervals, times)


def _median(candidate: Candidate) -> float:
    return candidate.latencies[0]["median_us"] if candidate.latencies else float("inf")
