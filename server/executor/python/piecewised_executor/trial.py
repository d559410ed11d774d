"""One trial, in the fresh process that `trials` made for it: artifacts against eager, and how long they take.

A request holds the graph, which symbol is dispatched, the points to look at (most important first), the torch settings of
the compile, and the artifacts: the folder of each and its segments. A point that no artifact has a segment for is not run. Every size is bounded: what does not fit into
the memory that is free, or would take too long, is replaced by the largest size that does, or left out; the result's
notes say so.

What is found wrong is raised as VerificationFailed. What cannot be found out (eager does not take made-up inputs, the graph
draws random numbers) is a note.
"""

from __future__ import annotations

import base64
import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from . import compare, frontends, inputs, lease, settings, timing, unset
from .errors import OperatorRefused, VerificationFailed, describe
from .points import Picker, Point
from .rebuild import Rebuilt
from .runtime import outputs
from .runtime.load import load_entry


class CudaIsLost(Exception):
    """The process was forked from one that had started CUDA."""


class UnusableInputs(Exception):
    """Eager made the GPU fail on what was made up for it."""


# Of the memory that is free now, what one case may take, and the most in bytes. The inference engine owns the rest.
_SHARE_OF_MEMORY = 0.5
_MAX_BYTES = {"cpu": 1 << 30, "cuda": 16 << 30}
# On a CPU eager is slow: a size that is expected to take longer than this is not run.
_MAX_SECONDS_PER_SIZE = 20.0
SEED = 0


@dataclass
class Artifact:
    """A materialised artifact, and what a dispatcher takes of it."""

    folder: str
    segments: list[dict[str, Any]]
    picker: Picker
    loaded: dict[str, Callable[..., Any]] = field(default_factory=dict)

    def segment(self, point: Point) -> dict[str, Any] | None:
        """What runs a point; None: nothing does."""
        position = self.picker.pick(point)
        return None if position is None else self.segments[position]

    def entry(self, point: Point) -> str | None:
        """The name of the entry for a point; None: no segment has it."""
        segment = self.segment(point)
        return None if segment is None else segment["entry"]

    def callable(self, point: Point) -> Callable[..., Any]:
        """What runs a point."""
        entry = self.entry(point)
        assert entry is not None
        return self.load(entry)

    def load(self, entry: str) -> Callable[..., Any]:
        """An entry, loaded once."""
        if entry not in self.loaded:
            self.loaded[entry] = load_entry(self.folder, entry)
        return self.loaded[entry]


class Trial:
    """What is the same for every size of a request."""

    def __init__(self, request: dict[str, Any]) -> None:
        self.graph: dict[str, Any] = request["graph"]
        self.dispatched: str | None = request["dispatched"]
        self.device_type: str = request["device_type"]
        self.artifacts = [
            Artifact(folder, segments, Picker(self.graph, self.dispatched, segments))
            for folder, segments in ((artifact["folder"], artifact["segments"]) for artifact in request["artifacts"])
        ]
        self.precision: str = request["torch"].get("float32_matmul_precision", "highest")
        self.notes: list[str] = []
        self.frontend = frontends.find(request["frontend"], base64.b64decode(request["payload"]))
        self.integer_bounds: list[int] = list(request["integer_bounds"])
        self.compares: bool = request["compare"]
        # Seconds of one eager call, by elements of the dispatched dimension: what larger sizes are estimated from.
        self.eager_s: tuple[int, float] | None = None

    def note(self, text: str) -> None:
        """Notes something once."""
        if text not in self.notes:
            self.notes.append(text)

    def took(self, size: int | None, seconds: float) -> None:
        """Eager took so long for a size."""
        if size is not None and (self.eager_s is None or size > self.eager_s[0]):
            self.eager_s = (size, seconds)

    def cases(self, points: list[Point]) -> Iterator[tuple[Rebuilt, Point]]:
        """What is run of the points: those that an artifact has a segment for, as far as they fit, each once."""
        seen: set[Any] = set()
        for point in points:
            prepared = self.prepared(point) if self.serves(point) else None
            if prepared is not None and prepared[1].identity not in seen:
                seen.add(prepared[1].identity)
                yield prepared

    def serves(self, point: Point) -> bool:
        """Whether an artifact has a segment for a point."""
        return any(artifact.segment(point) is not None for artifact in self.artifacts)

    def prepared(self, point: Point) -> tuple[Rebuilt, Point] | None:
        """The fake case for `point`, or for the largest smaller size of the same segments that memory and time allow; None: none."""
        wanted = size = point.size
        floor = self._floor(point)
        while True:
            try:
                fake = inputs.fake_case(self.graph, self.dispatched, size, point.others, self.frontend)
            except OperatorRefused as error:
                self.note(f"{point.at(size)} was left out, the graph does not take it: {describe(error)[:200]}")
                return None
            needed = inputs.n_peak_bytes(fake) * 2
            free = min(_free_bytes(self.device_type) * _SHARE_OF_MEMORY, _MAX_BYTES[self.device_type])
            expected_s = 0.0
            if size is not None and self.eager_s is not None and self.device_type == "cpu":
                expected_s = self.eager_s[1] * size / max(self.eager_s[0], 1)
            if needed <= free and expected_s <= _MAX_SECONDS_PER_SIZE:
                if size != wanted:
                    self.note(f"size {wanted} does not fit; {size} stands for it")
                return fake, point.at(size)
            smaller = self._smaller(point, size, floor)
            if smaller is None:
                self.note(
                    f"size {wanted} was left out: it needs some {needed / 1e9:.1f} GB where {free / 1e9:.1f} GB may be used"
                    if needed > free
                    else f"size {wanted} was left out: one call would take some {expected_s:.0f} s"
                )
                return None
            size = smaller

    def _smaller(self, point: Point, size: int | None, floor: int) -> int | None:
        while size is not None and size // 2 >= floor:
            size //= 2
            if self.serves(point.at(size)):
                return size
        return None

    def _floor(self, point: Point) -> int:
        """The least size of the segments that run a point."""
        segments = [artifact.segment(point) for artifact in self.artifacts]
        return max((segment["range"][0] for segment in segments if segment and segment["range"]), default=1)


