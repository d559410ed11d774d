"""piecewised: each piece of a model is compiled once per node, by a daemon, for the ranges of sizes that it will see.

    options = {"compile_ranges": [[1, 16], [17, 512]], "compile_sizes": [1, 4]}
    torch.compile(model, backend="piecewised", options=options)

Importing this package imports neither torch nor the native module until one of them is needed.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .counters import stats
from .credentials import configure
from .errors import (
    ArtifactError,
    BudgetSpent,
    CacheError,
    CompileFailed,
    ConnectionBroken,
    EndpointError,
    FormatError,
    NotCovered,
    OptionError,
    PiecewisedError,
    PiecewisedWarning,
    PlanError,
    ProgramError,
    Refused,
    Unreachable,
    UnsupportedPiece,
    Untrusted,
)

if TYPE_CHECKING:
    from ._core import VERSION as __version__
    from ._core import Client, DispatchTable, plan_entries, ranges_from_endpoints
    from .graph_files import record_graphs, save_graph
    from .manifest import get_manifest, load, save_manifest
    from .piece import Piece
    from .piecewise_backend import PiecewiseBackend
    from .program import Program, ProgramSummary, programs

# Where the names are that cost an import.
_LAZY = {
    "__version__": ("._core", "VERSION"),
    "Client": ("._core", "Client"),
    "DispatchTable": ("._core", "DispatchTable"),
    "plan_entries": ("._core", "plan_entries"),
    "ranges_from_endpoints": ("._core", "ranges_from_endpoints"),
    "get_manifest": (".manifest", "get_manifest"),
    "record_graphs": (".graph_files", "record_graphs"),
    "save_graph": (".graph_files", "save_graph"),
    "load": (".manifest", "load"),
    "save_manifest": (".manifest", "save_manifest"),
    "Piece": (".piece", "Piece"),
    "PiecewiseBackend": (".piecewise_backend", "PiecewiseBackend"),
    "Program": (".program", "Program"),
    "ProgramSummary": (".program", "ProgramSummary"),
    "programs": (".program", "programs"),
}

__all__ = [
    "ArtifactError",
    "BudgetSpent",
    "CacheError",
    "Client",
    "CompileFailed",
    "ConnectionBroken",
    "DispatchTable",
    "EndpointError",
    "FormatError",
    "NotCovered",
    "OptionError",
    "Piece",
    "PiecewiseBackend",
    "PiecewisedError",
    "PiecewisedWarning",
    "PlanError",
    "Program",
    "ProgramError",
    "ProgramSummary",
    "Refused",
    "Unreachable",
    "UnsupportedPiece",
    "Untrusted",
    "__version__",
    "configure",
    "get_manifest",
    "load",
    "plan_entries",
    "programs",
    "ranges_from_endpoints",
    "record_graphs",
    "save_graph",
    "save_manifest",
    "stats",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _LAZY[name]
    value = getattr(importlib.import_module(module, __name__), attribute)
    globals()[name] = value
    return value
