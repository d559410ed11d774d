"""Fresh processes in which artifacts are tried: loaded as a worker loads them, compared with eager, timed.

Before the executor has compiled anything or touched a GPU, it forks a *nursery* that does nothing but fork again: each
trial runs in a child of the nursery, a process that has imported torch and nothing else (no caches, no kernels, no CUDA
context), with an empty cache folder, no search path for programs, and an audit hook that makes starting a process an
error. What goes wrong there, a crash included, is the artifact's and ends with the child.

Starting CUDA takes most of a second, so a job that is to have a trial has it *prepared* when it begins: that child is forked then, starts CUDA while the executor compiles, and
waits for what to try.

Where importing torch has started CUDA (it should not, but a build may), a forked process cannot use the GPU: then each trial is
an interpreter of its own, which takes the seconds of an import, and says so once.

Wire: frames of `protocol.Channel` on a socket pair. The executor sends `try`, the child answers `started` and `result`,
the nursery `ended` when the child is gone. Or it sends `prepare`, which a child answers with `prepared`, and `try` or `drop` to that child. In between the child may send `lease`, which the executor answers with `leased`, and
`release`; and, where the request names a runner, `run`, which is answered with `ran` when that has ended: a trial itself starts no process. The nursery also guards the executor's group (`guard`).
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
import time
import traceback
from collections.abc import Iterator
from typing import Any

from . import forking, lease, runner
from .errors import Interrupted, VerificationFailed, describe, ending, is_from_outside
from .guard import Guard
from .lease import Leases
from .probe import close_nvml
from .protocol import Channel, ProtocolError

# What starts a process, by the names of Python's audit events.
_REQUEST, _RESULT = "request.json", "result.json"
_STARTING = ("subprocess.Popen", "os.posix_spawn", "os.fork", "os.forkpty", "os.system", "os.exec", "os.spawn")


class TrialDied(VerificationFailed):
    """The process that tried the artifact crashed or did not end in time."""


class Nursery:
    """The executor's side. One trial at a time."""

    def __init__(self, stdin: int) -> None:
        """Forks. To be called while the process has imported torch and not yet started CUDA. `stdin`: the pipe from the daemon."""
        # The nursery closes all that it does not know; a frontend's import may have asked NVML what GPUs there are.
        close_nvml()
        ours, theirs = socket.socketpair()
        leader = os.getpid()
        self.pid = forking.fork()
        if self.pid == 0:
            ours.close()
            _run_nursery(theirs, Guard(stdin, leader))
            os._exit(0)
        theirs.close()
        self._socket = ours
        self._channel = Channel(ours.makefile("rb"), ours.makefile("wb"))
        self._lock = threading.Lock()
        self._can_fork = True
        self._is_prepared = False

    def prepare(self, device_type: str) -> None:
        """Begins the next trial: its process is forked, and starts CUDA where it is for a GPU. What goes wrong is told by that trial."""
        with self._lock, contextlib.suppress(OSError, ProtocolError):
            if self._can_fork and not self._is_prepared:
                self._channel.send("prepare", {"device_type": device_type})
                self._is_prepared = True

    def drop(self) -> None:
        """Ends what was prepared and is not to be used."""
        with self._lock, contextlib.suppress(OSError, ProtocolError):
            if self._is_prepared:
                self._is_prepared = False
                self._await("prepared")
                self._channel.send("drop", {})
                self._await("ended")

    def run(self, request: dict[str, Any], deadline_s: float) -> dict[str, Any]:
        """Runs `trial.run(request)` in a fresh process and gives its result.

        Raises TrialDied where the process crashed or took longer than `deadline_s`, and VerificationFailed with what the trial
        found wrong.
        """
        with self._lock:
            result = self._ask_nursery(request, deadline_s) if self._can_fork else {"cuda_is_lost": True}
            if result.get("cuda_is_lost"):
                if self._can_fork:
                    print(
                        "piecewised_executor: importing torch started CUDA; trials take an import each", file=sys.stderr
                    )
                self._can_fork = False
                # Such a process has no way to ask: it has the GPU for itself all the time.
                with lease.holding(lease.EXCLUSIVE):
                    result = _in_a_fresh_interpreter(request, deadline_s)
        if (problem := result.get("failed")) is not None:
            raise VerificationFailed(problem)
        return result

    def _ask_nursery(self, request: dict[str, Any], deadline_s: float) -> dict[str, Any]:
        try:
            return self._exchange(request, deadline_s)
        except (OSError, ProtocolError) as error:
            # It was killed: before it was asked, with the question unread, or within a frame.
            raise Interrupted(f"the process that tries artifacts is gone: {describe(error)}") from error

    def _await(self, wanted: str) -> dict[str, Any]:
        frame = self._channel.receive()
        if frame is None or frame[0] != wanted:
            raise ProtocolError(f"the process that tries artifacts sent {frame and frame[0]} in place of {wanted}")
        return frame[1]

    def _exchange(self, request: dict[str, Any], deadline_s: float) -> dict[str, Any]:
        was_prepared, self._is_prepared = self._is_prepared, False
        pid = int(self._await("prepared")["pid"]) if was_prepared else None
        self._channel.send("try", request)
        result: dict[str, Any] | None = None
        is_started = False
        interrupted: Interrupted | None = None
        # The trial has no way to the daemon: its leases are this process's, and end with it.
        with contextlib.ExitStack() as leased, contextlib.closing(_Deadline(deadline_s)) as deadline:
            if pid is not None:
                deadline.start(pid)
            while (frame := self._channel.receive()) is not None:
                name, fields, _ = frame
                if name == "started":
                    is_started = True
                    if pid is None:
                        deadline.start(fields["pid"])
                elif name == "lease":
                    with deadline.stopped():
                        leased.enter_context(lease.holding(fields["mode"]))
                    self._channel.send("leased", {})
                elif name == "release":
                    leased.close()
                elif name == "run":
                    with deadline.stopped():
                        try:
                            ran = runner.run(request["runner"], fields["folder"], request["device_type"])
                        except Interrupted as error:
                            interrupted, ran = error, {"failed": str(error)}
                    self._channel.send("ran", ran)
                elif name == "result":
                    result = fields
                elif interrupted is not None:
                    raise interrupted
                elif result is not None:
                    return result
                elif was_prepared and not is_started and not deadline.is_over:
                    # Whether it had the request is not known; the next one's nursery has nothing to do with that.
                    raise Interrupted(f"the process that was to try the artifact {_ending_of(fields['status'])}")
                else:
                    raise _died(fields["status"], deadline_s if deadline.is_over else None)
        raise Interrupted("the process that tries artifacts is gone")


