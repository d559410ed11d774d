"""What an operator sees of a real daemon and changes in it: the commands, and who may."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import piecewised
import pytest
from conftest import environment
from service_harness import DAEMON, SERVICE, Client, Daemon, results, small_request

ADMIN = SERVICE.replace("CompileService", "AdminService")


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with Daemon(tmp_path_factory.mktemp("admin"), "--listen-tcp", "127.0.0.1:0", "--verify", "off") as daemon:
        yield daemon


@pytest.fixture(scope="module")
def compiled(daemon: Daemon) -> dict[int, Any]:
    """Handles of small graphs in the store, by constant; one of them is a program's."""
    with Client(daemon.endpoint) as client:
        program = {"program": "llama-part", "run": "r1", "index": 0, "nPieces": 1}
        handles = {n: results(client.compile(small_request(n)))[0][0].handle for n in (1, 2, 3)}
        handles[4] = results(client.compile({**small_request(4), "program": program}))[0][0].handle
        bad = small_request(5)
        bad["graph"]["nodes"][2]["callFunction"]["args"][1] = {"stringValue": "no\x1b[31m number"}
        assert results(client.compile(bad))[1][0].reason == "COMPILE_ERROR"
    return handles


def run(daemon: Daemon, *words: str, code: int = 0, endpoint: str = "") -> str:
    """What a command writes: to stdout where it succeeds, to stderr where not."""
    command = [DAEMON, *words, "--endpoint", endpoint or daemon.endpoint]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False, timeout=60)
    assert ended.returncode == code, ended.stdout + ended.stderr
    return ended.stdout if code == 0 else ended.stderr


def tcp(daemon: Daemon) -> str:
    found = re.search(r"listening on (http://\S+)", daemon.log_text())
    assert found is not None
    return found[1]


def call(endpoint: str, method: str, request: str = "", **fields: Any) -> Any:
    with Client(endpoint) as client:
        rpc = client.channel.unary_unary(
            f"/{ADMIN}/{method}", lambda message: message.SerializeToString(), client._parse(f"{method}Response")
        )
        return rpc(client.message(request or f"{method}Request", **fields), timeout=30)


def test_what_is_stored_is_listed_and_shown(daemon: Daemon, compiled: dict[int, Any]) -> None:
    listed = {entry["key"]: entry for entry in json.loads(run(daemon, "ls", "--json"))}
    assert set(listed) == {handle.key.hex() for handle in compiled.values()}
    assert list(listed) == sorted(listed)
    for n, handle in compiled.items():
        entry = listed[handle.key.hex()]
        assert (entry["digest"], entry["size_bytes"]) == (handle.digest.hex(), handle.size_bytes)
        assert entry["is_pinned"] == (n == 4)
        assert entry["compiled"]["range"] == [1, 16] and entry["compiled"]["verified"] == "not_done"
        assert entry["compiled"]["compile_s"] == pytest.approx(handle.timings.total_s)
        assert entry["used_unix_ms"] >= entry["created_unix_ms"] > 0
    rows = run(daemon, "ls").splitlines()
    assert rows[0].split()[:3] == ["KEY", "WHAT", "RANGE"] and len(rows) == 5
    assert all(row.startswith(key[:12]) and "[1, 16]" in row for row, key in zip(rows[1:], listed, strict=True))

    key = compiled[1].key.hex()
    shown = json.loads(run(daemon, "show", key[:16].upper(), "--json"))
    assert shown["key"] == key and shown["handle"]["key"] == key
    assert shown["handle"]["digest"] == compiled[1].digest.hex()
    text = run(daemon, "show", key)
    assert f"graph      {compiled[1].graph_digest.hex()}" in text and "range      [1, 16], hint" in text
    assert "segment " in text and "compiled   in " in text


def test_a_key_that_is_not_one_is_told(daemon: Daemon, compiled: dict[int, Any]) -> None:
    keys = sorted(handle.key.hex() for handle in compiled.values())
    missing = next(
        digits for digits in ("0000", "1111", "2222", "3333", "4444") if not any(key.startswith(digits) for key in keys)
    )
    assert f"nothing is stored under a key that begins with {missing}" in run(daemon, "show", missing, code=1)
    assert "hexadecimal digits" in run(daemon, "show", "xyz", code=1)
    with pytest.raises(grpc.RpcError) as caught:
        call(daemon.endpoint, "GetArtifact", key="")
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_pages_are_whole_and_without_doubles(daemon: Daemon, compiled: dict[int, Any]) -> None:
    keys, token = [], ""
    while True:
        page = call(daemon.endpoint, "ListArtifacts", pageSize=2, pageToken=token)
        assert len(page.artifacts) <= 2
        keys += [artifact.key for artifact in page.artifacts]
        if not (token := page.next_page_token):
            break
    assert keys == sorted(handle.key for handle in compiled.values())
    with pytest.raises(grpc.RpcError) as caught:
        call(daemon.endpoint, "ListArtifacts", pageToken="../x")
    assert "page_token" in caught.value.details()


