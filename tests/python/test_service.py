"""The daemon as its callers see it: single flight, joins, store hits, fetches, crashes, restarts, draining."""

from __future__ import annotations

import ast
import concurrent.futures
import itertools
import os
import pathlib
import signal
from collections.abc import Iterator

import grpc
import pytest
from processes import is_alive, until
from service_harness import Client, Daemon, children, results, small_request


@pytest.fixture
def daemon(service_daemon: Daemon) -> Daemon:
    return service_daemon


@pytest.fixture
def client(daemon: Daemon) -> Iterator[Client]:
    with Client(daemon.endpoint) as client:
        yield client


def test_capabilities(client: Client) -> None:
    until(lambda: client.capabilities().ready, "the toolchain is ready")
    capabilities = client.capabilities()
    assert capabilities.toolchains[0].torch_version.startswith("2.")
    assert "cpu" in [device.type for device in capabilities.devices]
    assert capabilities.limits.max_nodes > 0
    assert capabilities.key_version >= 1


def test_one_compile_for_many_callers(daemon: Daemon) -> None:
    def ask(_: int) -> tuple[bytes, int, int]:
        with Client(daemon.endpoint) as client:
            ready, failed, summary = results(client.compile(small_request(constant=2)))
            assert not failed
            return ready[0].handle.key, summary.n_compiled, ready[0].source

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(8)))
    assert len({key for key, *_ in answers}) == 1
    assert sum(n_compiled for _, n_compiled, _ in answers) == 1


def test_events_come_in_order_and_the_second_time_from_the_store(client: Client) -> None:
    request = small_request(constant=3, sizes=(4,))
    kinds: dict[int, list[str]] = {0: [], 1: []}
    events = list(client.compile(request))
    for event in events[:-1]:
        kinds[event.index].append(event.WhichOneof("event"))
    assert events[-1].WhichOneof("event") == "completed"
    for steps in kinds.values():
        assert steps[0] == "queued" and steps[-1] == "ready", steps
        assert "started" in steps
    assert [(event.range.start, event.range.end) for event in events if event.WhichOneof("event") == "queued"] == [
        (1, 16),
        (4, 4),
    ]
    again, _, summary = results(client.compile(request))
    assert summary.n_from_store == 2
    first = {event.ready.handle.key: event.ready.handle for event in events if event.WhichOneof("event") == "ready"}
    assert {ready.handle.key: ready.handle for ready in again} == first


def test_a_range_that_starts_at_one_is_proven_piece_by_piece(client: Client) -> None:
    ready, _, _ = results(client.compile(small_request(constant=3)))
    segments = [(segment.range.start, segment.range.end) for segment in ready[0].handle.segments]
    # Whatever was split: ascending, without gap or overlap, all of [1, 16].
    assert segments[0][0] == 1 and segments[-1][1] == 16
    assert all(low[1] + 1 == high[0] for low, high in itertools.pairwise(segments))


def test_names_do_not_count_and_content_does(client: Client) -> None:
    request = small_request(constant=4)
    key = results(client.compile(request))[0][0].handle.key
    renamed = small_request(constant=4)
    text = str(renamed["graph"]).replace("'s0'", "'tokens'").replace("'y'", "'other'").replace("'x'", "'input'")
    renamed["graph"] = ast.literal_eval(text)
    ready, _, summary = results(client.compile(renamed))
    assert ready[0].handle.key == key and summary.n_from_store == 1
    assert results(client.compile(small_request(constant=5)))[0][0].handle.key != key


