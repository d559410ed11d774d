"""piecewised: each piece of a model is compiled once per node, by a daemon, for the ranges of sizes that it will see.

    options = {"compile_ranges": [[1, 16], [17, 512]], "compile_sizes": [1, 4]}
    torch.compile(model, backend="piecewised", options=options)

Importing this package imports neither torch nor the native module until one of them is needed.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .counters import stats
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
    Refused,
    Unreachable,
    UnsupportedPiece,
)

if TYPE_CHECKING:
    from ._core import VERSION as __version__
    from ._core import Client, DispatchTable, plan_entries, ranges_from_endpoints
    from .piece import Piece

# Where the names are that cost an import.
_LAZY = {
    "__version__": ("._core", "VERSION"),
    "Client": ("._core", "Client"),
    "DispatchTable": ("._core", "DispatchTable"),
    "plan_entries": ("._core", "plan_entries"),
    "ranges_from_endpoints": ("._core", "ranges_from_endpoints"),
    "Piece": (".piece", "Piece"),
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
    "PiecewisedError",
    "PiecewisedWarning",
    "PlanError",
    "Refused",
    "Unreachable",
    "UnsupportedPiece",
    "__version__",
    "plan_entries",
    "ranges_from_endpoints",
    "stats",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _LAZY[name]
    value = getattr(importlib.import_module(module, __name__), attribute)
    globals()[name] = value
    return value
