"""A 32-layer transformer as one program: how many compiles, and how long until its first answer, against one compile per piece.

The model is split at its attention, a custom operator, into 33 pieces. Twice, each time with a new daemon and in a process of its own:

* `alike`: the layers differ in their weights only, as a transformer's do, so that their pieces are the same graph;
* `unlike`: the same model, but every layer's norm has an epsilon of its own. It is a literal in the graph, and changes nothing about how
  long a compile takes, but no two pieces are the same graph any more. That is what compiling piece by piece costs.

Before each, the daemon compiles something else, as its very first compile takes many times as long as the others (it precompiles headers).

The second is what is compared with, rather than one piece's compile times 33, because it is measured with all that comes with it: the same
daemon, the same number of executors, fetching, loading. Prints one JSON object and a table.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

import piecewised
import torch
from bench import Daemon, machine
from torch import nn
from torch.nn import functional

RANGES = [[1, 512]]
HIDDEN = 128
N_HEADS = 4
N_TOKENS = 64


def main() -> None:
    """Measures and prints; with --worker, is the process that compiles."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--daemon", type=pathlib.Path, help="a release build of the binary")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--worker", nargs=2, metavar=("ENDPOINT", "KIND"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker is not None:
        print(json.dumps(worker(*args.worker, args.layers)))
        return
    if args.daemon is None:
        parser.error("--daemon is required")
    report: dict[str, Any] = {"machine": machine(), "n_layers": args.layers, "ranges": RANGES}
    for kind in ("alike", "unlike"):
        report[kind] = run(args.daemon.resolve(), kind, args.layers)
    print(json.dumps(report, indent=1))
    table(report)


def run(binary: pathlib.Path, kind: str, n_layers: int) -> dict[str, Any]:
    """One process against one new daemon."""
    import service_harness

    service_harness.DAEMON = binary
    with tempfile.TemporaryDirectory() as folder, Daemon(pathlib.Path(folder)) as daemon:
        in_a_process(daemon, "warm-up", 1)
        return in_a_process(daemon, kind, n_layers)


def in_a_process(daemon: Daemon, kind: str, n_layers: int) -> dict[str, Any]:
    """What `worker` gives, in a process of its own with an empty cache."""
    result = subprocess.run(
        [sys.executable, __file__, "--worker", daemon.endpoint, kind, "--layers", str(n_layers)],
        env={**os.environ, "PIECEWISED_CACHE_DIR": str(daemon.folder / f"cache-{kind}")},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return found


def worker(endpoint: str, kind: str, n_layers: int) -> dict[str, Any]:
    """Compiles the model, calls it, and says what it took."""
    model = Model(epsilons(kind, n_layers)).eval()
    compiled = torch.compile(
        model,
        backend="piecewised",
        fullgraph=True,
        options={
            "compile_ranges": RANGES,
            "splitting_ops": ["bench::attention"],
            "program": f"bench-{kind}",
            "endpoint": endpoint,
            "on_error": "raise",
            "guard_filter_fn": torch.compiler.skip_all_guards_unsafe,
        },
    )
    tokens = torch.randint(0, 256, (N_TOKENS,), generator=torch.Generator().manual_seed(0))
    torch._dynamo.mark_dynamic(tokens, 0)
    with torch.inference_mode():
        started = time.perf_counter()
        actual = compiled(tokens)
        first_answer_s = time.perf_counter() - started
        torch.testing.assert_close(actual, model(tokens), rtol=1e-3, atol=1e-3)
    manifest = completed(f"bench-{kind}", endpoint)
    stats = piecewised.stats()
    assert not stats["n_local"], stats["local_reasons"]
    ranges = stats["ranges"]
    by_key = {record["key"]: record for record in ranges}
    return {
        "n_pieces": len(manifest["pieces"]),
        "n_distinct": manifest["n_distinct_pieces"],
        "n_ranges": len(ranges),
        "n_compiled": sum(record["source"] == "compiled" for record in ranges),
        "n_shared": sum(record["source"] != "compiled" for record in ranges),
        # Until the whole model has answered once: capture, split, compile, fetch, load, run.
        "first_answer_s": first_answer_s,
        # In executors, each compile once.
        "compile_s": sum(record["compile_s"] for record in by_key.values()),
        "each_compile_s": [record["compile_s"] for record in by_key.values()],
    }


def completed(program: str, endpoint: str) -> dict[str, Any]:
    """The program's manifest. The answer is there a moment before it is committed."""
    deadline = time.monotonic() + 10
    while True:
        try:
            return dict(piecewised.get_manifest(program, endpoint=endpoint))
        except piecewised.PiecewisedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def epsilons(kind: str, n_layers: int) -> list[float]:
    """Each layer's: all the same, or 1e-6, 1.001e-6, 1.002e-6 and so on."""
    if kind == "unlike":
        return [1e-6 * (1 + i / 1000) for i in range(n_layers)]
    return [{"alike": 1e-6, "warm-up": 1e-5}[kind]] * n_layers


@torch.library.custom_op(
    "bench::attention", mutates_args=(), schema="(Tensor query, Tensor key, Tensor value) -> Tensor"
)
def attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Stands in for a serving engine's: opaque to the compiler."""
    heads = [x.view(-1, N_HEADS, HIDDEN // N_HEADS).transpose(0, 1) for x in (query, key, value)]
    return functional.scaled_dot_product_attention(*heads, is_causal=True).transpose(0, 1).reshape(query.shape)


@attention.register_fake
def _(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(query)


class Norm(nn.Module):
    """RMSNorm."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(HIDDEN))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalised and weighted."""
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


class Layer(nn.Module):
    """Attention and MLP, each with its norm before and the residual around it."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.before_attention, self.before_mlp = Norm(eps), Norm(eps)
        self.qkv = nn.Linear(HIDDEN, 3 * HIDDEN, bias=False)
        self.out = nn.Linear(HIDDEN, HIDDEN, bias=False)
        self.gate_up = nn.Linear(HIDDEN, 4 * HIDDEN, bias=False)
        self.down = nn.Linear(2 * HIDDEN, HIDDEN, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Shape [tokens, hidden]."""
        query, key, value = self.qkv(self.before_attention(x)).chunk(3, dim=-1)
        x = x + self.out(torch.ops.bench.attention(query.contiguous(), key.contiguous(), value.contiguous()))
        gate, up = self.gate_up(self.before_mlp(x)).chunk(2, dim=-1)
        return x + self.down(functional.silu(gate) * up)


class Model(nn.Module):
    """A small Llama-like transformer over a flat batch of tokens, as a serving engine has it; random weights."""

    def __init__(self, epsilons: list[float]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(256, HIDDEN)
        self.layers = nn.ModuleList(map(Layer, epsilons))
        self.norm = Norm(epsilons[-1])

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Of token ids, shape [tokens]."""
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


def table(report: dict[str, Any]) -> None:
    """The numbers for a reader."""
    print(f"\n{'pieces are':<12}{'pieces':>8}{'distinct':>10}{'compiles':>10}{'first answer':>14}{'compiling':>12}")
    for kind in ("alike", "unlike"):
        row = report[kind]
        print(f"{kind:<12}{row['n_pieces']:>8}{row['n_distinct']:>10}{row['n_compiled']:>10}", end="")
        print(f"{row['first_answer_s']:>12.1f} s{row['compile_s']:>10.1f} s")
    print(f"{report['unlike']['first_answer_s'] / report['alike']['first_answer_s']:.1f} times as long without sharing")


if __name__ == "__main__":
    main()
