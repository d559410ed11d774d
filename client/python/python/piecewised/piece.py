"""One piece, compiled by the daemon.

All its ranges are submitted at once, each is fetched and loaded as it arrives, and a call goes to the one for its size.

A call costs one dict lookup more than what it calls: sizes that were seen are remembered, and only a new one asks the
dispatch table.
"""

from __future__ import annotations

import json
import os
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from . import _core, background, counters
from .choices import Choices
from .errors import ArtifactError, CompileFailed, PiecewisedError
from .guards import finder
from .loading import Compiled, Runnable
from .plan import ANY_SIZE, Plan
from .progress import Progress
from .remembered import Remembered

if TYPE_CHECKING:
    from .tiered import Tier


class Piece:
    """The compiled ranges of one piece. Calling it calls the one for the size in ``args[argument]``."""

    def __init__(
        self, handles: Sequence[str], runnables: dict[tuple[int, str], Runnable], *, swap: str | None = None
    ) -> None:
        """A piece of what is loaded already.

        ``handles``: one for each entry of the plan, as JSON. ``runnables``: by position of the handle and entry of its
        artifact; all that the handles' dispatcher names. ``swap``: tuned code may come later, see :mod:`.tiered`.
        """
        table = _Table(handles, runnables)
        self._table = table
        #: The position of the argument that decides; None: a piece without a symbolic input.
        self.argument = table.argument
        runs = Remembered(table.find, int)
        #: The fastest way to call it; what ``__call__`` does, without the attribute lookups.
        self.run: Runnable
        if self.argument is not None:
            self.run = _dispatching(self.argument, runs)
        elif swap is None:
            self.run = table.find(0)
        else:
            self.run = _only(runs)
        if swap is not None:
            table.await_tuned(swap, runs)

    @property
    def handles(self) -> list[dict[str, Any]]:
        """What runs now, one for each entry of the plan."""
        return self._table.handles

    def __call__(self, *args: Any) -> Any:
        """Calls what was compiled for the size that ``args`` have."""
        return self.run(*args)

    def __repr__(self) -> str:
        ranges = [handle["range"] for handle in self.handles]
        return f"piecewised.Piece({'any size' if self.argument is None else ranges})"

    @classmethod
    def compile(
        cls,
        client: _core.Client,
        graph: dict[str, Any],
        *,
        ranges: Sequence[tuple[int, int]],
        sizes: Sequence[int] = (),
        options: dict[str, Any],
        toolchain: dict[str, str] | None = None,
        device: dict[str, str] | None = None,
        device_index: int | None = None,
        progress: bool | None = False,
        is_static: bool = False,
        choices: Choices | None = None,
    ) -> Piece:
        """Has a graph compiled and loads the result.

        ``graph``, ``options``, ``toolchain``, ``device``: in the project's JSON form. ``device_index``: the GPU that its inputs are on; None: the current one. ``is_static``: the graph has no
        symbolic input, so that there is one entry whatever the plan. ``choices``: by default those of the options that
        have defaults. Raises PiecewisedError; nothing is half-compiled then.
        """
        from .submission import Request

        choices = choices or Choices()
        plan = Plan([ANY_SIZE], []) if is_static else Plan(list(ranges), list(sizes))
        request = Request(
            graph=json.dumps(graph),
            options=json.dumps(choices.in_options(options)),
            toolchain=json.dumps(toolchain) if toolchain is not None else None,
            device=json.dumps(device) if device is not None else None,
            endpoint=client.endpoint,
            budget_s=None,
            cache_dir=os.fspath(client.cache_dir),
            choices=choices,
            device_index=device_index,
        )
        events = request.compile(client, plan)
        handles: dict[int, str] = {}
        runnables: dict[tuple[int, str], Runnable] = {}
        records: list[dict[str, Any]] = []
        display = Progress(None if is_static else events.entries, progress)
        for text in events:
            event = json.loads(text)
            display.update(event)
            if event["event"] == "failed":
                raise failed(event)
            if event["event"] == "ready":
                index = event["index"]
                handles[index] = json.dumps(event["handle"])
                compiled, record = request.load(client, event["handle"], event["source"])
                runnables.update({(index, entry): run for entry, run in compiled.runnables.items()})
                records.append(record)
                display.loaded(index, _words(record))
        missing = [entry for index, entry in enumerate(events.entries) if index not in handles]
        if missing:
            raise ArtifactError(f"the daemon finished without an answer for {missing}", reason="BAD_RESPONSE")
        swap = choices.swap if choices.is_tiered else None
        piece = cls([handles[index] for index in range(len(events.entries))], runnables, swap=swap)
        for record in records:
            counters.record_range(**record)
        counters.record_piece()
        if (tier := piece._table.tier) is not None:
            spans = events.entries
            background.start(lambda stop: tier.follow(request, spans, range(len(spans)), stop), "piecewised-tuned")
        return piece


