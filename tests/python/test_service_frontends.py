"""Frontends through a real daemon: who may send them, what of them is in the key, and where their executors come from."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from processes import until
from service_harness import Client, Daemon, node, results, small_request
from test_bad_input import refusal

PACKAGES = Path(__file__).parent / "packages"
MODULE = "scaling_engine.frontend"

sys.path.insert(0, str(PACKAGES))


def interpreter(folder: Path) -> str:
    """This interpreter as one that has the engine installed."""
    path = folder / "python"
    path.write_text(f'#!/bin/sh\nPYTHONPATH="$PYTHONPATH:{PACKAGES}" exec {sys.executable} "$@"\n')
    path.chmod(0o700)
    return str(path)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    folder = tmp_path_factory.mktemp("frontends")
    flags = ("--frontends", MODULE, "--listen-tcp", "127.0.0.1:0", "--n-executors", "1")
    with Daemon(folder, *flags, python=interpreter(folder)) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def client(daemon: Daemon) -> Iterator[Client]:
    with Client(daemon.endpoint) as client:
        yield client


def request(factor: float = 2.0, label: str = "", **others: Any) -> dict[str, Any]:
    """A request for `scaling::scale` of a frontend that is configured so."""
    # The engine's own is in the executor only: this process sees the daemon and nothing of its insides.
    config = {"factor": factor, "runs": True, **others}
    identity = json.dumps({"factor": factor, "runs": True}, sort_keys=True)
    request = small_request()
    call = {"target": "torch.ops.scaling.scale.default", "args": [node("x")]}
    request["graph"]["nodes"][2] = {"name": "y", "callFunction": call}
    request["frontend"] = {
        "name": MODULE,
        "version": "1.0",
        "identity": base64.b64encode(identity.encode()).decode(),
        "payload": base64.b64encode(json.dumps(config).encode()).decode(),
    }
    request["label"] = label
    return request


def tcp(daemon: Daemon) -> str:
    lines = daemon.log_text().splitlines()
    return next(line.split("http://")[1] for line in lines if line.startswith("listening on http://"))


def test_the_identity_is_in_the_key_and_the_payload_is_not(client: Client) -> None:
    def key(request: dict[str, Any]) -> tuple[bytes, int]:
        ready, failed, _ = results(client.compile(request))
        assert not failed, failed
        return ready[0].handle.key, ready[0].source

    stored, compiled = 1, 2
    one, source = key(request(2.0))
    assert source == compiled
    assert key(request(2.0, port=1234)) == (one, stored), "what is in the payload only does not count"
    # Two of the identity's halves are the same code for this engine; it says that they are not.
    other = request(2.0)
    other["frontend"]["identity"] = base64.b64encode(b'{"runs": true, "factor": 2.0}').decode()
    found, source = key(other)
    assert source == compiled and found != one


def test_a_mismatch_is_told_and_not_remembered(client: Client) -> None:
    wrong = request(2.0)
    wrong["frontend"]["payload"] = request(3.0)["frontend"]["payload"]
    wrong["plan"]["compileSizes"] = ["5"]
    wrong["plan"].pop("compileRangeEndpoints")
    for _ in range(2):
        _, (failed,), _ = results(client.compile(wrong))
        assert failed.reason == "FRONTEND_MISMATCH" and not failed.remembered
        assert "factor is 2.0 in the worker and 3.0 in the executor" in failed.message
    wrong["frontend"]["payload"] = request(2.0)["frontend"]["payload"]
    _, failed, _ = results(client.compile(wrong))
    assert not failed


def test_executors_of_a_frontend_are_its_own(daemon: Daemon, client: Client) -> None:
    before = set(daemon.executors())
    ready, failed, _ = results(client.compile(small_request(77)))
    assert ready and not failed
    ready, failed, _ = results(client.compile(request(2.0, label="engine/3") | {"plan": {"compileSizes": ["7"]}}))
    assert ready and not failed
    assert set(daemon.executors()) != before
    assert "engine/3" in daemon.log_text()


def test_what_can_be_done_is_told(daemon: Daemon, client: Client) -> None:
    capabilities = client.capabilities()
    assert MODULE in capabilities.frontends and capabilities.trusts_frontend
    with Client(tcp(daemon)) as stranger:
        assert not stranger.capabilities().trusts_frontend


def test_a_frontend_is_imported_as_soon_as_somebody_is_about_to_use_it(tmp_path: Path, monkeypatch: Any) -> None:
    marks = tmp_path / "marks"
    monkeypatch.setenv("SCALING_ENGINE_MARKS", str(marks))
    flags = ("--frontends", MODULE, "--executor-environment", "SCALING_ENGINE_MARKS", "--listen-tcp", "127.0.0.1:0")
    # It leaves marks outside its own folder.
    flags += ("--confine-executors", "off")
    with Daemon(tmp_path, *flags, python=interpreter(tmp_path)) as daemon, Client(daemon.endpoint) as client:
        client.capabilities("no_such_engine")
        with Client(tcp(daemon)) as stranger:
            stranger.capabilities(MODULE)
        until(lambda: client.capabilities().ready, "the toolchain is found")
        assert not marks.exists(), "nobody who is trusted has said so"
        client.capabilities(MODULE)
        until(marks.exists, "the frontend is imported")
        ready, failed, _ = results(client.compile(request()))
        assert ready and not failed
        assert len(marks.read_text().split()) == 1, "the executor that compiled was forked from what had imported it"


def test_who_is_not_trusted_is_refused(daemon: Daemon, tmp_path: Path) -> None:
    with Client(tcp(daemon)) as stranger:
        code, reason, message, _ = refusal(stranger, request())
        assert (code, reason) == (grpc.StatusCode.PERMISSION_DENIED, "FRONTEND_NOT_TRUSTED")
        assert "over TCP" in message and 'trusted_frontend_peers = "all"' in message
        # Everything else it may do.
        ready, failed, _ = results(stranger.compile(small_request(77)))
        assert ready and not failed
    python = interpreter(tmp_path)
    for policy, is_trusted in (("none", False), ("all", True)):
        folder = tmp_path / policy
        folder.mkdir()
        flags = ("--frontends", MODULE, "--trusted-frontend-peers", policy, "--listen-tcp", "127.0.0.1:0")
        with Daemon(folder, *flags, python=python) as other:
            for endpoint in (other.endpoint, tcp(other)):
                with Client(endpoint) as client:
                    assert client.capabilities().trusts_frontend == is_trusted
                    # A request that is refused for another reason got past the question of trust.
                    wrong = request(label="x" * 300)
                    reason = refusal(client, wrong)[1]
                    assert reason == ("BAD_LABEL" if is_trusted else "FRONTEND_NOT_TRUSTED")


def test_bad_frontends_are_refused_with_a_sentence(client: Client) -> None:
    def refused(**changes: Any) -> tuple[str, str]:
        wrong = request()
        wrong["frontend"].update(changes)
        return refusal(client, wrong)[1:3]

    reason, message = refused(name="no_such_engine")
    assert reason == "FRONTEND_UNKNOWN" and MODULE in message and "--python" in message
    assert refused(name="")[0] == "BAD_FRONTEND"
    assert refused(version="a b")[0] == "BAD_FRONTEND"
    assert refused(identity=base64.b64encode(b"{").decode())[0] == "BAD_FRONTEND"
    reason, message = refused(payload=base64.b64encode(bytes((16 << 20) + 1)).decode())
    assert reason == "BAD_FRONTEND" and "16777217 bytes" in message
    wrong = request()
    del wrong["frontend"]
    assert refusal(client, wrong)[1] == "TARGET_NOT_ALLOWED"
