"""A daemon as a container's first process: it takes what is given to it, and ends as it is told."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import command_line, until
from service_harness import DAEMON, Client, children

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="only root makes a PID namespace"),
    pytest.mark.skipif(shutil.which("unshare") is None, reason="unshare is not installed"),
]


class Container:
    """`piecewised serve` with the number 1 in a PID namespace of its own; without Python, for which there is nothing to do here."""

    def __init__(self, folder: Path, *flags: str) -> None:
        self.log = folder / "log"
        self.socket = folder / "s.sock"
        unshare = shutil.which("unshare")
        assert unshare is not None
        command = [unshare, "--pid", "--fork", "--kill-child", "--mount-proc", DAEMON, "serve", *flags]
        command += ["--socket", self.socket, "--store-dir", folder / "store"]
        with open(self.log, "wb") as log:
            self.outer = subprocess.Popen(command, stdout=log, stderr=log, env={"PATH": str(folder)})

    def text(self) -> str:
        return self.log.read_text()

    def first(self) -> int:
        """The process that has the number 1 inside."""
        (pid,) = children(self.outer.pid)
        return pid

    def listens(self) -> bool:
        assert self.outer.poll() is None, self.text()
        return "listening on unix" in self.text()


@pytest.fixture
def container(tmp_path: Path) -> Iterator[Container]:
    container = Container(tmp_path)
    until(container.listens, "it listens")
    yield container
    container.outer.kill()
    container.outer.wait()


def test_what_others_leave_behind_does_not_stay(container: Container) -> None:
    first = container.first()
    # As `kubectl exec` does: a shell that ends before what it started.
    inside = ["nsenter", "--target", str(first), "--pid", "sh", "-c", "sleep 0.2 & sleep 0.3 & sleep 1000 &"]
    subprocess.run(inside, check=True, timeout=60)
    (daemon,) = [pid for pid in children(first) if "piecewised" in command_line(pid)]
    until(lambda: len(children(first)) == 2, "only what runs is left")
    names = sorted(Path(command_line(pid).split()[0]).name for pid in children(first))
    assert names == ["piecewised", "sleep"]
    with Client(f"unix://{container.socket}") as client:
        client.channel_ready()
    # A signal to the first process is one to the daemon.
    os.kill(first, signal.SIGTERM)
    assert container.outer.wait(60) == 0
    assert "SIGTERM: draining" in container.text() and container.text().rstrip().endswith("ended")
    assert not Path(f"/proc/{daemon}").exists()


def test_it_ends_as_the_daemon_does(tmp_path: Path) -> None:
    container = Container(tmp_path, "--n-executors", "0")
    assert container.outer.wait(60) == 2
    assert "n-executors" in container.text()


def test_a_daemon_that_is_killed_is_told_of(container: Container) -> None:
    (daemon,) = children(container.first())
    os.kill(daemon, signal.SIGKILL)
    assert container.outer.wait(60) == 128 + signal.SIGKILL