def test_failures_and_manifests_are_listed(daemon: Daemon, compiled: dict[int, Any]) -> None:
    (failure,) = json.loads(run(daemon, "ls", "--failures", "--json"))
    assert failure["reason"] == "COMPILE_ERROR" and failure["message"]
    text = run(daemon, "ls", "--failures")
    assert failure["key"][:12] in text and "\x1b" not in text, "what a graph holds moves nobody's cursor"
    (manifest,) = json.loads(run(daemon, "ls", "--manifests", "--json"))
    assert (manifest["program"], manifest["n_pieces"], manifest["n_artifacts"]) == ("llama-part", 1, 1)
    assert "llama-part" in run(daemon, "ls", "--manifests")


def test_listing_is_no_use(daemon: Daemon, compiled: dict[int, Any]) -> None:
    used = [entry["used_unix_ms"] for entry in json.loads(run(daemon, "ls", "--json"))]
    time.sleep(0.01)
    run(daemon, "show", compiled[1].key.hex())
    assert [entry["used_unix_ms"] for entry in json.loads(run(daemon, "ls", "--json"))] == used


def test_only_admins_change_anything(daemon: Daemon, compiled: dict[int, Any]) -> None:
    key = compiled[1].key.hex()
    for words in (["evict", key], ["evict", "--manifest", "llama-part"], ["drain"]):
        assert "over TCP the daemon cannot tell who you are" in run(daemon, *words, code=1, endpoint=tcp(daemon))
    with Client(tcp(daemon)) as client, pytest.raises(grpc.RpcError) as caught:
        client.forget_failures()
    assert caught.value.code() == grpc.StatusCode.PERMISSION_DENIED
    assert len(json.loads(run(daemon, "ls", "--json", endpoint=tcp(daemon)))) == 4, "everybody may read"
    assert "refused: not an admin" in daemon.log_text()


def test_jobs_are_listed_and_watched_until_they_end(daemon: Daemon) -> None:
    assert "nothing is being compiled" in run(daemon, "jobs")
    command = [DAEMON, "jobs", "--watch", "--json", "--endpoint", daemon.endpoint]
    watching = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment())
    try:
        assert watching.stdout is not None
        assert json.loads(watching.stdout.readline()) == []
        with Client(daemon.endpoint) as client:
            events = client.compile({**small_request(77), "label": "llama/head/0"})
            next(events)
            jobs = json.loads(watching.stdout.readline())
            (job,) = jobs
            assert job["range"] == [1, 16] and job["phase"] and job["age_s"] >= 0
            assert job["label"] == "llama/head/0"
            (handle,) = [ready.handle for ready in results(events)[0]]
        assert job["key"] == handle.key.hex()
        while jobs:
            jobs = json.loads(watching.stdout.readline())
            assert all(job["key"] == handle.key.hex() for job in jobs)
    finally:
        watching.send_signal(signal.SIGINT)
        watching.wait(timeout=30)


def test_what_is_evicted_is_compiled_again(daemon: Daemon, compiled: dict[int, Any]) -> None:
    keys = [compiled[n].key.hex() for n in (2, 4)]
    assert "nothing is stored" in run(daemon, "evict", keys[0], "0" * 64, code=1)
    assert len(json.loads(run(daemon, "ls", "--json"))) >= 4, "a mistyped key leaves everything as it is"
    assert run(daemon, "evict", *(key[:20] for key in keys)) == "removed 2\n"
    left = {entry["key"] for entry in json.loads(run(daemon, "ls", "--json"))}
    assert not left & set(keys)
    assert f"key={keys[0]}" in daemon.log_text() and "audit" in daemon.log_text()
    # The program still starts from its manifest, whose artifact stays.
    with Client(daemon.endpoint) as client:
        assert b"".join(chunk.data for chunk in client.fetch(compiled[4].digest))
        assert results(client.compile(small_request(2)))[2].n_compiled == 1
    run(daemon, "evict", "--manifest", "llama-part")
    assert json.loads(run(daemon, "ls", "--manifests", "--json")) == []
    assert "there is no manifest of program llama-part" in run(daemon, "evict", "--manifest", "llama-part", code=1)
    with Client(daemon.endpoint) as client, pytest.raises(grpc.RpcError):
        list(client.fetch(compiled[4].digest))


def test_drain_ends_the_daemon_in_order(tmp_path: Path) -> None:
    with Daemon(tmp_path, "--drain-deadline-s", "300") as daemon:
        with Client(daemon.endpoint) as client:
            events = client.compile(small_request(1))
            next(events)
            assert "with 1 jobs left" in run(daemon, "drain")
            assert len(results(events)[0]) == 1
        assert daemon.process is not None
        assert daemon.process.wait(timeout=60) == 0
        assert "draining" in daemon.log_text()


def test_who_is_no_daemon_is_told(tmp_path: Path, daemon: Daemon) -> None:
    for words in (["ls"], ["show", "ab"], ["jobs"], ["drain"]):
        assert "no piecewised daemon answers" in run(daemon, *words, code=1, endpoint=f"unix:{tmp_path}/none.sock")
    assert piecewised.Client(daemon.endpoint).status()
