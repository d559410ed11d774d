"""What a job is doing, told to the daemon as it happens, and where its time went."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from typing import Any

from .protocol import Channel


class Phases:
    """Tells the daemon what goes on, and adds up where the time goes. A phase within another counts for itself only."""

    def __init__(self, channel: Channel, job: Any) -> None:
        self._channel = channel
        self._job = job
        self._seconds: dict[str, float] = {}
        self._open: list[str] = []
        self._started = self._since = time.monotonic()
        self._cpu = _cpu_seconds()

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Announces the phase and times what is inside."""
        self._count()
        self._open.append(name)
        self._tell()
        try:
            yield
        finally:
            self._count()
            self._open.pop()
            if self._open:
                self._tell()

    def timings(self) -> dict[str, Any]:
        """The Timings of the job so far."""
        return {
            "total_s": time.monotonic() - self._started,
            "cpu_s": _cpu_seconds() - self._cpu,
            "phases": [{"phase": name, "seconds": seconds} for name, seconds in self._seconds.items()],
        }

    def _count(self) -> None:
        now = time.monotonic()
        if self._open:
            name = self._open[-1]
            self._seconds[name] = self._seconds.get(name, 0.0) + now - self._since
        self._since = now

    def _tell(self) -> None:
        self._channel.send("phase", {"job": self._job, "phase": self._open[-1]})


def _cpu_seconds() -> float:
    """Of this process and of its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
