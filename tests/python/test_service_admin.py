"""What an operator sees of a real daemon and changes in it: the commands, and who may."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import piecewised
import pytest
from conftest import environment
from ready_daemon import HEADERS
from service_harness import DAEMON, SERVICE, Client, Daemon, children, results, small_request

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
        handles = {
            n: results(client.compile({**small_request(n), "label": f"llama/{n}"}))[0][0].handle for n in (1, 2, 3)
        }
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


def graph_file(daemon: Daemon, path: Path, request: dict[str, Any]) -> str:
    """A request as `piecewised.save_graph` leaves it."""
    with Client(daemon.endpoint) as client:
        path.write_bytes(b"pwgraph1" + client.message("CompileRequest", **request).SerializeToString())
    return str(path)


def explained(daemon: Daemon, *words: str) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """The one explanation, and what differs by component."""
    (found,) = json.loads(run(daemon, "explain", *words, "--json"))
    components = {it["name"]: it for it in found["components"]}
    for it in components.values():
        assert (it["comparison"] == "different") == bool(it["differences"]), it
        assert it["comparison"] != "unknown" and it["ours"] and it["theirs"]
    return found, {name: it["differences"] for name, it in components.items() if it["differences"]}


def test_a_miss_is_explained_by_what_differs(daemon: Daemon, compiled: dict[int, Any], tmp_path: Path) -> None:
    keys = {n: handle.key.hex() for n, handle in compiled.items()}
    n_stored = len(json.loads(run(daemon, "ls", "--json")))
    first = graph_file(daemon, tmp_path / "first.pwgraph", small_request(1))
    found, differing = explained(daemon, first)
    assert (found["answer"], found["key"], found["nearest"]) == ("stored", keys[1], None)
    assert "it is in the store" in run(daemon, "explain", first)

    found, differing = explained(daemon, first, "--ranges", "1-32")
    assert (found["answer"], found["nearest"], found["nearest_label"]) == ("absent", keys[1], "llama/1")
    assert differing == {"range": ["range [1, 32] against [1, 16]"], "hint": ["hint 8 against 4"]}
    text = run(daemon, "explain", first, "--ranges", "1-32")
    assert f"nearest    {keys[1][:12]}, llama/1" in text and "range [1, 32] against [1, 16]" in text

    request = small_request(1)
    request["options"]["inductor"] = {"max_autotune": {"boolValue": True}}
    request["toolchain"] = {"fingerprint": "ab" * 32, "torchVersion": "2.10.0"}
    other = graph_file(daemon, tmp_path / "other.pwgraph", request)
    found, differing = explained(daemon, other)
    assert found["nearest"] == keys[1] and set(differing) == {"options", "toolchain"}
    assert differing["options"] == ["option max_autotune: true against unset"]
    assert any(it.startswith("torch 2.10.0 against 2.") for it in differing["toolchain"])

    # A graph of the same name: the first node that is not the same, by the caller's name for it.
    changed = graph_file(daemon, tmp_path / "changed.pwgraph", {**small_request(33), "label": "llama/3"})
    found, differing = explained(daemon, changed)
    assert found["nearest"] == keys[3]
    (sentence,) = differing["graph"]
    assert sentence == 'node `y`: argument 1 of _operator.add is {"int":33}, the other\'s is {"int":3}'

    found, differing = explained(daemon, keys[1][:20], "--against", keys[2][:20])
    assert (found["key"], found["nearest"]) == (keys[1], keys[2]) and set(differing) == {"graph"}
    assert 'node `n2`: argument 1 of _operator.add is {"int":1}' in differing["graph"][0]
    found, differing = explained(daemon, keys[1])
    assert found["nearest"] in (keys[2], keys[3], keys[4]) and set(differing) == {"graph"}
    assert explained(daemon, keys[1])[0] == found

    assert "is not a graph file" in run(daemon, "explain", __file__, code=2)
    assert "Inductor has no option" in run(
        daemon,
        "explain",
        graph_file(
            daemon,
            tmp_path / "bad.pwgraph",
            {**small_request(1), "options": {"inductor": {"max_autotun": {"none": {}}}}},
        ),
        code=1,
    )
    with pytest.raises(grpc.RpcError) as caught:
        call(daemon.endpoint, "ExplainMiss")
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT and "MISSING_FIELD" in caught.value.details()
    assert len(json.loads(run(daemon, "ls", "--json"))) == n_stored, "nothing is compiled for it"


def test_failures_are_explained_and_cleared(daemon: Daemon, compiled: dict[int, Any], tmp_path: Path) -> None:
    bad = small_request(5)
    bad["graph"]["nodes"][2]["callFunction"]["args"][1] = {"stringValue": "no\x1b[31m number"}
    bad = graph_file(daemon, tmp_path / "bad.pwgraph", bad)
    assert explained(daemon, bad)[0]["answer"] == "failed"
    text = run_failing(daemon, "compile", bad, code=6)
    assert "FakeTensor" in text and "(remembered;" in text
    (failure,) = json.loads(run(daemon, "ls", "--failures", "--json"))
    assert "no failure is remembered" in run(daemon, "clear-failures", failure["key"], "0" * 64, code=1)
    assert run(daemon, "clear-failures", failure["key"][:16]) == "cleared 1\n"
    assert json.loads(run(daemon, "clear-failures", "--json")) == {"n_cleared": 0}
    assert explained(daemon, bad)[0]["answer"] == "absent"
    text = run_failing(daemon, "compile", bad, code=6)
    assert "COMPILE_ERROR: node n2" in text and "(remembered;" not in text and "\x1b" not in text
    assert run(daemon, "clear-failures") == "cleared 1\n"


def run_failing(daemon: Daemon, *words: str, code: int) -> str:
    """What a command writes to stdout that ends with another code than 0."""
    command = [DAEMON, *words, "--endpoint", daemon.endpoint]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False, timeout=120)
    assert ended.returncode == code, ended.stdout + ended.stderr
    return ended.stdout


def test_pins_are_kept_and_shown(daemon: Daemon, compiled: dict[int, Any]) -> None:
    keys = {n: handle.key.hex() for n, handle in compiled.items()}

    def pinned() -> dict[str, str]:
        rows = [row.split("  ") for row in run(daemon, "ls").splitlines()[1:]]
        return {n: row[-1].strip() for row in rows for n, key in keys.items() if key.startswith(row[0])}

    assert run(daemon, "pin", keys[3][:16], keys[4][:16], keys[3]) == "pinned 2\n"
    assert json.loads(run(daemon, "pin", keys[3], "--json")) == {"n_pinned": 0}
    assert pinned() == {1: "no", 2: "no", 3: "pin", 4: "pin, manifest"}
    assert "a manifest names it; its key is pinned" in run(daemon, "show", keys[4])
    with pytest.raises(grpc.RpcError) as caught:
        call(daemon.endpoint, "Pin", keys=[base64.b64encode(bytes(32)).decode()])
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    assert run(daemon, "unpin", keys[3], keys[4], "0" * 64) == "unpinned 2\n"
    assert pinned() == {1: "no", 2: "no", 3: "no", 4: "manifest"}


def test_a_graph_file_is_compiled_by_a_command(daemon: Daemon, compiled: dict[int, Any], tmp_path: Path) -> None:
    file = graph_file(daemon, tmp_path / "one.pwgraph", {**small_request(1), "label": "llama/1"})
    before = {entry["key"] for entry in json.loads(run(daemon, "ls", "--json"))}
    made = json.loads(run(daemon, "compile", file, "--ranges", "1-16", "--sizes", "4", "--json"))
    assert (made["n_compiled"], made["n_from_store"], made["n_failed"]) == (1, 1, 0)
    assert [(entry["range"], entry["source"]) for entry in made["entries"]] == [
        ([1, 16], "store"),
        ([4, 4], "compiled"),
    ]
    assert made["entries"][0]["key"] == compiled[1].key.hex()
    text = run(daemon, "compile", file, "--ranges", "1-16", "--sizes", "4", "--device", "CPU", "--tuning", "fast")
    rows = text.splitlines()
    assert rows[0].split() == ["RANGE", "KEY", "RESULT", "SIZE", "COMPILE"] and len(rows) == 3
    assert all("from the store" in row for row in rows[1:])
    new = {entry["key"] for entry in json.loads(run(daemon, "ls", "--json"))} - before
    assert new == {made["entries"][1]["key"]}
    run(daemon, "evict", *new)
    for words in (["--ranges", "1-"], ["--ranges", "1-16,8-32"], ["--sizes", "0"]):
        run(daemon, "compile", file, *words, code=2)
    assert "it has: cpu" in run(daemon, "compile", file, "--device", "quantum", code=1)
    assert "No such file" in run(daemon, "compile", str(tmp_path / "none.pwgraph"), code=2)


def test_progress_is_drawn_on_a_terminal_and_nowhere_else(
    daemon: Daemon, compiled: dict[int, Any], tmp_path: Path
) -> None:
    file = graph_file(daemon, tmp_path / "shown.pwgraph", small_request(600))
    command = [DAEMON, "compile", file, "--json", "--endpoint", daemon.endpoint]
    ours, theirs = pty.openpty()
    # A terminal without a size, and of no kind, is none to draw on.
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    variables = environment(TERM="xterm")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, text=True, env=variables)
    os.close(theirs)
    drawn = b""
    # Its end is an error of the other side's.
    with contextlib.suppress(OSError):
        while part := os.read(ours, 65536):
            drawn += part
    os.close(ours)
    assert process.stdout is not None
    made = json.loads(process.stdout.read())
    assert process.wait(60) == 0 and made["n_compiled"] == 1
    assert b"0/1" in drawn and b"compile" in drawn, drawn
    ended = subprocess.run(command, capture_output=True, text=True, env=variables, check=True, timeout=60)
    assert json.loads(ended.stdout)["n_from_store"] == 1 and not ended.stderr
    run(daemon, "evict", made["entries"][0]["key"])


def test_every_change_is_a_line_of_the_log_that_says_who_made_it(daemon: Daemon, compiled: dict[int, Any]) -> None:
    absent, present = ({"keys": [base64.b64encode(key).decode()]} for key in (bytes(32), compiled[1].key))
    changes: list[tuple[str, dict[str, Any], str]] = [
        ("Evict", absent, "evicted"),
        ("Pin", present, "pinned"),
        ("Unpin", present, "unpinned"),
        ("RemoveManifest", {"program": "never-there"}, "removed a manifest"),
    ]
    for method, fields, words in changes:
        n_before = len(daemon.log_text())
        with contextlib.suppress(grpc.RpcError):
            call(daemon.endpoint, method, **fields)
        (line,) = [line for line in daemon.log_text()[n_before:].splitlines() if " audit: " in line]
        assert words in line and f"process {os.getpid()} of user {os.getuid()}" in line, line
    with Client(daemon.endpoint) as client:
        client.forget_failures(bytes(32))
    line = [line for line in daemon.log_text().splitlines() if " audit: " in line][-1]
    assert "forgot failures" in line and f"process {os.getpid()} of user {os.getuid()}" in line, line


def test_only_admins_change_anything(daemon: Daemon, compiled: dict[int, Any]) -> None:
    key = compiled[1].key.hex()
    admins = (
        ["evict", key],
        ["evict", "--manifest", "llama-part"],
        ["pin", key],
        ["unpin", key],
        ["clear-failures"],
        ["drain"],
    )
    for words in admins:
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
        # Not SIGINT: what is started in the background of a shell's script ignores it.
        watching.terminate()
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


def test_a_folder_is_compiled_ahead_of_time_and_the_store_collected(daemon: Daemon, tmp_path: Path) -> None:
    folder, store = tmp_path / "graphs", tmp_path / "store"
    (folder / "deeper").mkdir(parents=True)
    graph_file(daemon, folder / "a.pwgraph", {**small_request(1, sizes=(4,)), "label": "llama/0"})
    graph_file(daemon, folder / "deeper/b.pwgraph", {**small_request(1), "label": "llama/1"})
    (folder / "c.txt").write_text("no graph")

    def piecewised(*words: str | Path, code: int) -> str:
        command = [DAEMON, *words]
        ended = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False, timeout=300)
        assert ended.returncode == code, ended.stdout + ended.stderr
        return ended.stdout

    own = ("--store-dir", store)
    flags = ("--", "--python", sys.executable, "--verify", "off", "--headers-dir", HEADERS)
    assert "no graph file" not in piecewised("warm", tmp_path / "store", *own, *flags, code=1)
    warmed = json.loads(piecewised("warm", folder, *own, "--json", *flags, code=0))
    assert (warmed["n_files"], warmed["n_files_failed"]) == (2, 0)
    first, second = warmed["files"]
    assert [Path(it["file"]).name for it in (first, second)] == ["a.pwgraph", "b.pwgraph"]
    assert first["n_compiled"] + second["n_compiled"] == 2, "what two files have in common is compiled once"

    # With a file that is damaged, and by a daemon that runs: the others are compiled all the same.
    (folder / "d.pwgraph").write_bytes(b"pwgraph1\xff")
    text = run_failing(daemon, "warm", str(folder), code=6)
    assert "3 files" in text and "of which 1 failed" in text and "d.pwgraph is not a graph file" in text
    (folder / "d.pwgraph").unlink()

    report = json.loads(piecewised("store", "gc", *own, "--json", code=0))
    assert (report["n_evicted"], report["n_artifacts"], report["is_within_budget"]) == (0, 2, True)
    text = piecewised("store", "gc", *own, "--max-bytes", str(report["disk_bytes"] - 1), code=0)
    assert text.startswith("evicted 1 artifacts, removed 0 that nothing named; freed 0.1 MB\n"), text
    assert "1 artifacts are left" in text
    locked = [DAEMON, "store", "gc", "--store-dir", daemon.folder / "store"]
    ended = subprocess.run(locked, capture_output=True, text=True, env=environment(), check=False, timeout=60)
    assert ended.returncode == 4 and "no daemon has it open" in ended.stderr


def test_warm_that_is_told_to_end_takes_its_daemon_along(daemon: Daemon, tmp_path: Path) -> None:
    graph_file(daemon, tmp_path / "a.pwgraph", small_request(1, sizes=(2, 3, 4, 5)))
    store = tmp_path / "store"
    command = [
        DAEMON,
        "warm",
        tmp_path,
        "--store-dir",
        store,
        "--",
        "--python",
        sys.executable,
        "--drain-deadline-s",
        "0",
    ]
    warming = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment())
    deadline = time.monotonic() + 60
    # Until it looks for its toolchain, and serves.
    while not (own := children(warming.pid)) or not children(own[0]):
        assert time.monotonic() < deadline and warming.poll() is None
        time.sleep(0.05)
    warming.terminate()
    assert warming.stderr is not None
    said = warming.stderr.read()
    assert warming.wait(timeout=120) == 1 and "it was told to end" in said, said
    for pid in own:
        assert not Path(f"/proc/{pid}").exists(), "its daemon ended before it did"


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
