"""Conditions that a compile left undecided, as a dispatcher evaluates them at a call (`Segment.guards`, `Handle.guard_symbols`)."""

from __future__ import annotations

from typing import Any

import sympy

from .runtime.expressions import NoForm, to_tree
from .symbols import Symbols

# As deep as the daemon and its clients take expressions.
MAX_DEPTH = 32


class Guards:
    """What the guards of one graph can be about: symbols that an argument of the call gives a value."""

    def __init__(self, graph: dict[str, Any]) -> None:
        self._places = _places(graph)
        self._used: set[str] = set()

    def can_be(self, condition: sympy.Basic, symbols: Symbols) -> bool:
        """Whether a call can decide the condition."""
        return self._tree(condition, symbols) is not None

    def of(self, conditions: tuple[sympy.Basic, ...], symbols: Symbols) -> list[dict[str, Any]]:
        """The guards of a segment. Only for conditions that `can_be`."""
        self._used |= {_name(symbol, symbols) for condition in conditions for symbol in condition.free_symbols}
        return [tree for condition in conditions if (tree := self._tree(condition, symbols)) is not None]

    def symbols(self) -> list[dict[str, Any]]:
        """What gives a value to each symbol that was used."""
        return [place for name, place in self._places.items() if name in self._used]

    def _tree(self, condition: sympy.Basic, symbols: Symbols) -> dict[str, Any] | None:
        def name_of(symbol: sympy.Symbol) -> str:
            name = _name(symbol, symbols)
            if name not in self._places:
                raise NoForm("Symbol", f"no argument of the graph is {symbol}")
            return name

        try:
            tree = to_tree(condition, name_of)
        except NoForm:
            return None
        # An integer to a negative power is a fraction, which the form does not have.
        if (
            any(power.exp.is_nonnegative is not True for power in condition.atoms(sympy.Pow))
            or _depth(tree) > MAX_DEPTH
        ):
            return None
        return tree


def _name(symbol: sympy.Symbol, symbols: Symbols) -> str:
    """The graph's name of a symbol; for one that the compile made itself, its own, which no argument has."""
    return next((name for name, known in symbols.by_name.items() if known == symbol), f"({symbol})")


def _depth(tree: dict[str, Any]) -> int:
    return 1 + max((_depth(operand) for operand in tree["call"][1]), default=0) if "call" in tree else 0


def _places(graph: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """By the symbol's name: an argument that is the symbol, else a dimension of a tensor that is."""
    integers: dict[str, dict[str, Any]] = {}
    dimensions: dict[str, dict[str, Any]] = {}
    placeholders = [node["op"]["placeholder"]["value"] for node in graph["nodes"] if "placeholder" in node["op"]]
    for argument, value in enumerate(placeholders):
        if name := value.get("sym_int", {}).get("symbol"):
            integers.setdefault(name, {"name": name, "argument": argument, "dimension": None})
        for dimension, size in enumerate(value.get("tensor", {}).get("sizes", [])):
            if name := size.get("symbol"):
                dimensions.setdefault(name, {"name": name, "argument": argument, "dimension": dimension})
    return {**dimensions, **integers}
