"""What vLLM keeps at the daemon beside pieces, by name: snapshots, which every worker of the node with this toolchain finds.

Needs no vLLM: Triton may use it in a process that has none.
"""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path

from ..connections import connect
from ..errors import ConnectionBroken, Unreachable

#: What the daemon knows vLLM's side of a compile by.
FRONTEND = "vllm"


def fetch(name: str) -> bytes | None:
    """The bytes of that name, verified; None: there are none. Raises PiecewisedError."""
    return connect(None).fetch_snapshot(FRONTEND, name, toolchain())


def put(name: str, data: bytes) -> None:
    """Keeps bytes under a name. Raises PiecewisedError."""
    connect(None).put_snapshot(FRONTEND, name, toolchain(), data)


def lay_down(path: Path, data: bytes) -> None:
    """Writes a file that is under its name only when it is whole: other processes look there. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(data)
    os.replace(file.name, path)


def level(error: Exception) -> int:
    """Of the line that says what went wrong. That there is no daemon, or no longer one, is said once, where the pieces are compiled."""
    return logging.DEBUG if isinstance(error, (Unreachable, ConnectionBroken)) else logging.WARNING


def toolchain() -> str:
    """The fingerprint that goes with each name."""
    from ..runtime import fingerprint

    return fingerprint.toolchain()["fingerprint"]
