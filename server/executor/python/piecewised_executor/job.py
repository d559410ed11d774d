"""One `compile` message: compile what was asked, pack, try the result in a fresh process, answer.

A first compile covers the whole range. Where its guards prove it for a part only, the rest is compiled apart, as
further entries of the same artifact: size 1, which Inductor likes to exclude, is the usual case. With `tuning: full` the
parts come from `tune`.
"""

from __future__ import annotations

import sys
import traceback
from typing import Any

from . import check, program, tune
from .errors import JobError, UnprovenRange, Unsupported, describe, shorten
from .pack import Container
from .parts import Job, Part, Recipe, compile_interval, stock_recipe
from .phases import Phases
from .protocol import Channel
from .prove import Interval, remainder
from .runtime import fingerprint
from .runtime.outputs import returns_sequence
from .trials import Nursery

# How often one range is compiled before it is given up as unprovable.
MAX_COMPILES = 8


def run(channel: Channel, request: dict[str, Any], nursery: Nursery) -> None:
    """Answers one `compile` message with `phase`s and then `done` or `failed`; never raises for the job's sake."""
    job = request.get("job")
    try:
        fields, artifact = compile_job(request, Phases(channel, job), nursery)
        channel.send("done", {"job": job, **fields}, artifact)
    except JobError as error:
        _fail(channel, job, error.reason, str(error))
    except Exception as error:
        _fail(channel, job, "COMPILE_ERROR", f"{describe(error)}\n{traceback.format_exc()}")
    finally:
        program.reset()


def compile_job(request: dict[str, Any], phases: Phases, nursery: Nursery) -> tuple[dict[str, Any], bytes]:
    """The fields of `done`, and the artifact. Raises JobError."""
    if request["format"] != "inductor":
        raise Unsupported(f"the format {request['format']!r}; this executor makes 'inductor'")
    if request["device"] not in fingerprint.devices(request["device"]["type"]):
        raise Unsupported(f"there is no device {request['device']} here")
    graph = request["graph"]
    job = Job(request, _dispatched_name(graph, request.get("dispatch_argument")), phases)
    whole: Interval | None = tuple(request["range"]) if request.get("range") and job.dispatched else None

    tuned = None
    if request.get("options", {}).get("tuning") == "full":
        tuned = tune.tune(job, nursery, whole)
        pairs = [(sizes, candidate.part) for sizes, candidate in tuned.chosen if candidate.part is not None]
    else:
        pairs = _compile_parts(job, whole)

    container = Container()
    names: dict[int, str] = {}
    segments: list[dict[str, Any]] = []
    for sizes, part in pairs:
        if id(part) not in names:
            names[id(part)] = f"e{len(names)}"
            container.add(names[id(part)], part.rebuilt, part.program)
        segments.append({"range": list(sizes) if sizes else None, "entry": names[id(part)]})
    segments.sort(key=lambda segment: segment["range"] or [])
    with phases.phase("pack"):
        # Where this interpreter lies is no part of what it made.
        artifact = container.to_bytes({**fingerprint.toolchain(), "executable": ""}, request["device"])

    part = pairs[0][1]
    if tuned is not None:
        for candidate in tuned.candidates:
            candidate.entries = [names[id(candidate.part)]] if id(candidate.part) in names else []
    report = tuned.report() if tuned is not None else _fast_report(pairs)
    verification, latencies = _tried(job, nursery, artifact, segments)
    fields = {
        "segments": segments,
        "timings": phases.timings(),
        "returns_tuple": returns_sequence(part.rebuilt.structure),
        "n_arguments": part.rebuilt.n_arguments,
        "verification": verification,
        "tuning": report,
        "latencies": latencies,
    }
    return fields, artifact


def _compile_parts(job: Job, whole: Interval | None) -> list[tuple[Interval | None, Part]]:
    """What runs which sizes of `whole`, each size once. Raises JobError."""
    pairs: list[tuple[Interval | None, Part]] = []
    pending: list[Interval | None] = [whole]
    reasons: list[str] = []
    n_compiles = 0
    while pending:
        interval = pending.pop(0)
        if n_compiles == MAX_COMPILES:
            raise UnprovenRange(_not_covered(interval, reasons, f"after {MAX_COMPILES} compiles"))
        n_compiles += 1
        try:
            part = compile_interval(job, interval, _recipe(job, interval))
        except JobError as error:
            if not reasons or isinstance(error, Unsupported):
                raise
            # The first compile said what it needs; that these sizes do not compile apart is the lesser news.
            raise UnprovenRange(_not_covered(interval, reasons, f"compiling them apart failed: {error}")) from error
        reasons += part.proof.guards
        proven = part.proof.intervals
        pairs += [(sizes, part) for sizes in proven or [interval]]
        pending += remainder(interval, proven) if interval and proven else []
    return pairs


def _recipe(job: Job, interval: Interval | None) -> Recipe:
    """How an interval is compiled where nothing is tuned."""
    is_generic = job.request.get("options", {}).get("specialisation") == "generic"
    if is_generic and interval is not None and interval[0] < interval[1]:
        return stock_recipe(job.hint)
    return Recipe("range", job.hint)


def _tried(
    job: Job, nursery: Nursery, artifact: bytes, segments: list[dict[str, Any]]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The Verification and the latencies. Without `verify` nothing is run, since that costs a process."""
    if not job.request.get("verify"):
        return {"outcome": "not_done", "sizes": [], "note": "", "seconds": 0.0}, []
    with job.phases.phase("verify"):
        return check.verify(nursery, job.request, job.dispatched, artifact, segments)


def _fast_report(pairs: list[tuple[Interval | None, Part]]) -> dict[str, Any]:
    notes = dict.fromkeys(part.note for _, part in pairs if part.note)
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


def _not_covered(interval: Interval | None, reasons: list[str], why: str) -> str:
    sizes = f"sizes {interval[0]} to {interval[1]}" if interval else "the graph"
    needed = "; ".join(dict.fromkeys(reasons)) or "none"
    return f"{sizes} remain unproven {why}; guards of what was compiled: {needed}"


def _fail(channel: Channel, job: Any, reason: str, message: str) -> None:
    first_line = message.splitlines()[0] if message else ""
    print(f"piecewised_executor: job {job} failed, {reason}: {first_line}", file=sys.stderr, flush=True)
    channel.send("failed", {"job": job, "reason": reason, "message": shorten(message)})
