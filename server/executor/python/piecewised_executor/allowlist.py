"""What a graph may call: functions, tensor methods and tensor attributes, by name.

A graph comes from outside, so it may name nothing that reads a file, starts a process, opens a socket, takes a Python
callable or reaches an arbitrary attribute. The lists are made of torch's own table of functions on tensors, the
registered operators of a few namespaces, and short lists written out here; a name is never resolved by looking up
attributes that it spells.
"""

from __future__ import annotations

import functools
import inspect
import math
import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.overrides
from torch._ops import HigherOrderOperator, OpOverload, OpOverloadPacket, _OpNamespace

from .runtime.names import function_name, op_name
from .words import words

# Operators on tensors and on sizes; the in-place ones too, since Dynamo records `x += y` as `_operator.iadd`.
_OPERATORS = words(
    """
    abs add and_ concat contains delitem eq floordiv ge getitem gt iadd iand iconcat ifloordiv ilshift imatmul
    imod imul index inv invert ior ipow irshift isub itruediv ixor is_ is_not le lshift lt matmul mod mul ne neg
    not_ or_ pos pow rshift setitem sub truediv truth xor
    """
)

# On sizes and scalars.
_MATH = words(
    """
    ceil comb copysign cos exp fabs floor fmod gcd isfinite isinf isnan isqrt log log2 log10 pow prod sin sqrt
    tan tanh trunc
    """
)

# torch's table leaves out what takes no tensor: factories, and what only changes how the graph is traced.
_FACTORIES = words(
    """
    arange bartlett_window blackman_window complex empty empty_permuted empty_strided eye full hamming_window
    hann_window kaiser_window linspace logspace normal ones rand randint randn randperm range scalar_tensor
    tensor as_tensor asarray tril_indices triu_indices vander zeros rand_like randint_like randn_like
    broadcast_shapes result_type promote_types can_cast is_tensor is_storage is_grad_enabled
    is_inference_mode_enabled is_autocast_enabled get_default_dtype Size finfo iinfo sym_max sym_min sym_int
    sym_float sym_ite sym_not sym_sum _sym_sqrt _shape_as_tensor _assert _assert_async _check _check_is_size
    device cudnn_is_acceptable lu unique _unique2 _weight_norm
    """
)

# Full names of functions that torch's table does not have and Dynamo records.
_NAMED = [
    "torch._C._log_api_usage_once",
    "torch._C._set_grad_enabled",
    "torch._C._autograd._get_data_attr",
    "torch.amp.autocast_mode._enter_autocast",
    "torch.amp.autocast_mode._exit_autocast",
]

# Namespaces of operators that only compute.
_NAMESPACES = ("aten", "prims", "quantized_decomposed")

# Operators and methods that do more than compute: files, streams, foreign storage, Python objects, or shared memory.
_DENIED_OPS = frozenset(words("from_file record_stream set set_ set_data pin_memory _pin_memory is_pinned data_ptr"))
_DENIED_METHODS = frozenset(
    words(
        """
    __array__ __array_wrap__ __deepcopy__ __dlpack__ __dlpack_device__ __format__ __reduce_ex__ __repr__
    __setstate__ _clear_non_serializable_cached_data apply_ backward data_ptr is_pinned is_shared map2_ map_
    module_load numpy pin_memory record_stream register_hook register_post_accumulate_grad_hook resize resize_as
    retain_grad set_ share_memory_ storage storage_type tolist untyped_storage
    """
    )
)
# In torch's table, but a class, or they take callables.
_DENIED_FUNCTIONS = frozenset(
    ("torch.autocast", "torch.lobpcg", "torch.nn.functional.triplet_margin_with_distance_loss")
)

# What torch's table leaves out of a tensor's methods, and methods of sizes and plain numbers.
_OTHER_METHODS = words(
    """
    __abs__ __ceil__ __floor__ __ipow__ __itruediv__ __neg__ __pos__ __pow__ __round__ __rtruediv__ __trunc__
    bit_length conjugate count data dense_dim element_size expand is_integer new_empty new_empty_strided
    new_full new_ones new_tensor new_zeros normal_ numel random_ size stride uniform_ unflatten view
    """
)

# Higher-order operators whose bodies are graphs of the request, never code of the process.
_HIGHER_ORDER = words(
    """
    associative_scan auto_functionalized auto_functionalized_v2 cond flex_attention invoke_subgraph map_impl
    out_dtype scan strict_mode tag_activation_checkpoint while_loop wrap wrap_activation_checkpoint
    wrap_with_autocast wrap_with_set_grad_enabled
    """
)

# For builtins.getattr on a tensor, a size or a dtype's information.
_ATTRIBUTES = words(
    """
    H T device dim dtype eps grad_dtype imag is_complex is_cpu is_cuda is_floating_point is_inference is_leaf
    is_meta is_mps is_nested is_quantized is_sparse is_xpu itemsize layout mH mT max min nbytes ndim numel real
    requires_grad shape size smallest_normal tiny type index bits data values indices
    """
)


