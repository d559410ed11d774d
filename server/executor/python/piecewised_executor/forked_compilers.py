"""The processes that Inductor compiles Triton kernels with, forked from the executor instead of started.

Inductor starts an interpreter for them, which imports torch, for seconds: until it is there, each compile's kernels are compiled in the executor itself, one after the other for the
most part, since Python's lock is in the way. An executor has torch imported, and is forked from a process that has. So what Inductor would start is forked, before CUDA or a second
thread is: the process between (its *sidecar*), which forks the compilers when the first job wants them.

Everything else is Inductor's: its protocol, its pool, and that it compiles in the executor where the pool is not ready.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import subprocess
import sys
import time
import traceback
import types
from collections.abc import Sequence
from typing import Any

import torch._inductor.config as inductor_config
from torch._inductor.async_compile import AsyncCompile
from torch._inductor.compile_worker import subproc_pool
from torch._inductor.compile_worker.utils import _async_compile_initializer
from torch._inductor.runtime.compile_tasks import _set_triton_ptxas_path

from . import forking, probe, settings

_PAUSE_S = 0.01


def fork() -> None:
    """Forks the sidecar, where there is a GPU to compile for. To be called while the process has one thread and has not started CUDA."""
    if settings.compile_threads() > 1 and probe.has_device_file():
        make_pool()


def make_pool() -> None:
    """Inductor's pool, made now, with a sidecar that is forked."""
    original = subproc_pool.subprocess
    subproc_pool.subprocess = types.SimpleNamespace(Popen=_Sidecar)  # type: ignore[attr-defined]
    try:
        with inductor_config.patch(compile_threads=settings.compile_threads(), worker_start_method="subprocess"):
            AsyncCompile.process_pool()
    finally:
        subproc_pool.subprocess = original  # type: ignore[attr-defined]


def wake() -> None:
    """Has the sidecar fork the compilers: a job that is to need them has begun."""
    if AsyncCompile.process_pool.cache_info().currsize:
        with inductor_config.patch(compile_threads=settings.compile_threads()):
            AsyncCompile.use_process_pool()


class _Sidecar:
    """As much of subprocess.Popen as Inductor's pool needs of it."""

    def __init__(
        self, command: Sequence[str], *, env: dict[str, str], pass_fds: tuple[int, int], stdout: Any, stderr: Any
    ) -> None:
        n_workers = next(int(word.partition("=")[2]) for word in command if word.startswith("--workers="))
        parent = os.getpid()
        self.pid = forking.fork()
        if self.pid == 0:
            try:
                _be_sidecar(pass_fds, n_workers, parent, env, stdout)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(0)

    def wait(self, timeout: float) -> None:
        """Until it has ended. Raises TimeoutExpired."""
        until = time.monotonic() + timeout
        while True:
            with contextlib.suppress(ChildProcessError):
                if os.waitpid(self.pid, os.WNOHANG) == (0, 0):
                    if time.monotonic() > until:
                        raise subprocess.TimeoutExpired("the sidecar", timeout)
                    time.sleep(_PAUSE_S)
                    continue
            return


def _be_sidecar(pipes: tuple[int, int], n_workers: int, parent: int, env: dict[str, str], output: Any) -> None:
    if output is not None:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    forking.close_all_but(*pipes)
    os.environ.update(env)
    read, write = os.fdopen(pipes[0], "rb"), os.fdopen(pipes[1], "wb")
    _set_triton_ptxas_path()
    _async_compile_initializer(parent)
    pickler = subproc_pool.SubprocPickler()
    # Compilers are told what the GPU is, and need not start CUDA to find out whether there is one.
    with probe.cuda_answers(lambda: True):
        subproc_pool.SubprocMain(pickler, subproc_pool.SubprocKind.FORK, n_workers, read, write).main()
    # They would look whether they have a parent once a minute.
    for compiler in multiprocessing.active_children():
        compiler.kill()
