"""Triton kernels of one compile: which configuration of each won, as data that a worker can launch.

While a compile runs, every request of the generated wrapper is recorded (:func:`recording`). Once autotuning is settled
(see `settle`), :func:`collect` takes of each kernel the one configuration that its autotuner is left with: its cubin,
and the text of its launch. What only a compiler needs (source, intermediate forms, the other candidates) stays behind.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from torch._inductor.async_compile import AsyncCompile
from torch._inductor.codecache import PyCodeCache
from torch._inductor.codegen import triton as triton_codegen
from torch._inductor.runtime.runtime_utils import triton_cache_dir, triton_hash_to_path_key
from torch._inductor.runtime.triton_heuristics import CachingAutotuner, GridExpr, StaticTritonCompileResult

from .errors import Unsupported
from .runtime.gpu_kernels import request_digest

# Of the 150 characters, what is left for the operators: before them is the kind of kernel ("triton_poi_"), behind them a number.
_MAX_FUSED_NAME = 120


@dataclass(frozen=True)
class GpuKernel:
    """`record` is the kernel of `runtime.gpu_kernels`, without `cubin`, which names where `content` will lie."""

    record: dict[str, Any]
    content: bytes


class Recorded:
    """The requests of one compile: (kernel name, source), in order, each once."""

    def __init__(self) -> None:
        self.requests: dict[tuple[str, str], None] = {}


@contextlib.contextmanager
def recording(recorded: Recorded) -> Iterator[None]:
    """While inside, each Triton kernel that a wrapper asks for is recorded, and launchers remember what they were made of."""
    original_triton = AsyncCompile.triton
    original_make = StaticTritonCompileResult._gen_launcher_code

    def triton(self: AsyncCompile, kernel_name: str, source_code: str, device_str: str = "cuda") -> Any:
        recorded.requests.setdefault((kernel_name, source_code))
        return original_triton(self, kernel_name, source_code, device_str)

    def gen_launcher_code(self: Any, scope: Any, def_args: list[str], runner_args: list[str]) -> Callable[..., Any]:
        launcher = original_make(self, scope, def_args, runner_args)
        launcher.piecewised = (self, list(def_args), list(runner_args))
        return launcher

    AsyncCompile.triton = triton  # type: ignore[method-assign]
    StaticTritonCompileResult._gen_launcher_code = gen_launcher_code  # type: ignore[method-assign]
    try:
        yield
    finally:
        AsyncCompile.triton = original_triton  # type: ignore[method-assign]
        del StaticTritonCompileResult._gen_launcher_code


@contextlib.contextmanager
def short_names() -> Iterator[None]:
    """While inside, Triton kernels get names that their files can have.

    Inductor names a kernel after all operators in it, Triton cuts the names of files at 150 characters, and Inductor, which does not
    find the file then, leaves the kernel to Triton's own launcher.
    """
    original = triton_codegen.get_fused_kernel_name

    def get_fused_kernel_name(*args: Any) -> str:
        return shortened(original(*args))

    triton_codegen.get_fused_kernel_name = get_fused_kernel_name
    try:
        yield
    finally:
        triton_codegen.get_fused_kernel_name = original


def shortened(name: str) -> str:
    """As many of the operators in the name as there is room for. Inductor puts a number behind it, which tells kernels apart."""
    return name if len(name) <= _MAX_FUSED_NAME else name[: name.rindex("_", 0, _MAX_FUSED_NAME + 1)]


def collect(recorded: Recorded, wrapper_key: str) -> dict[str, GpuKernel]:
    """The winner of every kernel of the wrapper, by request digest. Raises Unsupported for one that torch's own launcher
    does not launch: a worker would need Triton's, and with it a C compiler."""
    if not recorded.requests:
        return {}
    module = _wrapper(wrapper_key)
    kernels = {}
    for name, source in recorded.requests:
        autotuner = getattr(module, name, None)
        # Requests of other modules (what lowering measures while it chooses) are none of this wrapper's.
        if isinstance(autotuner, CachingAutotuner):
            kernels[request_digest(name, source)] = _winner(name, autotuner)
    return kernels


def _wrapper(key: str) -> ModuleType:
    for module in reversed(PyCodeCache.modules):
        if getattr(module, "key", None) == key:
            return module
    raise Unsupported("the generated wrapper is not among Inductor's modules; this torch is not one that was tried")


def _winner(name: str, autotuner: CachingAutotuner) -> GpuKernel:
    if not autotuner.launchers:
        raise Unsupported(f"the kernel {name} has no configuration that was built")
    # More than one is left where it never ran: then the first, which is what Inductor's heuristics put first.
    launcher = autotuner.launchers[0]
    made_of = getattr(launcher, "piecewised", None)
    if made_of is None:
        raise Unsupported(
            f"the kernel {name} needs Triton's own launcher (scratch memory, clusters or a cooperative launch), which a "
            "worker would have to compile"
        )
    result, parameters, runner_args = made_of
    kernel = result.kernel
    grid = GridExpr.from_meta(result.inductor_meta, result.config)
    arguments = runner_args[4:]
    n_scratch = int(kernel.has_global_scratch) + int(kernel.has_profile_scratch)
    record = {
        "name": kernel.name,
        "shared_bytes": kernel.shared,
        "n_warps": kernel.num_warps,
        "types": kernel.arg_tys + "O" * n_scratch,
        "parameters": parameters,
        "prelude": list(grid.prefix),
        "grid": [str(grid.x_grid), str(grid.y_grid), str(grid.z_grid)],
        "arguments": [*arguments, *["None"] * n_scratch],
    }
    folder = os.path.join(
        triton_cache_dir(result.compile_meta.get("device") or 0), triton_hash_to_path_key(kernel.hash)
    )
    with open(os.path.join(folder, f"{kernel.name}.cubin"), "rb") as file:
        return GpuKernel(record, file.read())
