"""Helpers for tests that talk to a real executor and load what it made in a real fresh process.

Everything is found relative to this file, and runs under the interpreter that runs pytest.
"""

from __future__ import annotations

import ctypes
import importlib
import io
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from ready_daemon import HEADERS

ROOT = Path(__file__).resolve().parents[2]
EXECUTOR_SOURCE = ROOT / "server/executor/python"
CLIENT_SOURCE = ROOT / "client/python/python"

if str(EXECUTOR_SOURCE) not in sys.path:
    sys.path.insert(0, str(EXECUTOR_SOURCE))

_HEADER = struct.Struct(">IQ")
_PR_SET_CHILD_SUBREAPER = 36


def client_module(name: str) -> types.ModuleType:
    """`piecewised.<name>`; from the source tree where the package, which needs its extension module, isn't built."""
    try:
        importlib.import_module("piecewised")
    except ImportError:
        package = types.ModuleType("piecewised")
        package.__path__ = [str(CLIENT_SOURCE / "piecewised")]
        sys.modules["piecewised"] = package
    return importlib.import_module(f"piecewised.{name}")


def _environment(extra: dict[str, str] | None) -> dict[str, str]:
    ours = {"PYTHONPATH": str(EXECUTOR_SOURCE), "PIECEWISED_PRECOMPILED_HEADERS": str(HEADERS)}
    return {**os.environ, **ours, **(extra or {})}


def forget_what_was_measured() -> None:
    """Has executors measure anew what earlier ones have, also those of earlier tests."""
    for folder in ("candidates", "searches"):
        for path in (HEADERS / folder).glob("*"):
            path.unlink(missing_ok=True)


class Spoken:
    """An executor, spoken to over two files as the daemon does."""

    def __init__(self, stdin: Any, stdout: Any) -> None:
        self.stdin = stdin
        self.stdout = stdout
        self.phases: list[str] = []
        #: The modes of the leases of the last job, in order.
        self.leases: list[str] = []
        self._holds_lease = False
        #: Is told of each phase as it begins.
        self.on_phase: Callable[[str], object] = lambda phase: None
        #: Is asked before a lease of a mode is given, and told when it has come back: for several executors on one GPU.
        self.on_lease: Callable[[str], object] = lambda mode: None
        self.on_release: Callable[[], object] = lambda: None
        self.ready: dict[str, Any] = {}

    def ended(self) -> int:
        """Waits for its end; the exit code, or minus the signal."""
        raise NotImplementedError

    def send(self, name: str, blob: bytes = b"", **fields: Any) -> None:
        text = json.dumps({name: fields}).encode()
        self.stdin.write(_HEADER.pack(len(text), len(blob)) + text + blob)
        self.stdin.flush()

    def receive(self) -> tuple[str, dict[str, Any], bytes]:
        header = self.stdout.read(_HEADER.size)
        assert len(header) == _HEADER.size, f"the executor ended, exit code {self.ended()}"
        json_len, blob_len = _HEADER.unpack(header)
        text, blob = self.stdout.read(json_len), self.stdout.read(blob_len)
        ((name, fields),) = json.loads(text).items()
        return name, fields, blob

    def hello(self, *, is_known: bool = False, frontend: str | None = None) -> dict[str, Any]:
        self.send("hello", protocol=4, is_known=is_known, frontend=frontend)
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
                self.on_lease(fields["mode"])
                self.send("leased", job=fields["job"])
            elif name == "release":
                assert self._holds_lease, "a release of nothing"
                self._holds_lease = False
                self.on_release()
            elif name == "phase":
                self.phases.append(fields["phase"])
                self.on_phase(fields["phase"])
            else:
                assert not self._holds_lease, "a lease that outlives its job"
                return name, fields, blob


