"""One request to the daemon, followed to its end: what is ready is fetched and loaded as it comes."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import astuple, dataclass, field, replace
from typing import Any, Protocol

from . import _core, counters, traces
from .choices import Choices
from .connections import connect
from .errors import ArtifactError, PiecewisedError
from .loading import Compiled, fetch_and_load
from .piece import failed
from .plan import Entry, Plan
from .warming import warm_up

log = logging.getLogger(__name__)


class Sink(Protocol):
    """Is told what became of each entry, by its position in the plan, in a thread of its own."""

    def wants(self, position: int) -> bool:
        """Whether what is ready is to be fetched and loaded; where not, nothing more is told of it."""

    def ready(self, position: int, compiled: Compiled) -> None:
        """It can be called."""

    def failed(self, position: int, error: PiecewisedError) -> None:
        """It can't be had from the daemon."""


@dataclass(frozen=True)
class Frontend:
    """What made a graph and takes part in its compile (``piecewised/v1/compile_service.proto``, Frontend)."""

    name: str
    version: str
    #: JSON text: everything that the code depends on.
    identity: bytes
    #: What the executor's side of it needs.
    payload: bytes


@dataclass(frozen=True)
class Request:
    """What is the same for every range of a piece; texts are JSON in the project's form."""

    graph: str
    options: str
    toolchain: str | None
    device: str | None
    endpoint: str | None
    budget_s: float | None
    cache_dir: str | None
    choices: Choices = field(default_factory=Choices)
    #: The GPU that the piece's inputs are on; None: the current one, if any.
    device_index: int | None = None
    #: What takes part in the compile; None: nothing.
    frontend: Frontend | None = None
    #: What the piece is called in the daemon's log and status; empty: by its place in its program, if it has one.
    label: str = ""
    #: The trace that it belongs to: the one that is active where it is made.
    trace: tuple[str | None, str | None] = field(default_factory=traces.current, compare=False)

    def tuned(self) -> Request:
        """The request for the tuned code of the same, in the background. It comes while the worker works, whose memory and streams are its own then."""
        choices = replace(self.choices, tuning="full", priority="background", warm_up=False)
        options = json.dumps(choices.in_options(json.loads(self.options)))
        return replace(self, options=options, choices=choices)

    def compile(
        self, client: _core.Client, plan: Plan, program: dict[str, Any] | None = None, stop: _core.Stop | None = None
    ) -> _core.Events:
        """Asks for a plan."""
        return client.compile(
            *(self.graph, plan.ranges, plan.sizes, self.options, self.toolchain, self.device),
            hints=self.choices.hints_for(plan.entries),
            program=None if program is None else json.dumps(program),
            stop=stop,
            is_tiered=self.choices.is_tiered,
            is_strict=self.choices.is_strict,
            priority=self.choices.priority,
            frontend=None if self.frontend is None else astuple(self.frontend),
            label=self.label or ("" if program is None else f"{program['program']}/{program['index']}"),
            format=self.choices.artifact_format,
            trace=self.trace,
        )

    def save(self, path: str | os.PathLike[str], plan: Plan, label: str = "") -> None:
        """Writes it to a graph file. Raises OSError."""
        _core.write_graph_file(
            *(path, self.graph, plan.ranges, plan.sizes, self.options, self.choices.hints_for(plan.entries)),
            is_tiered=self.choices.is_tiered,
            is_strict=self.choices.is_strict,
            frontend=None if self.frontend is None else astuple(self.frontend),
            label=self.label or label,
            format=self.choices.artifact_format,
        )

    def load(
        self, client: _core.Client, handle: dict[str, Any], source: str, stop: _core.Stop | None = None
    ) -> tuple[Compiled, dict[str, Any]]:
        """What a handle names, called once where that was chosen, and the record of it. Raises PiecewisedError."""
        compiled, record = fetch_and_load(client, handle, source, stop, self.device_index)
        if self.choices.warm_up:
            record |= warm_up(compiled, self.graph, self.device_index)
        return compiled, record

    def client(self) -> _core.Client:
        """The connection. Raises EndpointError and Unreachable."""
        return connect(self.endpoint, budget_s=self.budget_s, cache_dir=self.cache_dir)


def follow(
    request: Request, entries: list[Entry], program: dict[str, Any] | None, sink: Sink | None, stop: _core.Stop
) -> dict[str, Any] | None:
    """Has the entries compiled, and tells ``sink`` exactly once about each that it wants. The ProgramStatus at the end, if there is one.

    One entry that fails costs no other; what fails for all of them is told of each that has no end yet. Without a sink
    nothing is fetched: the daemon is only told, for the program's sake.
    """
    waiting = dict(enumerate(entries))
    try:
        return _follow(request, entries, program, sink=sink, stop=stop, waiting=waiting)
    except PiecewisedError as error:
        log.debug("entries %s can't be had: %s", list(waiting.values()), error)
        if sink is not None:
            for position in waiting:
                sink.failed(position, error)
        return None


def _follow(
    request: Request,
    entries: list[Entry],
    program: dict[str, Any] | None,
    *,
    sink: Sink | None,
    stop: _core.Stop,
    waiting: dict[int, Entry],
) -> dict[str, Any] | None:
    client = request.client()
    # The daemon puts them into the plan's order, which need not be this one.
    events = request.compile(client, Plan.of_entries(entries), program, stop)
    positions = [entries.index(entry) for entry in events.entries]
    status = None
    for text in events:
        event = json.loads(text)
        kind = event["event"]
        if kind == "completed":
            status = event["program"]
            if (differs := event["difference"]) is not None:
                log.info(
                    "%s is not the same as that of %s, and not shared: node %s, %s",
                    *(request.label or "a piece", differs["peer"], differs["node"], differs["what"]),
                )
        elif kind in ("ready", "failed"):
            position = positions[event["index"]]
            del waiting[position]
            if sink is not None:
                _settle(request, event, position, sink, stop)
    if waiting:
        missing = list(waiting.values())
        raise ArtifactError(f"the daemon finished without an answer for {missing}", reason="BAD_RESPONSE")
    return status


def _settle(request: Request, event: dict[str, Any], position: int, sink: Sink, stop: _core.Stop) -> None:
    try:
        if event["event"] == "failed":
            raise failed(event)
        if not sink.wants(position):
            return
        compiled, record = request.load(request.client(), event["handle"], event["source"], stop)
    except PiecewisedError as error:
        sink.failed(position, error)
    else:
        counters.record_range(**record)
        sink.ready(position, compiled)
