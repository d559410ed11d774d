"""An executor's life between its pipes and its end, whether it was started or forked.

fd 0 is /dev/null and fd 1 is fd 2 from the first moment: importing torch, and every compiler that it starts, may print, and the
daemon reads fd 2 as log lines.
"""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
from typing import Any

from .protocol import PROTOCOL, Channel, ProtocolError

Frame = tuple[str, dict[str, Any], bytes]


class Inbox:
    """What the daemon sends, read by a thread of its own, so that its end ends this process too, also in the middle of a compile."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._jobs: queue.SimpleQueue[Frame] = queue.SimpleQueue()
        self._leased: queue.SimpleQueue[Frame] = queue.SimpleQueue()
        self._is_started = False

    def start(self) -> None:
        """From now on the end of stdin is the end of this process."""
        if self._is_started:
            return
        self._is_started = True
        threading.Thread(target=self._read, name="stdin", daemon=True).start()

    def next(self) -> Frame:
        """The next frame that is no answer to `lease`. Blocks."""
        return self._jobs.get()

    def leased(self) -> None:
        """Returns when the lease that was asked for is granted."""
        self._leased.get()

    def _read(self) -> None:
        try:
            while (frame := self._channel.receive()) is not None:
                (self._leased if frame[0] == "leased" else self._jobs).put(frame)
        except (ProtocolError, OSError) as error:
            print(f"piecewised_executor: {error}", file=sys.stderr, flush=True)
        _die()


def set_standard_streams(stderr: int = 2) -> None:
    """Points fd 0 at /dev/null, and fds 1 and 2 at `stderr`."""
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    for fd in (1, 2):
        if fd != stderr:
            os.dup2(stderr, fd)


def serve(channel: Channel, inbox: Inbox, stdin: int, import_s: float, *, is_known: bool) -> None:
    """Says what this process is, and compiles until the daemon has enough of it. torch is imported, and CUDA not started. `is_known`: the
    daemon knows what the interpreter can do."""
    from . import forked_compilers
    from .job import run
    from .lease import Leases
    from .probe import ready
    from .trials import Nursery

    # Before anything here has started CUDA or compiled: what is forked from now on is as fresh as a worker.
    nursery = Nursery(stdin)
    forked_compilers.fork()
    # Only now where it was not needed before: a process with one thread forks without leaving locks behind that another one held.
    inbox.start()
    channel.send("ready", ready(import_s, is_known=is_known))
    while True:
        name, fields, payload = inbox.next()
        if name != "compile":
            print(f"piecewised_executor: ignored a message named {name!r}", file=sys.stderr, flush=True)
            continue
        job = fields.get("job")

        def ask(mode: str, job: Any = job) -> None:
            channel.send("lease", {"job": job, "mode": mode})
            inbox.leased()

        def give_back(job: Any = job) -> None:
            channel.send("release", {"job": job})

        if not run(channel, fields, payload, nursery, Leases(ask, give_back)):
            # Without destructors: those of a lost CUDA context may wait for ever.
            sys.stderr.flush()
            os._exit(1)


def greeted(channel: Channel) -> dict[str, Any] | None:
    """The fields of the daemon's first frame. None: it is gone, or speaks another version, which it was told."""
    frame = channel.receive()
    if frame is None:
        return None
    if problem := wrong_version(frame[0], frame[1]):
        channel.send("unusable", {"reason": problem})
        return None
    return frame[1]


def wrong_version(name: str, fields: dict[str, Any]) -> str:
    """Empty where the first message is the `hello` of this protocol, else what to say about it."""
    if name == "hello" and fields.get("protocol") == PROTOCOL:
        return ""
    return f"this executor speaks protocol {PROTOCOL}, the daemon sent {name} {fields}; lay out its source again"


def _die() -> None:
    """Ends this process at once, and its compilers with it."""
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)
