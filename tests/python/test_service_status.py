"""What a daemon says of itself, and of pieces that callers do not send alike."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import piecewised
import pytest
from conftest import environment
from service_harness import DAEMON, Client, Daemon, results, small_request


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with Daemon(tmp_path, "--listen-tcp", "127.0.0.1:0", "--verify", "off") as daemon:
        yield daemon


def labelled(label: str, constant: int = 1, **others: Any) -> dict[str, Any]:
    return {**small_request(constant), "label": label, **others}


def status(daemon: Daemon, *flags: str, code: int = 0, **variables: str) -> str:
    """What `piecewised status` writes."""
    command = [DAEMON, "status", *flags]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment(**variables), check=False)
    assert ended.returncode == code, ended.stderr
    return ended.stdout if code == 0 else ended.stderr


def tcp(daemon: Daemon) -> str:
    found = re.search(r"listening on http://(\S+)", daemon.log_text())
    assert found is not None
    return found[1]


def test_what_was_done_is_told_by_model_part(daemon: Daemon) -> None:
    assert "nothing was asked for" in status(daemon, "--endpoint", daemon.endpoint)
    with Client(daemon.endpoint) as client:
        generic = {"options": {"torch": {"numThreads": 1}, "specialisation": "SPECIALISATION_GENERIC"}}
        ranges = {"plan": {"compileRangeEndpoints": {"endpoints": ["16", "64"]}, "compileSizes": ["4"]}}
        # Two ranges that one compile serves, and a size.
        results(client.compile(labelled("llama/backbone/0", **generic, **ranges)))
        results(client.compile(labelled("llama/backbone/1", **generic, **ranges)))
        results(client.compile(labelled("llama/head/0", 2)))
        bad = labelled("llama/head/1")
        bad["graph"]["nodes"][2]["callFunction"]["args"][1] = {"stringValue": "no number"}
        _, failed, _ = results(client.compile(bad))
        assert failed[0].reason == "COMPILE_ERROR"
        results(client.compile(small_request(3)))

    said = json.loads(status(daemon, "--json", PIECEWISED_ENDPOINT=daemon.endpoint))
    parts = {part["name"]: part["activity"] for part in said["parts"]}
    assert list(parts) == ["", "llama/backbone", "llama/head"]
    backbone = parts["llama/backbone"]
    counts = [backbone[name] for name in ("n_pieces", "n_keys", "n_compiled", "n_from_store", "n_joined", "n_failed")]
    assert counts == [2, 2, 2, 2, 0, 0]
    assert backbone["compile_s"] > 0 and backbone["saved_s"] == pytest.approx(backbone["compile_s"])
    head = parts["llama/head"]
    assert (head["n_pieces"], head["n_compiled"], head["n_failed"], head["saved_s"]) == (2, 1, 1, 0)
    total = said["total"]
    assert (total["n_pieces"], total["n_compiled"], total["n_failed"]) == (4, 4, 1)
    assert said["ready"] and said["store"]["n_artifacts"] == 4 and said["n_running"] == 0
    assert json.loads(piecewised.Client(daemon.endpoint).status())["total"] == total
    jobs, store = said["jobs"], said["store"]
    assert (jobs["n_compiled"], jobs["n_failed"], jobs["n_retries"]) == (4, {"COMPILE_ERROR": 1}, 0)
    assert jobs["compile_s"] == pytest.approx(total["compile_s"])
    assert (store["n_keys"], store["n_failures"], store["n_manifests"], store["pinned_bytes"]) == (4, 1, 0, 0)
    assert store["n_hits"] >= total["n_from_store"] and store["n_misses"] >= 5 and store["max_bytes"] is None

    text = status(daemon, "--endpoint", daemon.endpoint)
    row = next(line for line in text.splitlines() if line.startswith("llama/backbone"))
    assert row.split()[1:7] == ["2", "2", "2", "0", "2", "0"]
    assert "(no label)" in text and "store: 4 artifacts of 4 keys" in text
    assert "jobs since the start: 4 compiled in " in text and "1 COMPILE_ERROR; 0 further tries" in text


def test_a_joined_compile_is_a_saved_one(daemon: Daemon) -> None:
    with Client(daemon.endpoint) as one, Client(tcp(daemon)) as two:
        # Both wait for one compile, which has not begun to be fetched by either.
        events = [client.compile(labelled("model/part/0", 9)) for client in (one, two)]
        summaries = [results(stream)[2] for stream in events]
    assert sorted(summary.n_compiled for summary in summaries) == [0, 1]
    said = json.loads(status(daemon, "--json", "--endpoint", daemon.endpoint))
    (part,) = said["parts"]
    activity = part["activity"]
    assert activity["n_compiled"] == 1 and activity["n_joined"] + activity["n_from_store"] == 1
    assert activity["saved_s"] == pytest.approx(activity["compile_s"])


def test_what_ranks_do_not_send_alike_is_told_with_the_node(daemon: Daemon) -> None:
    with Client(daemon.endpoint) as one, Client(tcp(daemon)) as two:
        assert not results(one.compile(labelled("llama/embed/0", 128256)))[2].HasField("difference")
        assert not results(two.compile(labelled("llama/embed/0", 128256)))[2].HasField("difference")
        difference = results(two.compile(labelled("llama/embed/0", 1)))[2]
        # Its own last one was another, but that was its own.
        assert not difference.HasField("difference")
        difference = results(one.compile(labelled("llama/embed/0", 128256)))[2].difference
    assert difference.node == "y", "as the caller calls it"
    assert difference.what == 'argument 1 of _operator.add is {"int":128256}, the other\'s is {"int":1}'
    assert difference.peer.startswith("127.0.0.1:")
    assert "a piece is not the same as the other's" in daemon.log_text()
    text = status(daemon, "--endpoint", daemon.endpoint)
    assert f"llama/embed/0 is not what {difference.peer} sent as the same: node y: {difference.what}" in text


def test_who_does_not_answer_is_told(tmp_path: Path, daemon: Daemon) -> None:
    nowhere = f"unix:{tmp_path}/nowhere.sock"
    assert "no piecewised daemon answers" in status(daemon, "--endpoint", nowhere, code=1)
    assert "piecewised:" in status(daemon, "--endpoint", "ftp://x", code=2)
