"""One trial, in the fresh process that `trials` made for it: artifacts against eager, and how long they take.

A request holds the graph, which symbol is dispatched, the sizes to look at (most important first), the torch settings of
the compile, and the artifacts: the folder of each and what runs each size. Every size is bounded: what does not fit into
the memory that is free, or would take too long, is replaced by the largest size that does, or left out; the result's
notes say so.

What is found wrong is raised as VerificationFailed. What cannot be found out (eager does not take made-up inputs, the graph
draws random numbers) is a note.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from . import compare, inputs, settings, timing
from .errors import VerificationFailed, describe
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
_SEED = 0


@dataclass
class Artifact:
    """A materialised artifact and the entry for each size: the first segment that contains it."""

    folder: str
    segments: list[dict[str, Any]]
    loaded: dict[str, Callable[..., Any]] = field(default_factory=dict)

    def entry(self, size: int | None) -> str | None:
        """The name of the entry for a size; None: no segment has it."""
        for segment in self.segments:
            span = segment["range"]
            if span is None or size is None or span[0] <= size <= span[1]:
                return segment["entry"]
        return None

    def callable(self, size: int | None) -> Callable[..., Any]:
        """What runs a size."""
        entry = self.entry(size)
        assert entry is not None
        if entry not in self.loaded:
            self.loaded[entry] = load_entry(self.folder, entry)
        return self.loaded[entry]


class Trial:
    """What is the same for every size of a request."""

    def __init__(self, request: dict[str, Any]) -> None:
        self.graph: dict[str, Any] = request["graph"]
        self.dispatched: str | None = request["dispatched"]
        self.device_type: str = request["device_type"]
        self.artifacts = [Artifact(**artifact) for artifact in request["artifacts"]]
        self.precision: str = request["torch"].get("float32_matmul_precision", "highest")
        self.notes: list[str] = []
        self.integer_bounds: list[int] = list(request["integer_bounds"])
        # Seconds of one eager call, by elements of the dispatched dimension: what larger sizes are estimated from.
        self.eager_s: tuple[int, float] | None = None

    def note(self, text: str) -> None:
        """Notes something once."""
        if text not in self.notes:
            self.notes.append(text)

    def prepared(self, size: int | None, floor: int) -> Any:
        """The fake case for `size`, or for the largest smaller size (not below `floor`) that memory and time allow; None: none."""
        wanted = size
        while True:
            fake = inputs.fake_case(self.graph, self.dispatched, size)
            needed = inputs.n_peak_bytes(fake) * 2
            free = min(_free_bytes(self.device_type) * _SHARE_OF_MEMORY, _MAX_BYTES[self.device_type])
            expected_s = 0.0
            if size is not None and self.eager_s is not None and self.device_type == "cpu":
                expected_s = self.eager_s[1] * size / max(self.eager_s[0], 1)
            if needed <= free and expected_s <= _MAX_SECONDS_PER_SIZE:
                if size != wanted:
                    self.note(f"size {wanted} does not fit; {size} stands for it")
                return fake, size
            if size is None or size // 2 < floor:
                self.note(
                    f"size {wanted} was left out: it needs some {needed / 1e9:.1f} GB where {free / 1e9:.1f} GB may be used"
                    if needed > free
                    else f"size {wanted} was left out: one call would take some {expected_s:.0f} s"
                )
                return None
            size //= 2


def run(request: dict[str, Any]) -> dict[str, Any]:
    """`checks` ([CheckedSize], where `compare` was asked for), `latencies` (per artifact, where `measure` was), `notes`,
    `is_comparable`. Raises VerificationFailed."""
    if request["device_type"] == "cuda" and torch.cuda._is_in_bad_fork():
        raise CudaIsLost
    with torch.no_grad(), settings.torch_settings(request["torch"]):
        trial = Trial(request)
        # A worker loads everything that a handle names: an entry that no size below asks for must load too.
        for artifact in trial.artifacts:
            for segment in artifact.segments:
                artifact.callable((segment["range"] or [None])[0])
        result: dict[str, Any] = {"checks": [], "latencies": [[] for _ in trial.artifacts]}
        is_comparable = True
        seen: set[int | None] = set()
        for size in request["sizes"]:
            low = _segment_start(trial.artifacts, size)
            prepared = trial.prepared(size, low)
            if prepared is None or prepared[1] in seen:
                continue
            fake, actual = prepared
            seen.add(actual)
            if request["compare"] and is_comparable:
                checked = _check(trial, fake, actual)
                is_comparable = checked is not None
                result["checks"] += [checked] if checked else []
            if request["measure"]:
                _measure(trial, fake, actual, result["latencies"], request["measure_s"])
        return {**result, "notes": trial.notes, "is_comparable": is_comparable}


def _segment_start(artifacts: list[Artifact], size: int | None) -> int:
    spans = [segment["range"] for artifact in artifacts for segment in artifact.segments]
    starts = [span[0] for span in spans if span is not None and size is not None and span[0] <= size <= span[1]]
    return max(starts, default=1)


def _check(trial: Trial, fake: Any, size: int | None) -> dict[str, Any] | None:
    """Runs the first artifact and eager on equal inputs. None: there is nothing to compare with."""
    (artifact,) = trial.artifacts
    made = _eager(trial, fake, size)
    if made is None:
        return None
    case, expected, eager_s = made
    if size is not None and (trial.eager_s is None or size > trial.eager_s[0]):
        trial.eager_s = (size, eager_s)
    ours = inputs.copied(case)
    torch.manual_seed(_SEED)
    try:
        returned = compare.flatten(artifact.callable(size)(*ours.arguments))
        _synchronise(trial.device_type)
    except Exception as error:
        raise VerificationFailed(
            f"the compiled code fails{_at(size)}, where eager does not: {describe(error)}"
        ) from error
    found = [*returned, *(ours.flat[i] for i in ours.mutated)]
    names = [f"output {i}" for i in range(len(returned))]
    names += [f"the input {case.rebuilt.kept[i]}, which is changed in place," for i in case.mutated]
    result = compare.compare(names, found, expected, trial.precision)
    if result.problem is None or compare.is_as_near(found, expected, lambda: _precise(trial, case)):
        return {
            "size": size,
            "entry": artifact.entry(size),
            "max_absolute_error": result.max_absolute_error,
            "max_relative_error": result.max_relative_error,
            "tolerance": result.tolerance,
        }
    again = _call_eager(inputs.copied(case), _SEED + 1)
    if compare.compare(names, again, expected, trial.precision).problem is not None:
        trial.note("eager gives other values each time, so there is nothing to compare with")
        return None
    raise VerificationFailed(f"{result.problem}{_at(size)}")


def _eager(trial: Trial, fake: Any, size: int | None) -> tuple[inputs.Case, list[Any], float] | None:
    """A case whose integers eager takes, what eager gives for it, and how long that took."""
    while trial.integer_bounds:
        case = inputs.make_case(fake, size, _SEED, trial.integer_bounds[0])
        started = time.monotonic()
        try:
            expected = _call_eager(inputs.copied(case), _SEED)
            _synchronise(trial.device_type)
            return case, expected, time.monotonic() - started
        except torch.OutOfMemoryError as error:
            trial.note(f"eager ran out of memory{_at(size)}: {describe(error)[:200]}")
            return None
        except Exception as error:
            trial.integer_bounds.pop(0)
            refused = f"eager does not take made-up inputs: {describe(error)[:500]}"
            if trial.device_type == "cuda" and "device-side assert" in str(error):
                # The context is lost; the executor tries again with smaller integers in another process.
                raise UnusableInputs(refused) from error
    trial.note(refused)
    return None


def _call_eager(case: inputs.Case, seed: int) -> list[Any]:
    """What eager returns, and then what it changed in place."""
    torch.manual_seed(seed)
    returned = compare.flatten(outputs.restorer(case.rebuilt.structure)(case.rebuilt.module(*case.flat)))
    return [*returned, *(case.flat[i] for i in case.mutated)]


def _precise(trial: Trial, case: inputs.Case) -> list[Any] | None:
    """What eager gives where half-precision inputs are float32; None: it does not take them."""

    def widened(value: Any) -> Any:
        narrow = isinstance(value, torch.Tensor) and value.dtype in (torch.float16, torch.bfloat16)
        return value.float() if narrow else value

    copy = inputs.copied(case)
    copy.flat = [widened(value) for value in copy.flat]
    try:
        return _call_eager(copy, _SEED)
    except Exception as error:
        trial.note(f"no reference in float32: {describe(error)[:200]}")
        return None


def _measure(trial: Trial, fake: Any, size: int | None, latencies: list[list[Any]], seconds: float) -> None:
    """Times every artifact that has the size, in turn, on the same inputs."""
    positions = [i for i, artifact in enumerate(trial.artifacts) if artifact.entry(size) is not None]
    bound = trial.integer_bounds[0] if trial.integer_bounds else 1
    case = inputs.make_case(fake, size, _SEED, bound)
    calls = [trial.artifacts[i].callable(size) for i in positions]
    try:
        medians = timing.medians_us(calls, case.arguments, trial.device_type, seconds)
    except Exception as error:
        trial.note(f"not timed{_at(size)}: {describe(error)[:300]}")
        return
    for i, median in zip(positions, medians, strict=True):
        latencies[i].append({"size": size, "median_us": median})


def _at(size: int | None) -> str:
    return "" if size is None else f" at size {size}"


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
