"""Programs over the wire: when a manifest is committed, what it holds, and what does not fit."""

from __future__ import annotations

import pathlib
import uuid
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from service_harness import Client, Daemon, results, small_request


@pytest.fixture
def daemon(service_daemon: Daemon) -> Daemon:
    return service_daemon


@pytest.fixture
def client(daemon: Daemon) -> Iterator[Client]:
    with Client(daemon.endpoint) as client:
        yield client


def piece(program: str, run: str, index: int, n_pieces: int, constant: int, **plan: Any) -> dict[str, Any]:
    """A request for one piece; pieces with one constant are alike."""
    request = small_request(500 + constant, **plan) | {
        "program": {"program": program, "run": run, "index": index, "nPieces": n_pieces}
    }
    return request


def refused(client: Client, request: dict[str, Any]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        list(client.compile(request))
    return caught.value.code(), caught.value.details().partition(":")[0]


def test_the_manifest_is_there_with_the_last_piece_and_not_before(client: Client) -> None:
    run = str(uuid.uuid4())
    _, _, first = results(client.compile(piece("model", run, 0, 3, 1)))
    assert (first.program.n_pieces, first.program.n_pieces_ready, first.program.is_complete) == (3, 1, False)
    with pytest.raises(grpc.RpcError) as caught:
        client.manifest("model")
    assert (caught.value.code(), caught.value.details().partition(":")[0]) == (
        grpc.StatusCode.NOT_FOUND,
        "NO_SUCH_MANIFEST",
    )

    results(client.compile(piece("model", run, 2, 3, 1)))
    ready, _, last = results(client.compile(piece("model", run, 1, 3, 2)))
    status = last.program
    assert status.is_complete and status.n_pieces_ready == 3
    # Pieces 0 and 2 are alike: one compile served both.
    assert (status.n_distinct_pieces, status.n_compiled, status.n_from_store) == (2, 2, 1)
    assert {timing.phase for timing in status.phases} >= {"compile", "pack"}

    answer = client.manifest("model")
    assert answer.manifest_digest == status.manifest_digest
    manifest = answer.manifest
    assert [entry.index for entry in manifest.pieces] == [0, 1, 2]
    assert manifest.pieces[1].handles[0] == ready[0].handle
    assert manifest.pieces[0].handles[0].digest == manifest.pieces[2].handles[0].digest
    assert [(entry.start, entry.end) for entry in manifest.pieces[0].entries] == [(1, 16)]


def test_a_caller_that_leaves_with_its_last_handle_leaves_a_manifest_too(client: Client) -> None:
    for constant, run in ((3, "compiled"), (3, "from-the-store")):
        events = client.compile(piece(f"hasty-{run}", run, 0, 1, constant))
        assert any(event.WhichOneof("event") == "ready" for event in events)
        events.cancel()
        assert len(client.manifest(f"hasty-{run}").manifest.pieces) == 1


def test_another_run_of_the_same_pieces_compiles_nothing_and_hears_of_the_same_manifest(client: Client) -> None:
    digests = set()
    for _ in range(2):
        run = str(uuid.uuid4())
        _, _, first = results(client.compile(piece("ranks", run, 0, 2, 1)))
        _, _, last = results(client.compile(piece("ranks", run, 1, 2, 2)))
        assert not first.program.is_complete and last.program.is_complete
        digests.add(last.program.manifest_digest)
    assert last.program.n_from_store == 2 and len(digests) == 1


def test_a_program_with_a_piece_that_fails_leaves_no_manifest(client: Client) -> None:
    run = str(uuid.uuid4())
    broken = piece("broken", run, 0, 1, 1)
    node = {"node": "x"}
    broken["graph"]["nodes"][2] = {
        "name": "y",
        "callFunction": {"target": "torch.ops.aten.mm.default", "args": [node, node]},
    }
    broken["plan"] = {"compileRanges": {"ranges": [{"start": "9", "end": "16"}]}}
    _, failed, summary = results(client.compile(broken))
    assert len(failed) == 1 and not summary.program.is_complete
    with pytest.raises(grpc.RpcError) as caught:
        client.manifest("broken")
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


def test_what_does_not_fit_is_refused_and_loses_nothing(client: Client) -> None:
    invalid = grpc.StatusCode.INVALID_ARGUMENT
    run = str(uuid.uuid4())
    results(client.compile(piece("careful", run, 0, 2, 1)))
    assert refused(client, piece("careful", run, 2, 2, 1)) == (invalid, "BAD_PIECE_INDEX")
    assert refused(client, piece("careful", run, 1, 0, 1)) == (invalid, "BAD_PIECE_INDEX")
    assert refused(client, piece("careful", run, 1, 3, 1)) == (invalid, "DIFFERENT_TOTALS")
    assert refused(client, piece("careful", run, 0, 2, 2)) == (invalid, "DIFFERENT_PIECE")
    for name in ("../../etc/passwd", "a/b", "", ".", "a b", "n" * 200):
        assert refused(client, piece(name, run, 0, 1, 1)) == (invalid, "BAD_PROGRAM_NAME")
        assert refused(client, piece("careful", name, 0, 1, 1)) == (invalid, "BAD_PROGRAM_NAME")
        with pytest.raises(grpc.RpcError) as caught:
            client.manifest(name)
        assert caught.value.code() == invalid
    _, _, last = results(client.compile(piece("careful", run, 1, 2, 2)))
    assert last.program.is_complete


def test_an_encoders_plan(client: Client) -> None:
    request = small_request(501)
    request["plan"] = {"compileRangeEndpoints": {"endpoints": ["16"]}, "isEncoder": True, "maxNumBatchedTokens": "16"}
    ready, failed, _ = results(client.compile(request))
    assert not failed
    assert (ready[0].handle.range.start, ready[0].handle.range.end) == (1, 2**31 - 1)
    assert ready[0].handle.segments[-1].range.end == 2**31 - 1
    request["plan"]["maxNumBatchedTokens"] = "32"
    with pytest.raises(grpc.RpcError) as caught:
        list(client.compile(request))
    assert caught.value.details().startswith("BAD_ENCODER_PLAN:")
    assert "32" in caught.value.details() and "16" in caught.value.details()


def test_a_manifest_survives_kill_nine(tmp_path: pathlib.Path) -> None:
    daemon = Daemon(tmp_path).start()
    with Client(daemon.endpoint) as client:
        _, _, summary = results(client.compile(piece("durable", "r", 0, 1, 1)))
        assert summary.program.is_complete
        digest = summary.program.manifest_digest
        daemon.kill()
    with daemon.start(), Client(daemon.endpoint) as client:
        answer = client.manifest("durable")
        assert answer.manifest_digest == digest
        handle = answer.manifest.pieces[0].handles[0]
        assert sum(len(chunk.data) for chunk in client.fetch(handle.digest)) == handle.size_bytes


def test_what_is_most_likely_needed_first_is_compiled_first(client: Client) -> None:
    started = [
        (event.range.start, event.range.end)
        for event in client.compile(small_request(77, sizes=(2, 5), endpoints=(8, 16)))
        if event.WhichOneof("event") == "started"
    ]
    assert started == [(9, 16), (5, 5), (2, 2), (1, 8)]
