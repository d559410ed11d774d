"""The one name that a function has in a graph on the wire.

The client names the targets of an FX graph with :func:`function_name`; the executor's allow-list is keyed by what the
same function says about each callable that it allows. So a name is either the same on both sides or refused.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch._ops import HigherOrderOperator, OpOverload, OpOverloadPacket

# Where a callable is looked for, in this order, when its own ``__module__`` is absent or only an implementation detail
# (`torch.einsum` says `torch.functional`, `torch.add` says nothing at all). The first module that has the very callable
# under its own name gives the name.
_MODULES = (
    "torch",
    "",  # the callable's own __module__
    "torch.nn.functional",
    "torch._C._nn",
    "torch._C",
    "torch._C._autograd",
    "torch._C._linalg",
    "torch._C._special",
    "torch._C._fft",
)


def op_name(qualified: str) -> str:
    """`aten::mul.Tensor`, as the dispatcher writes it, to `torch.ops.aten.mul.Tensor`."""
    return "torch.ops." + qualified.replace("::", ".", 1)


def function_name(target: Callable[..., Any]) -> str | None:
    """The name of `target`, or None for a callable that no module has under its own name (a lambda, a closure)."""
    if isinstance(target, OpOverload):
        return f"torch.ops.{target.namespace}.{target._opname}.{target._overloadname}"
    if isinstance(target, OpOverloadPacket):
        return op_name(target._qualified_op_name)
    if isinstance(target, HigherOrderOperator):
        return f"torch.ops.higher_order.{target.name()}"
    name = getattr(target, "__name__", None)
    if not isinstance(name, str):
        return None
    own = getattr(target, "__module__", None)
    for candidate in _MODULES:
        module_name = candidate or own
        module = sys.modules.get(module_name) if isinstance(module_name, str) else None
        # Equality, not identity: each lookup of a builtin method makes a new object.
        if module is not None and _same(getattr(module, name, None), target):
            return f"{module_name}.{name}"
    return None


def _same(found: Any, target: Any) -> bool:
    if found is target:
        return True
    builtin = type(torch.add)
    return type(found) is builtin and type(target) is builtin and found == target
