"""Loading a compiled piece on the CPU: an artifact of ours against what stock Inductor serialises, each in fresh processes.

A gated MLP with a norm, float32, for [2, 512]. `ours`: a process that has imported torch, with an empty PATH and starting a process an
error. `stock`: a process that has imported torch and Inductor, with a C++ compiler and an empty cache folder, which is what a new pod
has. One run each in turn; medians.

    python tests/bench/load.py [--rounds 3]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/python"))

import executor_harness as h  # noqa: E402
import torch  # noqa: E402

# What both ways end with, once `run` is loaded.
_CALL = """
loaded = time.perf_counter()
args = torch.load(sys.argv[3], weights_only=False)
called = time.perf_counter()
with torch.no_grad():
    result = run(*args)
first = time.perf_counter() - called
print(json.dumps({"load_ms": (loaded - started) * 1e3, "first_call_ms": first * 1e3}))
"""

_OURS = """
import json, sys, time, types
import torch
package = types.ModuleType("piecewised"); package.__path__ = [sys.argv[2]]; sys.modules["piecewised"] = package
def refuse(event, args):
    if event in ("subprocess.Popen", "os.posix_spawn", "os.fork", "os.system", "os.exec"):
        raise RuntimeError(f"a worker started a process: {event}")
sys.addaudithook(refuse)
started = time.perf_counter()
from piecewised.runtime.load import load_entry
run = load_entry(sys.argv[1], "e0")
"""

_STOCK = """
import json, sys, time
import torch
from torch._inductor.standalone_compile import AOTCompiledArtifact
data = open(sys.argv[1], "rb").read()
started = time.perf_counter()
run = AOTCompiledArtifact.deserialize(data)
"""


def piece(x: torch.Tensor, norm: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """Norm, gate-up, silu-mul, down."""
    hidden = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * norm
    gate, up = (hidden @ gate_up).chunk(2, dim=-1)
    return (torch.nn.functional.silu(gate) * up) @ down


def stock(gm: torch.fx.GraphModule, inputs: list[Any]) -> bytes:
    """What stock serialises of the same graph."""
    from torch._inductor.standalone_compile import standalone_compile
    from torch._inductor.utils import fresh_cache

    with fresh_cache(), torch.no_grad():
        return standalone_compile(gm, inputs, dynamic_shapes="from_graph", options={}, aot=True).serialize()


def run(script: str, folder: Path, *arguments: str, bare: bool) -> dict[str, float]:
    """One fresh process with an empty home and cache folder."""
    with tempfile.TemporaryDirectory() as home:
        environment = {
            "HOME": home,
            "PATH": home if bare else os.environ["PATH"],
            "TORCHINDUCTOR_CACHE_DIR": f"{home}/inductor",
        }
        command = [sys.executable, "-c", script, str(folder), *arguments]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    width = 256
    weights = [torch.randn(width), torch.randn(width, 4 * width), torch.randn(2 * width, width)]
    x = torch.randn(8, width)
    torch._dynamo.mark_dynamic(x, 0)
    gm, inputs = h.capture(piece, x, *weights)
    graph = h.client_module("fxgraph").to_graph(gm, inputs)
    argument = next(i for i, node in enumerate(graph["nodes"]) if "sym_int" in node["op"]["placeholder"]["value"])
    with tempfile.TemporaryDirectory() as folder:
        with h.Executor() as executor:
            executor.hello()
            message, fields, blob = executor.compile(graph, range=[2, 512], dispatch_argument=argument, hint=32)
        assert message == "done", fields
        ours = h.materialise(blob, Path(folder) / "artifact")
        data = Path(folder) / "stock.bin"
        data.write_bytes(stock(gm, inputs))
        values = iter([x, *weights])
        call = Path(folder) / "args.pt"
        torch.save([8 if isinstance(value, torch.SymInt) else next(values) for value in inputs], call)
        rows: dict[str, list[dict[str, float]]] = {"ours": [], "stock": []}
        for _ in range(rounds):
            rows["ours"].append(run(_OURS + _CALL, ours, str(h.CLIENT_SOURCE / "piecewised"), str(call), bare=True))
            rows["stock"].append(run(_STOCK + _CALL, data, "", str(call), bare=False))
    print(f"artifact {len(blob)} bytes; {rounds} rounds")
    for what in ("load_ms", "first_call_ms"):
        medians = {name: statistics.median(row[what] for row in found) for name, found in rows.items()}
        print(
            f"{what}: ours {medians['ours']:.1f}, stock {medians['stock']:.1f}, ours/stock {medians['ours'] / medians['stock']:.5f}"
        )


if __name__ == "__main__":
    main()
