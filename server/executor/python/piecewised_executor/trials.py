"""Fresh processes in which artifacts are tried: loaded as a worker loads them, compared with eager, timed.

Before the executor has compiled anything or touched a GPU, it forks a *nursery* that does nothing but fork again: each
trial runs in a child of the nursery, a process that has imported torch and nothing else (no caches, no kernels, no CUDA
context), with an empty cache folder, no search path for programs, and an audit hook that makes starting a process an
error. What goes wrong there, a crash included, is the artifact's and ends with the child.

Where importing torch has started CUDA (it should not, but a build may), a forked process cannot use the GPU: then each trial is
an interpreter of its own, which takes the seconds of an import, and says so once.

Wire: frames of `protocol.Channel` on a socket pair. The executor sends `try`, the child answers `started` and `result`,
the nursery `ended` when the child is gone.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
import warnings
from typing import Any

from .errors import VerificationFailed, describe
from .protocol import Channel

# What starts a process, by the names of Python's audit events.
_REQUEST, _RESULT = "request.json", "result.json"
_STARTING = ("subprocess.Popen", "os.posix_spawn", "os.fork", "os.forkpty", "os.system", "os.exec", "os.spawn")


class TrialDied(VerificationFailed):
    """The process that tried the artifact crashed or did not end in time."""


class Nursery:
    """The executor's side. One trial at a time."""

    def __init__(self) -> None:
        """Forks. To be called while the process has imported torch and not yet started CUDA."""
        ours, theirs = socket.socketpair()
        with warnings.catch_warnings():
            # One other thread exists, which only reads a pipe that the child closes.
            warnings.simplefilter("ignore", DeprecationWarning)
            self.pid = os.fork()
        if self.pid == 0:
            ours.close()
            _run_nursery(theirs)
            os._exit(0)
        theirs.close()
        self._socket = ours
        self._channel = Channel(ours.makefile("rb"), ours.makefile("wb"))
        self._lock = threading.Lock()
        self._can_fork = True

    def run(self, request: dict[str, Any], deadline_s: float) -> dict[str, Any]:
        """Runs `trial.run(request)` in a fresh process and gives its result.

        Raises TrialDied where the process crashed or took longer than `deadline_s`, and VerificationFailed with what the trial
        found wrong.
        """
        with self._lock:
            result = self._exchange(request, deadline_s) if self._can_fork else {"cuda_is_lost": True}
            if result.get("cuda_is_lost"):
                if self._can_fork:
                    print(
                        "piecewised_executor: importing torch started CUDA; trials take an import each", file=sys.stderr
                    )
                self._can_fork = False
                result = _in_a_fresh_interpreter(request, deadline_s)
        if (problem := result.get("failed")) is not None:
            raise VerificationFailed(problem)
        return result

    def _exchange(self, request: dict[str, Any], deadline_s: float) -> dict[str, Any]:
        self._channel.send("try", request)
        result: dict[str, Any] | None = None
        overdue = threading.Event()
        timer: threading.Timer | None = None
        try:
            while (frame := self._channel.receive()) is not None:
                name, fields, _ = frame
                if name == "started":
                    timer = threading.Timer(deadline_s, _kill, [fields["pid"], overdue])
                    timer.start()
                elif name == "result":
                    result = fields
                elif result is not None:
                    return result
                else:
                    how = f"did not end within {deadline_s:.0f} s" if overdue.is_set() else _ending(fields["status"])
                    raise TrialDied(f"the process that loaded and ran the artifact {how}")
        finally:
            if timer is not None:
                timer.cancel()
        raise TrialDied("the process that tries artifacts is gone")


