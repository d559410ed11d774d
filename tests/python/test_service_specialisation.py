"""Over the wire: one compile for all ranges, background jobs, tuned artifacts where the store has them, and verification."""

from __future__ import annotations

import pathlib
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from service_harness import Client, Daemon, results, small_request

STORE, COMPILED, JOINED = 1, 2, 3
GENERIC, FULL, TIERED, BACKGROUND = 2, 2, 3, 2


@pytest.fixture
def client(service_daemon: Daemon) -> Iterator[Client]:
    with Client(service_daemon.endpoint) as client:
        yield client


def request(constant: int, priority: int = 0, **options: Any) -> dict[str, Any]:
    """Ranges [1, 8], [9, 16], [17, 64] and size 4 of a graph with this constant."""
    asked = small_request(2000 + constant, sizes=(4,), endpoints=(8, 16, 64))
    asked["options"].update(options)
    return asked | {"priority": priority}


def by_range(ready: list[Any]) -> dict[tuple[int, int], Any]:
    return {(one.handle.range.start, one.handle.range.end): one for one in ready}


def test_generic_is_one_compile_and_every_range_has_a_handle_of_its_own(client: Client) -> None:
    events = list(client.compile(request(1, specialisation=GENERIC)))
    first = {(event.range.start, event.range.end): event.WhichOneof("event") for event in events[:4]}
    # The highest range comes first, and is the one that the job was made for.
    assert first == {(1, 8): "joined", (9, 16): "joined", (17, 64): "queued", (4, 4): "queued"}
    ready, failed, summary = results(iter(events))
    assert not failed
    assert (summary.n_ready, summary.n_compiled, summary.n_joined) == (4, 2, 2)
    found = by_range(ready)
    assert set(found) == {(1, 8), (9, 16), (17, 64), (4, 4)}
    ranges = [found[key].handle for key in ((1, 8), (9, 16), (17, 64))]
    assert len({handle.key for handle in ranges}) == len({handle.digest for handle in ranges}) == 1
    assert {handle.hint for handle in ranges} == {64}
    assert found[4, 4].handle.key != ranges[0].key
    for (start, end), one in found.items():
        segments = [(segment.range.start, segment.range.end) for segment in one.handle.segments]
        assert segments[0][0] == start and segments[-1][1] == end, segments
    # Other ranges with the same hull are the same compile; single sizes are the same code whatever the ranges are.
    again = request(1, specialisation=GENERIC)
    again["plan"]["compileRangeEndpoints"]["endpoints"] = ["32", "64"]
    ready, _, summary = results(client.compile(again))
    assert summary.n_from_store == 3
    assert set(by_range(ready)) == {(1, 32), (33, 64), (4, 4)}
    ready, _, _ = results(client.compile(request(1)))
    assert by_range(ready)[4, 4].source == STORE and by_range(ready)[17, 64].source == COMPILED


def test_a_generic_program_has_a_manifest_with_an_entry_for_each_range(client: Client) -> None:
    place = {"program": "generic", "run": str(uuid.uuid4()), "index": 0, "nPieces": 1}
    asked = request(2, specialisation=GENERIC) | {"program": place}
    _, _, summary = results(client.compile(asked))
    assert summary.program.is_complete
    piece = client.manifest("generic").manifest.pieces[0]
    assert [(entry.start, entry.end) for entry in piece.entries] == [(1, 8), (9, 16), (17, 64), (4, 4)]
    assert [handle.range for handle in piece.handles] == list(piece.entries)
    # The same piece again is the same piece; the same compile for other ranges is another one.
    results(client.compile(asked))


def test_a_gap_between_ranges_is_compiled_for_and_in_nobodys_handle(client: Client) -> None:
    asked = request(3, specialisation=GENERIC)
    asked["plan"] = {"compileRanges": {"ranges": [{"start": "2", "end": "8"}, {"start": "32", "end": "64"}]}}
    ready, failed, _ = results(client.compile(asked))
    assert not failed and set(by_range(ready)) == {(2, 8), (32, 64)}
    for (start, end), one in by_range(ready).items():
        assert all(start <= part.range.start and part.range.end <= end for part in one.handle.segments)


