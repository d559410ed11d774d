"""vLLM's pieces, compiled once per node: the plugin that vLLM loads in each of its processes.

vLLM finds :func:`register` by its entry point (``vllm.general_plugins``). With a daemon named in ``PIECEWISED_ENDPOINT``, or one that listens where
daemons listen by default, vLLM's compiler is replaced by one that asks the daemon and falls back to vLLM's own. Otherwise
nothing changes. docs/vllm.md says what happens when.
"""

from __future__ import annotations

import os
from pathlib import Path


def register() -> None:
    """Puts the plugin in its place; may be called again. Connects to nothing."""
    if not _is_wanted():
        return
    # Late: this imports vLLM's compiler.
    from . import hooks

    hooks.install()


def _is_wanted() -> bool:
    if os.environ.get("PIECEWISED_ENDPOINT"):
        return True
    # As client/core has it, which also says which of them is taken.
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    folders = [Path(runtime) / "piecewised"] if os.path.isabs(runtime) else []
    folders += [Path("/run/piecewised"), Path(f"/tmp/piecewised-{os.getuid()}")]
    return any((folder / "piecewised.sock").exists() for folder in folders)
