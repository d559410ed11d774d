"""The daemon under load and under fire: many clients, cancellations, kill -9 of the daemon and of executors, readers that stall or vanish.

Few rounds by default. By hand, as long as wanted: ``PIECEWISED_TEST_DAEMON_KILL_ROUNDS=200 PIECEWISED_TEST_EXECUTOR_KILLS=200
PIECEWISED_TEST_LOAD_SEED=7 pytest tests/python/test_service_load.py``.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from piecewised import _core
from processes import descendants, is_alive, until
from service_harness import Client, Daemon, results, small_request

DAEMON_KILL_ROUNDS = int(os.environ.get("PIECEWISED_TEST_DAEMON_KILL_ROUNDS", "3"))
EXECUTOR_KILLS = int(os.environ.get("PIECEWISED_TEST_EXECUTOR_KILLS", "4"))
SEED = int(os.environ.get("PIECEWISED_TEST_LOAD_SEED", "0")) or random.SystemRandom().randrange(1 << 32)

COMPILED = re.compile(r"job\{id=\S+ key=(\S+).*compiled")


@pytest.fixture(autouse=True)
def say_the_seed() -> None:
    """So that a failure can be tried again."""
    print(f"PIECEWISED_TEST_LOAD_SEED={SEED}")


def test_sixty_four_clients_sixteen_keys_and_random_cancellations(tmp_path: pathlib.Path) -> None:
    """Each asks for every key, in an order of its own, and leaves a third of its calls somewhere on the way: one compile a key."""

    def client(number: int, daemon: Daemon) -> int:
        dice = random.Random(SEED + number)
        constants = list(range(600, 616))
        dice.shuffle(constants)
        n_served = 0
        with Client(daemon.endpoint) as client:
            for constant in constants:
                events = client.compile(small_request(constant=constant))
                # The first eight stay, so that each key has somebody who does.
                if number >= 8 and dice.random() < 1 / 3:
                    for _ in zip(range(dice.randrange(4)), events, strict=False):
                        pass
                    events.cancel()
                    continue
                ready, failed, _ = results(events)
                assert len(ready) == 1 and not failed, failed
                n_served += 1
        return n_served

    with Daemon(tmp_path, "--n-executors", "2") as daemon, concurrent.futures.ThreadPoolExecutor(64) as pool:
        n_served = sum(pool.map(lambda number: client(number, daemon), range(64)))
        compiled = COMPILED.findall(daemon.log_text())
        assert (len(compiled), len(set(compiled))) == (16, 16)
        assert n_served >= 8 * 16


class Acknowledged:
    """What callers were told is there, gathered from many threads."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.handles: dict[int, bytes] = {}
        self.manifests: dict[str, bytes] = {}

    def some_constant(self, dice: random.Random) -> int | None:
        with self.lock:
            return dice.choice(list(self.handles)) if self.handles else None


class Loader:
    """One caller of a mixed load: new compiles, hits, fetches, programs, until its daemon dies."""

    def __init__(self, daemon: Daemon, acknowledged: Acknowledged, dice: random.Random, first: int) -> None:
        self.daemon, self.acknowledged, self.dice = daemon, acknowledged, dice
        self.constants = iter(range(first, first + 10_000))
        self.problem: BaseException | None = None

    def run(self) -> None:
        try:
            with Client(self.daemon.endpoint) as client:
                while True:
                    self.dice.choice([self.compile, self.hit, self.hit, self.program])(client)
        except grpc.RpcError as error:
            # What a caller sees of a daemon that dies: never another error.
            if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
                self.problem = error
        except BaseException as error:
            self.problem = error

    def compile(self, client: Client) -> None:
        constant = next(self.constants)
        ready, failed, _ = results(client.compile(small_request(constant=constant)))
        assert not failed, failed
        with self.acknowledged.lock:
            self.acknowledged.handles[constant] = ready[0].handle.SerializeToString()

    def hit(self, client: Client) -> None:
        constant = self.acknowledged.some_constant(self.dice)
        if constant is not None:
            check_acknowledged(client, constant, self.acknowledged.handles[constant])

    def program(self, client: Client) -> None:
        constant = next(self.constants)
        name = f"program-{constant}"
        place = {"program": name, "run": "1", "index": 0, "nPieces": 1}
        ready, failed, summary = results(client.compile({**small_request(constant=constant), "program": place}))
        assert not failed and summary.program.is_complete, summary
        with self.acknowledged.lock:
            self.acknowledged.handles[constant] = ready[0].handle.SerializeToString()
            self.acknowledged.manifests[name] = summary.program.manifest_digest


