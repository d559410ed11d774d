"""A real daemon that is waited for until it can compile, for tests that go through the Python client.

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
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BINARY = Path(os.environ.get("PIECEWISED_TEST_DAEMON", ROOT / "target/debug/piecewised"))
PYTHON = os.environ.get("PIECEWISED_TEST_PYTHON", sys.executable)
START_DEADLINE_S = 180
# Shared by the daemons of all tests, and kept: each would make the same, which takes longer than most tests.
HEADERS = ROOT / "target/test-headers"


def environment(**extra: str) -> dict[str, str]:
    """This process's environment without anything that configures piecewised, and with `extra`."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PIECEWISED_")}
    return {**clean, **extra}


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
        command += ["--headers-dir", HEADERS]
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

    def public_key(self) -> str:
        """What it signs with."""
        import piecewised

        return json.loads(piecewised.Client(self.endpoint).status())["public_key"]

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
