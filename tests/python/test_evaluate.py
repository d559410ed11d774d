"""The evaluator of guards against torch's own interpreter of sympy expressions, over random expressions.

Expressions are built in the project's form, made into sympy by the executor's conversion where sympy keeps them as they are,
and otherwise interpreted here by Python's own operators, which is what torch's interpreter uses
(torch.utils._sympy.reference.PythonReferenceAnalysis).
"""

from __future__ import annotations

import json
import math
import random
from typing import Any

import executor_harness  # noqa: F401  (puts the executor's source on the path)
import pytest
import sympy
from piecewised import _core
from piecewised.runtime.expressions import FUNCTIONS, from_tree, to_tree
from torch.utils._sympy.interp import sympy_interp
from torch.utils._sympy.reference import PythonReferenceAnalysis

SYMBOLS = {name: sympy.Symbol(name, integer=True) for name in ("s0", "s1", "s2")}
I64 = range(-(2**63), 2**63)

Tree = dict[str, Any]


def _int(rng: random.Random, depth: int) -> Tree:
    if depth == 0 or rng.random() < 0.2:
        return rng.choice([{"symbol": rng.choice(list(SYMBOLS))}, {"int": rng.randint(-9, 70)}])
    kind = rng.choice(
        [
            "add",
            "mul",
            "floor_div",
            "clean_div",
            "ceil_div",
            "mod",
            "python_mod",
            "modular_indexing",
            "max",
            "min",
            "abs",
            "pow_by_natural",
            "pow",
            "where",
            "identity",
            "trunc_to_int",
            "floor_to_int",
            "ceil_to_int",
            "round_to_int",
        ]
    )
    if kind == "where":
        return _call(kind, _bool(rng, depth - 1), _int(rng, depth - 1), _int(rng, depth - 1))
    if kind in ("trunc_to_int", "floor_to_int", "ceil_to_int", "round_to_int"):
        return _call(kind, _float(rng, depth - 1))
    if kind in ("pow", "pow_by_natural"):
        return _call(kind, _int(rng, depth - 1), {"int": rng.randint(0, 4)})
    n = {"abs": 1, "identity": 1, "modular_indexing": 3}.get(kind, 2)
    n = rng.randint(2, 4) if kind in ("add", "mul", "max", "min") else n
    return _call(kind, *(_int(rng, depth - 1) for _ in range(n)))


def _float(rng: random.Random, depth: int) -> Tree:
    if depth <= 0:
        return rng.choice([{"real": repr(rng.choice([0.5, 1.5, 2.5, -0.25, 3.0]))}, _call("to_float", _int(rng, 0))])
    kind = rng.choice(["to_float", "int_true_div", "float_true_div", "float_pow", "sqrt", "add", "mul", "max"])
    if kind in ("to_float", "int_true_div"):
        return _call(kind, *(_int(rng, depth - 1) for _ in range(1 if kind == "to_float" else 2)))
    if kind == "float_pow":
        return _call(kind, _float(rng, depth - 1), {"real": repr(rng.choice([0.5, 2.0, -1.0]))})
    return _call(kind, *(_float(rng, depth - 1) for _ in range(1 if kind == "sqrt" else 2)))


def _bool(rng: random.Random, depth: int) -> Tree:
    if depth <= 0:
        return {"bool": rng.random() < 0.5}
    kind = rng.choice(["eq", "ne", "lt", "le", "gt", "ge", "and", "or", "not"])
    if kind in ("and", "or", "not"):
        n = 1 if kind == "not" else rng.randint(2, 3)
        return _call(kind, *(_bool(rng, depth - 1) for _ in range(n)))
    if rng.random() < 0.2:
        return _call(kind, _float(rng, depth - 1), _int(rng, depth - 1))
    return _call(kind, _int(rng, depth - 1), _int(rng, depth - 1))


def _call(function: str, *operands: Tree) -> Tree:
    return {"call": [function, list(operands)]}


class _Meaningless(ArithmeticError):
    """What the form says has no value, where Python has one."""


