"""A real daemon in a folder of its own, and a gRPC client of it that nobody here wrote.

The client is grpcio with messages made at run time from what the daemon's own reflection service says, so that a proto which
reflection does not serve, or serves wrongly, fails here.
"""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import grpc
from google.protobuf import descriptor_pool, json_format, message_factory
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from processes import command_line, stat
from ready_daemon import HEADERS

DAEMON = pathlib.Path(os.environ.get("PIECEWISED_TEST_DAEMON", "target/debug/piecewised")).resolve()
SERVICE = "piecewised.v1.CompileService"


class Daemon:
    """`piecewised serve` on a private socket and store."""

    def __init__(self, folder: pathlib.Path, *flags: str, python: str = sys.executable) -> None:
        self.folder = folder
        self.python = python
        self.socket = folder / "piecewised.sock"
        self.endpoint = f"unix://{self.socket}"
        self.flags = flags
        self.log = folder / "daemon.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Daemon:
        """Starts it and waits until it listens."""
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [
                    DAEMON,
                    "serve",
                    "--socket",
                    self.socket,
                    "--store-dir",
                    self.folder / "store",
                    "--headers-dir",
                    HEADERS,
                    # Without one the daemon looks for one itself.
                    *(["--python", self.python] if self.python else []),
                    *self.flags,
                ],
                stderr=log,
                stdout=log,
            )
        deadline = time.monotonic() + 60
        while True:
            assert self.process.poll() is None, f"the daemon ended with {self.process.returncode}:\n{self.log_text()}"
            assert time.monotonic() < deadline, f"the daemon does not listen:\n{self.log_text()}"
            try:
                with Client(self.endpoint) as client:
                    client.channel_ready()
                    return self
            except grpc.FutureTimeoutError:
                time.sleep(0.05)

    def kill(self) -> None:
        """kill -9, as a crash or the kernel would."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def terminate(self) -> int:
        """SIGTERM; the exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(120)

    def log_text(self) -> str:
        """All it has logged."""
        return self.log.read_text(errors="replace")

    def executors(self) -> list[int]:
        """Process ids of its executors."""
        assert self.process is not None
        return [pid for pid in children(self.process.pid) if "piecewised_executor" in command_line(pid)]

    def __enter__(self) -> Daemon:
        """Started, unless it runs already."""
        return self if self.process is not None and self.process.poll() is None else self.start()

    def __exit__(self, *_: object) -> None:
        if self.process is not None and self.process.poll() is None:
            self.terminate()


def children(parent: int) -> list[int]:
    """Direct children of a process, zombies too."""
    pids = [int(entry.name) for entry in pathlib.Path("/proc").iterdir() if entry.name.isdigit()]
    return [pid for pid in pids if (fields := stat(pid)) is not None and int(fields[1]) == parent]


