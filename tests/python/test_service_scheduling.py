"""Who is served when, who is refused, what is remembered: the scheduler as callers see it, with real compiles."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from processes import is_alive, until
from service_harness import Client, Daemon, node, results, small_request


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One executor, so that what waits can be seen, little room for each peer, and what nobody waits for is ended."""
    flags = ("--n-executors", "1", "--max-queued-jobs-per-peer", "6", "--abandoned-jobs", "end")
    with Daemon(tmp_path_factory.mktemp("scheduling"), *flags) as daemon:
        yield daemon


@pytest.fixture
def client(daemon: Daemon) -> Iterator[Client]:
    with Client(daemon.endpoint) as client:
        yield client


def busy(client: Client, constant: int) -> Any:
    """Keeps the only executor busy: a stream whose job has started."""
    return busy_with(client, constant)[0]


def busy_with(client: Client, constant: int) -> tuple[Any, int]:
    """The same, and the executor's process."""
    events = client.compile(small_request(constant=constant))
    for event in events:
        if event.WhichOneof("event") == "started":
            return events, event.started.executor_pid
    raise AssertionError("it ended before it started")


def with_priority(request: dict[str, Any], priority: str) -> dict[str, Any]:
    return {**request, "priority": f"PRIORITY_{priority}"}


def broken_request(constant: int) -> dict[str, Any]:
    """What the graph says has no meaning for these sizes: a matrix product of [s0, 8] with itself."""
    request = small_request(constant=constant)
    target, args = "torch.ops.aten.mm.default", [node("y"), node("y")]
    request["graph"]["nodes"][3] = {"name": "z", "callFunction": {"target": target, "args": args}}
    request["plan"] = {"compileRanges": {"ranges": [{"start": "9", "end": "16"}]}}
    return request


def test_the_graphs_own_failure_is_found_once_remembered_over_a_restart_and_forgotten_on_request(
    daemon: Daemon,
) -> None:
    def fail(client: Client) -> Any:
        ready, failed, _ = results(client.compile(broken_request(constant=500)))
        assert not ready
        return failed[0]

    with Client(daemon.endpoint) as client:
        first = fail(client)
        assert first.reason in ("COMPILE_ERROR", "UNPROVEN_RANGE") and not first.remembered
        again = fail(client)
        assert again.remembered and (again.reason, again.message) == (first.reason, first.message)
    daemon.terminate()
    with daemon.start(), Client(daemon.endpoint) as client:
        later = fail(client)
        assert later.remembered and later.age_s > 0
        assert client.forget_failures(bytes(32)) == 0
        assert client.forget_failures(later.key) == 1
        anew = fail(client)
        assert not anew.remembered and anew.reason == first.reason
        assert client.forget_failures() == 1
        with pytest.raises(grpc.RpcError) as caught:
            client.forget_failures(b"short")
        assert caught.value.details().startswith("BAD_KEY: ")
    daemon.start()


def test_the_more_urgent_goes_first(client: Client) -> None:
    running = busy(client, 510)
    order = ["BACKGROUND", "PREFETCH", "INTERACTIVE"]
    streams = {}
    for constant, priority in enumerate(order, start=511):
        streams[priority] = client.compile(with_priority(small_request(constant=constant), priority))
        first = next(streams[priority])
        # All but the one that runs are less urgent, so each is the first that waits.
        assert first.queued.position == 0, first
    created = {}
    for priority, events in streams.items():
        ready, failed, _ = results(events)
        assert not failed
        created[priority] = ready[0].handle.created_unix_ms
    assert sorted(created, key=created.__getitem__) == order[::-1]
    results(running)


def test_a_peer_has_room_for_so_many_jobs_and_joins_count(client: Client) -> None:
    limits = client.capabilities().limits
    assert (limits.max_queued_jobs_per_peer, limits.max_queued_bytes_per_peer) == (6, 256 << 20)
    running = busy(client, 520)
    waiting = [client.compile(small_request(constant=521 + n)) for n in range(6)]
    assert all(next(events).WhichOneof("event") == "queued" for events in waiting)
    with pytest.raises(grpc.RpcError) as refused:
        next(client.compile(small_request(constant=530)))
    assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert refused.value.details().startswith("PEER_QUEUE_FULL: "), refused.value.details()
    assert retry_delay_s(refused.value) >= 1
    # What is asked for already is not more.
    joined = client.compile(small_request(constant=521))
    assert next(joined).WhichOneof("event") == "joined"
    with pytest.raises(grpc.RpcError) as refused:
        next(client.compile(small_request(constant=531, endpoints=tuple(range(16, 128, 16)))))
    assert "never fit at once" in refused.value.details() and retry_delay_s(refused.value) is None
    # Who leaves makes room at once: none of these is ever compiled.
    joined.cancel()
    for events in waiting:
        events.cancel()
    until(lambda: accepts(client, 532), "the places are free again")
    results(running)


