"""Helpers for tests that talk to a real executor and load what it made in a real fresh process.

Everything is found relative to this file, and runs under the interpreter that runs pytest.
"""

from __future__ import annotations

import importlib
import io
import json
import os
import signal
import struct
import subprocess
import sys
import tarfile
import tempfile
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
EXECUTOR_SOURCE = ROOT / "server/executor/python"
CLIENT_SOURCE = ROOT / "client/python/python"

if str(EXECUTOR_SOURCE) not in sys.path:
    sys.path.insert(0, str(EXECUTOR_SOURCE))

_HEADER = struct.Struct(">IQ")

# Precompiled headers are shared by the executors of one run of the tests, as a daemon's share them: making them takes seconds.
_HEADERS = tempfile.TemporaryDirectory(prefix="piecewised-headers-")


def client_module(name: str) -> types.ModuleType:
    """`piecewised.<name>`; from the source tree where the package, which needs its extension module, isn't built."""
    try:
        importlib.import_module("piecewised")
    except ImportError:
        package = types.ModuleType("piecewised")
        package.__path__ = [str(CLIENT_SOURCE / "piecewised")]
        sys.modules["piecewised"] = package
    return importlib.import_module(f"piecewised.{name}")


class Executor:
    """An executor process, spoken to as the daemon does; a context manager."""

    def __init__(self, env: dict[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-u", "-m", "piecewised_executor"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={
                **os.environ,
                "PYTHONPATH": str(EXECUTOR_SOURCE),
                "PIECEWISED_PRECOMPILED_HEADERS": _HEADERS.name,
                **(env or {}),
            },
            start_new_session=True,
        )
        self.phases: list[str] = []
        #: The modes of the leases of the last job, in order.
        self.leases: list[str] = []
        self._holds_lease = False
        #: Is told of each phase as it begins.
        self.on_phase: Callable[[str], object] = lambda phase: None
        self.ready: dict[str, Any] = {}

    def __enter__(self) -> Executor:
        return self

    def __exit__(self, *exc: object) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def send(self, name: str, **fields: Any) -> None:
        text = json.dumps({name: fields}).encode()
        self.process.stdin.write(_HEADER.pack(len(text), 0) + text)
        self.process.stdin.flush()

    def receive(self) -> tuple[str, dict[str, Any], bytes]:
        header = self.process.stdout.read(_HEADER.size)
        assert len(header) == _HEADER.size, f"the executor ended, exit code {self.process.wait()}"
        json_len, blob_len = _HEADER.unpack(header)
        text, blob = self.process.stdout.read(json_len), self.process.stdout.read(blob_len)
        ((name, fields),) = json.loads(text).items()
        return name, fields, blob

    def hello(self) -> dict[str, Any]:
        self.send("hello", protocol=3, is_known=False)
        name, fields, _ = self.receive()
        assert name == "ready", fields
        return fields

    def compile(self, graph: dict[str, Any], **request: Any) -> tuple[str, dict[str, Any], bytes]:
        """Sends one job and gives its last message; phases go into `phases`."""
        self.phases, self.leases, self._holds_lease = [], [], False
        defaults = {"job": 1, "range": None, "dispatch_argument": None, "hint": None, "options": {}, "verify": True}
        self.send("compile", **{**defaults, "graph": graph, "format": "inductor", "device": cpu_device(), **request})
        while True:
            name, fields, blob = self.receive()
            if name == "lease":
                assert not self._holds_lease, "a second lease beside the first"
                self._holds_lease = True
                self.leases.append(fields["mode"])
                self.send("leased", job=fields["job"])
            elif name == "release":
                assert self._holds_lease, "a release of nothing"
                self._holds_lease = False
            elif name == "phase":
                self.phases.append(fields["phase"])
                self.on_phase(fields["phase"])
            else:
                assert not self._holds_lease, "a lease that outlives its job"
                return name, fields, blob


def cpu_device() -> dict[str, str]:
    return client_module("runtime.fingerprint").cpu_device()