def _overridable() -> list[tuple[Any, Callable[..., Any]]]:
    return [(space, fn) for space, fns in torch.overrides.get_overridable_functions().items() for fn in fns]


@functools.cache
def _functions() -> dict[str, Callable[..., Any]]:
    """Every allowed function but the registered operators."""
    found: list[Callable[..., Any]] = [fn for space, fn in _overridable() if inspect.ismodule(space)]
    found += [getattr(operator, name) for name in _OPERATORS]
    found += [getattr(math, name) for name in _MATH]
    found += [vars(torch._C._nn)[name] for name in dir(torch._C._nn) if not name.startswith("_")]
    found += [getattr(torch, name) for name in _FACTORIES if hasattr(torch, name)]
    table = {name: fn for fn in found if (name := function_name(fn)) is not None and callable(fn)}
    for full in _NAMED:
        module, _, name = full.rpartition(".")
        holder = functools.reduce(lambda at, part: getattr(at, part, None), module.split(".")[1:], torch)
        if (fn := getattr(holder, name, None)) is not None:
            table[full] = fn
    for name in ("abs", "bool", "divmod", "float", "int", "len", "max", "min", "pow", "round", "sum"):
        table[f"builtins.{name}"] = (
            __builtins__[name] if isinstance(__builtins__, dict) else getattr(__builtins__, name)
        )
    table["builtins.getattr"] = getattr
    for name in _HIGHER_ORDER:
        operator_ = _higher_order(name)
        if operator_ is not None:
            table[function_name(operator_) or name] = operator_
    return {name: fn for name, fn in table.items() if name not in _DENIED_FUNCTIONS}


def _higher_order(name: str) -> HigherOrderOperator | None:
    found = torch._ops._higher_order_ops.get(name)
    return found if isinstance(found, HigherOrderOperator) else None


@functools.cache
def _operators() -> dict[str, tuple[str, str, str]]:
    """Name to (namespace, operator, overload) for the registered operators; the overload is empty for a packet."""
    table: dict[str, tuple[str, str, str]] = {}
    for qualified in torch._C._dispatch_get_all_op_names():
        namespace, _, rest = qualified.partition("::")
        name, _, overload = rest.partition(".")
        if namespace not in _NAMESPACES or name in _DENIED_OPS:
            continue
        table[op_name(f"{namespace}::{name}")] = (namespace, name, "")
        table[op_name(f"{namespace}::{name}.{overload or 'default'}")] = (namespace, name, overload or "default")
    return table


@functools.cache
def _methods() -> frozenset[str]:
    names = {fn.__name__ for space, fn in _overridable() if space is torch.Tensor and hasattr(fn, "__name__")}
    names.update(_OTHER_METHODS)
    return frozenset(names - _DENIED_METHODS)


def function_names() -> list[str]:
    """Every name that a call_function node may have."""
    return sorted({*_functions(), *_operators()})


def method_names() -> list[str]:
    """Every name that a call_method node may have."""
    return sorted(_methods())


def attribute_names() -> list[str]:
    """Every name that builtins.getattr may read."""
    return sorted(_ATTRIBUTES)


def function(name: str) -> Callable[..., Any] | None:
    """The callable of that name; None: not allowed."""
    if (found := _functions().get(name)) is not None:
        return found
    if (parts := _operators().get(name)) is None:
        return None
    namespace, op, overload = parts
    # Both attributes are registered names, so this can't reach what else torch.ops has, such as load_library.
    packet = getattr(getattr(torch.ops, namespace), op)
    return getattr(packet, overload) if overload else packet


def any_operator(name: str) -> Callable[..., Any] | None:
    """The registered operator of that name, `torch.ops.<namespace>.<operator>[.<overload>]`, whatever it does: for requests whose sender is
    trusted. None: there is none."""
    prefix, *parts = name.split(".")[1:] if name.startswith("torch.ops.") else [""]
    if prefix != "ops" or len(parts) not in (2, 3):
        return None
    found: Any = getattr(torch.ops, parts[0], None)
    # Among torch.ops' own attributes are functions that load libraries.
    if not isinstance(found, _OpNamespace):
        return None
    packet = getattr(found, parts[1], None)
    if not isinstance(packet, OpOverloadPacket):
        return None
    overload = getattr(packet, parts[2], None) if len(parts) == 3 else packet
    return overload if isinstance(overload, (OpOverload, OpOverloadPacket)) else None


def allows_method(name: str) -> bool:
    """Whether a call_method node may have that name."""
    return name in _methods()


def allows_attribute(name: Any) -> bool:
    """Whether builtins.getattr may read that attribute."""
    return name in _ATTRIBUTES