def _python(tree: Tree, values: dict[str, int]) -> Any:
    """The meaning of a tree by the handlers of torch's interpreter. Raises ArithmeticError and ValueError."""
    ((kind, value),) = tree.items()
    if kind == "symbol":
        return values[value]
    if kind != "call":
        return float(value) if kind == "real" else value
    function, operands = value
    args = [_python(operand, values) for operand in operands]
    if function == "ceil_div":
        result: Any = -(-args[0] // args[1])
    elif function == "modular_indexing":
        result = args[0] // args[1] % args[2]
    elif function in ("where", "identity"):
        result = args[-1] if function == "identity" else args[1] if args[0] else args[2]
    elif function == "sqrt":
        result = math.sqrt(args[0])
    elif function == "not":
        result = not args[0]
    elif function == "ne":
        result = args[0] != args[1]
    elif function == "trunc_to_int":
        result = math.trunc(args[0])
    elif function == "to_float":
        result = float(args[0])
    else:
        if function == "mod" and (args[0] < 0 or args[1] < 0):
            raise _Meaningless(f"{args} of Mod")
        result = _by_torch(function, args)
    if isinstance(result, complex) or (isinstance(result, float) and math.isnan(result)):
        raise _Meaningless(f"{function} of {args}")
    if type(result) is int and result not in I64:
        raise _Meaningless(f"{result} has more than 64 bits")
    return result


def _by_torch(function: str, args: list[Any]) -> Any:
    handlers = {
        "floor_div": "floordiv", "clean_div": "floordiv", "mod": "mod", "python_mod": "python_mod", "max": "maximum",
        "min": "minimum", "int_true_div": "int_truediv", "float_true_div": "truediv", "pow_by_natural": "pow_by_natural",
        "pow": "pow_by_natural", "float_pow": "pow", "and": "and_", "or": "or_",
    }  # fmt: skip
    if function in ("floor_to_int", "ceil_to_int", "round_to_int"):
        return getattr(PythonReferenceAnalysis, function)(args[0], None)
    if function == "int_true_div":
        return args[0] / args[1]
    if function in ("add", "mul"):
        total = args[0]
        for arg in args[1:]:
            # Each step has 64 bits, as each has in the evaluator.
            total = total + arg if function == "add" else total * arg
            if type(total) is int and total not in I64:
                raise _Meaningless(f"{total} has more than 64 bits")
        return total
    handler = getattr(PythonReferenceAnalysis, handlers.get(function, function))
    result = handler(*args[:2]) if len(args) > 1 else handler(*args)
    for arg in args[2:]:
        result = handler(result, arg)
    return result


def _ours(tree: Tree, values: dict[str, int]) -> Any:
    return _core.evaluate(json.dumps(tree), values)


@pytest.mark.parametrize("seed", range(8))
def test_it_agrees_with_torchs_operators_on_random_expressions(seed: int) -> None:
    rng = random.Random(seed)
    n_values = n_errors = 0
    for _ in range(1500):
        tree = rng.choice([_bool, _bool, _int, _float])(rng, rng.randint(1, 4))
        values = {name: rng.choice([rng.randint(1, 64), rng.randint(1, 2**20)]) for name in SYMBOLS}
        try:
            expected = _python(tree, values)
        except (ArithmeticError, ValueError):
            n_errors += 1
            with pytest.raises(ArithmeticError):
                print(_ours(tree, values), "where there should be no value:", tree, values)
            continue
        n_values += 1
        found = _ours(tree, values)
        assert (type(found), found) == (type(expected), expected), f"{tree} {values}"
    assert n_values > 400 and n_errors > 50, "both happen"


@pytest.mark.parametrize("seed", range(4))
def test_it_agrees_with_torchs_interpreter_of_what_sympy_makes_of_it(seed: int) -> None:
    """Sympy simplifies on the way; what it keeps must mean the same to torch and to the evaluator."""
    rng = random.Random(100 + seed)
    n_compared = 0
    for _ in range(150):
        tree = _bool(rng, 3)
        values = {name: rng.randint(1, 64) for name in SYMBOLS}
        try:
            expr = from_tree(tree, SYMBOLS.__getitem__)
            written = to_tree(expr, lambda symbol: symbol.name)
            expected = sympy_interp(
                PythonReferenceAnalysis, {symbol: values[name] for name, symbol in SYMBOLS.items()}, expr
            )
        except (
            Exception
        ):  # Sympy and torch refuse in many ways (assertions, complex numbers); then there is nothing to compare.
            continue
        try:
            found = _ours(written, values)
        except ArithmeticError:
            continue  # A guard that has no value for us does not hold, which is safe.
        n_compared += 1
        assert found == bool(expected), f"{expr} {values}"
    assert n_compared > 30


def test_every_function_is_known() -> None:
    for function in FUNCTIONS:
        with pytest.raises(ArithmeticError, match="does not take"):
            _core.evaluate(json.dumps(_call(function)), {})


def test_a_large_quotient_is_rounded_once() -> None:
    rng = random.Random(7)
    for _ in range(2000):
        a, b = (rng.randrange(-(2**63), 2**63) >> rng.randrange(0, 62) for _ in range(2))
        if b:
            assert _ours(_call("int_true_div", {"int": a}, {"int": b}), {}) == a / b


def test_integers_and_floats_compare_exactly() -> None:
    rng = random.Random(8)
    for _ in range(2000):
        a = rng.randrange(-(2**63), 2**63) >> rng.randrange(0, 62)
        b = float(a + rng.randrange(-2, 3)) + rng.choice([0.0, 0.5, -0.5])
        for function, expected in (("eq", a == b), ("lt", a < b), ("ge", a >= b)):
            assert _ours(_call(function, {"int": a}, {"real": repr(b)}), {}) is expected, (a, b)