class _Deadline:
    """Kills a trial that takes longer than `seconds`, in which waiting for a lease does not count."""

    def __init__(self, seconds: float) -> None:
        self.is_over = False
        self._left = seconds
        self._pid: int | None = None
        self._timer: threading.Timer | None = None
        self._since = 0.0

    def start(self, pid: int) -> None:
        """From now on the time of `pid` runs."""
        self._pid = pid
        self._since = time.monotonic()
        self._timer = threading.Timer(max(self._left, 0.0), self._end)
        self._timer.start()

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Stands still while inside."""
        self.close()
        self._left -= time.monotonic() - self._since
        yield
        if self._pid is not None:
            self.start(self._pid)

    def close(self) -> None:
        """The time runs no more."""
        if self._timer is not None:
            self._timer.cancel()
            # Should it be under way: `pid` is only this child's for as long as its end was not told.
            self._timer.join()

    def _end(self) -> None:
        self.is_over = True
        # The nursery reaps it only after it has ended, and tells before it starts another: the number is still the child's.
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid or 0, signal.SIGKILL)


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


def _died(status: int, overdue_s: float | None) -> TrialDied | Interrupted:
    """What the end of a trial without a result means."""
    if overdue_s is not None:
        return TrialDied(f"the process that loaded and ran the artifact did not end within {overdue_s:.0f} s")
    how = f"the process that loaded and ran the artifact {_ending_of(status)}"
    return Interrupted(how) if is_from_outside(os.waitstatus_to_exitcode(status)) else TrialDied(how)


def _ending_of(status: int) -> str:
    return ending(os.waitstatus_to_exitcode(status))


def _run_nursery(link: socket.socket, guard: Guard) -> None:
    """Forks a child for each request until the executor is gone."""
    forking.close_all_but(link.fileno(), guard.fd)
    channel = Channel(link.makefile("rb"), link.makefile("wb"))
    while True:
        guard.wait_for(link.fileno())
        if (frame := channel.receive()) is None:
            return
        # Its own folder, removed here because the child may die in any way.
        folder = tempfile.mkdtemp(prefix="piecewised-trial-")
        child = os.fork()
        if child == 0:
            _run_trial(channel, frame, folder)
            os._exit(0)
        status = guard.wait_for_end_of(child)
        shutil.rmtree(folder, ignore_errors=True)
        try:
            channel.send("ended", {"status": status})
        except OSError:
            return


def _run_trial(channel: Channel, frame: tuple[str, dict[str, Any], bytes] | None, folder: str) -> None:
    try:
        _isolate(folder)
        if frame is not None and frame[0] == "prepare":
            # First: the nursery, which reads the same socket, has a child to wait for from here on.
            channel.send("prepared", {"pid": os.getpid()})
            if frame[1]["device_type"] == "cuda":
                start_cuda()
            frame = channel.receive()
        if frame is None or frame[0] != "try":
            return
        request = frame[1]
        channel.send("started", {"pid": os.getpid()})
        with lease.using(Leases(lambda mode: _ask(channel, mode), lambda: channel.send("release", {}))):
            ask_runner = None if request.get("runner") is None else lambda folder: _run(channel, folder)
            result = _result(request, ask_runner)
        channel.send("result", result)
    finally:
        sys.stderr.flush()
        # Neither the parent's exit handlers nor destructors: they belong to what the parent has.
        os._exit(0)


def start_cuda() -> None:
    """Makes this process's context on its GPU. Where that fails it fails again, and is told, for whoever uses the GPU."""
    import torch

    if not torch.cuda._is_in_bad_fork():
        with contextlib.suppress(Exception):
            torch.zeros(1, device="cuda")


def _ask(channel: Channel, mode: str) -> None:
    channel.send("lease", {"mode": mode})
    if channel.receive() is None:
        raise EOFError("the executor is gone")


def _run(channel: Channel, folder: str) -> dict[str, Any]:
    channel.send("run", {"folder": folder})
    if (frame := channel.receive()) is None:
        raise EOFError("the executor is gone")
    return frame[1]


def _result(request: dict[str, Any], ask_runner: Any = None) -> dict[str, Any]:
    from . import trial

    try:
        return trial.run(request, ask_runner)
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
