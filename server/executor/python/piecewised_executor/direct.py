"""Programs that need nothing of the compiler to be called: the generated wrapper, reduced to its calls.

What Inductor serialises is meant for a process that has all of torch.compile imported (seconds), and is called through the
layers that AOTAutograd and Inductor put around it for cases that most pieces are none of: inputs that are replaced,
views whose history autograd wants, subclasses, random number states. Where a piece is none of them, its program is the
generated wrapper alone, as Python source in which kernels are named by digest (`runtime.direct` runs it). Without its
kernels' sources, comments and self-test it is a few KB, and the same for every compile of the same graph.

The wrapper is rewritten as a syntax tree. Whatever is not recognised there (a name that nothing defines, an operator
that only the compiler registers) makes the piece one that is serialised whole: :func:`direct` then gives None.
"""

from __future__ import annotations

import ast
import builtins
from dataclasses import dataclass
from typing import Any

import torch
from torch._functorch._aot_autograd.aot_autograd_result import BundledAOTAutogradResult
from torch._functorch._aot_autograd.schemas import OutputType
from torch._inductor import select_algorithm
from torch._inductor.codecache import CppPythonBindingsCodeCache
from torch._inductor.output_code import CompiledFxGraph

from .runtime import direct as runtime
from .runtime import gpu_kernels, kernels

# Modules that wrappers import and that a process with only torch has.
_LIGHT_MODULES = {"ctypes", "torch", "math", "cmath", "torch._C"}
# Operators of these namespaces exist where torch is imported; others exist where the graph's own operators do.
_CORE_NAMESPACES = {"aten", "mkldnn", "mkl", "_quantized", "quantized", "onednn"}
# Of torch.ops.inductor: what is registered in C++.
_INDUCTOR_OPS = {"_alloc_from_pool", "_reinterpret_tensor", "_mm_plus_mm"}
# The aliases that every wrapper's header gives to namespaces of operators.
_NAMESPACE_ALIASES = {"aten": "aten", "inductor_ops": "inductor", "_quantized": "_quantized"}


@dataclass(frozen=True)
class Direct:
    """`source` is the program's text; the rest are positions among the program's arguments.

    `realigned`: tensors that the kernels take to be aligned to 16 bytes; `written_back`: of those, the ones that are changed in
    place; `bumped`: those whose version counter tells autograd of a change in place. `views`: outputs that look into an
    argument's memory, each with that argument.
    """

    source: str
    realigned: list[int]
    written_back: list[int]
    bumped: list[int]
    views: list[tuple[int, int]]


class _NotDirect(Exception):
    """Why a wrapper is serialised whole."""


def direct(entry: Any, options: dict[str, Any], namespaces: set[str], requests: set[str]) -> Direct | None:
    """The direct program of a deserialised cache entry; None where the piece needs more than its wrapper.

    `namespaces`: of the operators that the graph names; `requests`: digests of the kernels that were recorded.
    """
    if not isinstance(entry, BundledAOTAutogradResult) or not isinstance(entry.compiled_fw.result, CompiledFxGraph):
        return None
    graph: CompiledFxGraph = entry.compiled_fw.result
    meta = entry.runtime_metadata
    needs_more = (
        entry.compiled_bw is not None
        or entry.maybe_subclass_meta is not None
        or any(getattr(wrapper, "needs_post_compile", True) for wrapper in entry.dispatch_wrappers)
        or meta.num_mutated_inp_runtime_indices > 0
        or meta.num_intermediate_bases > 0
        or meta.is_rng_op_functionalized
        or meta.num_graphsafe_rng_states > 0
        or meta.grad_enabled_mutation is not None
        or bool(meta.tokens)
        or bool(graph.constants)
        or bool(graph.frozen_param_names)
        or bool(graph.opaque_value_type_classes)
        or bool(options.get("torch", {}).get("autocast"))
        or bool(options.get("inductor", {}).get("triton.cudagraphs"))
    )
    views = _views(meta.output_info)
    if needs_more or views is None:
        return None
    try:
        source = _reduced(graph.source_code, namespaces, requests)
    except _NotDirect:
        return None
    realigned = list(graph.inputs_to_check)
    return Direct(
        source,
        realigned,
        [i for i in realigned if i in graph.mutated_input_idxs],
        list(meta.mutated_graph_handled_indices_seen_by_autograd),
        views,
    )


