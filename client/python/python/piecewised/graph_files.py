"""Graph files: captured graphs with their plans, for whoever has them compiled later or elsewhere (a worker without Python, a command).

A file is a request for a compile as this process would make it, less what is this process's alone: its toolchain, its device, and the run of its
program. ``read_graph_file`` of the Rust client reads it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .plan import ANY_SIZE, Plan
from .submission import Request

if TYPE_CHECKING:
    import torch.fx

    from .options import BackendOptions

SUFFIX = ".pwgraph"

_recordings: list[Recording] = []
_lock = threading.Lock()


class Recording:
    """The graphs that are recorded into a folder. ``files``: what was written, in the order of the compiles."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: list[Path] = []

    def add(self, request: Request, plan: Plan, label: str) -> None:
        """Writes one more."""
        with _lock:
            words = re.sub(r"[^A-Za-z0-9._-]+", "-", label).strip("-.") or "piece"
            path = self.folder / f"{len(self.files):04}-{words}{SUFFIX}"
            request.save(path, plan, label)
            self.files.append(path)


def save_graph(
    path: str | os.PathLike[str],
    graph: torch.fx.GraphModule,
    options: Mapping[str, Any] | None = None,
    *,
    label: str = "",
) -> None:
    """Writes a graph with its plan to a file.

    ``graph``: as Dynamo captures it, with an ``example_value`` (or ``val``) at each placeholder. ``options``: those of ``torch.compile(...,
    backend="piecewised")``, of which the plan is required. ``label``: what the piece is called in the daemon's log and status. Torch's settings (default
    dtype, precision of products, ...) are this process's as they are now.

    Raises PlanError, OptionError, UnsupportedPiece for a graph that can't be described, and OSError. An earlier file of the name stays
    where that happens.
    """
    from .capture import graph_of
    from .options import parse

    parsed = parse(options)
    described = graph_of(graph)
    request, plan = _asked(described, parsed)
    request.save(path, plan, label)


@contextlib.contextmanager
def record_graphs(folder: str | os.PathLike[str]) -> Iterator[Recording]:
    """While inside, each graph that piecewised is given to compile is also written to a file in ``folder``: by ``torch.compile``, in pieces where
    the options have ``splitting_ops``, and by :class:`PiecewiseBackend`. In every thread, and without a daemon too.

    The files are named by number, in the order of the compiles, and by program and piece. Gives the :class:`Recording`. Raises OSError.
    """
    recording = Recording(Path(folder))
    recording.folder.mkdir(parents=True, exist_ok=True)
    with _lock:
        _recordings.append(recording)
    try:
        yield recording
    finally:
        with _lock:
            _recordings.remove(recording)


def recorded(request: Request, plan: Plan, label: str) -> None:
    """Writes a request wherever requests are recorded."""
    for recording in list(_recordings):
        recording.add(request, plan, label)


def record(graph: dict[str, Any], options: BackendOptions) -> None:
    """As ``recorded``, for a graph of which there is no request yet."""
    if _recordings:
        recorded(*_asked(graph, options), "")


def _asked(graph: dict[str, Any], options: BackendOptions) -> tuple[Request, Plan]:
    from .capture import options_of
    from .graphs import is_static

    request = Request(
        graph=json.dumps(graph),
        options=options_of(options.inductor_values(), options.choices),
        toolchain=None,
        device=None,
        endpoint=None,
        budget_s=None,
        cache_dir=None,
        choices=options.choices,
    )
    return request, Plan([ANY_SIZE], []) if is_static(graph) else Plan(list(options.ranges), list(options.sizes))