class Executor(Spoken):
    """An executor in an interpreter of its own; a context manager."""

    def __init__(self, env: dict[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-u", "-m", "piecewised_executor"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=_environment(env),
            start_new_session=True,
        )
        super().__init__(self.process.stdin, self.process.stdout)

    def __enter__(self) -> Executor:
        return self

    def __exit__(self, *exc: object) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def ended(self) -> int:
        return self.process.wait()


class Forked(Spoken):
    """An executor that a zygote forked: this process's child, as it would be the daemon's."""

    def __init__(self, pid: int, stdin: Any, stdout: Any, folder: tempfile.TemporaryDirectory[str]) -> None:
        super().__init__(stdin, stdout)
        self.pid = pid
        self._folder = folder
        self._status: int | None = None

    def ended(self) -> int:
        if self._status is None:
            self._status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self._status

    def kill(self) -> None:
        """Ends it with its group."""
        if self._status is None:
            os.killpg(self.pid, signal.SIGKILL)
            self.ended()
        self._folder.cleanup()


class Zygote:
    """The process that executors are forked from, asked as the daemon asks; a context manager."""

    def __init__(self, env: dict[str, str] | None = None, frontend: str | None = None) -> None:
        # Forked executors become this process's children.
        assert ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
        self._folder = tempfile.TemporaryDirectory(prefix="piecewised-zygote-")
        self._env = _environment(env)
        self._control, theirs = socket.socketpair()
        self.process = subprocess.Popen(
            [sys.executable, "-u", "-m", "piecewised_executor.zygote"],
            stdin=theirs,
            env={**self._env, **_folders(self._folder.name)},
            start_new_session=True,
        )
        theirs.close()
        self._forked: list[Forked] = []
        self.hello = self.ask("hello", {"protocol": 4, "frontend": frontend})

    def __enter__(self) -> Zygote:
        return self

    def __exit__(self, *exc: object) -> None:
        for forked in self._forked:
            forked.kill()
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._control.close()
        self._folder.cleanup()

    def ask(self, name: str, fields: dict[str, Any], blob: bytes = b"", fds: Sequence[int] = ()) -> tuple[str, Any]:
        """The name and the fields of the answer."""
        text = json.dumps({name: fields}).encode()
        socket.send_fds(self._control, [_HEADER.pack(len(text), len(blob)) + text + blob], fds)
        with self._control.makefile("rb") as answers:
            json_len, _ = _HEADER.unpack(answers.read(_HEADER.size))
            ((name, answer),) = json.loads(answers.read(json_len)).items()
        return name, answer

    def warm(self) -> None:
        """Returns when it has nothing more to do ahead."""
        while not self.ask("check", {})[1]["is_warm"]:
            time.sleep(0.1)

    def fork(self, env: dict[str, str] | None = None, *, stderr: int = 2) -> Forked:
        """An executor that has not been greeted."""
        folder = tempfile.TemporaryDirectory(prefix="piecewised-executor-")
        variables = {**self._env, **_folders(folder.name), **(env or {})}
        blob = b"".join(f"{name}={value}\0".encode() for name, value in variables.items())
        their_stdin, stdin = os.pipe()
        stdout, their_stdout = os.pipe()
        name, answer = self.ask("fork", {}, blob, [their_stdin, their_stdout, stderr])
        os.close(their_stdin)
        os.close(their_stdout)
        assert name == "forked", answer
        self._forked.append(Forked(answer["pid"], os.fdopen(stdin, "wb"), os.fdopen(stdout, "rb"), folder))
        return self._forked[-1]


def _folders(root: str) -> dict[str, str]:
    """The variables that make a folder the only place that an executor writes to."""
    names = {"TMPDIR": "tmp", "TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton", "PWD": "work"}
    for name in names.values():
        os.makedirs(os.path.join(root, name), exist_ok=True)
    return {variable: os.path.join(root, name) for variable, name in names.items()}


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


_TORCH_ALONE = """
import sys, types
import torch
package = types.ModuleType("piecewised")
package.__path__ = [sys.argv[1]]
sys.modules["piecewised"] = package
from piecewised.runtime.load import load_entry
x, w = torch.randn(3, 4), torch.randn(4, 3)
run = load_entry(sys.argv[2], "e0")
torch.testing.assert_close(run(3, x, w), (torch.relu(x) @ w + 1,))
compiler = [name for name in sys.modules if name.startswith(("torch._inductor", "triton"))]
assert not compiler, compiler
"""


def call_with_torch_alone(folder: Path) -> None:
    """Calls entry e0 of `relu(x) @ w + 1` in a process that has imported torch and nothing that compiles."""
    subprocess.run([sys.executable, "-c", _TORCH_ALONE, str(CLIENT_SOURCE / "piecewised"), str(folder)], check=True)


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


def one_kernel(function: str = "torch.exp") -> dict[str, Any]:
    """A graph of one small kernel over `x: f32[s0, 64]`, for sizes from 2 up: every candidate is a compile of its own."""
    n = symbol("s0")
    x = tensor_input("x", [n, number(64)], [number(64), number(1)])
    nodes = [int_input("n", n), x, function_node("y", function, ref("x")), output_node({"tuple": [ref("y")]})]
    return {"nodes": nodes, "symbols": [{"name": "s0", "hint": 8, "min": 2}]}
