"""Calls `standalone_compile` for graphs given as JSON lines on stdin, and prints the seconds of each. What the daemon is compared with.

The graph is rebuilt by the executor's own code before the clock starts; what is timed is one call of Inductor in a warm process with a fresh
cache folder, and serialising its result: the least that any way of compiling this graph costs.
"""

from __future__ import annotations

import json
import pathlib
import sys
import time
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "server/executor/python"))

import torch
from piecewised_executor.rebuild import Rebuilt, rebuild
from piecewised_executor.symbols import Bounds, Symbols
from torch._inductor.standalone_compile import standalone_compile
from torch._inductor.utils import fresh_cache


def main() -> None:
    """One line in, one line out."""
    torch.set_num_threads(1)
    for line in sys.stdin:
        request: dict[str, Any] = json.loads(line)
        print(seconds(request), flush=True)


def seconds(request: dict[str, Any]) -> float:
    """Compiles one graph."""
    torch._dynamo.reset()
    rebuilt = rebuild_for(request)
    started = time.perf_counter()
    with fresh_cache(), torch.no_grad(), torch._guards.tracing(torch._guards.TracingContext(rebuilt.fake_mode)):
        artifact = standalone_compile(
            rebuilt.module,
            rebuilt.inputs,
            dynamic_shapes="from_tracing_context",
            options={"config_patches": {}},
            aot=True,
        )
        artifact.serialize()
    return time.perf_counter() - started


def rebuild_for(request: dict[str, Any]) -> Rebuilt:
    """The GraphModule and its fake inputs, as an executor makes them; the one symbol `s0` takes the range."""
    graph = request["graph"]
    (symbol,) = graph["symbols"]
    start, end = request["range"]
    return rebuild(graph, Symbols(graph["symbols"], {symbol["name"]: Bounds(start, end)}, {}, {symbol["name"]: 8}))


if __name__ == "__main__":
    main()
