"""The process that executors are forked from: it has imported torch and warmed Inductor, has one thread, and has not started CUDA.

fd 0 is a socket to the daemon. Frames as everywhere (`protocol`): the daemon sends `hello`, and hears `ready` or `unusable`. Where `hello` names a
frontend, that is imported too (`frontends.preload`), for executors that have jobs of it. Each `fork` brings
along three file descriptors (the executor's stdin, stdout and stderr) and, as its blob, the executor's environment
(`NAME=value`, each with a NUL after it); the answer is `forked` with the process's number, or `refused` with a reason after which nothing can be
forked any more. `check` is answered with `well`, or with `refused`.

An executor is forked twice, so that it loses its parent: the system gives it to the daemon, which has asked to be the parent of what
becomes an orphan among its descendants, and so waits for it and reaps it like a child of its own. It leads a process group of its own before the daemon
hears of it.

What a started executor does later at its first compile is done here between two requests (`warm`), a step at a time, so that a request waits for a
step at most.
"""

from __future__ import annotations

import array
import gc
import os
import select
import signal
import socket
import struct
import sys
import tempfile
import time
import traceback
from typing import Any

from . import confine
from .probe import close_nvml, without_cuda
from .protocol import Channel
from .serve import Inbox, greeted, serve, set_standard_streams

_N_STREAMS = 3
_HEADER = struct.Struct(">IQ")
_FIRST_REQUEST_S = 0.5
# What CUDA, and what looks for GPUs without it, opens.
_DEVICE_PREFIXES = ("/dev/nvidia", "/dev/dxg")


def main() -> None:
    """Serves until the daemon is gone."""
    control = socket.socket(fileno=os.dup(0))
    set_standard_streams()
    channel = Channel(_Reader(control), control.makefile("wb"))
    if (hello := greeted(channel)) is None:
        return

    hold_threads_back()
    from .probe import Unusable, import_torch

    try:
        import_s = import_torch()
    except Unusable as error:
        channel.send("unusable", {"reason": str(error)})
        return
    if (frontend := hello.get("frontend")) is not None:
        from . import frontends

        frontends.preload(frontend)
        close_nvml()
    channel.send("ready", {"pid": os.getpid(), "import_s": import_s, "refusal": why_not()})

    from . import warm
    from .probing import Probe

    steps = warm.steps()
    begin_at = time.monotonic() + _FIRST_REQUEST_S
    # Collected now, and then never looked at again: a collector that writes into every object would make each child copy all of them.
    _freeze()
    probe: Probe | None = None
    is_probed = False
    reader: _Reader = channel.reader  # type: ignore[assignment]
    while True:
        if probe is None and not steps and not is_probed:
            probe, is_probed = Probe(), True
        waiting = [control, *([probe.fd] if probe is not None else [])]
        # Whoever started this one wants an executor: that comes before the first step.
        patience = max(begin_at - time.monotonic(), 0.0) if steps else None
        readable = select.select(waiting, [], [], patience)[0]
        if probe is not None and probe.fd in readable:
            _step(probe.finish)
            probe = None
        if control not in readable:
            if steps:
                _step(steps.pop(0))
            continue
        if (frame := channel.receive()) is None:
            _end_helpers()
            return
        name, _, blob = frame
        fds, reader.fds = reader.fds, []
        try:
            if refusal := why_not():
                channel.send("refused", {"reason": refusal})
            elif name == "fork" and len(fds) == _N_STREAMS:
                channel.send("forked", {"pid": _fork(control, fds, blob, import_s)})
            elif name == "check":
                channel.send("well", {"is_warm": not steps and probe is None})
            else:
                channel.send("refused", {"reason": f"a message {name!r} with {len(fds)} file descriptors"})
        finally:
            for fd in fds:
                os.close(fd)


def hold_threads_back() -> None:
    """Has libraries not start threads when they are imported: numpy's linear algebra, with which nothing here calculates, and Arrow's allocator (pandas imports
    it, and frontends import pandas)."""
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    os.environ["JE_ARROW_MALLOC_CONF"] = "background_thread:false"