def _in_a_fresh_interpreter(request: dict[str, Any], deadline_s: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="piecewised-trial-") as folder:
        with open(os.path.join(folder, _REQUEST), "w", encoding="utf-8") as file:
            json.dump(request, file)
        command = [sys.executable, "-c", f"from {__name__} import main; main({folder!r})"]
        try:
            ended = subprocess.run(
                command, timeout=deadline_s, check=False, stdin=subprocess.DEVNULL, stdout=sys.stderr
            )
        except subprocess.TimeoutExpired:
            raise TrialDied(
                f"the process that loaded and ran the artifact did not end within {deadline_s:.0f} s"
            ) from None
        try:
            with open(os.path.join(folder, _RESULT), encoding="utf-8") as file:
                result: dict[str, Any] = json.load(file)
                return result
        except FileNotFoundError:
            how = f"exit code {ended.returncode}" if ended.returncode >= 0 else signal.Signals(-ended.returncode).name
            raise TrialDied(f"the process that loaded and ran the artifact ended with {how}") from None


def main(folder: str) -> None:
    """One trial in an interpreter of its own: the request and the result are files in `folder`."""
    from .probe import import_torch

    import_torch()
    with open(os.path.join(folder, _REQUEST), encoding="utf-8") as file:
        request = json.load(file)
    _isolate(folder)
    result = _result(request)
    with open(os.path.join(folder, _RESULT), "w", encoding="utf-8") as file:
        json.dump(result, file)


def _kill(pid: int, overdue: threading.Event) -> None:
    overdue.set()
    # The nursery reaps it only after it has ended, and tells before it starts another: the number is still the child's.
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _ending(status: int) -> str:
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        return f"was killed by {signal.Signals(number).name}"
    return f"ended with exit code {os.WEXITSTATUS(status)}"


def _run_nursery(link: socket.socket) -> None:
    """Forks a child for each request until the executor is gone."""
    _close_all_but(link.fileno())
    channel = Channel(link.makefile("rb"), link.makefile("wb"))
    while (frame := channel.receive()) is not None:
        _, request, _ = frame
        # Its own folder, removed here because the child may die in any way.
        folder = tempfile.mkdtemp(prefix="piecewised-trial-")
        child = os.fork()
        if child == 0:
            _run_trial(channel, request, folder)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        shutil.rmtree(folder, ignore_errors=True)
        try:
            channel.send("ended", {"status": status})
        except OSError:
            return


def _close_all_but(keep: int) -> None:
    """Closes the executor's pipes and whatever else it had open, but for standard streams and one socket."""
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        if fd > 2 and fd != keep:
            with contextlib.suppress(OSError):
                os.close(fd)


def _run_trial(channel: Channel, request: dict[str, Any], folder: str) -> None:
    try:
        channel.send("started", {"pid": os.getpid()})
        _isolate(folder)
        channel.send("result", _result(request))
    finally:
        sys.stderr.flush()
        # Neither the parent's exit handlers nor destructors: they belong to what the parent has.
        os._exit(0)


def _result(request: dict[str, Any]) -> dict[str, Any]:
    from . import trial

    try:
        return trial.run(request)
    except trial.CudaIsLost:
        return {"cuda_is_lost": True}
    except VerificationFailed as error:
        return {"failed": str(error)}
    except trial.UnusableInputs as error:
        return {"unusable_inputs": str(error)}
    except BaseException as error:
        return {"failed": f"the artifact could not be tried: {describe(error)}\n{traceback.format_exc()}"}


def _isolate(folder: str) -> None:
    """What a worker on a bare machine has: no programs, an empty cache, and no right to start a process."""
    os.environ.update(
        PATH=folder,
        TMPDIR=folder,
        TORCHINDUCTOR_CACHE_DIR=os.path.join(folder, "inductor"),
        TRITON_CACHE_DIR=os.path.join(folder, "triton"),
        XDG_CACHE_HOME=os.path.join(folder, "cache"),
    )
    tempfile.tempdir = folder

    def refuse(event: str, args: tuple[Any, ...]) -> None:
        if event in _STARTING:
            raise RuntimeError(f"loading or running an artifact must not start a process: {event} {args[:1]}")

    sys.addaudithook(refuse)