def test_a_background_job_waits_for_those_that_somebody_waits_for(client: Client) -> None:
    """With one executor, the order in which jobs start is the order of the queue."""
    busy = client.compile(small_request(2100))
    assert any(event.WhichOneof("event") == "started" for event in busy)
    later = client.compile(small_request(2101) | {"priority": BACKGROUND})
    joined = client.compile(small_request(2102) | {"priority": BACKGROUND})
    assert [next(stream).WhichOneof("event") for stream in (later, joined)] == ["queued", "queued"]
    now = client.compile(small_request(2103))
    assert next(now).queued.position == 0
    urgent = client.compile(small_request(2102))
    assert next(urgent).WhichOneof("event") == "joined"
    ends = {}
    for name, stream in (("urgent", urgent), ("now", now), ("later", later), ("joined", joined), ("busy", busy)):
        ready, failed, _ = results(stream)
        assert not failed
        ends[name] = ready[0].handle.created_unix_ms
    assert ends["joined"] == ends["urgent"]
    # Among the urgent ones of a peer the one whose job came first.
    assert ends["urgent"] < ends["now"] < ends["later"]


def test_tiered_is_the_tuned_artifact_where_the_store_has_it_and_else_the_fast_one(client: Client) -> None:
    fast, _, _ = results(client.compile(request(4, tuning=TIERED)))
    keys = {span: one.handle.key for span, one in by_range(fast).items()}
    # It is what a fast request gets, and nothing is tuned by that.
    again, _, summary = results(client.compile(request(4)))
    assert summary.n_from_store == 4
    assert {span: one.handle.key for span, one in by_range(again).items()} == keys
    # One entry is tuned now.
    tuned = request(4, priority=BACKGROUND, tuning=FULL)
    tuned["plan"] = {"compileSizes": ["4"]}
    (full,), _, summary = results(client.compile(tuned))
    assert full.source == COMPILED and full.handle.key != keys[4, 4]
    mixed, _, summary = results(client.compile(request(4, tuning=TIERED)))
    assert summary.n_from_store == 4
    found = {span: one.handle.key for span, one in by_range(mixed).items()}
    assert found == keys | {(4, 4): full.handle.key}


def test_a_piece_stays_the_same_piece_when_its_tuned_artifacts_arrive(client: Client) -> None:
    place = {"program": "tiered", "run": "r1", "index": 0, "nPieces": 2}
    results(client.compile(request(5, tuning=TIERED) | {"program": place}))
    results(client.compile(request(5, priority=BACKGROUND, tuning=FULL)))
    _, _, summary = results(client.compile(request(5, tuning=TIERED) | {"program": place}))
    assert summary.program.n_pieces_ready == 1
    # The next run finds the tuned ones, and its manifest has them.
    place = {"program": "tiered", "run": "r2", "index": 0, "nPieces": 1}
    ready, _, summary = results(client.compile(request(5, tuning=TIERED) | {"program": place}))
    assert summary.program.is_complete
    manifest = client.manifest("tiered").manifest
    assert {handle.key for handle in manifest.pieces[0].handles} == {one.handle.key for one in ready}


def test_what_is_verified_is_the_operators_choice(tmp_path: pathlib.Path) -> None:
    """What was stored without a verification that is wanted now is compiled again, once."""
    for flags, policy, source in [
        (("--verify", "off"), (1, 0), COMPILED),
        (("--verify", "sample", "--verify-sample-percent", "0"), (2, 0), STORE),
        (("--verify", "always"), (3, 100), COMPILED),
        (("--verify", "always"), (3, 100), STORE),
        (("--verify", "off"), (1, 0), STORE),
    ]:
        with Daemon(tmp_path, *flags) as daemon, Client(daemon.endpoint) as client:
            (ready,), failed, _ = results(client.compile(small_request(2200)))
            assert not failed and ready.source == source, flags
            capabilities = client.capabilities()
            assert (capabilities.verify, capabilities.verify_sample_percent) == policy


def test_capabilities_say_what_may_be_asked_for(client: Client) -> None:
    capabilities = client.capabilities()
    assert list(capabilities.tunings) == [1, 2, 3]
    assert list(capabilities.specialisations) == [1, 2]
    limits = capabilities.limits
    assert limits.max_queued_background_jobs == limits.max_queued_jobs // 2
