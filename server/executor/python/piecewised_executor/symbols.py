"""Shape symbols: from the graph's declarations to a ShapeEnv of this process.

A symbol's value range is what the compiler may rely on, so it is set to exactly what this compile is for: the range
for the dispatched symbol, the declared one for the others. Neither 0 nor 1 is special here: a compile that needs them
excluded leaves a guard, which `prove` reads.
"""

from __future__ import annotations

from typing import Any

import sympy
import torch
from torch._dynamo.source import ConstantSource
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv
from torch.utils._sympy.numbers import int_oo
from torch.utils._sympy.value_ranges import ValueRanges

from .errors import Unsupported
from .runtime.bounds import Bounds, declared_bounds
from .runtime.expressions import NoForm, from_tree

# A size to think of where nobody named one. Large, so that a wide range is tuned for its throughput end.
DEFAULT_HINT = 8192


class Symbols:
    """The symbols of one compile, in a ShapeEnv of their own.

    `narrowed` gives bounds to a symbol in place of the declared ones, `fixed` a number in place of a symbol, and
    `hints` the size to think of; all by the symbol's name.
    """

    def __init__(
        self,
        declared: list[dict[str, Any]],
        narrowed: dict[str, Bounds],
        fixed: dict[str, int],
        hints: dict[str, int],
    ) -> None:
        # Sizes may be equal by chance (duck) or 0 or 1: none of it is known of the sizes that come later.
        self.shape_env = ShapeEnv(duck_shape=False, specialize_zero_one=False)
        self.by_name: dict[str, sympy.Expr] = {}
        self.bounds: dict[sympy.Symbol, Bounds] = {}
        self.hints: dict[sympy.Symbol, int] = {}
        for symbol in declared:
            name = symbol["name"]
            if name in fixed:
                self.by_name[name] = sympy.Integer(fixed[name])
                continue
            bounds = narrowed.get(name) or declared_bounds(symbol)
            hint = bounds.clamp(hints.get(name, symbol.get("hint", DEFAULT_HINT)))
            self.by_name[name] = self._create(name, bounds, hint)

    def _create(self, name: str, bounds: Bounds, hint: int) -> sympy.Symbol:
        created = self.shape_env.create_symbol(
            hint,
            source=ConstantSource(name),
            dynamic_dim=DimDynamic.DYNAMIC,
            positive=True if bounds.low is not None and bounds.low >= 1 else None,
            do_not_specialize_zero_one=True,
        )
        self.shape_env.var_to_range[created] = ValueRanges(
            -int_oo if bounds.low is None else sympy.Integer(bounds.low),
            int_oo if bounds.high is None else sympy.Integer(bounds.high),
        )
        self.bounds[created] = bounds
        self.hints[created] = hint
        return created

    def expr(self, tree: dict[str, Any]) -> sympy.Basic:
        """The sympy expression of a SymExpr."""

        def symbol(name: str) -> sympy.Expr:
            if name not in self.by_name:
                raise Unsupported(f"the expression names {name}, which the graph does not declare")
            return self.by_name[name]

        try:
            return from_tree(tree, symbol)
        except NoForm as error:
            raise Unsupported(str(error)) from error

    def integer(self, tree: dict[str, Any]) -> int | torch.SymInt:
        """The number that a SymExpr is here: an int where every symbol in it is fixed."""
        expr = self.expr(tree)
        if isinstance(expr, sympy.Integer):
            return int(expr)
        return self.shape_env.create_symintnode(expr, hint=None)

    def number(self, kind: str, tree: dict[str, Any]) -> Any:
        """As `integer`, for "sym_int", "sym_float" and "sym_bool"."""
        if kind == "sym_int":
            return self.integer(tree)
        expr = self.expr(tree)
        if kind == "sym_float":
            return float(expr) if expr.is_number else self.shape_env.create_symfloatnode(expr, hint=None)
        if expr in (sympy.true, sympy.false):
            return bool(expr)
        return self.shape_env.create_symboolnode(expr)
