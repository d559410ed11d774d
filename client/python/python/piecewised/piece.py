"""One piece, compiled by the daemon.

All its ranges are submitted at once, each is fetched and loaded as it arrives, and a call goes to the one for its size.

A call costs one dict lookup more than what it calls: sizes that were seen are remembered, and only a new one asks the
dispatch table.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

from . import _core, counters
from .errors import ArtifactError, CompileFailed
from .guards import Remembered, finder
from .loading import Runnable, fetch_and_load
from .plan import ANY_SIZE
from .progress import Progress


class Piece:
    """The compiled ranges of one piece. Calling it calls the one for the size in ``args[argument]``."""

    def __init__(self, handles: Sequence[str], runnables: dict[tuple[int, str], Runnable]) -> None:
        """A piece of what is loaded already.

        ``handles``: one for each entry of the plan, as JSON. ``runnables``: by position of the handle and entry of its
        artifact; all that the handles' dispatcher names.
        """
        dispatcher = _core.Dispatcher(handles)
        self.handles = [json.loads(handle) for handle in handles]
        #: The position of the argument that decides; None: a piece without a symbolic input.
        self.argument = dispatcher.argument
        missing = [target for target in dispatcher.targets if target not in runnables]
        if missing:
            raise ArtifactError(f"the artifacts lack {missing}", reason="BAD_CONTAINER")
        targets = [runnables[target] for target in dispatcher.targets]
        #: The fastest way to call it; what ``__call__`` does, without the attribute lookups.
        self.run = targets[0] if self.argument is None else _dispatching(self.argument, finder(dispatcher, targets))

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
        progress: bool | None = False,
        is_static: bool = False,
        strict_guards: bool = False,
    ) -> Piece:
        """Has a graph compiled and loads the result.

        ``graph``, ``options``, ``toolchain``, ``device``: in the project's JSON form. ``is_static``: the graph has no
        symbolic input, so that there is one entry whatever the plan. ``strict_guards``: a range that is not proven as a
        whole fails. Raises PiecewisedError; nothing is half-compiled
        then.
        """
        if is_static:
            ranges, sizes = [ANY_SIZE], []
        events = client.compile(
            json.dumps(graph),
            list(ranges),
            list(sizes),
            json.dumps(options),
            json.dumps(toolchain) if toolchain is not None else None,
            json.dumps(device) if device is not None else None,
            strict_guards=strict_guards,
        )
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
                compiled, record = fetch_and_load(client, event["handle"], event["source"])
                runnables.update({(index, entry): run for entry, run in compiled.runnables.items()})
                records.append(record)
                display.loaded(index, _words(record))
        missing = [entry for index, entry in enumerate(events.entries) if index not in handles]
        if missing:
            raise ArtifactError(f"the daemon finished without an answer for {missing}", reason="BAD_RESPONSE")
        piece = cls([handles[index] for index in range(len(events.entries))], runnables)
        for record in records:
            counters.record_range(**record)
        counters.record_piece()
        return piece


def _dispatching(argument: int, find: Callable[[int], Runnable]) -> Runnable:
    runs = Remembered(find, int)

    def run(*args: Any) -> Any:
        return runs[args[argument]](*args)

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
