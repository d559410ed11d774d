"""A real daemon for the tests that need one, and worker processes that talk to it.

PIECEWISED_TEST_DAEMON names the binary (target/debug/piecewised otherwise), PIECEWISED_TEST_PYTHON the interpreter that
compiles (this one otherwise).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import executor_harness
import pytest
import service_harness

ROOT = Path(__file__).resolve().parents[2]
BINARY = Path(os.environ.get("PIECEWISED_TEST_DAEMON", ROOT / "target/debug/piecewised"))
PYTHON = os.environ.get("PIECEWISED_TEST_PYTHON", sys.executable)
START_DEADLINE_S = 180


def environment(**extra: str) -> dict[str, str]:
    """This process's environment without anything that configures piecewised, and with `extra`."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PIECEWISED_")}
    return {**clean, **extra}


@pytest.fixture(scope="session")
def executor() -> Iterator[executor_harness.Executor]:
    """One executor for all tests that don't disturb it: its first compile builds headers."""
    with executor_harness.Executor() as process:
        process.ready = process.hello()
        yield process


class Daemon:
    """One daemon with a socket and a store of its own, both below `folder`."""

    def __init__(self, folder: Path, *flags: str) -> None:
        self.folder = folder
        self.flags = flags
        # Socket paths are limited to some 100 bytes, pytest's folders are not.
        self.socket = folder / "s.sock"
        self.log = folder / "log"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"unix:{self.socket}"

    def start(self) -> Daemon:
        """Starts it and waits until it can compile."""
        command = [BINARY, "serve", "--socket", self.socket, "--store-dir", self.folder / "store", "--python", PYTHON]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, *self.flags], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment()
            )
        deadline = time.monotonic() + START_DEADLINE_S
        while not self._is_ready():
            assert self.process.poll() is None, f"the daemon ended:\n{self.words()}"
            assert time.monotonic() < deadline, f"the daemon isn't ready:\n{self.words()}"
            time.sleep(0.1)
        return self

    def _is_ready(self) -> bool:
        import piecewised

        try:
            capabilities = json.loads(piecewised.Client(self.endpoint).capabilities())
        except (piecewised.Unreachable, piecewised.ConnectionBroken):
            return False
        return capabilities["ready"]

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """Ends it with a signal and waits for it."""
        if self.process is not None:
            self.process.send_signal(how)
            try:
                self.process.wait(timeout=60)
            finally:
                self.process.kill()
                self.process.wait()
                self.process = None

    def words(self) -> str:
        """What it logged, the last part."""
        return self.log.read_text(errors="replace")[-8000:]


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
