"""Operators that run inside an engine only, replaced in an executor by ones that give made-up values.

vLLM's operators that take the name of a layer look the layer up in the engine that runs. In an executor there is none: what such an operator gives is made up
here, the same each time, so that the rest of a piece is compared with eager, and its kernels are settled. Compiles know nothing of
it, since they see an operator's fake implementation alone.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import _pytree as pytree

_KEYS = ("CPU", "CUDA")

_OF_TORCH = frozenset(
    ("aten", "prims", "inductor", "mkldnn", "onednn", "quantized", "_quantized", "prim", "symm_mem", "c10d_functional")
)

# Kept, since what a library registers goes with it.
_libraries: list[Any] = []
# By "namespace::name.overload".
_seen: set[str] = set()


def install() -> None:
    """Replaces every operator that takes an object no tensor or number is; may be called again, for operators that came since."""
    for name in torch._C._dispatch_get_all_op_names():
        namespace, _, op = name.partition("::")
        if name in _seen or namespace in _OF_TORCH:
            continue
        _seen.add(name)
        packet, _, overload = op.partition(".")
        found = getattr(getattr(getattr(torch.ops, namespace), packet), overload or "default")
        if not any(str(argument.type) == "PyObject" for argument in found._schema.arguments):
            continue
        library = torch.library.Library(namespace, "IMPL")
        with warnings.catch_warnings():
            # That something is overridden is what is wanted.
            warnings.simplefilter("ignore", UserWarning)
            for key in _KEYS:
                library.impl(op, functools.partial(_made_up, found), key, allow_override=True)
        _libraries.append(library)


def _made_up(overload: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        faked = pytree.tree_map_only(torch.Tensor, mode.from_tensor, (args, kwargs))
        result = overload(*faked[0], **faked[1])
    return pytree.tree_map_only(FakeTensor, _values, result)


def _values(like: FakeTensor) -> torch.Tensor:
    """A tensor of these sizes, strides, dtype and device."""
    made = torch.empty_strided(like.size(), like.stride(), dtype=like.dtype, device=like.device)
    if not like.dtype.is_floating_point:
        return made.zero_()
    waves = torch.arange(like.numel(), dtype=torch.float32, device=like.device).sin()
    return made.copy_(waves.reshape(like.size()))