class _Table:
    """What runs each size of a piece. An entry may get other code; whoever remembers what was found has to forget it then."""

    def __init__(self, handles: Sequence[str], runnables: dict[tuple[int, str], Runnable]) -> None:
        self._texts = list(handles)
        self._runnables = dict(runnables)
        self.handles = [json.loads(handle) for handle in handles]
        self.tier: Tier | None = None
        self.argument: int | None = None
        self._build()

    def find(self, size: int) -> Runnable:
        """What runs calls of a size. Raises NotCovered, as what it gives may do at a call (:mod:`.guards`)."""
        return self._find(size)

    def await_tuned(self, swap: str, runs: Remembered[int]) -> None:
        """Entries that aren't tuned are to get tuned code later."""
        from .tiered import Captures, Tier

        self.tier = Tier(swap, Captures(), replace=self._replace, forget=runs.forget)
        for position, handle in enumerate(self.handles):
            self.tier.expect(position, Compiled(handle, {}))

    def _build(self) -> None:
        dispatcher = _core.Dispatcher(self._texts)
        missing = [target for target in dispatcher.targets if target not in self._runnables]
        if missing:
            raise ArtifactError(f"the artifacts lack {missing}", reason="BAD_CONTAINER")
        self.argument = dispatcher.argument
        targets = [(target[0], self._runnables[target]) for target in dispatcher.targets]

        def runnable(target: int) -> Runnable:
            position, run = targets[target]
            return run if self.tier is None else self.tier.watched(position, run)

        # In one assignment: a thread that looks has the old or the new, and never half of each.
        self._find = finder(dispatcher, runnable)

    def _replace(self, position: int, compiled: Compiled) -> object:
        was = self._texts, self._runnables, self.handles
        others = {target: run for target, run in self._runnables.items() if target[0] != position}
        self._runnables = others | {(position, entry): run for entry, run in compiled.runnables.items()}
        self._texts = [*self._texts[:position], json.dumps(compiled.handle), *self._texts[position + 1 :]]
        self.handles = [*self.handles[:position], compiled.handle, *self.handles[position + 1 :]]
        try:
            self._build()
        except PiecewisedError:
            self._texts, self._runnables, self.handles = was
            raise
        return was


def _dispatching(argument: int, runs: Remembered[int]) -> Runnable:
    def run(*args: Any) -> Any:
        return runs[args[argument]](*args)

    return run


def _only(runs: Remembered[int]) -> Runnable:
    """Without a symbolic input: whoever holds this runs the tuned code when it is there, for the price of one lookup."""

    def run(*args: Any) -> Any:
        return runs[0](*args)

    return run


def _words(record: dict[str, Any]) -> str:
    source = {"store": "from the store", "compiled": "compiled", "joined": "compiled for another process"}
    how = source[record["source"]]
    where = (
        "was here"
        if record["was_local"]
        else f"fetched {record['size_bytes'] / 1e6:.1f} MB in {record['fetch_s']:.2f} s"
    )
    return f"{how} ({record['compile_s']:.1f} s), {where}, loaded in {record['load_s']:.2f} s"


def failed(event: dict[str, Any]) -> CompileFailed:
    """The error for a Failed event."""
    where = "the piece" if event["range"] is None else f"range {event['range']}"
    first_line = textwrap.shorten(event["message"].strip().partition("\n")[0], 400, placeholder=" ...")
    return CompileFailed(
        f"the daemon could not compile {where}: {first_line} ({event['reason']})",
        reason=event["reason"],
        metadata={"message": event["message"], "key": event.get("key") or ""},
    )