def check_acknowledged(client: Client, constant: int, handle: bytes) -> None:
    """It is in the store as it was acknowledged, and its bytes are there."""
    ready, failed, summary = results(client.compile(small_request(constant=constant)))
    assert not failed and summary.n_from_store == 1, (constant, failed, summary)
    assert ready[0].handle.SerializeToString() == handle
    n_bytes = sum(len(chunk.data) for chunk in client.fetch(ready[0].handle.digest))
    assert n_bytes == ready[0].handle.size_bytes


def check_all(client: Client, acknowledged: Acknowledged, n_latest: int | None) -> None:
    """All that was acknowledged, or the latest of it."""
    for constant in list(acknowledged.handles)[-n_latest if n_latest else None :]:
        check_acknowledged(client, constant, acknowledged.handles[constant])
    for name in list(acknowledged.manifests)[-n_latest if n_latest else None :]:
        assert client.manifest(name).manifest_digest == acknowledged.manifests[name]


def something_new(acknowledged: Acknowledged, threads: list[threading.Thread]) -> Callable[[], bool]:
    """Whether more was acknowledged since, or nobody is left who asks."""
    n_before = len(acknowledged.handles)
    return lambda: len(acknowledged.handles) > n_before or not any(thread.is_alive() for thread in threads)


def test_kill_nine_of_the_daemon_under_mixed_load(tmp_path: pathlib.Path) -> None:
    """Whatever was acknowledged before a kill is there and whole after it, nothing of the dead daemon is left, and the next one serves."""
    acknowledged = Acknowledged()
    dice = random.Random(SEED)
    daemon = Daemon(tmp_path, "--n-executors", "2")
    for round_ in range(DAEMON_KILL_ROUNDS):
        with daemon.start():
            assert daemon.process is not None
            with Client(daemon.endpoint) as client:
                # Of the hundreds that there will be, those that were acknowledged last, which a kill could hurt; now and then all.
                check_all(client, acknowledged, None if round_ % 20 == 19 else 8)
            loaders = [
                Loader(daemon, acknowledged, random.Random(dice.random()), 100_000 * (1 + round_) + 10_000 * number)
                for number in range(4)
            ]
            threads = [threading.Thread(target=loader.run) for loader in loaders]
            for thread in threads:
                thread.start()
            if round_ % 3 == 0:
                # Else a kill may come before the first compile is through, which takes seconds after a start.
                until(something_new(acknowledged, threads), "a result", 120)
                time.sleep(dice.uniform(0, 2))
            else:
                time.sleep(dice.uniform(0.1, 6))
            started = descendants(daemon.process.pid)
            daemon.kill()
        for thread in threads:
            thread.join()
        for loader in loaders:
            assert loader.problem is None, loader.problem
        until(lambda: not any(map(is_alive, started)), "what the dead daemon started ends", 120)  # noqa: B023 - called at once
    # Digests too, with the client that workers use.
    with daemon.start(), Client(daemon.endpoint) as client:
        check_all(client, acknowledged, None)
        core = _core.Client(daemon.endpoint, cache_dir=str(tmp_path / "cache"))
        for name in list(acknowledged.manifests)[-20:]:
            manifest, digest = core.manifest(name)
            assert bytes.fromhex(digest) == acknowledged.manifests[name]
            for piece in json.loads(manifest)["pieces"]:
                for handle in piece["handles"]:
                    core.fetch(json.dumps(handle))
    assert acknowledged.handles and sum(1 for _ in tmp_path.glob("store/set-aside/*")) == 0
    print(
        f"{DAEMON_KILL_ROUNDS} kills, {len(acknowledged.handles)} artifacts and {len(acknowledged.manifests)} manifests acknowledged"
    )


def test_executors_killed_at_random_under_load(tmp_path: pathlib.Path) -> None:
    """Every request ends in the right result or in an error that says what happened; the daemon goes on."""
    dice = random.Random(SEED)
    n_killed, is_over = 0, threading.Event()
    reasons: dict[str, int] = {}

    def ask(number: int) -> int:
        n_ready = 0
        with Client(daemon.endpoint) as client:
            for constant in range(200_000 + 10_000 * number, 300_000):
                if is_over.is_set():
                    break
                ready, failed, summary = results(client.compile(small_request(constant=constant)))
                assert (len(ready), len(failed)) in ((1, 0), (0, 1)) and summary.n_ready == len(ready)
                for failure in failed:
                    assert failure.reason == "EXECUTOR_CRASHED" and failure.retryable and not failure.remembered, (
                        failure
                    )
                    reasons[failure.reason] = reasons.get(failure.reason, 0) + 1
                n_ready += len(ready)
        return n_ready

    with Daemon(tmp_path, "--n-executors", "2", "--max-attempts", "4") as daemon:
        with Client(daemon.endpoint) as client:
            # A daemon whose interpreter is killed three times before it has said anything takes it for unusable.
            results(client.compile(small_request(constant=199_999)))
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            asking = [pool.submit(ask, number) for number in range(4)]
            while n_killed < EXECUTOR_KILLS and not any(one.done() for one in asking):
                time.sleep(dice.uniform(0, 2))
                # The zygote, trials and compilers are fair game too.
                victims = list(descendants(daemon.process.pid))  # type: ignore[union-attr]
                if victims:
                    n_killed += 1
                    try:
                        os.kill(dice.choice(victims), signal.SIGKILL)
                    except ProcessLookupError:
                        n_killed -= 1
            is_over.set()
            n_ready = sum(one.result() for one in asking)
        with Client(daemon.endpoint) as client:
            ready, failed, _ = results(client.compile(small_request(constant=400_000)))
            assert len(ready) == 1 and not failed, failed
    print(f"{n_killed} kills, {n_ready} compiled, failed: {reasons}")