def test_a_fetch_resumes_at_any_offset(client: Client) -> None:
    handle = results(client.compile(small_request(constant=2)))[0][0].handle
    whole = b"".join(chunk.data for chunk in client.fetch(handle.digest))
    assert len(whole) == handle.size_bytes
    for offset in (1, len(whole) // 2, len(whole) - 1, len(whole)):
        chunks = list(client.fetch(handle.digest, offset))
        assert b"".join(chunk.data for chunk in chunks) == whole[offset:]
        assert {chunk.total_bytes for chunk in chunks} == {len(whole)}
        assert chunks[0].offset == offset


def test_a_caller_that_leaves_disturbs_nobody(daemon: Daemon, client: Client) -> None:
    request = small_request(constant=6)
    leaving = client.compile(request)
    assert next(leaving).WhichOneof("event") == "queued"
    with Client(daemon.endpoint) as other:
        staying = other.compile(request)
        assert next(staying).WhichOneof("event") in ("joined", "ready")
        leaving.cancel()
        ready, failed, _ = results(staying)
        assert len(ready) == 1 and not failed


def test_an_executor_that_is_killed_costs_a_try_and_not_the_job(daemon: Daemon, client: Client) -> None:
    killed = None
    attempts = []
    for event in client.compile(small_request(constant=7, endpoints=(64,))):
        kind = event.WhichOneof("event")
        if kind == "started":
            attempts.append(event.started.attempt)
            if killed is None:
                killed = event.started.executor_pid
                os.kill(killed, signal.SIGKILL)
        if kind in ("ready", "failed"):
            assert kind == "ready", event
    assert killed is not None and attempts == [1, 2]
    assert not is_alive(killed)


def test_kill_nine_loses_nothing_and_leaves_no_orphans(tmp_path: pathlib.Path) -> None:
    daemon = Daemon(tmp_path)
    daemon.start()
    with Client(daemon.endpoint) as client:
        handle = results(client.compile(small_request(constant=8)))[0][0].handle
        running = client.compile(small_request(constant=9))
        assert any(event.WhichOneof("event") == "started" for event in running)
    executors = daemon.executors()
    assert executors
    families = executors + [child for executor in executors for child in children(executor)]
    daemon.kill()
    until(lambda: not any(map(is_alive, families)), "executors end with their daemon")

    with daemon.start(), Client(daemon.endpoint) as client:
        ready, _, summary = results(client.compile(small_request(constant=8)))
        # Compared as bytes: the two connections made their message classes each for themselves.
        assert summary.n_from_store == 1 and ready[0].handle.SerializeToString() == handle.SerializeToString()
        assert sum(len(chunk.data) for chunk in client.fetch(handle.digest)) == handle.size_bytes


def test_sigterm_lets_a_running_compile_finish(tmp_path: pathlib.Path) -> None:
    # The default is below what Kubernetes gives, and a loaded machine may need longer for a cold compile.
    daemon = Daemon(tmp_path, "--drain-deadline-s", "300").start()
    with Client(daemon.endpoint) as client:
        events = client.compile(small_request(constant=10))
        assert next(events).WhichOneof("event") == "queued"
        assert daemon.process is not None
        daemon.process.send_signal(signal.SIGTERM)
        with pytest.raises(grpc.RpcError) as refused:
            until(lambda: list(client.compile(small_request(constant=11))) is None, "new jobs are refused")
        assert (refused.value.code(), refused.value.details().partition(":")[0]) == (
            grpc.StatusCode.UNAVAILABLE,
            "DRAINING",
        )
        ready, failed, _ = results(events)
        assert len(ready) == 1 and not failed
        # What was compiled for its callers can still be fetched, on a new connection too.
        with Client(daemon.endpoint) as late:
            assert sum(len(chunk.data) for chunk in late.fetch(ready[0].handle.digest)) == ready[0].handle.size_bytes
    assert daemon.process.wait(60) == 0, daemon.log_text()
    assert not daemon.socket.exists()


def test_a_second_daemon_on_the_same_socket_or_store_is_refused(daemon: Daemon, tmp_path: pathlib.Path) -> None:
    import subprocess

    from service_harness import DAEMON

    for socket, store in [(daemon.socket, tmp_path / "store"), (tmp_path / "other.sock", daemon.folder / "store")]:
        done = subprocess.run(
            [DAEMON, "serve", "--socket", socket, "--store-dir", store],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode != 0
        assert str(socket if socket == daemon.socket else store) in done.stderr, done.stderr
    with Client(daemon.endpoint) as client:
        assert client.capabilities().version


def test_health(daemon: Daemon) -> None:
    from google.protobuf import descriptor_pool, message_factory
    from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

    channel = grpc.insecure_channel(daemon.endpoint, options=[("grpc.default_authority", "localhost")])
    pool = descriptor_pool.DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
    request = message_factory.GetMessageClass(pool.FindMessageTypeByName("grpc.health.v1.HealthCheckRequest"))
    response = message_factory.GetMessageClass(pool.FindMessageTypeByName("grpc.health.v1.HealthCheckResponse"))
    check = channel.unary_unary("/grpc.health.v1.Health/Check", request.SerializeToString, response.FromString)
    assert check(request(service="piecewised.v1.CompileService"), timeout=10).status == 1
    channel.close()
