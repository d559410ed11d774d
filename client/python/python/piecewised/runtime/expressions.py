"""Symbolic expressions: between sympy and the project's JSON form (SymExpr of server/graph/src/model.rs), both ways.

The worker writes the sizes of a graph this way, the executor reads them and writes guards. What a function means is said
by piecewised/v1/graph.proto; nothing is evaluated here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sympy
from torch.utils._sympy import functions as sf

#: From the name of a function to what makes it.
FUNCTIONS: dict[str, Any] = {
    "add": sympy.Add,
    "mul": sympy.Mul,
    "pow": sympy.Pow,
    "floor_div": sf.FloorDiv,
    "clean_div": sf.CleanDiv,
    "ceil_div": sf.CeilDiv,
    "mod": sf.Mod,
    "python_mod": sf.PythonMod,
    "modular_indexing": sf.ModularIndexing,
    "max": sf.Max,
    "min": sf.Min,
    "to_float": sf.ToFloat,
    "trunc_to_int": sf.TruncToInt,
    "floor_to_int": sf.FloorToInt,
    "ceil_to_int": sf.CeilToInt,
    "round_to_int": sf.RoundToInt,
    "int_true_div": sf.IntTrueDiv,
    "float_true_div": sf.FloatTrueDiv,
    "pow_by_natural": sf.PowByNatural,
    "float_pow": sf.FloatPow,
    "abs": sympy.Abs,
    "where": sf.Where,
    "identity": sf.Identity,
    "eq": sympy.Eq,
    "ne": sympy.Ne,
    "lt": sympy.Lt,
    "le": sympy.Le,
    "gt": sympy.Gt,
    "ge": sympy.Ge,
    "and": sympy.And,
    "or": sympy.Or,
    "not": sympy.Not,
    "sqrt": sf.OpaqueUnaryFn_sqrt,
}

_NAMES: dict[type, str] = {function: name for name, function in FUNCTIONS.items()}

_I64_MIN, _I64_MAX = -(2**63), 2**63 - 1


class NoForm(Exception):
    """The expression uses something that the form has no word for; ``type_name`` is what."""

    def __init__(self, type_name: str, why: str) -> None:
        self.type_name = type_name
        super().__init__(why)


def to_tree(expr: sympy.Basic, name_of: Callable[[sympy.Symbol], str]) -> dict[str, Any]:
    """The SymExpr of a sympy expression. Raises NoForm, and what ``name_of`` does."""
    if isinstance(expr, sympy.Integer):
        if not _I64_MIN <= int(expr) <= _I64_MAX:
            raise NoForm("int", f"the integer {expr} has more than 64 bits")
        return {"int": int(expr)}
    if isinstance(expr, sympy.Float):
        return {"real": repr(float(expr))}
    if expr in (sympy.true, sympy.false):
        return {"bool": bool(expr)}
    if isinstance(expr, sympy.Symbol):
        return {"symbol": name_of(expr)}
    function = _NAMES.get(type(expr))
    if function is None:
        raise NoForm(type(expr).__name__, f"the expression {expr} uses {type(expr).__name__}")
    return {"call": [function, [to_tree(operand, name_of) for operand in expr.args]]}


def from_tree(tree: dict[str, Any], symbol: Callable[[str], sympy.Expr]) -> sympy.Basic:
    """The sympy expression of a SymExpr. Raises NoForm, and what ``symbol`` does for a name."""
    ((kind, value),) = tree.items()
    if kind == "int":
        return sympy.Integer(value)
    if kind == "symbol":
        return symbol(value)
    if kind == "real":
        return sympy.Float(float(value))
    if kind == "bool":
        return sympy.true if value else sympy.false
    function, operands = value
    if function not in FUNCTIONS:
        raise NoForm(function, f"expressions with {function} are not known here")
    return FUNCTIONS[function](*(from_tree(operand, symbol) for operand in operands))