def test_ten_thousand_lookups_at_once(tmp_path: pathlib.Path) -> None:
    """All in flight before the first answer is read, over sixteen connections."""
    with Daemon(tmp_path) as daemon:
        clients = [Client(daemon.endpoint) for _ in range(16)]
        request = small_request(constant=700)
        results(clients[0].compile(request))
        messages = [client.message("CompileRequest", **request) for client in clients]
        streams = [clients[n % 16].compile(messages[n % 16], timeout=300) for n in range(10_000)]
        assert all(results(events)[2].n_from_store == 1 for events in streams)
        for client in clients:
            client.close()


@dataclasses.dataclass(frozen=True)
class Large:
    """What has to be known of a large artifact."""

    digest: bytes
    size_bytes: int


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A daemon, and the handle of an artifact of some 30 MB: a table is a constant of its graph."""
    sys.path.append(str(pathlib.Path(__file__).parents[1] / "bench"))
    from bench import chain_graph

    daemon = Daemon(tmp_path_factory.mktemp("large"), "--max-constant-bytes", str(64 << 20))
    with daemon:
        core = _core.Client(daemon.endpoint, cache_dir=str(daemon.folder / "cache"))
        graph = json.dumps(chain_graph(1, 800, n_megabytes=30))
        events = [json.loads(event) for event in core.compile(graph, [(1, 16)], [], json.dumps({}))]
        handle = next(event["handle"] for event in events if event["event"] == "ready")
        assert handle["size_bytes"] > 20_000_000
        yield daemon, Large(bytes.fromhex(handle["digest"]), handle["size_bytes"])


def resident_bytes(pid: int) -> int:
    pages = int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def test_readers_that_stall_cost_little_and_stop_nobody(large: tuple[Daemon, Large]) -> None:
    daemon, handle = large
    assert daemon.process is not None
    with Client(daemon.endpoint) as client:
        whole = b"".join(chunk.data for chunk in client.fetch(handle.digest))
        before = resident_bytes(daemon.process.pid)
        stalled = [Client(daemon.endpoint) for _ in range(20)]
        streams = [one.fetch(handle.digest, timeout=300) for one in stalled]
        firsts = [next(stream).data for stream in streams]
        # The whole artifact to another one, past all that stand still; a compile too.
        assert b"".join(chunk.data for chunk in client.fetch(handle.digest)) == whole
        assert results(client.compile(small_request(constant=801)))[0]
        held = resident_bytes(daemon.process.pid) - before
        assert held < 20 * handle.size_bytes / 2, f"{held} bytes for readers that do not read"
        # They go on where they were.
        for first, stream in list(zip(firsts, streams, strict=True))[:3]:
            assert first + b"".join(chunk.data for chunk in stream) == whole
        for one in stalled:
            one.close()


READER = """
import os, sys
sys.path[:0] = [sys.argv[1]]
from service_harness import Client
with Client(sys.argv[2]) as client:
    stream = client.fetch(bytes.fromhex(sys.argv[3]))
    next(stream)
    print("reading", flush=True)
    os.kill(os.getpid(), 9)
"""


def test_clients_that_vanish_in_the_middle_of_a_fetch_leave_nothing_behind(large: tuple[Daemon, Large]) -> None:
    daemon, handle = large
    assert daemon.process is not None
    open_files = pathlib.Path(f"/proc/{daemon.process.pid}/fd")

    def n_of_artifacts() -> int:
        return sum(1 for fd in open_files.iterdir() if "/artifacts/" in os.readlink(fd))

    arguments = [str(pathlib.Path(__file__).parent), daemon.endpoint, handle.digest.hex()]
    for _ in range(5):
        done = subprocess.run(
            [sys.executable, "-c", READER, *arguments], stdout=subprocess.PIPE, text=True, check=False
        )
        assert (done.stdout, done.returncode) == ("reading\n", -signal.SIGKILL)
    until(lambda: n_of_artifacts() == 0, "the artifact's file is closed", 120)
    with Client(daemon.endpoint) as client:
        assert sum(len(chunk.data) for chunk in client.fetch(handle.digest)) == handle.size_bytes
