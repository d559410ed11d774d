"""One call of Inductor: from a rebuilt graph to bytes that load anywhere with the same toolchain and device.

Inductor's caches know neither hint nor value range, so each compile has a cache folder of its own; and since its
process keeps counters and modules, state is reset between jobs (:func:`reset`): the n-th job gives what it would have
given as the first.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import pickle
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch._dynamo
import torch._functorch.aot_autograd
import torch._inductor.metrics
from torch._inductor import compile_fx, cpp_builder, select_algorithm
from torch._inductor.codecache import PyCodeCache
from torch._inductor.output_code import CompiledFxGraph
from torch._inductor.select_algorithm import TritonTemplate
from torch._inductor.standalone_compile import standalone_compile
from torch._inductor.utils import fresh_cache

from . import candidates, direct, faults, frontends, headers, instruction_sets, settings, winners
from .errors import CompileError, JobError, Unsupported, describe, from_outside
from .frontends import Frontend
from .rebuild import Rebuilt
from .runtime import devices, kernels

# What the executor decides about every compile; see settings._RESERVED.
PATCHES: dict[str, Any] = {
    "autotune_remote_cache": False,
    # The winners are packed by `winners`; the bundle would hold every candidate in every intermediate form.
    "bundle_triton_into_fx_graph_cache": False,
    "bundled_autotune_remote_cache": False,
    "disable_progress": True,
    "fx_graph_cache": True,
    "max_autotune_report_choices_stats": False,
    "fx_graph_remote_cache": False,
    "static_launch_user_defined_triton_kernels": True,
    # Kernels are settled by a real call (`settle`), not by the made-up ones that the wrapper's generator would run.
    "triton.autotune_at_compile_time": False,
    "use_static_cuda_launcher": True,
}

# Tables of every choice that was measured, on stderr: the handle has what was chosen.
select_algorithm.PRINT_AUTOTUNE = False


headers.place()
instruction_sets.place()


@dataclass(frozen=True)
class Program:
    """`direct` or `serialized` (what AOTCompiledArtifact.deserialize takes) is what is called; `cache_files` (relative path to
    content), `kernels` and `gpu_kernels` (both by request digest) are what it looks up meanwhile."""

    direct: direct.Direct | None
    serialized: bytes
    cache_files: dict[str, bytes]
    kernels: dict[str, bytes]
    gpu_kernels: dict[str, winners.GpuKernel]


# Is given the compiled callable (flat arguments, flat results) before it is packed, to settle its autotuning.
Settle = Callable[[Callable[..., Any]], None]


def compile_program(
    rebuilt: Rebuilt,
    options: dict[str, Any],
    settle: Settle,
    extra_patches: dict[str, Any] | None = None,
    *,
    frontend: Frontend = frontends.NONE,
) -> Program:
    """Compiles for the symbols' value ranges and hints as they are; guards are left in the ShapeEnv.

    `options` is a CompileOptions; `extra_patches` are Inductor options that beat the request's, and those of the frontend. Raises
    Unsupported for an option that can't be set, CompileError for the rest.
    """
    patches = {
        **settings.inductor_patches(options.get("inductor", {})),
        **frontend.patches(),
        **(extra_patches or {}),
        **PATCHES,
        "compile_threads": settings.compile_threads(),
        "unsafe_marked_cacheable_functions": _higher_order_names(),
    }
    recorded: dict[str, str] = {}
    recorded_gpu = winners.Recorded()
    # The tracing context hands the compile our ShapeEnv; "from_graph" would look for it in the outputs, and not find
    # it where a graph returns integers only.
    context = torch._guards.TracingContext(rebuilt.fake_mode)
    with (
        # fresh_cache keeps its folder when a compile fails; the one around it goes in any case.
        tempfile.TemporaryDirectory(prefix="piecewised-") as folder,
        fresh_cache(dir=folder),
        settings.torch_settings(options.get("torch", {})),
        torch.no_grad(),
        torch._guards.tracing(context),
        kernels.recording(recorded),
        winners.recording(recorded_gpu),
        winners.short_names(),
        _path_free_kernels(os.environ["TORCHINDUCTOR_CACHE_DIR"]),
        # Inside of ours: what it sets for its compiles is what holds.
        frontend.compiling(),
        # What AOTAutograd does not want to cache it does not serialise either; without `strict` it would not say so.
        torch._functorch.config.patch(bypass_autograd_cache_key=True, strict_autograd_cache=True),
    ):
        with compile_errors(), candidates.compiling():
            artifact = standalone_compile(
                rebuilt.module,
                rebuilt.inputs,
                dynamic_shapes="from_tracing_context",
                options={"config_patches": patches},
                aot=True,
            )
            entry, triton_kernels, constant_args = pickle.loads(artifact.serialize())
            files, wrapper = _normalise(entry)
            if recorded_gpu.requests:
                settle(artifact.inner_fn.compiled_fn)
            gpu_kernels = winners.collect(recorded_gpu, wrapper) if wrapper else {}
            namespaces = {*_namespaces(rebuilt.module), *frontend.namespaces}
            found = direct.direct(entry, options, namespaces, {*recorded, *gpu_kernels})
            # What the direct program does without is left out of the artifact.
            serialized = b"" if found else pickle.dumps((entry, triton_kernels, constant_args))
        contents = {digest: Path(path).read_bytes() for digest, path in recorded.items()}
    return Program(found, serialized, {} if found else files, contents, gpu_kernels)


@contextlib.contextmanager
def compile_errors(refusal: Callable[[BaseException], JobError | None] = lambda error: None) -> Iterator[None]:
    """While inside, what goes wrong is raised as the job's own failure: what `refusal` makes of it, what lies outside the graph, else CompileError. A
    JobError and a lost GPU (DeviceFault) stay what they are."""
    try:
        yield
    except (JobError, faults.DeviceFault):
        raise
    except Exception as error:
        faults.check()
        raise (refusal(error) or from_outside(error) or CompileError(describe(error))) from error


def _higher_order_names() -> dict[str, str]:
    """Tells Inductor that graphs with higher-order ops may be cached, and so serialised. It doubts that its key would
    tell them apart; here nothing is ever looked up by that key."""
    hops = torch._ops._higher_order_ops.values()
    return {f"{hop.__module__}.{hop.__name__}": "piecewised" for hop in hops}


def reset() -> None:
    """Back to the state before the first compile, as far as code and memory depend on it."""
    torch._dynamo.reset()
    torch._inductor.metrics.reset()
    # Numbers of graphs, which end up in code and in what is serialised.
    torch._functorch.aot_autograd.AOT_COUNTER = itertools.count()
    compile_fx._graph_counter = itertools.count()
    TritonTemplate.index_counter = itertools.count()
    PyCodeCache.cache_clear()
    PyCodeCache.linemaps.clear()
    for name in [name for name in sys.modules if name.startswith("torch._inductor.runtime.compile_tasks.")]:
        del sys.modules[name]
    gc.collect()


@contextlib.contextmanager
def _path_free_kernels(cache: str) -> Iterator[None]:
    """While inside, compiled C++ does not hold the path of the cache folder (in `__FILE__`, which checks print), so
    that the same kernel is the same bytes wherever it was built.

    The flag is added to the command as it is run and not through Inductor's options, since their digest is part of
    file names, and with them of the library's symbols.
    """
    original = cpp_builder.run_compile_cmd
    flag = f" -ffile-prefix-map={shlex.quote(cache)}/="

    def run_compile_cmd(cmd_line: str, cwd: str) -> None:
        original(cmd_line + flag, cwd=cwd)

    cpp_builder.run_compile_cmd = run_compile_cmd
    try:
        yield
    finally:
        cpp_builder.run_compile_cmd = original


def _normalise(entry: Any) -> tuple[dict[str, bytes], str | None]:
    """Takes out of a cache entry what differs from one compile to the next. Gives the wrapper's source as a cache file, and its
    key.

    Left out: how long the compile took, and the texts of graphs that only logging reads.
    """
    entry.forward_time_taken_ns = entry.backward_time_taken_ns = 0
    entry.aot_joint_graph_str = entry.aot_forward_graph_str = entry.aot_backward_graph_str = None
    graph = entry.compiled_fw.result
    if not isinstance(graph, CompiledFxGraph):
        return {}, None
    graph.runnable_graph_str = graph.inductor_post_grad_graph_str = ""
    graph.inductor_provenance_mapping_str = graph.inductor_provenance_stack_traces_str = None
    graph.cache_linemap = []
    graph._time_taken_ns = 0
    graph._fx_graph_cache_debug_lines = []
    if named := devices.leftovers(graph.source_code):
        raise Unsupported(f"the generated code names a GPU in a way that is not known here: {', '.join(named)}")
    return {f"{graph.cache_key[1:3]}/{graph.cache_key}.py": graph.source_code.encode()}, graph.cache_key


def _namespaces(module: torch.fx.GraphModule) -> set[str]:
    """Of the operators that a graph names: a worker that runs the graph has them."""
    graphs = [child.graph for child in module.modules() if isinstance(child, torch.fx.GraphModule)]
    targets = [node.target for graph in graphs for node in graph.nodes]
    overloads = {target.namespace for target in targets if isinstance(target, torch._ops.OpOverload)}
    packets = [target for target in targets if isinstance(target, torch._ops.OpOverloadPacket)]
    return overloads | {packet._qualified_op_name.partition("::")[0] for packet in packets}