class Client:
    """Calls by name, with messages as dicts (protobuf's JSON form) or raw bytes."""

    def __init__(self, endpoint: str) -> None:
        self.channel = grpc.insecure_channel(
            endpoint.removeprefix("http://"),
            options=[
                # grpcio names the socket's path as the authority, percent-encoded, which HTTP/2 servers in Rust refuse.
                ("grpc.default_authority", "localhost"),
                ("grpc.max_send_message_length", -1),
                ("grpc.max_receive_message_length", -1),
            ],
        )
        database = ProtoReflectionDescriptorDatabase(self.channel)
        self._pool = descriptor_pool.DescriptorPool(database)

    def channel_ready(self) -> None:
        """Waits until the connection stands."""
        grpc.channel_ready_future(self.channel).result(timeout=5)

    def message(self, name: str, **fields: Any) -> Any:
        """A message of piecewised.v1 from protobuf's JSON form."""
        kind = message_factory.GetMessageClass(self._pool.FindMessageTypeByName(f"piecewised.v1.{name}"))
        return json_format.ParseDict(fields, kind())

    def _parse(self, name: str) -> Any:
        return message_factory.GetMessageClass(self._pool.FindMessageTypeByName(f"piecewised.v1.{name}")).FromString

    def capabilities(self, frontend: str = "") -> Any:
        """GetCapabilities."""
        call = self.channel.unary_unary(
            f"/{SERVICE}/GetCapabilities",
            lambda message: message.SerializeToString(),
            self._parse("GetCapabilitiesResponse"),
        )
        return call(self.message("GetCapabilitiesRequest", frontend=frontend), timeout=30)

    def compile(self, request: Any, timeout: float = 300, metadata: Sequence[tuple[str, str]] = ()) -> Events:
        """Compile: the events after Accepted, as they come. `request`: a CompileRequest, its fields as a dict, or bytes."""
        if isinstance(request, dict):
            request = self.message("CompileRequest", **request)
        call = self.channel.unary_stream(
            f"/{SERVICE}/Compile",
            lambda message: message if isinstance(message, bytes) else message.SerializeToString(),
            self._parse("CompileEvent"),
        )
        return Events(call(request, timeout=timeout, metadata=metadata))

    def fetch(self, digest: bytes, offset: int = 0, timeout: float = 60) -> Iterator[Any]:
        """FetchArtifact: the chunks."""
        call = self.channel.unary_stream(
            f"/{SERVICE}/FetchArtifact",
            lambda message: message.SerializeToString(),
            self._parse("FetchArtifactResponse"),
        )
        request = self.message("FetchArtifactRequest")
        request.digest, request.offset = digest, offset
        return call(request, timeout=timeout)

    def forget_failures(self, key: bytes = b"") -> int:
        """ForgetFailures: how many."""
        call = self.channel.unary_unary(
            f"/{SERVICE}/ForgetFailures",
            lambda message: message.SerializeToString(),
            self._parse("ForgetFailuresResponse"),
        )
        request = self.message("ForgetFailuresRequest")
        request.key = key
        return int(call(request, timeout=30).n_forgotten)

    def report_fallbacks(self, fallbacks: list[dict[str, Any]]) -> None:
        """ReportFallbacks."""
        call = self.channel.unary_unary(
            f"/{SERVICE}/ReportFallbacks",
            lambda message: message.SerializeToString(),
            self._parse("ReportFallbacksResponse"),
        )
        call(self.message("ReportFallbacksRequest", fallbacks=fallbacks), timeout=30)

    def manifest(self, program: str) -> Any:
        """GetManifest."""
        call = self.channel.unary_unary(
            f"/{SERVICE}/GetManifest", lambda message: message.SerializeToString(), self._parse("GetManifestResponse")
        )
        return call(self.message("GetManifestRequest", program=program), timeout=30)

    def close(self) -> None:
        """Closes the connection."""
        self.channel.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Events:
    """The events of a Compile but for Accepted, which has to be the first; otherwise as grpcio gives them."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self.accepted: Any = None

    def __iter__(self) -> Events:
        return self

    def __next__(self) -> Any:
        if self.accepted is None:
            first = next(self._call)
            assert first.WhichOneof("event") == "accepted"
            self.accepted = first.accepted
        return next(self._call)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._call, name)


def int_arg(value: int) -> dict[str, Any]:
    """An integer argument."""
    return {"intValue": str(value)}


def node(name: str) -> dict[str, Any]:
    """A node reference argument."""
    return {"node": name}


def symbol(name: str = "s0") -> dict[str, Any]:
    """A symbolic size."""
    return {"symbol": name}


def integer(value: int) -> dict[str, Any]:
    """A concrete size."""
    return {"integer": str(value)}


def tensor_input(name: str, sizes: list[dict[str, Any]], strides: list[dict[str, Any]]) -> dict[str, Any]:
    """A float32 CPU tensor as a placeholder."""
    tensor = {"dtype": "float32", "device": {"type": "cpu"}, "layout": "strided", "sizes": sizes, "strides": strides}
    return {"name": name, "placeholder": {"value": {"tensor": tensor}}}


def small_graph(constant: int = 1) -> dict[str, Any]:
    """`(x + constant).relu()` over `x: f32[s0, 8]`, with `s0` as an input of its own."""
    return {
        "symbols": [{"name": "s0", "hint": "64"}],
        "nodes": [
            {"name": "size", "placeholder": {"value": {"symInt": symbol()}}},
            tensor_input("x", [symbol(), integer(8)], [integer(8), integer(1)]),
            {"name": "y", "callFunction": {"target": "_operator.add", "args": [node("x"), int_arg(constant)]}},
            {"name": "z", "callFunction": {"target": "torch.nn.functional.relu", "args": [node("y")]}},
            {"name": "out", "output": {"value": {"tuple": {"items": [node("z")]}}}},
        ],
    }


def small_request(constant: int = 1, sizes: tuple[int, ...] = (), endpoints: tuple[int, ...] = (16,)) -> dict[str, Any]:
    """A request for `small_graph`."""
    return {
        "graph": small_graph(constant),
        "plan": {
            "compileRangeEndpoints": {"endpoints": [str(end) for end in endpoints]},
            "compileSizes": [str(size) for size in sizes],
        },
        "options": {"torch": {"numThreads": 1}},
    }


def failing_request(label: str) -> dict[str, Any]:
    """A request whose graph does not compile."""
    request = small_request() | {"label": label}
    mode = {"name": "rounding_mode", "value": {"stringValue": "nearest"}}
    call = {"target": "torch.div", "args": [node("x"), int_arg(3)], "kwargs": [mode]}
    request["graph"]["nodes"][2]["callFunction"] = call
    return request


def json_values(text: str) -> tuple[list[Any], str]:
    """The JSON objects that a text begins with, one after the other, and what follows them."""
    decoder, found, rest = json.JSONDecoder(), [], text.strip()
    while rest.startswith("{"):
        value, end = decoder.raw_decode(rest)
        found.append(value)
        rest = rest[end:].strip()
    return found, rest


def results(events: Iterator[Any]) -> tuple[list[Any], list[Any], Any]:
    """Reads a stream to its end: ready events, failed events, the summary."""
    ready, failed, summary = [], [], None
    for event in events:
        assert summary is None, "there is nothing after completed"
        kind = event.WhichOneof("event")
        if kind == "ready":
            ready.append(event.ready)
        elif kind == "failed":
            failed.append(event.failed)
        elif kind == "completed":
            summary = event.completed
    assert summary is not None, "a stream ends with completed"
    assert (len(ready), len(failed)) == (summary.n_ready, summary.n_failed)
    return ready, failed, summary
