"""The numbers of docs/benchmarks.md: start, memory, hits, fetch, and what the daemon adds to a compile.

Everything is measured in one run on one machine; the comparison of compiles interleaves the two ways. Prints one JSON object and a
table.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT / "tests/python"))

from service_harness import Client, Daemon, results  # noqa: E402 - found by the line above


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--daemon", type=pathlib.Path, required=True, help="a release build of the binary")
    parser.add_argument("--bench-client", type=pathlib.Path, required=True, help="a release build of bench-client")
    parser.add_argument("--hits", type=int, default=5000)
    parser.add_argument("--fetches", type=int, default=50)
    parser.add_argument("--compiles", type=int, default=6)
    args = parser.parse_args()
    import service_harness

    service_harness.DAEMON = args.daemon.resolve()
    report: dict[str, Any] = {"machine": machine()}
    with tempfile.TemporaryDirectory() as folder:
        with Daemon(pathlib.Path(folder)) as daemon:
            report["compile"] = compiles(daemon, args.compiles)
            report["memory"] = memory(daemon)
            report["socket"] = over_the_socket(daemon, args.bench_client.resolve(), args.hits, args.fetches)
        report["start"] = starts(pathlib.Path(folder))
    print(json.dumps(report, indent=1))
    table(report)


def machine() -> dict[str, Any]:
    """The conditions."""
    import torch

    model = next(
        (line.partition(":")[2].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), ""
    )
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def resident_mb(pid: int) -> float:
    """Resident memory of a process, in MB."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) / 1e3


def memory(daemon: Daemon) -> dict[str, float]:
    """At rest, after some compiles."""
    assert daemon.process is not None
    time.sleep(2)
    return {
        "daemon_mb": resident_mb(daemon.process.pid),
        "executors_mb": [resident_mb(pid) for pid in daemon.executors()],
    }