#: Has the project's runner try what a folder holds; gives its result, or "failed" or "unusable" with a sentence.
AskRunner = Callable[[str], "dict[str, Any]"]


def run(request: dict[str, Any], ask_runner: AskRunner | None = None) -> dict[str, Any]:
    """`checks` ([CheckedSize], where `compare` was asked for) with the segments that they ran (`compared`), `latencies` (per artifact, where `measure` was), `notes`,
    `is_comparable`, and `checker`: "runner" where it was asked and ran the code, else "executor". Raises VerificationFailed."""
    if request["device_type"] == "cuda" and torch.cuda._is_in_bad_fork():
        raise CudaIsLost
    with torch.no_grad(), settings.torch_settings(request["torch"]), contextlib.ExitStack() as stack:
        trial = Trial(request)
        stack.enter_context(trial.frontend.running())
        result: dict[str, Any] = {"checks": [], "compared": [], "latencies": [[] for _ in trial.artifacts]}
        points = [Point(*point) for point in request["points"]]
        if ask_runner is not None:
            from . import by_runner

            if (found := by_runner.run(trial, points, request["measure_s"], ask_runner)) is not None:
                return {**found, "notes": trial.notes, "is_comparable": True, "checker": "runner"}
        # A worker loads everything that a handle names: an entry that no size below asks for must load too.
        for artifact in trial.artifacts:
            for segment in artifact.segments:
                artifact.load(segment["entry"])
        is_comparable = True
        for fake, actual in trial.cases(points):
            if request["compare"] and is_comparable:
                checked = _check(trial, fake, actual)
                is_comparable = checked is not None
                if checked is not None:
                    result["checks"].append(checked)
                    result["compared"].append(trial.artifacts[0].picker.pick(actual))
            # Latencies are told by size: those at unusual values of other symbols would pass for the usual ones.
            if request["measure"] and not actual.others:
                _measure(trial, fake, actual, result["latencies"], request["measure_s"])
        return {**result, "notes": trial.notes, "is_comparable": is_comparable, "checker": "executor"}


def _check(trial: Trial, fake: Rebuilt, point: Point) -> dict[str, Any] | None:
    """Runs the first artifact and eager on equal inputs. None: there is nothing to compare with."""
    (artifact,) = trial.artifacts
    made = eager(trial, fake, point)
    if made is None:
        return None
    case, expected = made
    call = artifact.callable(point)
    ours = inputs.copied(case)
    torch.manual_seed(SEED)
    try:
        with lease.running(trial.device_type):
            returned = compare.flatten(call(*ours.arguments))
            _synchronise(trial.device_type)
    except torch.OutOfMemoryError as error:
        trial.note(f"the compiled code ran out of memory{_at(point)}: {describe(error)[:200]}")
        return None
    except Exception as error:
        raise VerificationFailed(
            f"the compiled code fails{_at(point)}, where eager does not: {describe(error)}"
        ) from error
    entry = artifact.entry(point)
    assert entry is not None
    changed = [ours.flat[i] for i in ours.changed]
    return judged(trial, lambda: case, point, entry, returned=returned, changed=changed, expected=expected)


