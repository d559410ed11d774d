"""A real daemon for the tests that need one, and worker processes that talk to it.

`ready_daemon` says which binary and which interpreter.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import executor_harness
import pytest
import service_harness
from ready_daemon import BINARY, Daemon, environment


@pytest.fixture(scope="session", autouse=True)
def _known_daemons(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keys of daemons are remembered by the path of their socket, and such paths come again with other daemons: not in this user's own folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIECEWISED_CACHE_DIR", str(tmp_path_factory.mktemp("client")))
        yield


@pytest.fixture(scope="session")
def executor() -> Iterator[executor_harness.Executor]:
    """One executor for all tests that don't disturb it: its first compile builds headers."""
    with executor_harness.Executor() as process:
        process.ready = process.hello()
        yield process


@pytest.fixture(scope="session")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon for all tests that don't disturb it."""
    assert BINARY.exists(), f"{BINARY} is missing: `make build`"
    daemon = Daemon(tmp_path_factory.mktemp("d")).start()
    yield daemon
    daemon.stop()


@pytest.fixture
def own_daemon(tmp_path: Path) -> Iterator[Daemon]:
    """A daemon for one test, not started: it may be stopped and started as the test likes."""
    assert BINARY.exists(), f"{BINARY} is missing: `make build`"
    daemon = Daemon(tmp_path)
    yield daemon
    daemon.stop()


@pytest.fixture
def cache_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own for this process's client."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("PIECEWISED_CACHE_DIR", str(folder))
    return folder


class Worker:
    """A process of its own that runs `script` and prints one JSON value as its last line."""

    def __init__(self, script: str, folder: Path, **variables: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "worker.py"
        path.write_text(script)
        self.process = subprocess.Popen(
            [sys.executable, path],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(PIECEWISED_CACHE_DIR=str(folder / "cache"), **variables),
        )
        self.stderr = ""

    def result(self) -> Any:
        """Waits for it, and what it printed."""
        out, self.stderr = self.process.communicate(timeout=600)
        assert self.process.returncode == 0, self.stderr[-8000:]
        return json.loads(out.splitlines()[-1])


@pytest.fixture
def worker(tmp_path: Path) -> Any:
    """Starts workers: `worker(script, **variables)`."""
    workers: list[Worker] = []

    def start(script: str, **variables: str) -> Worker:
        workers.append(Worker(script, tmp_path / f"worker{len(workers)}", **variables))
        return workers[-1]

    yield start
    for one in workers:
        one.process.kill()
        one.process.wait()


@pytest.fixture(scope="session")
def service_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[service_harness.Daemon]:
    """One daemon for every test that talks gRPC to it and doesn't end it: starting one costs an import of torch.

    With one executor, so that the order in which jobs run can be seen.
    """
    with service_harness.Daemon(tmp_path_factory.mktemp("service"), "--n-executors", "1") as daemon:
        yield daemon