def starts(folder: pathlib.Path, n: int = 10) -> dict[str, float]:
    """From the start of the process to the first answer to GetCapabilities, with a store that holds the other measurements."""
    seconds = []
    for _ in range(n):
        daemon = Daemon(folder)
        # A killed daemon leaves its socket's file, and what is waited for is the new one.
        daemon.socket.unlink(missing_ok=True)
        started = time.perf_counter()
        daemon.process = subprocess.Popen(
            [
                daemon_binary(),
                "serve",
                "--socket",
                daemon.socket,
                "--store-dir",
                folder / "store",
                "--python",
                sys.executable,
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            while not daemon.socket.exists():
                time.sleep(0.0005)
            with Client(daemon.endpoint) as client:
                client.capabilities()
            seconds.append(time.perf_counter() - started)
        finally:
            daemon.kill()
    return {"n": n, "median_ms": statistics.median(seconds) * 1e3, "max_ms": max(seconds) * 1e3}


def daemon_binary() -> pathlib.Path:
    """The binary that is measured."""
    import service_harness

    return service_harness.DAEMON


def over_the_socket(daemon: Daemon, client: pathlib.Path, n_hits: int, n_fetches: int) -> dict[str, Any]:
    """Hits on a graph of usual form and size, fetches of an artifact of about 1 MB, both from a Rust client."""
    hits = bench_client(daemon, client, chain_graph(20, 5000), n_hits, 0)
    fetches = bench_client(daemon, client, chain_graph(4, 1000, n_megabytes=0.9), 0, n_fetches)
    return {
        "hit_us": hits["hit_us"],
        "request_nodes": hits["request_nodes"],
        "fetch_us": fetches["fetch_us"],
        "artifact_bytes": fetches["artifact_bytes"],
    }


def bench_client(
    daemon: Daemon, client: pathlib.Path, graph: dict[str, Any], n_hits: int, n_fetches: int
) -> dict[str, Any]:
    """One run of bench-client."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "graph.json"
        path.write_text(json.dumps(graph))
        command = [client, daemon.endpoint, path, str(n_hits), str(n_fetches)]
        return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def chain_graph(n_steps: int, constant: int, n_megabytes: float = 0) -> dict[str, Any]:
    """A chain of element-wise steps and reductions over `x: f32[s0, 64]`, in the project's JSON form."""
    device = {"type": "cpu"}
    x = {
        "dtype": "float32",
        "device": device,
        "layout": "strided",
        "sizes": [{"symbol": "s0"}, {"int": 64}],
        "strides": [{"int": 64}, {"int": 1}],
    }
    nodes: list[dict[str, Any]] = [
        {"name": "size", "op": {"placeholder": {"value": {"sym_int": {"symbol": "s0"}}}}},
        {"name": "x", "op": {"placeholder": {"value": {"tensor": x}}}},
    ]
    graph: dict[str, Any] = {"nodes": nodes, "symbols": [{"name": "s0", "hint": 64}]}

    def call(target: str, *args: Any) -> str:
        name = f"n{len(nodes)}"
        nodes.append({"name": name, "op": {"call_function": {"target": target, "args": list(args)}}})
        return name

    last = "x"
    for step in range(n_steps):
        shifted = call("_operator.add", {"node": last}, {"float": repr(float(constant + step))})
        scaled = call("torch.nn.functional.softmax", {"node": shifted}, {"int": -1})
        last = call("_operator.mul", {"node": scaled}, {"node": last})
    if n_megabytes:
        import base64

        n_elements = int(n_megabytes * 1e6 / 4) // 64
        meta = x | {"sizes": [{"int": n_elements}, {"int": 64}], "strides": [{"int": 64}, {"int": 1}]}
        data = os.urandom(n_elements * 64) * 4
        # A table of the graph's own, so that its artifact has about this size.
        graph["constants"] = [{"name": "table", "meta": meta, "data": base64.b64encode(data).decode()}]
        nodes.append({"name": "table", "op": {"get_attr": {"target": "table"}}})
        product = call(
            "torch.ops.aten.mm.default", {"node": last}, {"node": call("torch.ops.aten.t.default", {"node": "table"})}
        )
        last = product
    nodes.append({"name": "out", "op": {"output": {"value": {"tuple": [{"node": last}]}}}})
    return graph


def to_proto_json(graph: dict[str, Any]) -> dict[str, Any]:
    """The same graph in protobuf's JSON form, for the chain graphs above."""

    def expr(value: dict[str, Any]) -> dict[str, Any]:
        return {"symbol": value["symbol"]} if "symbol" in value else {"integer": str(value["int"])}

    def argument(value: dict[str, Any]) -> dict[str, Any]:
        ((kind, inner),) = value.items()
        if kind == "tuple":
            return {"tuple": {"items": [argument(item) for item in inner]}}
        return (
            {"node": inner}
            if kind == "node"
            else {"intValue": str(inner)}
            if kind == "int"
            else {"floatValue": float(inner)}
        )

    def node(value: dict[str, Any]) -> dict[str, Any]:
        ((kind, inner),) = value["op"].items()
        if kind == "placeholder":
            ((what, meta),) = inner["value"].items()
            if what == "tensor":
                meta = meta | {"sizes": list(map(expr, meta["sizes"])), "strides": list(map(expr, meta["strides"]))}
                return {"name": value["name"], "placeholder": {"value": {"tensor": meta}}}
            return {"name": value["name"], "placeholder": {"value": {"symInt": expr(meta)}}}
        if kind == "output":
            return {"name": value["name"], "output": {"value": argument(inner["value"])}}
        return {
            "name": value["name"],
            "callFunction": {"target": inner["target"], "args": list(map(argument, inner["args"]))},
        }

    return {"symbols": [{"name": "s0", "hint": "64"}], "nodes": [node(value) for value in graph["nodes"]]}


def compiles(daemon: Daemon, n: int) -> dict[str, Any]:
    """The daemon's whole answer against `standalone_compile` alone, both warm, in turn, on graphs neither has seen."""
    direct_s, through_s, inside_s = [], [], []
    with Direct() as direct, Client(daemon.endpoint) as client:
        for round_number in range(n + 1):
            graph = chain_graph(6, 100 * (round_number + 1))
            range_ = [2, 16]
            seconds = direct.compile(graph, range_)
            started = time.perf_counter()
            ready, failed, _ = results(
                client.compile(
                    {
                        "graph": to_proto_json(graph),
                        "plan": {"compileRanges": {"ranges": [{"start": "2", "end": "16"}]}},
                        "options": {"torch": {"numThreads": 1}},
                    }
                )
            )
            elapsed = time.perf_counter() - started
            assert not failed, failed
            # The first of each warms its process.
            if round_number:
                direct_s.append(seconds)
                through_s.append(elapsed)
                inside_s.append(ready[0].handle.timings.total_s)
    ratios = [through / direct for through, direct in zip(through_s, direct_s, strict=True)]
    return {
        "n": n,
        "direct_s": direct_s,
        "through_daemon_s": through_s,
        "executor_s": inside_s,
        "ratio_median": statistics.median(ratios),
        "around_the_executor_ms_median": statistics.median(t - i for t, i in zip(through_s, inside_s, strict=True))
        * 1e3,
    }


class Direct:
    """A process that calls `standalone_compile` itself, with a fresh Inductor cache each time."""

    def __enter__(self) -> Direct:
        self._process = subprocess.Popen(
            [sys.executable, HERE / "direct.py"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def compile(self, graph: dict[str, Any], range_: list[int]) -> float:
        """Seconds of one compile."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps({"graph": graph, "range": range_}) + "\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def table(report: dict[str, Any]) -> None:
    """For docs/benchmarks.md."""
    socket, start, memory_, compile_ = report["socket"], report["start"], report["memory"], report["compile"]
    rows = [
        (
            "process start to first answer, median / max of " + str(start["n"]),
            f"{start['median_ms']:.0f} / {start['max_ms']:.0f} ms",
        ),
        ("daemon's memory at rest", f"{memory_['daemon_mb']:.0f} MB"),
        ("each executor's", ", ".join(f"{mb:.0f} MB" for mb in memory_["executors_mb"])),
        (
            f"hit over the Unix socket ({socket['request_nodes']} nodes, one in flight), p50 / p99",
            f"{socket['hit_us']['p50']:.0f} / {socket['hit_us']['p99']:.0f} us",
        ),
        (
            f"fetch, verify and unpack {socket['artifact_bytes'] / 1e6:.2f} MB, p50 / p99",
            f"{socket['fetch_us']['p50'] / 1e3:.1f} / {socket['fetch_us']['p99'] / 1e3:.1f} ms",
        ),
        (
            f"compile through the daemon over standalone_compile, median of {compile_['n']}",
            f"{compile_['ratio_median']:.2f}",
        ),
        ("of it outside the executor, median", f"{compile_['around_the_executor_ms_median']:.0f} ms"),
    ]
    print("\n| what | measured |\n|---|---|")
    for what, value in rows:
        print(f"| {what} | {value} |")


if __name__ == "__main__":
    main()
