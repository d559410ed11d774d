"""What executors are kept from, tried by a frontend in real executors of a real daemon: forked ones and fresh ones, and the same without confinement."""

from __future__ import annotations

import base64
import ctypes
import errno
import json
import os
import platform
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import until
from service_harness import DAEMON, Client, Daemon, results, small_request

PACKAGES = Path(__file__).parent / "packages"
MODULE = "prying_engine.frontend"
MARK = "prying: "

FREE = (
    "netlink",
    "pair",
    "read home",
    "write own",
    "write shared",
    "rename own",
    "write null",
    "write shared memory",
    "signal own",
)
# By measure: what an executor is told.
KEPT = {
    "network": {"tcp": "EAFNOSUPPORT", "udp": "EAFNOSUPPORT", "tcp6": "EAFNOSUPPORT", "packet": "EAFNOSUPPORT"},
    "files": {
        "read key": "EACCES",
        "read token": "EACCES",
        "read store": "EACCES",
        "write home": "EACCES",
        "change home": "EACCES",
        "remove home": "EACCES",
        "write source": "EACCES",
        "write another's": "EACCES",
        "read memory": "EACCES",
    },
    "truncation": {"empty home": "EACCES"},
    "signals": {"signal": "EPERM"},
}


@pytest.fixture(params=["forked", "fresh"])
def kind(request: pytest.FixtureRequest) -> str:
    """How the executors are started."""
    return str(request.param)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """Somebody who listens on this machine."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def interpreter(folder: Path) -> str:
    """This interpreter as one that has the engine installed."""
    path = folder / "python"
    path.write_text(f'#!/bin/sh\nPYTHONPATH="$PYTHONPATH:{PACKAGES}" exec {sys.executable} "$@"\n')
    path.chmod(0o700)
    return str(path)


def pry(folder: Path, patch: pytest.MonkeyPatch, kind: str, port: int, *flags: str) -> tuple[dict[str, str], Any, str]:
    """What an executor found that tried everything, the daemon's status as JSON, and the daemon's log."""
    home, tokens = folder / "home", folder / "tokens.toml"
    home.mkdir()
    # Instead of /tmp, in which all of this lies.
    (folder / "shared").mkdir()
    (home / "file").write_text("content")
    tokens.touch(mode=0o600)
    patch.setenv("HOME", str(home))
    if kind == "fresh":
        patch.setenv("PRYING_ENGINE_THREAD", "1")
    flags = ("--frontends", MODULE, "--executor-environment", "PRYING_ENGINE_THREAD", "--tokens", str(tokens), *flags)
    # That what was tried changes nothing for a compile is seen by the compile.
    flags += ("--temp-dir", str(folder), "--verify", "off", "--executor-writable-dirs", str(folder / "shared"))
    with Daemon(folder, *flags, python=interpreter(folder)) as daemon, Client(daemon.endpoint) as client:
        # Then there are others' folders beside that of the executor which will try: the zygote's at least.
        until(lambda: client.capabilities().ready, "the toolchain is found")
        stored = next(path for path in sorted((folder / "store").rglob("*")) if path.is_file() and path.stat().st_size)
        assert daemon.process is not None
        secrets = {"key": str(folder / "store/signing-key.pem"), "token": str(tokens), "store": str(stored)}
        aims = {"port": port, "daemon": daemon.process.pid, "secrets": secrets, "shared": str(folder / "shared")}
        aims |= {"binary": str(DAEMON), "endpoint": f"unix:{daemon.socket}"}
        request = small_request(2, sizes=(5,), endpoints=())
        request["frontend"] = {"name": MODULE, "version": "1.0"}
        request["frontend"]["identity"] = "bnVsbA=="  # null
        request["frontend"]["payload"] = base64.b64encode(json.dumps(aims).encode()).decode()
        ready, failed, _ = results(client.compile(request, timeout=900))
        assert ready and not failed, f"what was tried does not keep it from compiling: {failed}"
        until(lambda: MARK in daemon.log_text(), "what was found is in the log")
        line = next(line for line in daemon.log_text().splitlines() if MARK in line)
        found: dict[str, str] = json.JSONDecoder().raw_decode(line.partition(MARK)[2])[0]
        said = "executors are started fresh" in daemon.log_text()
        assert said == (kind == "fresh")
        command = [DAEMON, "status", "--json", "--endpoint", f"unix:{daemon.socket}"]
        status = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
        return found, status, daemon.log_text()


def test_executors_are_kept_from_what_they_have_no_business_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, listener: socket.socket
) -> None:
    found, status, log = pry(tmp_path, monkeypatch, kind, listener.getsockname()[1])
    confinement = status["confinement"]
    expected = {name: "0" for name in (*FREE, "core", "others")}
    for measure, errors in KEPT.items():
        told = measure in confinement["in_force"], measure in [it["measure"] for it in confinement["missing"]]
        assert told in ((True, False), (False, True)), "a measure is in force, or missing for a reason"
        expected |= errors if measure in confinement["in_force"] else {}
    if "network" in confinement["in_force"]:
        expected["io_uring"] = "ENOSYS"
    assert {name: found[name] for name in expected} == expected, found
    if confinement["in_force"]:
        assert "one of this daemon's executors" in found["call"]
        assert any("audit" in line and "PEER_IS_EXECUTOR" in line for line in log.splitlines())
    assert (tmp_path / "home/file").exists() or "files" not in confinement["in_force"]
    assert log.count("executors are confined ") <= 1, "it is said once"


def test_without_confinement_they_can_do_all_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, listener: socket.socket
) -> None:
    found, status, log = pry(tmp_path, monkeypatch, kind, listener.getsockname()[1], "--confine-executors", "off")
    assert status["confinement"] == {"in_force": [], "missing": []}
    assert "executors are not confined" in log
    # What root alone may, and what the machine may be without.
    optional = {"packet", "tcp6", "io_uring", "core", "read memory"}
    could = {name for name, outcome in found.items() if outcome == "0"}
    assert could >= set(found) - optional, found
    if os.geteuid() == 0:
        assert "read memory" in could
    (Path(__file__).parent / "packages/prying_engine/new").unlink()


def test_what_the_machine_has_is_told_before_a_daemon_is_started(tmp_path: Path) -> None:
    flags = ["--socket", tmp_path / "s", "--store-dir", tmp_path / "store", "--python", sys.executable, "--json"]
    asked = subprocess.run([DAEMON, "doctor", *flags], capture_output=True, check=True)
    (line,) = [it for it in json.loads(asked.stdout) if it["what"] == "confinement of executors"]
    assert (line["outcome"] == "ok") == (line["found"] == "network, files, truncation, signals"), line
    assert (line["outcome"] == "ok") == (line["remedy"] == ""), line
    asked = subprocess.run([DAEMON, "doctor", *flags, "--confine-executors", "off"], capture_output=True, check=True)
    (line,) = [it for it in json.loads(asked.stdout) if it["what"] == "confinement of executors"]
    assert line["outcome"] == "warning" and line["found"].startswith("off: ") and line["remedy"]


@pytest.mark.parametrize("folder", ["relative", "/not/there"])
def test_a_folder_to_write_to_that_is_not_there_keeps_it_from_starting(tmp_path: Path, folder: str) -> None:
    flags = ["--socket", tmp_path / "s", "--store-dir", tmp_path / "store", "--executor-writable-dirs", folder]
    ended = subprocess.run([DAEMON, "serve", *flags], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert ended.returncode == 2 and f"executor_writable_dirs: {folder} is no folder" in ended.stderr, ended


def refusing(call: int) -> Callable[[], None]:
    """What makes the calling process one for which the kernel does not have a system call."""
    # struct sock_filter: load the number; if it is `call`, skip none, else one; answer ENOSYS; allow.
    steps = [(0x20, 0, 0, 0), (0x15, 0, 1, call), (0x06, 0, 0, 0x00050000 | errno.ENOSYS), (0x06, 0, 0, 0x7FFF0000)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
    program = struct.pack("@HP", len(steps), ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)

    def bind() -> None:
        assert code is not None, "it has to outlive what points to it"
        # PR_SET_NO_NEW_PRIVS; PR_SET_SECCOMP, SECCOMP_MODE_FILTER.
        if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, program, 0, 0):
            raise OSError(ctypes.get_errno(), "prctl")

    return bind


@pytest.mark.parametrize(("call", "lacks"), [("landlock", "files"), ("seccomp", "network")])
def test_what_is_required_and_missing_keeps_the_daemon_from_starting(tmp_path: Path, call: str, lacks: str) -> None:
    number = {"landlock": 444, "seccomp": {"x86_64": 317, "aarch64": 277}[platform.machine()]}[call]
    command = [
        DAEMON,
        "serve",
        "--socket",
        tmp_path / "s",
        "--store-dir",
        tmp_path / "store",
        "--python",
        sys.executable,
    ]
    required = subprocess.run(
        [*command, "--confine-executors", "require"],
        preexec_fn=refusing(number),
        capture_output=True,
        text=True,
        check=False,
    )
    assert required.returncode == 2, required.stderr
    assert f'confine_executors: "require" needs what this machine does not have: {lacks} (' in required.stderr
    assert not (tmp_path / "store").exists()

    # Without being required it is said, and the daemon goes without.
    command[1] = "doctor"
    asked = subprocess.run([*command, "--json"], preexec_fn=refusing(number), capture_output=True, check=False)
    (line,) = [it for it in json.loads(asked.stdout) if it["what"] == "confinement of executors"]
    assert line["outcome"] == "warning" and f"missing: {lacks} (" in line["found"], line
