"""Calling what was loaded once before the worker does (``warm_up=True``), so that the worker's first call is like its later ones.

An artifact's own kernels are loaded with it. What a first call still pays for is torch's: cuBLAS chooses and loads a kernel for each product that the process has not seen (14 ms for a
Llama layer on an H200), oneDNN likewise on a CPU, and the allocator asks for its first blocks. So each part of an artifact is called with arguments that are made up, all zeros, at the
size that it was compiled for, at the ends of its range, and at the powers of two between: which kernel is chosen depends on the size.

Only what can have no effect on anything but its arguments is called: graphs of torch's own operators. What those do to the random state is undone.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import time
from collections.abc import Iterator, Mapping
from typing import Any

from . import _core
from .errors import NotCovered
from .guards import finder
from .loading import Compiled, Runnable, index_for
from .runtime.bounds import fixed_values

log = logging.getLogger(__name__)

#: Of memory that is free, for the arguments of one call; results and what is between take some too.
MAX_SHARE = 1 / 4
#: Seconds after which no other call is begun. On a GPU all of them take less, on a CPU a large size may take longer than all else.
MAX_S = 1.0
#: Larger sizes are not called: what an encoder's last range allows is no size that any model sees.
MAX_SIZE = 1 << 16
_MODULES = ("torch.", "_operator.", "operator.", "math.", "builtins.")
# Of those, what is a module of operators that anybody may add to, has an effect elsewhere, or runs other graphs.
_NAMESPACES = ("torch.ops.aten.", "torch.ops.prims.")
_NOT_THESE = ("torch.ops.", "torch.distributed.", "torch._higher_order_ops.", "torch.cuda.")


def warm_up(compiled: Compiled, graph: str, device_index: int | None = None) -> dict[str, Any]:
    """Calls what was loaded. How many calls that were, and how long it took, as :func:`piecewised.stats` has it for a range.

    ``graph``: the piece as it was sent, JSON in the project's form. ``device_index``: the GPU that it was loaded for; None: the current one, if any. A call that cannot be made is left
    out, and the log (at the level "info") says why: what is wrong with it shows where the worker makes it.
    """
    fields = json.loads(graph)
    if reason := why_not(fields):
        log.info("artifact %s is not warmed up: %s", compiled.handle["digest"][:12], reason)
        return {"n_warm_calls": 0, "warm_up_s": 0.0}
    started = time.perf_counter()
    handle = compiled.handle
    dispatcher = _core.Dispatcher([json.dumps(handle)])
    targets = [compiled.runnables[entry] for _, entry in dispatcher.targets]
    find = finder(dispatcher, targets.__getitem__)
    n_calls = 0
    for size in sizes(handle):
        if time.perf_counter() - started > MAX_S:
            break
        try:
            n_calls += call(find(size or 0), fields, handle, size, device_index)
        except NotCovered:
            continue  # The graph does not take this size.
        except Exception as error:
            log.info(
                "artifact %s is not warmed up at %s: %s: %s", handle["digest"][:12], size, type(error).__name__, error
            )
    return {"n_warm_calls": n_calls, "warm_up_s": time.perf_counter() - started}


def why_not(graph: Mapping[str, Any]) -> str:
    """What of a graph keeps it from being called with made-up arguments; empty: nothing."""
    if graph.get("subgraphs"):
        return "it has graphs within it"
    for node in graph["nodes"]:
        ((kind, fields),) = node["op"].items()
        if kind == "placeholder" and not fields["value"].keys() <= {"tensor", "sym_int"}:
            return f"its input {node['name']} is neither a tensor nor an integer"
        if kind == "call_module":
            return f"node {node['name']} calls a module"
        target = fields.get("target", "") if kind == "call_function" else "torch."
        if not target.startswith(_MODULES) or (target.startswith(_NOT_THESE) and not target.startswith(_NAMESPACES)):
            return f"node {node['name']} calls {target}, which is none of torch's own operators"
    return ""


def sizes(handle: Mapping[str, Any]) -> list[int | None]:
    """The hint first, and the others with the smallest first."""
    if handle["range"] is None:
        return [None]
    low, high = handle["range"]
    between = [1 << power for power in range(MAX_SIZE.bit_length()) if low < 1 << power < high]
    return list(dict.fromkeys(size for size in (handle["hint"] or low, low, *between, high) if size <= MAX_SIZE))


def call(
    run: Runnable, graph: Mapping[str, Any], handle: Mapping[str, Any], size: int | None, device_index: int | None
) -> bool:
    """Calls what runs ``size``, with made-up arguments; whether it did. Of the handle its device, its digest and the dispatched argument count. Raises what the call does."""
    import torch

    index = index_for(handle, device_index)
    described = _described(graph, handle["dispatch_argument"], size)
    n_bytes = sum(_n_bytes(each) for each in described if isinstance(each, dict))
    with torch.no_grad(), _undone(index):
        if index is not None and torch.cuda.is_current_stream_capturing():
            return False
        if n_bytes > _free_bytes(index) * MAX_SHARE:
            log.info(
                "artifact %s is not warmed up at %s: its arguments have %d bytes", handle["digest"][:12], size, n_bytes
            )
            return False
        run(*(_made(each, index) if isinstance(each, dict) else each for each in described))
        if index is not None:
            torch.cuda.synchronize(index)
    return True


@contextlib.contextmanager
def _undone(index: int | None) -> Iterator[None]:
    """While inside, the GPU of that index is the current one. Afterwards random numbers are what they would have been."""
    import torch

    with contextlib.ExitStack() as stack:
        if index is not None:
            stack.enter_context(torch.cuda.device(index))
        stack.enter_context(torch.random.fork_rng([] if index is None else [index]))
        yield


def _described(graph: Mapping[str, Any], dispatched: int | None, size: int | None) -> list[Any]:
    """One for each placeholder: a number, or a tensor's dtype, device, sizes, strides and offset as numbers."""
    placeholders = [node["op"]["placeholder"]["value"] for node in graph["nodes"] if "placeholder" in node["op"]]
    name = None if dispatched is None else placeholders[dispatched]["sym_int"]["symbol"]
    values = fixed_values(graph, name, size)

    def number(tree: dict[str, Any]) -> int:
        ((kind, value),) = tree.items()
        if kind in ("int", "symbol"):
            return int(value if kind == "int" else values[value])
        # Late: importing sympy takes a third of a second, and hardly any size is an expression.
        import sympy

        from .runtime.expressions import from_tree

        return int(from_tree(tree, lambda name: sympy.Integer(values[name])))

    described: list[Any] = []
    for value in placeholders:
        if "sym_int" in value:
            described.append(number(value["sym_int"]))
            continue
        meta = value["tensor"]
        numbers = {name: [number(tree) for tree in meta[name]] for name in ("sizes", "strides")}
        described.append({**meta, **numbers, "storage_offset": number(meta.get("storage_offset", {"int": 0}))})
    return described


def _extent(meta: Mapping[str, Any]) -> int:
    """Elements, from the storage's first to the last that the tensor reaches."""
    from .runtime.direct import extent

    return int(meta["storage_offset"]) + extent(meta["sizes"], meta["strides"])


def _n_bytes(meta: Mapping[str, Any]) -> int:
    import torch

    return _extent(meta) * int(getattr(torch, meta["dtype"]).itemsize)


def _made(meta: Mapping[str, Any], index: int | None) -> Any:
    import torch

    kind = meta["device"]["type"]
    device = f"cuda:{index}" if kind == "cuda" else kind
    base = torch.zeros(_extent(meta), dtype=getattr(torch, meta["dtype"]), device=device)
    made = torch.as_strided(base, meta["sizes"], meta["strides"], meta["storage_offset"])
    return torch.nn.Parameter(made, requires_grad=False) if meta.get("is_parameter") else made


def _free_bytes(index: int | None) -> float:
    """Of the GPU, what torch's allocator holds and does not use included, or of this machine."""
    import torch

    if index is None:
        try:
            return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (ValueError, OSError):
            return math.inf
    free, _ = torch.cuda.mem_get_info(index)
    return float(free + torch.cuda.memory_reserved(index) - torch.cuda.memory_allocated(index))
