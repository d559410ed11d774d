"""A daemon that starts again answers from its store before its interpreter has said anything, and only while nothing of that has changed.

The interpreter is real; in front of it is a script that holds it back for as long as a file is there.
"""

from __future__ import annotations

import pathlib
import sys
import venv

import grpc
import pytest
from processes import until
from service_harness import Client, Daemon, results, small_request

# Importing torch twice, with other work on the machine.
WITHIN_S = 300

FOUND, BELIEVED = "found a toolchain for", "the toolchain is taken to be what it was"


class Gate:
    """`python` waits before it starts Python while it is closed."""

    def __init__(self, folder: pathlib.Path) -> None:
        self._file, self._target = folder / "closed", folder / "target"
        self.python = folder / "python3"
        wait = f"while [ -e {self._file} ]; do sleep 0.05; done"
        self.python.write_text(f'#!/bin/sh\n{wait}\nexec "$(cat {self._target})" "$@"\n')
        self.python.chmod(0o755)
        self.lead_to(sys.executable)

    def lead_to(self, python: str | pathlib.Path) -> None:
        self._target.write_text(str(python))

    def close(self) -> None:
        self._file.touch()

    def open(self) -> None:
        self._file.unlink()


@pytest.fixture
def gate(tmp_path: pathlib.Path) -> Gate:
    return Gate(tmp_path)


@pytest.fixture
def daemon(tmp_path: pathlib.Path, gate: Gate) -> Daemon:
    """That has run once, and compiled the piece with the constant 500."""
    daemon = Daemon(tmp_path, python=str(gate.python))
    with daemon, Client(daemon.endpoint) as client:
        ready, failed, _ = results(client.compile(small_request(constant=500)))
        assert len(ready) == 1 and not failed
    gate.close()
    return daemon


def test_hits_need_no_interpreter_and_compiles_wait_for_it(daemon: Daemon, gate: Gate) -> None:
    with daemon, Client(daemon.endpoint) as client:
        ready, _, summary = results(client.compile(small_request(constant=500)))
        assert (len(ready), summary.n_from_store) == (1, 1)
        assert client.capabilities().ready
        assert daemon.log_text().count(FOUND) == 1 and BELIEVED in daemon.log_text()

        events = client.compile(small_request(constant=501))
        assert next(events).WhichOneof("event") == "queued"
        gate.open()
        ready, failed, _ = results(events)
        assert len(ready) == 1 and not failed
        assert daemon.log_text().count(FOUND) == 2


def test_an_interpreter_that_changed_is_looked_at_before_anything_is_answered(daemon: Daemon, gate: Gate) -> None:
    gate.python.write_text(gate.python.read_text() + "# changed\n")
    with daemon, Client(daemon.endpoint) as client:
        capabilities = client.capabilities()
        assert not capabilities.ready and "importing torch" in capabilities.not_ready_reason, capabilities
        events = client.compile(small_request(constant=500), timeout=0.5)
        with pytest.raises(grpc.RpcError):
            next(events)
        gate.open()
        until(lambda: client.capabilities().ready, "the toolchain is found", WITHIN_S)
        _, _, summary = results(client.compile(small_request(constant=500)))
        assert summary.n_from_store == 1 and BELIEVED not in daemon.log_text()


def test_an_interpreter_that_says_something_else_than_before_is_looked_at_again(
    daemon: Daemon, gate: Gate, tmp_path: pathlib.Path
) -> None:
    """Nothing that is looked at beforehand has changed, and yet another Python comes out of it."""
    with daemon, Client(daemon.endpoint) as client:
        assert client.capabilities().ready and BELIEVED in daemon.log_text()
        gate.lead_to(another_environment(tmp_path / "other"))
        gate.open()
        until(lambda: daemon.log_text().count(FOUND) == 2, "it is found again", WITHIN_S)
        until(lambda: client.capabilities().ready, "it is told")
        assert "looking for a toolchain again" in daemon.log_text()
        (toolchain,) = client.capabilities().toolchains
        assert toolchain.executable == str(tmp_path / "other/bin/python")
        ready, failed, _ = results(client.compile(small_request(constant=502)))
        assert len(ready) == 1 and not failed


def another_environment(folder: pathlib.Path) -> pathlib.Path:
    """The Python of a virtual environment that has the packages of this one."""
    venv.create(folder)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "these.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")) + "\n")
    return folder / "bin/python"
