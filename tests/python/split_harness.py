"""Operators, models and checks for the tests of splitting.

Graphs are Dynamo's own captures of functions that call real registered operators.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import executor_harness as h
import torch
import torch.fx

errors = h.client_module("errors")
fxgraph = h.client_module("fxgraph")
graphs = h.client_module("graphs")
split = h.client_module("split")

ATTENTION = "split_test::attention"
PAIR = "split_test::pair"
SHIFT = "split_test::shift"

_library = torch.library.Library("split_test", "DEF")


def _register(schema: str, real: Callable[..., Any], fake: Callable[..., Any]) -> None:
    _library.define(schema)
    name = schema.partition("(")[0]
    _library.impl(name, real, "CompositeExplicitAutograd")
    torch.library.register_fake(f"split_test::{name}", fake, lib=_library)


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor) -> None:
    """Like vLLM's: its result goes into a tensor that it is given."""
    out.add_(q.sigmoid() * k + v.cumsum(0))


_register("attention(Tensor q, Tensor k, Tensor v, Tensor(a!) out) -> ()", _attend, lambda q, k, v, out: None)
_register("pair(Tensor x) -> (Tensor, Tensor)", lambda x: (x.sin(), x.cos()), lambda x: (x.clone(), x.clone()))
_register("shift(Tensor x) -> Tensor", lambda x: x + 1, torch.empty_like)
_register("shift.by(Tensor x, SymInt by) -> Tensor", lambda x, by: x + by, lambda x, by: torch.empty_like(x))
_register(
    "where(Tensor x) -> Tensor",
    torch.nonzero,
    lambda x: x.new_empty(torch.library.get_ctx().new_dynamic_size(), x.ndim),
)

attention, pair, shift, where = (
    getattr(torch.ops.split_test, name) for name in ("attention", "pair", "shift", "where")
)


def rows(n: int = 6, width: int = 8) -> torch.Tensor:
    torch.manual_seed(n)
    return torch.randn(n, width)


def capture(function: Callable[..., Any], *args: torch.Tensor, grad: bool = False) -> torch.fx.GraphModule:
    """What Dynamo makes of a call where dimension 0 of each tensor is a symbol."""
    for arg in args:
        torch._dynamo.mark_dynamic(arg, 0)
    if not grad:
        return h.capture(function, *args)[0]
    captured = []
    torch._dynamo.reset()
    torch.compile(function, backend=lambda gm, _: captured.append(gm) or gm.forward)(*args)
    (only,) = captured
    return only


def calls(piece: Any) -> list[str]:
    """What a piece calls, in order."""
    nodes = [node for node in piece.module.graph.nodes if node.op.startswith("call_")]
    return [str(getattr(node.target, "__name__", node.target)) for node in nodes]


def structure(result: Any) -> list[tuple[bool, list[str]]]:
    return [(piece.is_splitting, calls(piece)) for piece in result.pieces]


def split_at(function: Callable[..., Any], *ops: str) -> Any:
    """Splits what Dynamo makes of a function of one tensor, and checks that the pieces are the function."""
    gm = capture(function, rows())
    result = split.split_graph(gm, ops)
    check_pieces(gm, result)
    check_equal(gm, result)
    return result


def check_pieces(gm: torch.fx.GraphModule, result: Any) -> None:
    """What holds for every split."""
    assert [piece.index for piece in result.pieces] == list(range(len(result.pieces)))
    assert [name for name, _ in result.module.named_children()] == [piece.name for piece in result.pieces]
    called = [node.target for node in result.module.graph.nodes if node.op == "call_module"]
    assert called == [piece.name for piece in result.pieces]
    order = list(filter(None, map(symbol, gm.graph.find_nodes(op="placeholder"))))
    for piece in result.pieces:
        piece.module.graph.lint()
        placeholders = piece.module.graph.find_nodes(op="placeholder")
        values = [node.meta["example_value"] for node in placeholders]
        sizes = {str(size) for value in values if isinstance(value, torch.Tensor) for size in value.shape}
        symbols = list(dict.fromkeys(filter(None, map(symbol, placeholders))))
        assert {size for size in sizes if size in order} <= set(symbols)
        assert symbols == [known for known in order if known in symbols]
        if not piece.is_splitting:
            graph = json.loads(json.dumps(fxgraph.to_graph(piece.module)))
            assert graphs.is_static(graph) == (not symbols)


def symbol(node: torch.fx.Node) -> str | None:
    value = node.meta.get("example_value")
    return str(value) if isinstance(value, torch.SymInt) and value.node.expr.is_Symbol else None


def check_equal(gm: torch.fx.GraphModule, result: Any) -> None:
    """The same results, and the same changes of the inputs, at several sizes."""
    run = result.with_callables({})
    for sizes in ((6, 5), (2, 3), (11, 2), (1, 4)):
        given = inputs(gm, sizes)
        wanted_inputs, module_inputs, run_inputs = (copy.deepcopy(given) for _ in range(3))
        with torch.no_grad():
            wanted = gm(*wanted_inputs)
            torch.testing.assert_close(result.module(*module_inputs), wanted, rtol=0, atol=0)
            torch.testing.assert_close(run(*run_inputs), wanted, rtol=0, atol=0)
        for changed in (module_inputs, run_inputs):
            torch.testing.assert_close(changed, wanted_inputs, rtol=0, atol=0)


def inputs(gm: torch.fx.GraphModule, sizes: tuple[int, ...]) -> list[Any]:
    """Inputs where each symbol has one of the sizes."""
    nodes = gm.graph.find_nodes(op="placeholder")
    # A captured graph holds for size 1 too, but the symbols' sizes have to differ.
    symbols = dict(zip(dict.fromkeys(str(s) for node in nodes for s in _dims(node)), sizes, strict=False))
    torch.manual_seed(0)
    made: list[Any] = []
    for node in nodes:
        value, dims = node.meta.get("example_value", node.meta.get("val")), _dims(node)
        if not isinstance(value, torch.Tensor):
            made.append(symbols[str(dims[0])])
            continue
        shape = [symbols.get(str(dim), dim) for dim in value.shape]
        made.append(torch.randn(shape) if value.is_floating_point() else torch.randint(0, 8, shape))
    return made


def _dims(node: torch.fx.Node) -> list[torch.SymInt]:
    value = node.meta.get("example_value", node.meta.get("val"))
    dims = value.shape if isinstance(value, torch.Tensor) else [value]
    return [dim for dim in dims if isinstance(dim, torch.SymInt)]


class Layers(torch.nn.Module):
    """A small transformer in vLLM's way of writing one."""

    def __init__(self, n_layers: int = 3, width: int = 8) -> None:
        super().__init__()
        self.projections = torch.nn.ModuleList(torch.nn.Linear(width, 3 * width) for _ in range(n_layers))
        self.outputs = torch.nn.ModuleList(torch.nn.Linear(width, width) for _ in range(n_layers))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for project, output in zip(self.projections, self.outputs, strict=True):
            q, k, v = project(x).chunk(3, dim=-1)
            out = torch.zeros(x.shape)
            attention(q, k, v, out)
            x = x + output(out.view(x.shape[0], -1)).relu()
        return x
