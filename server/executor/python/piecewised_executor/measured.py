"""What was measured on this machine, kept for an hour beside the precompiled headers, and measured by one executor at a time.

Pieces of a model have much in common: the same matrix products, the same small kernels. Each compile has caches of its own, so each would time the same candidates
again, and on a GPU it waits for its turn to do so. Instead, whoever comes first measures, and who comes while that goes on waits and takes what was found.

A result follows from the device, the driver, the toolchain and what was measured; that is what it is kept by. An hour is long enough for the pieces of a model and its replicas,
and what was measured badly is not what all later compiles are built on.

Who measures has a lock on the entry, which goes with its process, however that ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import io
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch._inductor import codecache

from .runtime import fingerprint

_VALID_S = 3600.0
# Longer than compiling some twenty candidates takes on a machine that is busy; then one measures beside the other.
_MAX_WAIT_S = 120.0
_PAUSE_S = 0.05
_MAX_FILES = 4096
_DRIVER = "/proc/driver/nvidia/version"


class Entry:
    """What was found for one thing, `of`, of one kind, in a folder of that kind's name. Its premises are JSON."""

    def __init__(self, kind: str, of: list[Any], *, on_gpu: bool) -> None:
        premises = json.dumps([of, _machine(on_gpu)]).encode()
        name = hashlib.blake2b(premises, digest_size=16).hexdigest()
        self.path = Path(codecache._HEADER_DIR, kind, name)

    def found(self) -> Any:
        """What was written; None: nothing, or it is too old, or no such record."""
        try:
            record = json.loads(self.path.read_text(encoding="utf-8"))
            return record["found"] if abs(time.time() - float(record["at"])) < _VALID_S else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, found: Any) -> None:
        """Puts it there, whole or not at all."""
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=self.path.parent, delete=False, encoding="utf-8") as file:
                json.dump({"at": time.time(), "found": found}, file)
            os.replace(file.name, self.path)
            _drop_oldest(self.path.parent)
        except OSError as error:
            print(f"piecewised_executor: {self.path} cannot be kept: {error}", file=sys.stderr)

    def open_lock(self) -> io.TextIOWrapper:
        """The file that the lock is on. Closing it gives the lock back. Where it cannot be there, one that nobody else has: then each executor measures for itself."""
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            return open(f"{self.path}.lock", "a", encoding="ascii")
        except OSError as error:
            print(f"piecewised_executor: {self.path} cannot be locked: {error}", file=sys.stderr)
            return tempfile.TemporaryFile("w", encoding="ascii")


def takes(lock: io.TextIOWrapper) -> bool:
    """Whether the lock is this process's now, until the file is closed."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def wait(lock: io.TextIOWrapper, is_done: Callable[[], bool]) -> bool:
    """Until who measures is done or gone; whether the lock is this process's then. It is not where it takes too long."""
    until = time.monotonic() + _MAX_WAIT_S
    while not (is_ours := takes(lock)) and not is_done() and time.monotonic() < until:
        time.sleep(_PAUSE_S)
    return is_ours


@functools.cache
def _machine(on_gpu: bool) -> list[Any]:
    """What a time depends on beside what is timed. Starts CUDA where that is asked about."""
    device = fingerprint.cuda_device(torch.cuda.current_device()) if on_gpu else fingerprint.cpu_device()
    driver = ""
    with contextlib.suppress(OSError):
        driver = Path(_DRIVER).read_text(encoding="utf-8") if on_gpu else str(torch.get_num_threads())
    return [fingerprint.toolchain()["fingerprint"], device, driver]


def _drop_oldest(folder: Path) -> None:
    files = [Path(one.path) for one in os.scandir(folder)]
    if len(files) < _MAX_FILES:
        return
    for path in sorted(files, key=lambda path: path.stat().st_mtime)[: _MAX_FILES // 2]:
        path.unlink(missing_ok=True)
