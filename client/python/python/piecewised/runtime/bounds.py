"""The sizes that a graph's symbols may be, and those to think of: read from what the graph declares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

# The wire's way to say "no lower bound".
I64_MIN = -(2**63)
# What a symbol is that is not dispatched on and of which nothing is known.
_USUAL_SIZE = 16


@dataclass(frozen=True)
class Bounds:
    """Inclusive; None is unbounded."""

    low: int | None
    high: int | None

    def clamp(self, value: int) -> int:
        """The nearest size within the bounds."""
        if self.low is not None and value < self.low:
            return self.low
        if self.high is not None and value > self.high:
            return self.high
        return value


def declared_bounds(symbol: dict[str, Any]) -> Bounds:
    """What the graph says about a symbol; no minimum is 0."""
    low = symbol.get("min", 0)
    return Bounds(None if low == I64_MIN else low, symbol.get("max"))


def fixed_values(
    graph: dict[str, Any], dispatched: str | None, size: int | None, others: Mapping[str, int] = MappingProxyType({})
) -> dict[str, int]:
    """Every symbol as a number: the dispatched one is `size`, each other one is as in `others`, or else its hint within its bounds."""
    values: dict[str, int] = {}
    for symbol in graph.get("symbols", []):
        # Bounds of an undeclared minimum begin at 0, where a tensor is empty and nothing runs.
        values[symbol["name"]] = max(declared_bounds(symbol).clamp(symbol.get("hint", _USUAL_SIZE)), 1)
    values.update(others)
    if dispatched is not None and size is not None:
        values[dispatched] = size
    return values
