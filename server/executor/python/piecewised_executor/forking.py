"""Forking a process that goes on as something else."""

from __future__ import annotations

import contextlib
import os
import warnings


def fork() -> int:
    """os.fork, also where there is another thread: one that only reads a pipe, which the child closes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def close_all_but(*keep: int) -> None:
    """Closes what the parent had open, but for standard streams and what is to be kept."""
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        if fd > 2 and fd not in keep:
            with contextlib.suppress(OSError):
                os.close(fd)