def accepts(client: Client, constant: int) -> bool:
    try:
        return bool(results(client.compile(small_request(constant=constant)))[0])
    except grpc.RpcError as error:
        assert error.details().startswith("PEER_QUEUE_FULL: ")
        return False


def retry_delay_s(error: grpc.RpcError) -> float | None:
    """RetryInfo in the error's details, in seconds."""
    from google.protobuf import any_pb2, duration_pb2

    # google.rpc.Status: code, message, details; RetryInfo: its first field is a Duration. Their Python packages are not needed here.
    blob = next(value for key, value in error.trailing_metadata() if key == "grpc-status-details-bin")
    status = fields(blob)
    for detail in status.get(3, []):
        packed = any_pb2.Any.FromString(detail)
        if packed.type_url.endswith("google.rpc.RetryInfo"):
            return duration_pb2.Duration.FromString(fields(packed.value)[1][0]).ToTimedelta().total_seconds()
    return None


def fields(message: bytes) -> dict[int, list[Any]]:
    """The fields of a message by number, for those that are varints or length-delimited."""
    found: dict[int, list[Any]] = {}
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(message):
        number, kind = divmod(varint(), 8)
        if kind == 0:
            value: Any = varint()
        else:
            assert kind == 2
            length = varint()
            value = message[at : at + length]
            at += length
        found.setdefault(number, []).append(value)
    return found


def test_a_callers_deadline_ends_its_stream_and_its_job(client: Client) -> None:
    running = busy(client, 540)
    late = client.compile(small_request(constant=541), timeout=0.5)
    assert next(late).WhichOneof("event") == "queued"
    with pytest.raises(grpc.RpcError) as caught:
        list(late)
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    ready, _, _ = results(running)
    # It was dropped where it waited: the next who asks has a job of his own.
    events = client.compile(small_request(constant=541))
    assert next(events).WhichOneof("event") == "queued" and ready
    assert results(events)[0]


def test_the_last_caller_ends_a_running_compile_where_the_operator_says_so(client: Client) -> None:
    running, executor = busy_with(client, 550)
    running.cancel()
    until(lambda: not is_alive(executor), "the executor is ended")
    ready, failed, summary = results(client.compile(small_request(constant=550)))
    assert (len(ready), len(failed), summary.n_compiled) == (1, 0, 1), (
        "nothing of the first is left, and nobody hears of its end"
    )


def test_what_nobody_waits_for_is_finished_by_default(tmp_path: pathlib.Path) -> None:
    with Daemon(tmp_path, "--n-executors", "1") as daemon, Client(daemon.endpoint) as client:
        busy(client, 560).cancel()

        def is_stored() -> bool:
            ready, _, summary = results(client.compile(small_request(constant=560)))
            return bool(ready) and (summary.n_from_store == 1 or summary.n_joined == 1)

        assert is_stored(), "it was joined, or is in the store"


def test_a_graph_larger_than_a_peers_bytes_is_refused_for_good(tmp_path: pathlib.Path) -> None:
    with Daemon(tmp_path, "--max-queued-bytes-per-peer", "1024") as daemon, Client(daemon.endpoint) as client:
        request = small_request(constant=570)
        for n in range(40):
            name = {
                "name": f"a{n}",
                "callFunction": {"target": "_operator.add", "args": [node("x"), {"intValue": str(n)}]},
            }
            request["graph"]["nodes"].insert(2, name)
        with pytest.raises(grpc.RpcError) as refused:
            next(client.compile(request))
        assert refused.value.details().startswith("PEER_BYTES_FULL: ")
        assert "never fit at once" in refused.value.details() and retry_delay_s(refused.value) is None
