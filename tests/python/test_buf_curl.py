"""Every RPC called by `buf curl` through reflection: a gRPC client that was not written here, from another implementation of gRPC."""

from __future__ import annotations

import json
import pathlib
import shutil
import subprocess
import sys
from typing import Any

import pytest
from service_harness import Daemon, json_values, small_request

BUF = shutil.which("buf", path=str(pathlib.Path(sys.executable).parent)) or shutil.which("buf")


@pytest.fixture
def daemon(service_daemon: Daemon) -> Daemon:
    return service_daemon


def curl(daemon: Daemon, method: str, data: Any = None, *flags: str) -> subprocess.CompletedProcess[str]:
    """`buf curl` over the Unix socket; the schema comes from the daemon's reflection service."""
    assert BUF, "buf is in tests/requirements.txt"
    command = [
        BUF,
        "curl",
        "--protocol",
        "grpc",
        "--http2-prior-knowledge",
        "--unix-socket",
        str(daemon.socket),
        *flags,
    ]
    command += ["--data", json.dumps(data or {}), f"http://localhost/{method}"]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def answers(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    """The messages it printed, one JSON object after the other."""
    assert done.returncode == 0, done.stderr
    found, rest = json_values(done.stdout)
    assert not rest, rest
    return found


def test_every_rpc(daemon: Daemon) -> None:
    service = "piecewised.v1.CompileService"
    (capabilities,) = answers(curl(daemon, f"{service}/GetCapabilities"))
    assert capabilities["limits"]["maxNodes"] > 0

    program = {"program": "curl", "run": "by-hand", "index": 0, "nPieces": 1}
    events = answers(curl(daemon, f"{service}/Compile", small_request(2000) | {"program": program}))
    assert "accepted" in events[0] and "queued" in events[1] and "completed" in events[-1]
    (handle,) = [event["ready"]["handle"] for event in events if "ready" in event]

    chunks = answers(curl(daemon, f"{service}/FetchArtifact", {"digest": handle["digest"]}))
    assert chunks[0]["totalBytes"] == handle["sizeBytes"]

    (manifest,) = answers(curl(daemon, f"{service}/GetManifest", {"program": "curl"}))
    assert manifest["manifest"]["pieces"][0]["handles"][0]["digest"] == handle["digest"]

    (health,) = answers(curl(daemon, "grpc.health.v1.Health/Check", {"service": service}))
    assert health["status"] == "SERVING"


def test_the_services_and_methods_are_listed(daemon: Daemon) -> None:
    services = curl(daemon, "", None, "--list-services").stdout.split()
    assert "piecewised.v1.CompileService" in services and "grpc.health.v1.Health" in services
    methods = curl(daemon, "", None, "--list-methods").stdout
    for method in ("GetCapabilities", "Compile", "FetchArtifact", "GetManifest"):
        assert f"piecewised.v1.CompileService/{method}" in methods


def test_an_error_reads_well(daemon: Daemon) -> None:
    request = small_request(2000)
    request["graph"]["nodes"][2]["callFunction"]["target"] = "os.system"
    done = curl(daemon, "piecewised.v1.CompileService/Compile", request)
    assert done.returncode != 0
    error = json.loads(done.stderr)
    assert error["code"] == "invalid_argument"
    assert "os.system" in error["message"] and "'y'" in error["message"].replace('"', "'")
    (info,) = [detail for detail in error["details"] if detail["type"] == "google.rpc.ErrorInfo"]
    assert info["type"] == "google.rpc.ErrorInfo"