def judged(
    trial: Trial,
    make_case: Callable[[], inputs.Case],
    point: Point,
    entry: str,
    *,
    returned: list[Any],
    changed: list[Any],
    expected: list[Any],
) -> dict[str, Any] | None:
    """What compiled code returned and changed in place, against eager. None: there is nothing to compare with. Raises VerificationFailed."""
    case = make_case()
    nobodys = _unset(case.rebuilt)
    found = [*_without(nobodys, returned), *changed]
    names = _without(nobodys, [f"output {i}" for i in range(len(returned))])
    names += [f"the input {case.rebuilt.kept[i]}, which is changed in place," for i in case.changed]
    result = compare.compare(names, found, expected, trial.precision)
    if result.problem is None or compare.is_as_near(found, expected, lambda: _precise(trial, case)):
        return {
            "size": point.size,
            "entry": entry,
            "max_absolute_error": result.max_absolute_error,
            "max_relative_error": result.max_relative_error,
            "tolerance": result.tolerance,
        }
    again = _call_eager(inputs.copied(case), SEED + 1)
    if compare.compare(names, again, expected, trial.precision).problem is not None:
        trial.note("eager gives other values each time, so there is nothing to compare with")
        return None
    raise VerificationFailed(f"{result.problem}{_at(point)}")


def eager(trial: Trial, fake: Rebuilt, point: Point) -> tuple[inputs.Case, list[Any]] | None:
    """A case whose integers eager takes, and what eager gives for it. None: there is none."""
    refused = ""
    while trial.integer_bounds:
        case = inputs.make_case(fake, point.size, SEED, trial.integer_bounds[0])
        started = time.monotonic()
        try:
            with lease.running(trial.device_type):
                expected = _call_eager(inputs.copied(case), SEED)
                _synchronise(trial.device_type)
            trial.took(point.size, time.monotonic() - started)
            return case, expected
        except torch.OutOfMemoryError as error:
            trial.note(f"eager ran out of memory{_at(point)}: {describe(error)[:200]}")
            return None
        except Exception as error:
            trial.integer_bounds.pop(0)
            refused = f"eager does not take made-up inputs: {describe(error)[:500]}"
            if trial.device_type == "cuda" and "device-side assert" in str(error):
                # The context is lost; the executor tries again with smaller integers in another process.
                raise UnusableInputs(refused) from error
    # Empty: an earlier point has used the bounds up, and said so.
    if refused:
        trial.note(refused)
    return None


def _call_eager(case: inputs.Case, seed: int) -> list[Any]:
    """What eager returns, and then what it changed in place."""
    torch.manual_seed(seed)
    returned = compare.flatten(outputs.restorer(case.rebuilt.structure)(case.rebuilt.module(*case.flat)))
    return [*_without(_unset(case.rebuilt), returned), *(case.flat[i] for i in case.changed)]


def _unset(rebuilt: Rebuilt) -> set[int]:
    """Positions, among what the graph returns, of memory that it allocates and does not write to."""
    leaves = unset.leaves(rebuilt.module)
    marked = tuple(_UNSET if i in leaves else None for i in range(rebuilt.n_outputs))
    return {i for i, mark in enumerate(compare.flatten(outputs.restorer(rebuilt.structure)(marked))) if mark is _UNSET}


_UNSET = object()


def _without(positions: set[int], values: list[Any]) -> list[Any]:
    return [value for i, value in enumerate(values) if i not in positions]


def _precise(trial: Trial, case: inputs.Case) -> list[Any] | None:
    """What eager gives where half-precision inputs are float32; None: it does not take them."""

    def widened(value: Any) -> Any:
        narrow = isinstance(value, torch.Tensor) and value.dtype in (torch.float16, torch.bfloat16)
        return value.float() if narrow else value

    copy = inputs.copied(case)
    copy.flat = [widened(value) for value in copy.flat]
    try:
        return _call_eager(copy, SEED)
    except Exception as error:
        trial.note(f"no reference in float32: {describe(error)[:200]}")
        return None


def _measure(trial: Trial, fake: Rebuilt, point: Point, latencies: list[list[Any]], seconds: float) -> None:
    """Times every artifact that has the point, in turn, on the same inputs."""
    size = point.size
    positions = [i for i, artifact in enumerate(trial.artifacts) if artifact.entry(point) is not None]
    bound = trial.integer_bounds[0] if trial.integer_bounds else 1
    case = inputs.make_case(fake, size, SEED, bound)
    calls = [trial.artifacts[i].callable(point) for i in positions]
    try:
        # Latencies in a handle are for people, and a CPU has other users anyhow; what tuning chooses by is timed alone.
        with lease.timing(trial.device_type, is_tuning=not trial.compares):
            medians = timing.medians_us(calls, case.arguments, trial.device_type, seconds)
    except Exception as error:
        trial.note(f"not timed{_at(point)}: {describe(error)[:300]}")
        return
    for i, median in zip(positions, medians, strict=True):
        latencies[i].append({"size": size, "median_us": median})


def _at(point: Point) -> str:
    return "" if point.size is None else f" at {point}"


def _synchronise(device_type: str) -> None:
    if device_type == "cuda":
        torch.cuda.synchronize()


def _free_bytes(device_type: str) -> int:
    if device_type == "cuda":
        return torch.cuda.mem_get_info()[0]
    with open("/proc/meminfo", encoding="ascii") as lines:
        for line in lines:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return 1 << 30
