"""Leases of the device that a job's code runs on: asked of the daemon, so that nobody's kernels run while another's are timed.

A process has at most one lease. Inside a stretch that runs kernels (`shared`) a stretch that times them (`exclusive`) gives the shared lease
back and takes it again afterwards: two processes that both waited to upgrade would wait for ever. Nothing that this process has launched is
still running on the GPU when it gives a lease back.

Where no job has said how to ask (:func:`using`), every stretch begins at once.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

import torch

SHARED, EXCLUSIVE = "shared", "exclusive"


class Leases:
    """What this process holds. `ask` returns when a lease in the mode that it is given was granted; `give_back` ends it."""

    def __init__(self, ask: Callable[[str], None], give_back: Callable[[], None]) -> None:
        self._ask = ask
        self._give_back = give_back
        self._mode: str | None = None
        # Held for as long as the lease is: a lease is the process's, and its threads must not end each other's.
        self._lock = threading.RLock()

    @contextlib.contextmanager
    def hold(self, mode: str | None) -> Iterator[None]:
        """Holds a lease in this mode, or none, while inside. An exclusive one is enough for everything."""
        with self._lock:
            before = self._mode
            if before in (mode, EXCLUSIVE):
                yield
                return
            self._change(mode)
            try:
                yield
            finally:
                self._change(before)

    def _change(self, mode: str | None) -> None:
        if self._mode is not None:
            try:
                if torch.cuda.is_initialized():
                    torch.cuda.synchronize()
            finally:
                self._mode = None
                self._give_back()
        if mode is not None:
            self._ask(mode)
            self._mode = mode


# Innermost last. Not a context variable: threads that a compiler starts lease from the same.
_current: list[Leases] = []


@contextlib.contextmanager
def using(leases: Leases) -> Iterator[None]:
    """While inside, stretches are leased from `leases`."""
    _current.append(leases)
    try:
        yield
    finally:
        _current.pop()


def running(device_type: str) -> contextlib.AbstractContextManager[None]:
    """A stretch that runs kernels and does not time them. On a CPU that disturbs nobody."""
    return _hold(SHARED) if device_type == "cuda" else contextlib.nullcontext()


def timing(device_type: str, *, is_tuning: bool = True) -> contextlib.AbstractContextManager[None]:
    """A stretch that times code. On a CPU, which compilers use meanwhile anyhow, only tuning is kept from other tuning."""
    return _hold(EXCLUSIVE) if device_type == "cuda" or is_tuning else contextlib.nullcontext()


def paused() -> contextlib.AbstractContextManager[None]:
    """A stretch within `running` that runs nothing on the device."""
    return _hold(None)


def holding(mode: str) -> contextlib.AbstractContextManager[None]:
    """A stretch in which another process, whose leases are this one's, holds one."""
    return _hold(mode)


def _hold(mode: str | None) -> contextlib.AbstractContextManager[None]:
    return _current[-1].hold(mode) if _current else contextlib.nullcontext()