def _views(output_info: list[Any]) -> list[tuple[int, int]] | None:
    """(output, argument) for each output that is a view of an argument, or one itself: the wrapper returns it as such. None: there are
    outputs that are regenerated otherwise."""
    views = []
    for i, info in enumerate(output_info):
        if info.output_type in (OutputType.alias_of_input, OutputType.is_input):
            views.append((i, info.base_idx))
        elif info.output_type not in (OutputType.non_alias, OutputType.unsafe_view_alias):
            return None
    return views


def _reduced(source: str, namespaces: set[str], requests: set[str]) -> str:
    tree = ast.parse(source)
    body = [kept for statement in tree.body if (kept := _kept(statement, requests)) is not None]
    module = ast.Module(body=body, type_ignores=[])
    _check_names(module, namespaces)
    return ast.unparse(ast.fix_missing_locations(module)) + "\n"


def _kept(statement: ast.stmt, requests: set[str]) -> ast.stmt | None:
    """A statement of the wrapper's module as the direct program has it; None: it is left out."""
    if isinstance(statement, ast.Import):
        names = [alias for alias in statement.names if alias.name in _LIGHT_MODULES]
        return ast.Import(names) if names else None
    if isinstance(statement, ast.ImportFrom):
        return statement if statement.module in _LIGHT_MODULES else None
    if isinstance(statement, ast.FunctionDef) and statement.name in ("get_args", "benchmark_compiled_module"):
        return None
    if isinstance(statement, ast.If) and ast.unparse(statement.test) == "__name__ == '__main__'":
        return None
    if isinstance(statement, ast.Delete) and ast.unparse(statement) == "del async_compile":
        return None
    value = getattr(statement, "value", None)
    if isinstance(value, ast.Call):
        called = ast.unparse(value.func)
        if called in ("AsyncCompile", "async_compile.wait"):
            return None
        if called.startswith("async_compile.") and isinstance(statement, ast.Assign):
            return ast.Assign(targets=statement.targets, value=_kernel(called, value, requests), lineno=0)
    return statement


def _kernel(called: str, call: ast.Call, requests: set[str]) -> ast.Call:
    try:
        given = [ast.literal_eval(argument) for argument in call.args]
    except ValueError as error:
        raise _NotDirect(f"{called} with computed arguments") from error
    if called == "async_compile.triton" and len(given) == 2:
        name, digest = runtime.GPU_KERNEL, gpu_kernels.request_digest(*given)
    elif called == "async_compile.cpp_pybinding" and len(given) == 2 and not call.keywords:
        name, digest = runtime.CPU_KERNEL, kernels.request_digest(CppPythonBindingsCodeCache, *given)
    else:
        raise _NotDirect(called)
    if digest not in requests:
        raise _NotDirect(f"a kernel of {called} that was not recorded")
    return ast.Call(ast.Name(name, ast.Load()), [ast.Constant(digest)], [])


def _check_names(module: ast.Module, namespaces: set[str]) -> None:
    """Raises _NotDirect unless every name is defined in the module, a builtin, or one that the runtime gives."""
    defined = {*dir(builtins), *runtime.GIVEN}
    for node in ast.walk(module):
        if isinstance(node, ast.Name) and isinstance(node.ctx, (ast.Store, ast.Del)):
            defined.add(node.id)
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            defined.add(node.name)
        elif isinstance(node, ast.arg):
            defined.add(node.arg)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            defined.update((alias.asname or alias.name).partition(".")[0] for alias in node.names)
    for node in ast.walk(module):
        if isinstance(node, ast.Name) and node.id not in defined:
            raise _NotDirect(f"the name {node.id}")
        if isinstance(node, ast.Attribute):
            _check_attribute(node, namespaces)


def _check_attribute(node: ast.Attribute, namespaces: set[str]) -> None:
    base = ast.unparse(node.value)
    if base == "extern_kernels" and not _is_plain(node.attr):
        raise _NotDirect(f"extern_kernels.{node.attr}")
    namespace = _NAMESPACE_ALIASES.get(base) or (
        base.removeprefix("torch.ops.") if base.startswith("torch.ops.") else None
    )
    if namespace is None or "." in namespace:
        return
    if namespace == "inductor":
        if node.attr not in _INDUCTOR_OPS:
            raise _NotDirect(f"torch.ops.inductor.{node.attr}")
    elif namespace not in _CORE_NAMESPACES and namespace not in namespaces:
        raise _NotDirect(f"torch.ops.{namespace}.{node.attr}")


def _is_plain(name: str) -> bool:
    """Whether an external kernel is a function of torch's own, or one that the runtime has."""
    found = getattr(select_algorithm.extern_kernels, name, None)
    return found is not None and (name in runtime.EXTERN_KERNELS or found is getattr(torch, name, None))
