"""Forked executors against fresh ones: until they are ready, their first compiles, and the memory that they hold.

    python tests/bench/executors.py [--device cuda] [--rounds 3]

Both kinds take turns in one run, each executor with caches of its own; precompiled headers are shared, as a daemon's executors share
them, and made before the first round. The zygote is warm. Prints a table.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "python"))

import executor_harness as h

N = h.symbol("s0")


def graph(device: str) -> dict[str, Any]:
    """One small kernel."""
    x = h.tensor_input("x", [N, h.number(64)], [h.number(64), h.number(1)])
    x["op"]["placeholder"]["value"]["tensor"]["device"] = {"type": device}
    y = h.function_node("y", "torch.exp", h.ref("x"))
    nodes = [h.int_input("n", N), x, y, h.output_node({"tuple": [h.ref("y")]})]
    return {"nodes": nodes, "symbols": [{"name": "s0", "hint": 8, "min": 2}]}


def memory_mb(pid: int) -> tuple[float, float]:
    """What a process holds, shared pages in shares, and what is its alone."""
    sizes = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, value, *_ = line.split()
        sizes[name] = int(value) * 1024 / 1e6
    return sizes["Pss:"], sizes["Private_Dirty:"] + sizes["Private_Clean:"]


def measured(spoken: h.Spoken, pid: int, started: float, device: dict[str, str], *, is_known: bool) -> dict[str, float]:
    spoken.hello(is_known=is_known)
    found = {"ready s": time.monotonic() - started}
    found["PSS ready MB"], found["own ready MB"] = memory_mb(pid)
    for name in ("first compile s", "second compile s"):
        begun = time.monotonic()
        message, fields, _ = spoken.compile(
            graph(device["type"]), range=[2, 16], dispatch_argument=0, hint=8, device=device
        )
        assert message == "done", fields
        found[name] = time.monotonic() - begun
    found["PSS after MB"], found["own after MB"] = memory_mb(pid)
    return found


def main() -> None:
    """Runs and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    rows: dict[str, list[dict[str, float]]] = {"fresh": [], "forked": []}
    begun = time.monotonic()
    with h.Zygote() as zygote:
        until_ready = time.monotonic() - begun
        zygote.warm()
        until_warm = time.monotonic() - begun
        probe = zygote.fork()
        device = next(kind for kind in probe.hello()["devices"] if kind["type"] == arguments.device)
        # Makes the headers, so that nobody's first compile does.
        probe.compile(graph("cpu"), range=[2, 16], dispatch_argument=0, hint=8, device=h.cpu_device())
        probe.kill()
        for _ in range(arguments.rounds):
            begun = time.monotonic()
            with h.Executor() as fresh:
                rows["fresh"].append(measured(fresh, fresh.process.pid, begun, device, is_known=True))
            begun = time.monotonic()
            forked = zygote.fork()
            rows["forked"].append(measured(forked, forked.pid, begun, device, is_known=True))
        # All of the forked are alive: what each more of them costs.
        pss, own = memory_mb(zygote.process.pid)
    print(
        f"the zygote: ready after {until_ready:.1f} s, warm after {until_warm:.1f} s, PSS {pss:.0f} MB, own {own:.0f} MB"
    )
    print(f"| median of {arguments.rounds}, {device['type']} | fresh | forked |\n|---|---|---|")
    for name in rows["fresh"][0]:
        values = [statistics.median(found[name] for found in rows[kind]) for kind in ("fresh", "forked")]
        print(f"| {name} | {values[0]:.3g} | {values[1]:.3g} |")


if __name__ == "__main__":
    main()
