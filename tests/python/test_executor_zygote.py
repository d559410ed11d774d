"""A real zygote and what is forked from it: the same artifacts as from started executors, in surroundings of their own, and no orphans."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import executor_harness as h
import pytest
import torch
from processes import members, until

JOB: dict[str, Any] = {"range": [2, 16], "dispatch_argument": 0, "hint": 8}


@pytest.fixture(scope="module")
def zygote() -> Iterator[h.Zygote]:
    with h.Zygote() as zygote:
        name, fields = zygote.hello
        assert (name, fields["refusal"]) == ("ready", "")
        zygote.warm()
        yield zygote


def status(pid: int, name: str) -> str:
    """A line of /proc/PID/status."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return value.split()[0]
    raise KeyError(name)


def test_it_has_one_thread_and_does_not_collect_what_it_shares(zygote: h.Zygote) -> None:
    assert status(zygote.process.pid, "Threads") == "1"
    name, fields = zygote.ask("check", {})
    assert (name, fields) == ("well", {"is_warm": True})


def test_forked_and_started_executors_make_the_same_artifact(zygote: h.Zygote, executor: h.Executor) -> None:
    forked = zygote.fork()
    assert set(forked.hello(is_known=True)) == {"protocol", "pid", "import_s"}
    expected = executor.ready
    again = zygote.fork()
    ready = again.hello()
    assert {**ready, "pid": 0, "import_s": 0} == {**expected, "pid": 0, "import_s": 0}
    digests = []
    for process in (forked, executor, again, forked):
        message, fields, blob = process.compile(h.one_kernel("torch.exp"), **JOB)
        assert message == "done", fields
        assert fields["verification"]["outcome"] == "passed"
        digests.append(hashlib.sha256(blob).hexdigest())
    assert len(set(digests)) == 1
    forked.kill()
    again.kill()


def test_each_has_its_own_surroundings(zygote: h.Zygote) -> None:
    one = zygote.fork({"PIECEWISED_TEST_MARK": "one", "TORCHINDUCTOR_COMPILE_THREADS": "1"})
    two = zygote.fork({"CUDA_VISIBLE_DEVICES": "GPU-none"})
    folders = []
    for process in (one, two):
        process.hello(is_known=True)
        assert status(process.pid, "PPid") == str(os.getpid())
        assert os.getpgid(process.pid) == process.pid
        folders.append(os.readlink(f"/proc/{process.pid}/cwd"))
        streams = [os.readlink(f"/proc/{process.pid}/fd/{fd}") for fd in (0, 1, 2)]
        assert streams[0] == "/dev/null" and streams[1] == streams[2]
        # Neither the zygote's socket nor another executor's pipes.
        sockets = [os.readlink(f"/proc/{process.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{process.pid}/fd")]
        assert sum(name.startswith("socket:") for name in sockets) == 1, "the link to its own trials"
    assert folders[0] != folders[1]
    one.kill()
    two.kill()


def test_the_end_of_the_pipe_ends_the_whole_group_in_the_middle_of_a_compile(zygote: h.Zygote) -> None:
    forked = zygote.fork()
    forked.hello(is_known=True)
    forked.send("compile", job=1, graph=h.one_kernel("torch.cos"), options={}, format="inductor", verify=False,
                device=h.cpu_device(), **JOB)  # fmt: skip
    until(lambda: len(members(forked.pid)) > 2, "a compiler runs")
    forked.stdin.close()
    assert forked.ended() == -signal.SIGKILL
    until(lambda: members(forked.pid) == [], "the group is gone")


def test_an_executor_that_is_stuck_is_ended_with_the_daemon_too(zygote: h.Zygote) -> None:
    forked = zygote.fork()
    forked.hello(is_known=True)
    # As one is that waits in native code with the interpreter's lock: its own thread cannot see the pipe's end.
    os.kill(forked.pid, signal.SIGSTOP)
    until(lambda: status(forked.pid, "State") == "T", "it stands still")
    forked.stdin.close()
    assert forked.ended() == -signal.SIGKILL
    until(lambda: members(forked.pid) == [], "the group is gone")


def test_what_is_forked_outlives_the_zygote() -> None:
    with h.Zygote() as zygote:
        forked = zygote.fork()
        forked.hello(is_known=True)
        zygote.process.kill()
        zygote.process.wait()
        message, fields, _ = forked.compile(h.one_kernel("torch.sin"), **JOB)
        assert message == "done", fields


# A driver that notes that it was started, and then finds no GPU.
DRIVER = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
int cuInit(unsigned flags) {
  FILE *file = fopen(getenv("DRIVER_LOG"), "a");
  fputs("started", file);
  fclose(file);
  return 100;
}
int cuDriverGetVersion(int *version) { *version = 13000; return 0; }
static int nothing(void) { return 100; }
int cuGetProcAddress_v2(const char *name, void **found, int version, unsigned long flags, void *status) {
  *found = (void *)nothing;
  if (strcmp(name, "cuInit") == 0) *found = (void *)cuInit;
  if (strcmp(name, "cuGetProcAddress") == 0) *found = (void *)cuGetProcAddress_v2;
  if (strcmp(name, "cuDriverGetVersion") == 0) *found = (void *)cuDriverGetVersion;
  return 0;
}
int cuGetProcAddress(const char *name, void **found, int version, unsigned long flags) {
  return cuGetProcAddress_v2(name, found, version, flags, 0);
}
"""


@pytest.mark.skipif(torch.version.cuda is None, reason="this torch knows nothing of CUDA")
@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a driver of its own: see test_executor_cuda")
def test_the_driver_is_not_started_before_an_executor_needs_it(tmp_path: Path) -> None:
    log = tmp_path / "log"
    (tmp_path / "driver.c").write_text(DRIVER)
    library = tmp_path / "libcuda.so.1"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, tmp_path / "driver.c"], check=True)
    with h.Zygote({"LD_LIBRARY_PATH": str(tmp_path), "DRIVER_LOG": str(log)}) as zygote:
        assert zygote.hello[1]["refusal"] == ""
        zygote.warm()
        forked = zygote.fork()
        forked.hello(is_known=True)
        assert not log.exists()
        # This driver is the one that is asked.
        zygote.fork().hello()
        assert log.exists()


def test_a_thread_or_an_open_gpu_means_that_nothing_is_forked(tmp_path: Path) -> None:
    # What monitoring agents do to every interpreter that starts.
    agent = "import threading, time\nthreading.Thread(target=time.sleep, args=(600,), daemon=True).start()\n"
    (tmp_path / "sitecustomize.py").write_text(agent)
    with h.Zygote({"PYTHONPATH": f"{tmp_path}:{h.EXECUTOR_SOURCE}"}) as zygote:
        name, fields = zygote.hello
        assert name == "ready" and "started threads (python" in fields["refusal"]
        name, fields = zygote.ask("check", {})
        assert name == "refused" and "threads" in fields["reason"]
