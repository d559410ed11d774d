"""What the client has to know about a graph: which of its inputs are symbolic integers, and where it runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .errors import OptionError, UnsupportedPiece


def symbolic_inputs(graph: dict[str, Any]) -> list[Any]:
    """The expressions of the inputs that are symbolic integers, in order. ``graph``: in the project's JSON form."""
    values = (value["sym_int"] for value in _inputs(graph) if "sym_int" in value)
    return [expression for expression in values if "int" not in expression]


def is_static(graph: dict[str, Any]) -> bool:
    """Whether no input is a symbolic integer, so that there is nothing to dispatch on."""
    return not symbolic_inputs(graph)


def input_devices(graph: dict[str, Any]) -> list[dict[str, Any]]:
    """The devices of the tensor inputs, in order."""
    return [value["tensor"]["device"] for value in _inputs(graph) if "tensor" in value]


def dispatched_argument(gm: Any, sym_shape_indices: Sequence[int] | None) -> int | None:
    """The input of an fx.GraphModule that is dispatched on: the first integer one that is a plain symbol, as the daemon has it.

    None: no input is a symbolic integer. ``sym_shape_indices[0]``, if given, has to be that input, or another one that is
    the same symbol. Raises OptionError where it isn't, and UnsupportedPiece where no symbolic integer is a plain symbol.
    """
    symbols = _symbols(gm)
    plain = next((position for position, symbol in symbols.items() if symbol.is_symbol), None)
    if symbols and plain is None:
        raise UnsupportedPiece(
            "none of the graph's symbolic integer inputs is a plain symbol, so there is no input to dispatch on; pass "
            "the size itself as one",
            reason="NOTHING_TO_DISPATCH_ON",
        )
    if sym_shape_indices is None:
        return plain
    given = sym_shape_indices[0] if len(sym_shape_indices) else None
    is_same = given == plain or (plain is not None and given in symbols and symbols[given] == symbols[plain])
    if not is_same:
        what = "the graph has no symbolic input" if plain is None else f"the one to dispatch on is argument {plain}"
        raise OptionError(
            f"sym_shape_indices[0] is {given}, but {what}: the first integer input that is a plain symbol",
            reason="BAD_OPTION",
            metadata={"option": "sym_shape_indices"},
        )
    return plain


def requires_grad(gm: Any) -> bool:
    """Whether an input of an fx.GraphModule is one that gradients are recorded for."""
    return any(getattr(value, "requires_grad", False) for value in _example_values(gm))


def _symbols(gm: Any) -> dict[int, Any]:
    """The sympy expressions of the symbolic integer inputs, by position."""
    import torch

    values = enumerate(_example_values(gm))
    expressions = {i: value.node.expr for i, value in values if isinstance(value, torch.SymInt)}
    return {i: expression for i, expression in expressions.items() if not expression.is_number}


def _example_values(gm: Any) -> list[Any]:
    nodes = gm.graph.find_nodes(op="placeholder")
    return [node.meta.get("example_value", node.meta.get("val")) for node in nodes]


def _inputs(graph: dict[str, Any]) -> list[dict[str, Any]]:
    return [node["op"]["placeholder"]["value"] for node in graph["nodes"] if "placeholder" in node["op"]]