def capture(
    function: Callable[..., Any], *args: Any, dynamic: bool | None = None, **kwargs: Any
) -> tuple[torch.fx.GraphModule, list[Any]]:
    """The one graph that Dynamo makes of a call, with the inputs that it hands to a backend."""
    captured: list[tuple[torch.fx.GraphModule, list[Any]]] = []

    def backend(gm: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        captured.append((gm, list(inputs)))
        return gm.forward

    torch._dynamo.reset()
    with torch.no_grad():
        torch.compile(function, backend=backend, dynamic=dynamic)(*args, **kwargs)
    (only,) = captured
    return only


def manifest(artifact: bytes) -> dict[str, Any]:
    """An artifact's manifest."""
    with tarfile.open(fileobj=io.BytesIO(artifact)) as tar:
        return json.load(tar.extractfile("manifest.json"))


def materialise(artifact: bytes, folder: Path) -> Path:
    """Lays an artifact out as a client does."""
    with tarfile.open(fileobj=io.BytesIO(artifact)) as tar:
        for member in tar:
            path = folder / member.name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(tar.extractfile(member).read())
    return folder


# What a worker is: a fresh process with an empty cache folder and no compiler, in which starting a process is an error.
_WORKER = """
import os, sys, types
FORBIDDEN = ("subprocess.Popen", "os.posix_spawn", "os.fork", "os.forkpty", "os.system", "os.exec", "os.spawn")
def refuse(event, args):
    if event in FORBIDDEN:
        raise RuntimeError(f"a worker started a process: {event} {args}")
package = types.ModuleType("piecewised")
package.__path__ = [sys.argv[2]]
sys.modules["piecewised"] = package
import torch
sys.addaudithook(refuse)
from piecewised.runtime.load import load_entry
environment = dict(os.environ)
calls = torch.load(sys.argv[1], weights_only=False)
results = []
with torch.no_grad():
    for folder, entry, args in calls:
        results.append((load_entry(folder, entry)(*args), args))
changed = {name for name in {*environment, *os.environ} if environment.get(name) != os.environ.get(name)}
written = os.listdir(os.environ["TORCHINDUCTOR_CACHE_DIR"])
torch.save((results, sorted(changed), written), sys.argv[1])
"""


def call_in_worker(
    calls: list[tuple[Path, str, list[Any]]], folder: Path
) -> tuple[list[tuple[Any, list[Any]]], list[str], list[str]]:
    """Calls entries of materialised artifacts in one fresh worker.

    Gives, per call, what it returned and its arguments afterwards (for those that are changed in place); the
    environment variables that loading changed; and what was written into Inductor's cache folder.
    """
    cache = folder / "inductor-cache"
    cache.mkdir(parents=True)
    exchange = folder / "calls.pt"
    torch.save([(str(artifact), entry, args) for artifact, entry, args in calls], exchange)
    env = {"HOME": str(folder), "PATH": str(folder), "TORCHINDUCTOR_CACHE_DIR": str(cache), "TMPDIR": str(folder)}
    if "LD_LIBRARY_PATH" in os.environ:
        env["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
    subprocess.run(
        [sys.executable, "-c", _WORKER, str(exchange), str(CLIENT_SOURCE / "piecewised")], env=env, check=True
    )
    return torch.load(exchange, weights_only=False)


def entry_for(done: dict[str, Any], size: int | None) -> str:
    """The entry that a dispatcher takes for a size."""
    for segment in done["segments"]:
        if segment["range"] is None or segment["range"][0] <= size <= segment["range"][1]:
            return segment["entry"]
    raise AssertionError(f"{size} is in no segment of {done['segments']}")


# Graphs written by hand, in the wire's form.


def symbol(name: str) -> dict[str, Any]:
    return {"symbol": name}


def number(value: int) -> dict[str, Any]:
    return {"int": value}


def call(function: str, *operands: Any) -> dict[str, Any]:
    return {"call": [function, list(operands)]}


def tensor_input(name: str, sizes: list[Any], strides: list[Any], offset: Any = None, dtype: str = "float32") -> dict:
    meta = {"dtype": dtype, "device": {"type": "cpu"}, "layout": "strided", "sizes": sizes, "strides": strides}
    if offset is not None:
        meta["storage_offset"] = offset
    return {"name": name, "op": {"placeholder": {"value": {"tensor": meta}}}}


def int_input(name: str, expr: Any) -> dict[str, Any]:
    return {"name": name, "op": {"placeholder": {"value": {"sym_int": expr}}}}


def function_node(name: str, target: str, *args: Any, kwargs: list[Any] | None = None) -> dict[str, Any]:
    return {"name": name, "op": {"call_function": {"target": target, "args": list(args), "kwargs": kwargs or []}}}


def method_node(name: str, method: str, *args: Any) -> dict[str, Any]:
    return {"name": name, "op": {"call_method": {"method": method, "args": list(args)}}}


def output_node(value: Any) -> dict[str, Any]:
    return {"name": "output", "op": {"output": {"value": value}}}


def ref(name: str) -> dict[str, Any]:
    return {"node": name}
