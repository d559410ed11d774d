"""The daemon under load: eight workers that start at once against one, many hits in flight, fetches, redis-server beside it.

    python tests/bench/service.py --daemon target/release/piecewised --bench-load target/release/bench-load

Everything in one run on one machine; where redis-server is not on PATH its column is left out. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection
from typing import Any

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[0] / "python"), str(HERE)]

import service_harness  # noqa: E402 - found by the line above
from bench import chain_graph, machine  # noqa: E402
from processes import stat  # noqa: E402
from service_harness import Daemon  # noqa: E402

PARTS = ["workers", "small", "one_megabyte", "thirty_megabytes"]
# A worker: connects, asks for every piece of a model, fetches and unpacks all of it, and ends. Importing torch is not what is measured.
WORKER = """
import json, sys, time
from piecewised import _core
endpoint, folder, graphs = sys.argv[1], sys.argv[2], json.load(open(sys.argv[3]))
print("ready", flush=True); sys.stdin.readline()
started = time.monotonic()
client = _core.Client(endpoint, cache_dir=folder)
torch = {"default_dtype": "float32", "float32_matmul_precision": "highest", "deterministic_algorithms": False, "num_threads": 1}
options = json.dumps({"torch": torch | {"autocast": []}})
streams = [client.compile(json.dumps(graph), [(2, 16), (17, 512)], [], options) for graph in graphs]
for stream in streams:
    for event in map(json.loads, stream):
        assert event["event"] != "failed", event
        if event["event"] == "ready":
            client.fetch(json.dumps(event["handle"]))
print(time.monotonic() - started, flush=True)
"""


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--daemon", type=pathlib.Path, required=True, help="a release build of the binary")
    parser.add_argument("--bench-load", type=pathlib.Path, required=True, help="a release build of bench-load")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    args = parser.parse_args()
    service_harness.DAEMON = args.daemon.resolve()
    report: dict[str, Any] = {"machine": machine()}
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        if "workers" in args.parts:
            report["workers"] = workers(folder)
        report.update(in_flight(folder, args.bench_load.resolve(), args.rounds, args.parts))
    print(json.dumps(report, indent=1))


def workers(folder: pathlib.Path, n_pairs: int = 3, n_pieces: int = 4) -> dict[str, Any]:
    """Wall time of the slowest, and CPU seconds of the daemon with its executors, for one and for eight workers: in turn, each with a new
    daemon that has compiled something else."""
    found: dict[int, list[tuple[float, float]]] = {1: [], 8: []}
    for pair in range(n_pairs):
        for n_workers in (1, 8) if pair % 2 == 0 else (8, 1):
            here = folder / f"workers-{pair}-{n_workers}"
            here.mkdir()
            found[n_workers].append(one_start(here, n_workers, 1000 * (2 * pair + n_workers), n_pieces))
    wall = {n: statistics.median(wall for wall, _ in runs) for n, runs in found.items()}
    cpu = {n: statistics.median(cpu for _, cpu in runs) for n, runs in found.items()}
    return {"runs": found, "wall_ratio": wall[8] / wall[1], "cpu_ratio": cpu[8] / cpu[1]}


def one_start(folder: pathlib.Path, n_workers: int, constant: int, n_pieces: int) -> tuple[float, float]:
    """Seconds until the last of so many workers has everything, and CPU seconds of the daemon, executors included."""
    path = folder / "graphs.json"
    path.write_text(json.dumps([chain_graph(4, constant + 10 * piece) for piece in range(n_pieces)]))
    with Daemon(folder, "--n-executors", "2", "--executor-idle-timeout-s", "1") as daemon:
        warm = folder / "warm.json"
        warm.write_text(json.dumps([chain_graph(2, constant + 500)]))
        start_workers(daemon, folder / "warm", warm, 1)
        before = cpu_seconds(daemon)
        wall = max(start_workers(daemon, folder / "cache", path, n_workers))
        # Executors that end are counted with what their parent has waited for.
        time.sleep(3)
        return wall, cpu_seconds(daemon) - before


def start_workers(daemon: Daemon, folder: pathlib.Path, graphs: pathlib.Path, n: int) -> list[float]:
    """So many processes, let go at once; the seconds that each took."""
    command = [sys.executable, "-c", WORKER, daemon.endpoint]
    started = [
        subprocess.Popen(
            [*command, f"{folder}-{number}", graphs], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for number in range(n)
    ]
    for worker in started:
        assert worker.stdout is not None and worker.stdout.readline() == "ready\n"
    for worker in started:
        assert worker.stdin is not None
        worker.stdin.write("\n")
        worker.stdin.flush()
    seconds = [float(worker.communicate()[0]) for worker in started]
    assert not any(worker.returncode for worker in started)
    return seconds


def cpu_seconds(daemon: Daemon) -> float:
    """Of the daemon and every process below it, those that have ended included."""
    assert daemon.process is not None
    ticks = os.sysconf("SC_CLK_TCK")

    def of(pid: int) -> float:
        fields = stat(pid)
        if fields is None:
            return 0.0
        return sum(map(int, fields[11:15])) / ticks + sum(map(of, service_harness.children(pid)))

    return of(daemon.process.pid)


def in_flight(folder: pathlib.Path, client: pathlib.Path, n_rounds: int, parts: Collection[str]) -> dict[str, Any]:
    """Hits with 64 in flight, alone and with the bytes, against redis; and one large artifact after the other."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 4096)), hard))
    socket = folder / "redis.sock"
    server = None
    if shutil.which("redis-server"):
        command = ["redis-server", "--port", "0", "--unixsocket", socket, "--save", "", "--appendonly", "no"]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=folder)
        while not socket.exists():
            time.sleep(0.05)
    redis = socket if server else "-"
    try:
        with Daemon(
            folder, "--max-constant-bytes", str(64 << 20), "--max-requests-per-s-per-peer", "1000000"
        ) as daemon:

            def measure(graph: dict[str, Any], n_calls: int, n_at_once: int) -> dict[str, Any]:
                path = folder / "graph.json"
                path.write_text(json.dumps(graph))
                command = [client, daemon.socket, path, redis, str(n_calls), str(n_at_once), str(n_rounds)]
                return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)

            measured = {
                "small": lambda: measure(chain_graph(4, 5000), 4000, 64),
                "one_megabyte": lambda: measure(chain_graph(4, 6000, n_megabytes=0.9), 400, 64),
                "thirty_megabytes": lambda: measure(chain_graph(1, 7000, n_megabytes=30), 20, 1),
            }
            return {part: of() for part, of in measured.items() if part in parts}
    finally:
        if server:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    main()
