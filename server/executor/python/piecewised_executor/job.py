"""One `compile` message: compile what was asked, pack, try the result in a fresh process, answer.

A first compile covers the whole range. Where its guards prove it for a part only, the rest is compiled apart, as
further entries of the same artifact (`cover`): size 1, which Inductor likes to exclude, is the usual case. With
`tuning: full` the parts come from `tune`, and what it leaves from `cover`.
"""

from __future__ import annotations

import base64
import sys
import traceback
from dataclasses import dataclass, field
from typing import Any

from . import check, faults, forked_compilers, frontends, lease, program, tune
from .cover import Cover
from .errors import JobError, Outside, Unsupported, describe, from_outside, shorten
from .guards import Guards
from .lease import Leases
from .pack import FORMATS, Container
from .parts import Job, Part, Recipe, compile_interval, stock_recipe
from .phases import Phases
from .protocol import Channel
from .prove import Interval
from .runtime import fingerprint
from .runtime.outputs import returns_sequence
from .trials import Nursery, start_cuda


def run(channel: Channel, request: dict[str, Any], payload: bytes, nursery: Nursery, leases: Leases) -> bool:
    """Answers one `compile` message, which came with the frontend's `payload`, with `phase`s and then `done` or `failed`; never raises for the job's sake.

    Gives whether this process can take another job. Before the answer everything that the job held is given back, since the daemon
    counts it as free from then on.
    """
    job = request.get("job")
    can_go_on = True
    blob = b""
    try:
        with lease.using(leases):
            try:
                fields, blob = compile_job(request, payload, Phases(channel, job), nursery)
            finally:
                nursery.drop()
            # An access outside of a tensor may be noticed by whatever synchronises next.
            faults.check()
        name = "done"
    except faults.DeviceFault as fault:
        name, fields, can_go_on = "failed", _failure(job, "DEVICE_FAULT", str(fault)), False
    except JobError as error:
        name, fields, can_go_on = "failed", _failure(job, error.reason, str(error)), not isinstance(error, Outside)
    except Exception as error:
        outside = from_outside(error)
        reason = "COMPILE_ERROR" if outside is None else outside.reason
        fields = _failure(job, reason, f"{describe(error)}\n{traceback.format_exc()}")
        name, can_go_on = "failed", outside is None
    if can_go_on:
        can_go_on, name, fields, blob = _cleaned(job, name, fields, blob)
    channel.send(name, {"job": job, **fields}, blob)
    return can_go_on


def _cleaned(job: Any, name: str, fields: dict[str, Any], blob: bytes) -> tuple[bool, str, dict[str, Any], bytes]:
    """Forgets the job; its answer, or a fault of the GPU that shows only now."""
    program.reset()
    try:
        faults.check()
        faults.give_back()
    except (faults.DeviceFault, RuntimeError) as error:
        return False, "failed", _failure(job, "DEVICE_FAULT", describe(error)), b""
    return True, name, fields, blob


def compile_job(
    request: dict[str, Any], payload: bytes, phases: Phases, nursery: Nursery
) -> tuple[dict[str, Any], bytes]:
    """The fields of `done`, and the artifact. Raises JobError."""
    if request["format"] not in FORMATS:
        raise Unsupported(f"the format {request['format']!r}; this executor makes {' and '.join(map(repr, FORMATS))}")
    if request["device"] not in fingerprint.devices(request["device"]["type"]):
        raise Unsupported(f"there is no device {request['device']} here")
    if request["device"]["type"] == "cuda":
        forked_compilers.wake()
        with phases.phase("rebuild"):
            start_cuda()
        # Only now: contexts that are made at once take several times as long, and this one is waited for.
        if request.get("verify") or request.get("options", {}).get("tuning") == "full":
            nursery.prepare("cuda")
    graph = request["graph"]
    frontend = frontends.find(request.get("frontend"), payload)
    # Trials find it again, in processes of their own.
    request = {**request, "payload": base64.b64encode(payload).decode()}
    dispatched = _dispatched_name(graph, request.get("dispatch_argument"))
    job = Job(request, dispatched, phases, Guards(graph), frontend)
    whole: Interval | None = tuple(request["range"]) if request.get("range") and job.dispatched else None

    cover = Cover(whole, job.dispatched, job.guards)
    packed = _Packed(Container(job.format, job.dispatched))
    tuned = None
    if request.get("options", {}).get("tuning") == "full":
        tuned = tune.tune(job, nursery, whole)
        for sizes, candidate in tuned.chosen:
            assert candidate.part is not None
            cover.settle(sizes, packed.add(candidate.part))
    _cover(job, cover, packed, first=tuned.narrowed if tuned is not None else None)
    segments = cover.segments()
    with phases.phase("pack"):
        # Where this interpreter lies is no part of what it made.
        artifact = packed.container.to_bytes({**fingerprint.toolchain(), "executable": ""}, request["device"])

    if tuned is not None:
        for candidate in tuned.candidates:
            candidate.entries = packed.names_of(candidate.part)
    report = tuned.report() if tuned is not None else _fast_report(packed.parts)
    verification, latencies = _tried(job, nursery, artifact, segments)
    rebuilt = packed.parts[0].rebuilt
    fields = {
        "segments": segments,
        "guard_symbols": job.guards.symbols(),
        "timings": phases.timings(),
        "returns_tuple": returns_sequence(rebuilt.structure),
        "n_arguments": rebuilt.n_arguments,
        "verification": verification,
        "tuning": report,
        "latencies": latencies,
    }
    return fields, artifact


