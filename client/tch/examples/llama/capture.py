"""Captures a Llama with random weights for the worker beside this file, which then needs no Python.

    python capture.py FOLDER [--layers 2] [--hidden 256]

Writes into the folder what the worker serves: one graph file for each piece between two attentions (norms, projections, rotary embedding, MLP),
`sequence.json` (which values go from piece to piece, and where attention is called), the weights, and what eager gives for some prompts.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import piecewised
import torch
from piecewised.split import split_graph
from safetensors.torch import save_file
from transformers import AttentionInterface, LlamaConfig, LlamaForCausalLM

OPTIONS = {"compile_ranges": [[1, 16], [17, 256]], "compile_sizes": [1], "artifact_format": "aoti"}
# Prompts that the worker compares its results for.
CHECKED = [1, 7, 64]


@torch.library.custom_op("llama_worker::attention", mutates_args=())
def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    """What an engine has its own kernels for, and its cache: it is not compiled. The worker calls tch's."""
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True)


@attention.register_fake
def _(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    return torch.empty_like(q)


def call_attention(module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: float, **_: Any) -> Any:  # noqa: PLR0917
    """As transformers calls it: without a mask, since the operator is causal."""
    return attention(query, key, value, scaling).transpose(1, 2).contiguous(), None


def main() -> None:
    """Captures, writes, says what."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--hidden", type=int, default=256)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    AttentionInterface.register("llama_worker", call_attention)
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=args.hidden,
        intermediate_size=4 * args.hidden,
        num_hidden_layers=args.layers,
        num_attention_heads=args.hidden // 32,
        num_key_value_heads=args.hidden // 64,
        vocab_size=2048,
        max_position_embeddings=1024,
        use_cache=False,
        attn_implementation="llama_worker",
    )
    model = LlamaForCausalLM(config).eval()
    capture = Capture(args.folder)
    compiled = torch.compile(lambda tokens: model(tokens).logits, backend=capture.backend, fullgraph=True)
    expected = {}
    with torch.no_grad():
        for n in CHECKED:
            tokens = torch.randint(0, config.vocab_size, (1, n))
            expected[f"tokens{n}"], expected[f"logits{n}"] = tokens, model(tokens).logits.contiguous()
        tokens = torch.randint(0, config.vocab_size, (1, 64))
        torch._dynamo.mark_dynamic(tokens, 1, min=1, max=256)
        compiled(tokens)
    save_file(expected, args.folder / "expected.safetensors")
    n_pieces = sum("piece" in step for step in capture.steps)
    print(f"{args.folder}: {n_pieces} pieces of {args.layers} layers, hidden size {args.hidden}")


class Capture:
    """A backend for `torch.compile` that writes pieces down and runs the graph as it is."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.steps: list[dict[str, Any]] = []

    def backend(self, graph: torch.fx.GraphModule, _: Any) -> Any:
        """Splits and writes."""
        split = split_graph(graph, ["llama_worker::attention"])
        pieces = {piece.name: piece for piece in split.pieces}
        outputs: list[str] = []
        inputs = [node.name for node in split.module.graph.nodes if node.op == "placeholder"]
        for node in split.module.graph.nodes:
            if node.op == "call_module":
                self._step(node, pieces[node.target])
            elif node.op == "output":
                outputs = [self._name(value) for value in node.args[0]]

        def run(*values: Any) -> Any:
            self._write_values(dict(zip(inputs, values, strict=True)), outputs)
            return graph(*values)

        return run

    def _step(self, node: torch.fx.Node, piece: Any) -> None:
        returned = next(one for one in piece.module.graph.nodes if one.op == "output").args[0]
        n_outputs = len(returned) if isinstance(returned, (tuple, list)) else 1
        step: dict[str, Any] = {"outputs": [f"{node.name}.{i}" for i in range(n_outputs)]}
        placeholders = [one for one in piece.module.graph.nodes if one.op == "placeholder"]
        names = {one: self._name(value) for one, value in zip(placeholders, node.args, strict=True)}
        if piece.is_splitting:
            (call,) = [one for one in piece.module.graph.nodes if one.op == "call_function"]
            *tensors, scale = call.args
            step |= {"attention": scale, "inputs": [names[tensor] for tensor in tensors]}
        else:
            file = f"piece{piece.index:02}.pwgraph"
            piecewised.save_graph(self.folder / file, piece.module, OPTIONS, label=f"llama/{piece.index}")
            # A worker gives tensors; the sizes tell the integers.
            tensors = [one for one in placeholders if isinstance(one.meta["example_value"], torch.Tensor)]
            step |= {"piece": file, "inputs": [names[tensor] for tensor in tensors]}
        self.steps.append(step)

    def _name(self, value: torch.fx.Node) -> str:
        """What the sequence calls a value: an input by its name, the others by the step that makes them."""
        if value.op == "placeholder":
            return value.name
        if value.op == "call_module":
            return f"{value.name}.0"
        source, i = value.args
        return f"{source.name}.{i}"

    def _write_values(self, values: dict[str, Any], outputs: list[str]) -> None:
        tensors = {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}
        (tokens,) = [name for name, value in tensors.items() if value.dtype == torch.int64]
        weights = {name: value.detach().contiguous().clone() for name, value in tensors.items() if name != tokens}
        save_file(weights, self.folder / "weights.safetensors")
        sequence = {"tokens": tokens, "steps": self.steps, "outputs": outputs}
        (self.folder / "sequence.json").write_text(json.dumps(sequence, indent=1))


if __name__ == "__main__":
    main()
