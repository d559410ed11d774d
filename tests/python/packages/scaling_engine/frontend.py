"""The engine's part in a compile: a pass that scales by what is configured, on both ends.

The configuration is JSON: `factor` (what `scaling::scale` multiplies by in compiled code), `runs` (whether layers run in trials), and whatever else
the engine knows and code does not depend on.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from typing import Any

import torch
from piecewised_executor.errors import Unsupported
from piecewised_executor.frontends import Frontend
from torch._inductor.custom_graph_pass import CustomGraphPass


def identity(config: dict[str, Any]) -> str:
    """What code depends on: computed by workers, and by executors again."""
    return json.dumps({"factor": config["factor"], "runs": config["runs"]}, sort_keys=True)


def preload() -> None:
    """Registers the operators, and leaves a mark for tests that look for it."""
    from . import operators

    del operators
    if marks := os.environ.get("SCALING_ENGINE_MARKS"):
        with open(marks, "a", encoding="utf-8") as file:
            file.write(f"{os.getpid()}\n")


def load(version: str, payload: bytes) -> Frontend:
    """What a worker sent."""
    if version != "1.0":
        raise Unsupported(f"the scaling engine is 1.0 here and {version} in the worker")
    return _Scaling(json.loads(payload))


class _Multiply(CustomGraphPass):
    """Replaces calls of `scaling::scale` by a product with the factor."""

    def __init__(self, factor: float) -> None:
        self.factor = factor
        self.is_compiling = False

    def uuid(self) -> Any:
        return f"multiply by {self.factor}"

    def __call__(self, graph: torch.fx.Graph) -> None:
        if not self.is_compiling:
            raise AssertionError("the pass runs outside of compiling()")
        for node in graph.find_nodes(op="call_function", target=torch.ops.scaling.scale.default):
            with graph.inserting_before(node):
                product = graph.call_function(torch.ops.aten.mul.Tensor, (node.args[0], self.factor))
            product.meta.update(node.meta)
            node.replace_all_uses_with(product)
            graph.erase_node(node)


class _Scaling(Frontend):
    namespaces = frozenset({"scaling"})
    consuming = frozenset({"scaling::donate.default"})

    def __init__(self, config: dict[str, Any]) -> None:
        from . import operators

        self._operators = operators
        self._runs = config["runs"]
        self._pass = _Multiply(config["factor"])
        self.identity = identity(config)

    def patches(self) -> dict[str, Any]:
        return {"post_grad_custom_post_pass": self._pass}

    @contextlib.contextmanager
    def compiling(self) -> Iterator[None]:
        self._pass.is_compiling = True
        try:
            yield
        finally:
            self._pass.is_compiling = False

    def running(self) -> contextlib.AbstractContextManager[None]:
        # The example's name is that of no layer.
        return self._operators.engine(**{"": 5.0} if self._runs else {})

    def opaque(self, type_name: str, value: str) -> object:
        layer_name = self._operators.LayerName
        if type_name != f"{layer_name.__module__}.{layer_name.__qualname__}":
            return super().opaque(type_name, value)
        return layer_name(value)