def _end_helpers() -> None:
    """What is being found out is of no use to anybody any more."""
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)


def why_not() -> str:
    """Why nothing can be forked from this process; empty: it can."""
    threads = [task for task in os.listdir("/proc/self/task") if int(task) != os.getpid()]
    if threads:
        names = ", ".join(sorted(map(_thread_name, threads)))
        return f"what was imported started threads ({names}), which a forked process would not have"
    for fd in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            continue
        if target.startswith(_DEVICE_PREFIXES):
            return f"what was imported started CUDA (it has {target} open), which a forked process could not use"
    return ""


def _thread_name(task: str) -> str:
    try:
        with open(f"/proc/self/task/{task}/comm", encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return "one that has ended"


class _Reader:
    """The socket as a file that `Channel` reads, which keeps the file descriptors that come along."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self.fds: list[int] = []

    def read(self, n: int) -> bytes:
        """`n` bytes, or fewer at the end."""
        data = bytearray()
        while len(data) < n:
            space = socket.CMSG_SPACE(_N_STREAMS * array.array("i").itemsize)
            part, ancillary, _, _ = self._control.recvmsg(n - len(data), space, socket.MSG_CMSG_CLOEXEC)
            for level, kind, content in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    found = array.array("i")
                    found.frombytes(content[: len(content) - len(content) % found.itemsize])
                    self.fds += found
            if not part:
                break
            data += part
        return bytes(data)


def _freeze() -> None:
    gc.unfreeze()
    gc.collect()
    gc.freeze()


def _step(step: Any) -> None:
    started = time.monotonic()
    try:
        with without_cuda():
            step()
    except Exception:
        # What could not be warmed is cold in the executors, where it may say why to somebody who asked for it.
        traceback.print_exc()
    _freeze()
    print(
        f"piecewised_executor: warmed {step.__name__.strip('_')} in {time.monotonic() - started:.2f} s",
        file=sys.stderr,
        flush=True,
    )


def _fork(control: socket.socket, fds: list[int], environment: bytes, import_s: float) -> int:
    told, tell = os.pipe()
    between = os.fork()
    if between == 0:
        # Whatever happens here must not go on as a second zygote.
        status = 1
        try:
            executor = os.fork()
            if executor == 0:
                os.setpgid(0, 0)
                # Not closed by the object, which waits for the files that were made of it.
                os.close(control.detach())
                os.close(told)
                os.close(tell)
                _be_executor(fds, environment, import_s)
            else:
                # Both sides do it, so that it is done when the daemon hears of the process and when the process starts others.
                os.setpgid(executor, executor)
                os.write(tell, struct.pack(">I", executor))
                status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    os.close(tell)
    try:
        number = os.read(told, 4)
    finally:
        os.close(told)
        os.waitpid(between, 0)
    if len(number) < 4:
        raise OSError("no process could be forked")
    return int(struct.unpack(">I", number)[0])


def _be_executor(fds: list[int], environment: bytes, import_s: float) -> None:
    stdin, stdout, stderr = fds
    set_standard_streams(stderr)
    os.close(stderr)
    os.environ.clear()
    for entry in environment.split(b"\0"):
        name, is_there, value = entry.partition(b"=")
        if is_there:
            os.environb[name] = value
    # Before anything that a job brings along.
    confine.apply()
    # The working directory of a started executor, and the temporary folder that was chosen for this one.
    os.chdir(os.environ["PWD"])
    tempfile.tempdir = None
    from . import warm

    warm.forget()
    channel = Channel(os.fdopen(stdin, "rb"), os.fdopen(stdout, "wb"))
    fields = greeted(channel)
    if fields is None:
        return
    inbox = Inbox(channel)
    serve(channel, inbox, stdin, import_s, is_known=bool(fields.get("is_known")))


if __name__ == "__main__":
    main()
