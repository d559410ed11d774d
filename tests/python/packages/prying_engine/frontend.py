"""Tries what the payload says, prints what came of each (a number, or the name of the error), and takes part in the compile as if nothing had been."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from piecewised_executor.frontends import Frontend

MARK = "prying: "
_IO_URING_SETUP = 425


def preload() -> None:
    """Has executors started fresh where the test wants that: nothing is forked from a process with threads."""
    if os.environ.get("PRYING_ENGINE_THREAD"):
        threading.Thread(target=threading.Event().wait, name="prying", daemon=True).start()


def load(version: str, payload: bytes) -> Frontend:
    """Tries it all, in the executor, and not again in the process that tries what it compiled."""
    del version
    try:
        (_own() / "pried").touch(exist_ok=False)
    except FileExistsError:
        return Frontend()
    aims = json.loads(payload)
    found = {name: _try(attempt) for name, attempt in _attempts(aims).items()}
    if binary := aims.get("binary"):
        command = [binary, "status", "--endpoint", aims["endpoint"]]
        asked = subprocess.run(command, capture_output=True, text=True, check=False)
        found["call"] = "0" if asked.returncode == 0 else asked.stderr
    print(MARK + json.dumps(found), file=sys.stderr, flush=True)
    return Frontend()


def _own() -> Path:
    return Path(os.environ["PWD"]).parent


def _try(attempt: Callable[[], object]) -> str:
    try:
        attempt()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    return "0"


def _attempts(aims: dict[str, Any]) -> dict[str, Callable[[], object]]:
    own = _own()
    others = [folder for folder in own.parent.iterdir() if folder != own]
    daemon = int(aims["daemon"])
    home = Path(os.environ["HOME"])
    return {
        "tcp": lambda: socket.create_connection(("127.0.0.1", aims["port"])).close(),
        "udp": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close(),
        "tcp6": lambda: socket.socket(socket.AF_INET6, socket.SOCK_STREAM).close(),
        "packet": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close(),
        "io_uring": _io_uring,
        "netlink": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW).close(),
        "pair": lambda: [end.close() for end in socket.socketpair()],
        **{f"read {name}": lambda path=path: Path(path).read_bytes() for name, path in aims["secrets"].items()},
        "read memory": lambda: os.close(os.open(f"/proc/{daemon}/mem", os.O_RDONLY)),
        "read home": lambda: (home / "file").read_bytes(),
        "write home": lambda: (home / f"new{os.getpid()}").write_text("x"),
        "change home": lambda: (home / "file").write_text("x"),
        "empty home": lambda: os.truncate(home / "file", 0),
        "remove home": lambda: (home / "file").unlink(),
        "write source": lambda: (Path(__file__).parent / "new").write_text("x"),
        "write another's": lambda: [(folder / "tmp" / "new").write_text("x") for folder in others],
        "write shared": lambda: (Path(aims["shared"]) / f"new{os.getpid()}").write_text("x"),
        "write own": lambda: (own / "tmp" / "new").write_text("x"),
        "rename own": lambda: (own / "tmp" / "new").rename(own / "work" / "newer"),
        "write null": lambda: Path("/dev/null").write_text("x"),
        "write shared memory": _shared_memory,
        "signal": lambda: os.kill(daemon, 0),
        "signal own": lambda: os.kill(os.getpid(), signal.SIGCONT),
        "core": lambda: None if resource.getrlimit(resource.RLIMIT_CORE) == (0, 0) else _fail(),
        "others": lambda: None if others else _fail(),
    }


def _fail() -> None:
    raise OSError(errno.EDOM, "it is not so")


def _io_uring() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    ring = libc.syscall(_IO_URING_SETUP, 1, ctypes.create_string_buffer(120))
    if ring < 0:
        raise OSError(ctypes.get_errno(), "io_uring_setup")
    os.close(ring)


def _shared_memory() -> None:
    path = Path(f"/dev/shm/prying-{os.getpid()}")
    path.write_text("x")
    path.unlink()