@dataclass
class _Packed:
    """The compiles that are in the artifact, as entries of it."""

    container: Container
    parts: list[Part] = field(default_factory=list)

    @property
    def next_name(self) -> str:
        """What the next entry will be called."""
        return f"e{len(self.parts)}"

    def add(self, part: Part) -> str:
        """The name of the entry, which is made unless there is one."""
        if (names := self.names_of(part)) != []:
            return names[0]
        name = self.next_name
        self.parts.append(part)
        self.container.add(name, part.rebuilt, part.program)
        return name

    def names_of(self, part: Part | None) -> list[str]:
        """Of the entry that a compile became; none where it was not taken."""
        return [f"e{i}" for i, other in enumerate(self.parts) if other is part]


def _cover(job: Job, cover: Cover, packed: _Packed, first: Part | None) -> None:
    """Compiles until nothing more is to be covered; `first` is the compile to begin with, where it was made already."""
    while (task := cover.next()) is not None:
        try:
            recipe = _recipe(job, task.interval)
            part = first or compile_interval(job, task.interval, recipe, task.hints)
        except JobError as error:
            cover.failed(task, error)
            continue
        finally:
            first = None
        if cover.add(task, packed.next_name, part.proof, part.symbols):
            packed.add(part)


def _recipe(job: Job, interval: Interval | None) -> Recipe:
    """How an interval is compiled that `tune` has nothing for."""
    options = job.request.get("options", {})
    is_generic = options.get("specialisation") == "generic" and options.get("tuning") != "full"
    if is_generic and interval is not None and interval[0] < interval[1]:
        return stock_recipe(job.hint)
    return Recipe("range", job.hint)


def _tried(
    job: Job, nursery: Nursery, artifact: bytes, segments: list[dict[str, Any]]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The Verification and the latencies. Without `verify` nothing is run, since that costs a process."""
    if not job.request.get("verify"):
        return {"outcome": "not_done", "sizes": [], "note": "", "seconds": 0.0, "checker": "none"}, []
    with job.phases.phase("verify"):
        return check.verify(nursery, job.request, job.dispatched, artifact, segments)


def _fast_report(parts: list[Part]) -> dict[str, Any]:
    notes = dict.fromkeys(part.note for part in parts if part.note)
    return {"mode": "fast", "candidates": [], "seconds": 0.0, "note": "; ".join(notes)}


def _dispatched_name(graph: dict[str, Any], position: int | None) -> str | None:
    """The symbol that the placeholder at `position` is."""
    if position is None:
        return None
    placeholders = [node["op"]["placeholder"]["value"] for node in graph["nodes"] if "placeholder" in node["op"]]
    value = placeholders[position] if position < len(placeholders) else {}
    expr = value.get("sym_int", {})
    if "symbol" not in expr:
        raise Unsupported(f"the dispatch argument {position} is not an integer input that is one symbol")
    return expr["symbol"]


def _failure(job: Any, reason: str, message: str) -> dict[str, Any]:
    """The fields of `failed`; also on stderr, for the log."""
    first_line = message.splitlines()[0] if message else ""
    print(f"piecewised_executor: job {job} failed, {reason}: {first_line}", file=sys.stderr, flush=True)
    return {"reason": reason, "message": shorten(message)}
