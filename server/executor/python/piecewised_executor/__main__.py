"""Starts the executor: takes the pipes for itself, then imports torch, says what it is, and compiles until told not to.

The file descriptors are moved before torch is imported, since importing it (and every compiler that it starts) may
print: fd 0 becomes /dev/null, and fd 1 becomes fd 2, which the daemon reads as log lines.
"""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading

from .protocol import PROTOCOL, Channel, ProtocolError

Job = tuple[str, dict, bytes]


def _take_pipes() -> Channel:
    reader, writer = os.dup(0), os.dup(1)
    for fd in (reader, writer):
        os.set_inheritable(fd, False)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    return Channel(os.fdopen(reader, "rb"), os.fdopen(writer, "wb"))


def _die() -> None:
    """Ends this process at once, also in the middle of a compile, and its compilers with it."""
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def _read(channel: Channel, jobs: queue.SimpleQueue[Job]) -> None:
    try:
        while (frame := channel.receive()) is not None:
            jobs.put(frame)
    except (ProtocolError, OSError) as error:
        print(f"piecewised_executor: {error}", file=sys.stderr, flush=True)
    _die()


def main() -> None:
    """Serves until stdin ends."""
    channel = _take_pipes()
    jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(channel, jobs), name="stdin", daemon=True).start()

    name, fields, _ = jobs.get()
    if name != "hello" or fields.get("protocol") != PROTOCOL:
        reason = f"this executor speaks protocol {PROTOCOL}, the daemon sent {name} {fields}; lay out its source again"
        channel.send("unusable", {"reason": reason})
        return

    from .probe import Unusable, import_torch, ready

    try:
        seconds = import_torch()
        # Before anything here has started CUDA or compiled: what is forked from now on is as fresh as a worker.
        from .trials import Nursery

        nursery = Nursery()
        message = ready(seconds)
    except Unusable as error:
        channel.send("unusable", {"reason": str(error)})
        return
    channel.send("ready", message)

    from .job import run

    while True:
        name, fields, _ = jobs.get()
        if name == "compile":
            run(channel, fields, nursery)
        else:
            print(f"piecewised_executor: ignored a message named {name!r}", file=sys.stderr, flush=True)


main()
