"""Graphs as Dynamo captures them, and calls of pieces by the names of their inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.fx


def capture(model: Callable[..., Any], *args: Any, dynamic: tuple[int, ...] = (0,)) -> torch.fx.GraphModule:
    """The graph of a model. Dimension 0 of the arguments at the positions `dynamic` is symbolic, and each a symbol of its own."""
    graphs: list[torch.fx.GraphModule] = []
    for position in dynamic:
        torch._dynamo.mark_dynamic(args[position], 0)

    def backend(gm: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        graphs.append(gm)
        return gm

    torch._dynamo.reset()
    # Sizes that are equal now are equal by chance.
    with torch.fx.experimental._config.patch(use_duck_shape=False):
        torch.compile(model, backend=backend, fullgraph=True)(*args)
    return graphs[0]


def symbols(gm: torch.fx.GraphModule) -> list[int]:
    """The positions of the integer inputs."""
    inputs = gm.graph.find_nodes(op="placeholder")
    return [i for i, node in enumerate(inputs) if isinstance(node.meta["example_value"], torch.SymInt)]


def arguments(gm: torch.fx.GraphModule, **tensors: torch.Tensor) -> list[Any]:
    """What to call a graph with: the tensors by the names that the model gave them, and the sizes, read from them."""
    inputs = [(str(node.target), node.meta["example_value"]) for node in gm.graph.find_nodes(op="placeholder")]
    values = [None if isinstance(example, torch.SymInt) else tensors[name[2:-1]] for name, example in inputs]
    sizes: dict[str, int] = {}
    for (_, example), value in zip(inputs, values, strict=True):
        if value is not None:
            sizes.update({str(symbol): size for symbol, size in zip(example.shape, value.shape, strict=True)})
    return [sizes[str(inputs[i][1])] if value is None else value for i, value in enumerate(values)]
