"""One `compile` message: split the range into what can be proven, pack, answer.

A first compile covers the whole range. Where its guards prove it for a part only, the rest is compiled apart, as
further entries of the same artifact (`cover`): size 1, which Inductor likes to exclude, is the usual case.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from . import program
from .cover import Cover, Task
from .errors import JobError, Unsupported, describe, shorten
from .guards import Guards
from .pack import Container
from .protocol import Channel
from .prove import Interval, Proof, prove
from .rebuild import Rebuilt, rebuild
from .runtime import fingerprint
from .runtime.outputs import returns_sequence
from .symbols import Bounds, Symbols


class Phases:
    """Tells the daemon what goes on, and adds up where the time goes."""

    def __init__(self, channel: Channel, job: Any) -> None:
        self._channel = channel
        self._job = job
        self._seconds: dict[str, float] = {}
        self._started = time.monotonic()
        self._cpu = _cpu_seconds()

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Announces the phase and times what is inside."""
        self._channel.send("phase", {"job": self._job, "phase": name})
        started = time.monotonic()
        try:
            yield
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + time.monotonic() - started

    def timings(self) -> dict[str, Any]:
        """The Timings of the job so far."""
        return {
            "total_s": time.monotonic() - self._started,
            "cpu_s": _cpu_seconds() - self._cpu,
            "phases": [{"phase": name, "seconds": seconds} for name, seconds in self._seconds.items()],
        }


def run(channel: Channel, request: dict[str, Any]) -> None:
    """Answers one `compile` message with `phase`s and then `done` or `failed`; never raises for the job's sake."""
    job = request.get("job")
    try:
        fields, artifact = compile_job(request, Phases(channel, job))
        channel.send("done", {"job": job, **fields}, artifact)
    except JobError as error:
        _fail(channel, job, error.reason, str(error))
    except Exception as error:
        _fail(channel, job, "COMPILE_ERROR", f"{describe(error)}\n{traceback.format_exc()}")
    finally:
        program.reset()


def compile_job(request: dict[str, Any], phases: Phases) -> tuple[dict[str, Any], bytes]:
    """The fields of `done`, and the artifact. Raises JobError."""
    if request["format"] != "inductor":
        raise Unsupported(f"the format {request['format']!r}; this executor makes 'inductor'")
    if request["device"] not in fingerprint.devices(request["device"]["type"]):
        raise Unsupported(f"there is no device {request['device']} here")
    graph = request["graph"]
    dispatched = _dispatched_name(graph, request.get("dispatch_argument"))
    whole: Interval | None = tuple(request["range"]) if request.get("range") and dispatched else None

    container = Container()
    guards = Guards(graph)
    cover = Cover(whole, dispatched, guards)
    while (task := cover.next()) is not None:
        try:
            part = _compile_interval(request, dispatched, task, guards, phases)
        except JobError as error:
            cover.failed(task, error)
            continue
        name = f"e{len(container.entries)}"
        if cover.add(task, name, part.proof, part.symbols):
            container.add(name, part.rebuilt, part.program)
    segments = cover.segments()

    with phases.phase("pack"):
        # Where this interpreter lies is no part of what it made.
        artifact = container.to_bytes({**fingerprint.toolchain(), "executable": ""}, request["device"])
    fields = {
        "segments": segments,
        "guard_symbols": guards.symbols(),
        "timings": phases.timings(),
        "returns_tuple": returns_sequence(part.rebuilt.structure),
        "n_arguments": part.rebuilt.n_arguments,
    }
    return fields, artifact


@dataclass(frozen=True)
class _Part:
    """One compile, and the sizes that it is proven for."""

    rebuilt: Rebuilt
    program: program.Program
    proof: Proof
    symbols: Symbols


def _compile_interval(
    request: dict[str, Any], dispatched: str | None, task: Task, guards: Guards, phases: Phases
) -> _Part:
    """Compiles for the sizes of a task: dynamic within them, or static for a single one."""
    interval = task.interval
    narrowed: dict[str, Bounds] = {}
    fixed: dict[str, int] = {}
    hints: dict[str, int] = {}
    if dispatched and interval:
        if interval[0] == interval[1]:
            fixed[dispatched] = interval[0]
        else:
            narrowed[dispatched] = Bounds(*interval)
            if request.get("hint") is not None:
                hints[dispatched] = request["hint"]
    hints.update(task.hints)
    graph = request["graph"]
    with phases.phase("rebuild"):
        symbols = Symbols(graph.get("symbols", []), narrowed, fixed, hints)
        rebuilt = rebuild(graph, symbols)
    with phases.phase("compile"):
        compiled = program.compile_program(rebuilt, request.get("options", {}))
    with phases.phase("prove"):
        symbol = symbols.by_name[dispatched] if dispatched in narrowed else None
        proof = prove(symbols, symbol, interval, lambda condition: guards.can_be(condition, symbols))
    return _Part(rebuilt, compiled, proof, symbols)


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


def _fail(channel: Channel, job: Any, reason: str, message: str) -> None:
    first_line = message.splitlines()[0] if message else ""
    print(f"piecewised_executor: job {job} failed, {reason}: {first_line}", file=sys.stderr, flush=True)
    channel.send("failed", {"job": job, "reason": reason, "message": shorten(message)})


def _cpu_seconds() -> float:
    """Of this process and of its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
