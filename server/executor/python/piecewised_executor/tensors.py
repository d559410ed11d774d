"""A graph that takes tensors only: what an AOTInductor package can be made of.

A package's inputs are tensors. A graph's integer inputs say how large those are, so each is replaced by the dimension of a tensor that is the same
symbol; what the code is compiled for (bounds, hints, guards) stays as it was, since the symbols do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sympy
import torch
import torch.fx
from torch.utils._sympy.interp import sympy_interp
from torch.utils._sympy.reference import PythonReferenceAnalysis

from .errors import Unsupported
from .rebuild import Rebuilt
from .runtime.expressions import NoForm, to_tree
from .symbols import Symbols


@dataclass(frozen=True)
class TensorsOnly:
    """`module` takes `inputs`, fake tensors: those of the graph at the positions `arguments`, in order, then the constants.

    `described` and `symbols` are the container's fields "inputs" and "symbols"; `numbers` the positions, among what the graph returns, of
    what is no tensor there.
    """

    module: torch.fx.GraphModule
    inputs: list[torch.Tensor]
    arguments: list[int]
    described: list[dict[str, Any]]
    symbols: list[dict[str, Any]]
    numbers: list[int]


def tensors_only(rebuilt: Rebuilt, symbols: Symbols) -> TensorsOnly:
    """Raises Unsupported for an input that is neither a tensor nor an integer, and for a size that no tensor has."""
    n_kept = len(rebuilt.kept)
    for position, value in zip(rebuilt.kept, rebuilt.inputs, strict=False):
        if not isinstance(value, (torch.Tensor, torch.SymInt)):
            raise Unsupported(
                f"argument {position} is an object that is no tensor, and an AOTInductor package takes tensors only; "
                "ask for the format 'inductor'"
            )
    names = {symbol: name for name, symbol in symbols.by_name.items() if isinstance(symbol, sympy.Symbol)}
    carriers = _carriers(rebuilt)
    graph = torch.fx.Graph()
    returned = graph.graph_copy(rebuilt.module.graph, copies := {})
    graph.output(returned)
    originals = [node for node in rebuilt.module.graph.nodes if node.op == "placeholder"]
    placeholders = [copies[node] for node in originals]
    # Behind all placeholders: whatever size is read there, its tensor is known.
    with graph.inserting_before(next(node for node in graph.nodes if node.op != "placeholder")):
        for node, value in zip(placeholders, rebuilt.inputs, strict=True):
            if isinstance(value, torch.SymInt):
                if node.users:
                    node.replace_all_uses_with(_size(graph, value.node.expr, placeholders, carriers, names))
                graph.erase_node(node)
    graph.lint()
    kept = [(i, position) for i, position in enumerate(rebuilt.kept) if isinstance(rebuilt.inputs[i], torch.Tensor)]
    inputs = [rebuilt.inputs[i] for i, _ in kept]
    # The output's own meta is what the fake run left: one value for each that is returned.
    values = next(node for node in rebuilt.module.graph.nodes if node.op == "output").meta["example_value"]
    return TensorsOnly(
        module=torch.fx.GraphModule(rebuilt.module, graph),
        inputs=[*inputs, *rebuilt.inputs[n_kept:]],
        arguments=[position for _, position in kept],
        described=[_described(position, tensor, names) for (_, position), tensor in zip(kept, inputs, strict=True)],
        symbols=_places(rebuilt, inputs, carriers, names),
        numbers=[
            i
            for i, value in enumerate(values)
            if isinstance(value, (int, float, torch.SymInt, torch.SymFloat, torch.SymBool))
        ],
    )


#: From a symbol to the tensor among a graph's inputs that has it as a dimension, and to that dimension.
Carriers = dict[sympy.Symbol, tuple[int, int]]


def _carriers(rebuilt: Rebuilt) -> Carriers:
    found: Carriers = {}
    for i, value in enumerate(rebuilt.inputs):
        if isinstance(value, torch.Tensor):
            for dimension, size in enumerate(value.shape):
                if isinstance(size, torch.SymInt) and isinstance(size.node.expr, sympy.Symbol):
                    found.setdefault(size.node.expr, (i, dimension))
    return found


def _size(
    graph: torch.fx.Graph,
    expr: sympy.Expr,
    placeholders: list[torch.fx.Node],
    carriers: Carriers,
    names: dict[sympy.Symbol, str],
) -> torch.fx.Node:
    """A node that computes an expression from dimensions of tensors, where `graph` inserts now."""
    sizes: dict[sympy.Symbol, Any] = {}
    for symbol in sorted(expr.free_symbols, key=str):
        if symbol not in carriers:
            raise Unsupported(
                f"no tensor input has the symbol {names.get(symbol, symbol)} as a dimension, and an AOTInductor package can read "
                "sizes from its tensors only; ask for the format 'inductor'"
            )
        i, dimension = carriers[symbol]
        size = graph.call_function(torch.ops.aten.sym_size.int, (placeholders[i], dimension))
        sizes[symbol] = torch.fx.Proxy(size, torch.fx.proxy.GraphAppendingTracer(graph))
    return sympy_interp(PythonReferenceAnalysis, sizes, expr).node


def _described(position: int, tensor: torch.Tensor, names: dict[sympy.Symbol, str]) -> dict[str, Any]:
    """An input as the container describes it."""
    return {
        "argument": position,
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "device": tensor.device.type,
        "sizes": [_tree(size, names) for size in tensor.shape],
        "strides": [_tree(stride, names) for stride in tensor.stride()],
    }


def _tree(value: int | torch.SymInt, names: dict[sympy.Symbol, str]) -> dict[str, Any]:
    expr = value.node.expr if isinstance(value, torch.SymInt) else sympy.Integer(value)
    try:
        return to_tree(expr, lambda symbol: names[symbol])
    except (NoForm, KeyError) as error:
        raise Unsupported(f"the size {expr} of an input has no form in a container: {error}") from error


def _places(
    rebuilt: Rebuilt, inputs: list[torch.Tensor], carriers: Carriers, names: dict[sympy.Symbol, str]
) -> list[dict[str, Any]]:
    """Where each symbol's value is read at a call: a tensor's dimension where one has it, else the integer argument."""
    used: set[sympy.Symbol] = set()
    for tensor in inputs:
        for value in (*tensor.shape, *tensor.stride()):
            if isinstance(value, torch.SymInt):
                used |= value.node.expr.free_symbols
    places = []
    for symbol, name in names.items():
        if symbol in carriers:
            i, dimension = carriers[symbol]
            if i < len(rebuilt.kept):
                places.append({"name": name, "argument": rebuilt.kept[i], "dimension": dimension})
                continue
        for position, value in zip(rebuilt.kept, rebuilt.inputs, strict=False):
            if isinstance(value, torch.SymInt) and value.node.expr == symbol:
                places.append({"name": name, "argument": position, "dimension": None})
                break
        else:
            if symbol in used:
                raise Unsupported(f"no argument of the graph says what the symbol {name} is")
    return places
