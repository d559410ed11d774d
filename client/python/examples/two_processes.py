"""One process compiles a model in pieces; another one starts from the program's manifest alone.

    piecewised serve &
    python client/python/examples/two_processes.py

The first process captures a small transformer, splits it at its attention operator (which is no compiler's business) and has
the pieces compiled as the program "two-processes". The second one has neither the model's code nor a graph nor Dynamo's
capture: it gets its pieces by the program's name, and calls them with the attention in between. Its results are compared
with eager's. To name a daemon other than the default one, set PIECEWISED_ENDPOINT.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import piecewised
import torch

PROGRAM = "two-processes"
N_LAYERS = 3
WIDTH = 32
SIZES = (2, 7, 16, 50)


@torch.library.custom_op("two_processes::attention", mutates_args=())
def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Stands for an engine's attention, which looks after a cache of its own and is not compiled."""
    return torch.nn.functional.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True)[0]


@attention.register_fake
def _(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(q)


class Layer(torch.nn.Module):
    """A transformer's layer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.LayerNorm(WIDTH)
        self.qkv = torch.nn.Linear(WIDTH, 3 * WIDTH)
        self.up = torch.nn.Linear(WIDTH, 4 * WIDTH)
        self.down = torch.nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """One layer."""
        q, k, v = self.qkv(self.norm(x)).chunk(3, dim=-1)
        x = x + attention(q, k, v)
        return x + self.down(torch.nn.functional.silu(self.up(x)))


def build() -> torch.nn.Module:
    """The model, with the same weights in every process."""
    torch.manual_seed(0)
    return torch.nn.Sequential(*(Layer() for _ in range(N_LAYERS))).eval()


def tokens(n: int) -> torch.Tensor:
    """The same input in every process."""
    return torch.randn(n, WIDTH, generator=torch.Generator().manual_seed(n))


def compile_program(folder: Path) -> None:
    """The first process: compile, and write down what the second one needs beside the artifacts: weights and results."""
    model = build()
    compiled = torch.compile(
        model,
        backend="piecewised",
        fullgraph=True,
        options={
            "compile_ranges": [[2, 16], [17, 64]],
            "splitting_ops": ["two_processes::attention"],
            "program": PROGRAM,
            "on_error": "raise",
        },
    )
    with torch.inference_mode():
        first = tokens(5)
        torch._dynamo.mark_dynamic(first, 0)
        compiled(first)
        eager = {n: model(tokens(n)) for n in SIZES}
        for n in SIZES:
            torch.testing.assert_close(compiled(tokens(n)), eager[n])
    # The calls above waited for their own ranges; the manifest is there when the last piece is.
    [summary] = [program.wait() for program in piecewised.programs()]
    print(
        f"compiled {summary.program}: {summary.n_pieces} pieces, {summary.n_distinct_pieces} of them distinct, "
        f"{summary.n_compiled} ranges compiled in {summary.seconds:.1f} s"
    )
    torch.save({"weights": model.state_dict(), "eager": eager}, folder / "state.pt")


def run_program(folder: Path) -> None:
    """The second process: pieces by name, the attention in between."""
    state: dict[str, Any] = torch.load(folder / "state.pt")
    weights: dict[str, torch.Tensor] = state["weights"]
    pieces = piecewised.load(PROGRAM)
    with torch.inference_mode():
        for n, expected in state["eager"].items():
            result = forward(pieces, weights, n)
            torch.testing.assert_close(result, expected)
            print(f"size {n:3}: largest difference from eager {(result - expected).abs().max().item():.1e}")


def forward(pieces: Sequence[piecewised.PiecewiseBackend], weights: dict[str, torch.Tensor], n: int) -> torch.Tensor:
    """The model in pieces: what precedes the first attention, what lies between two, and what follows the last.

    A piece takes the inputs of its graph in order: values, the size, weights.
    """

    def of(layer: int, *names: str) -> list[torch.Tensor]:
        return [weights[f"{layer}.{name}.{kind}"] for name in names for kind in ("weight", "bias")]

    x = tokens(n)
    q, k, v = pieces[0](x, n, *of(0, "norm", "qkv"))
    for layer in range(N_LAYERS - 1):
        following = of(layer + 1, "norm", "qkv")
        q, k, v, x = pieces[layer + 1](x, n, attention(q, k, v), *of(layer, "up", "down"), *following)
    result: torch.Tensor = pieces[-1](x, n, attention(q, k, v), *of(N_LAYERS - 1, "up", "down"))
    return result


def main() -> None:
    """Runs itself twice, as two processes."""
    if len(sys.argv) == 3:
        {"compile": compile_program, "run": run_program}[sys.argv[1]](Path(sys.argv[2]))
        return
    with tempfile.TemporaryDirectory() as folder:
        for step in ("compile", "run"):
            subprocess.run([sys.executable, __file__, step, folder], check=True)


if __name__ == "__main__":
    main()
