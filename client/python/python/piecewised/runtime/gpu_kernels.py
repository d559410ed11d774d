"""Triton kernels, finished: a cubin and what a launch needs, in place of source, candidates and a compiler.

Inductor's generated wrapper asks for a Triton kernel by source. Inductor answers with an autotuner, which imports
Triton, holds every configuration that was tried, measures them at the first call, and launches through a stub that it
compiles with a C compiler unless the kernel is one that torch launches by itself. Here a kernel's name is a digest of
the request (:func:`request_digest`): the executor records which configuration won and how it is launched
(`piecewised_executor.winners`), and the worker answers the same request with that one cubin, loaded into the device
that it is loaded for and launched by torch's own launcher. Nothing is tuned, compiled or started for it.

The index is a JSON object, request digest to kernel, beside the kernels. A kernel is ``name`` (of the function in the
cubin), ``cubin`` (file, relative to the index), ``shared_bytes``, ``n_warps``, ``types`` (one letter an argument, as
``torch._C._StaticCudaLauncher`` takes them), ``parameters`` (what the wrapper passes, in order), ``prelude`` (lines before
the grid), ``grid`` (three Python expressions over the parameters) and ``arguments`` (expressions: what the kernel takes).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch

from .shared_objects import kernel_path

INDEX = "gpu_kernels.json"


def request_digest(name: str, source: str) -> str:
    """Names a request to ``AsyncCompile.triton``: SHA-256, hexadecimal."""
    return hashlib.sha256(json.dumps([name, source]).encode()).hexdigest()


class Kernel:
    """One kernel on one device. ``run`` launches it; it has the arguments that the wrapper passes."""

    __slots__ = ("name", "run")

    def __init__(self, record: dict[str, Any], folder: str, device: int) -> None:
        from torch._C import _StaticCudaLauncher

        self.name: str = record["name"]
        path = kernel_path(folder, record["cubin"])
        with torch.cuda.device(device):
            function, _, _ = _StaticCudaLauncher._load_kernel(path, self.name, record["shared_bytes"], device)
        self.run: Callable[..., None] = _launcher(record, _StaticCudaLauncher._launch_kernel, function)


def _launcher(record: dict[str, Any], launch: Callable[..., None], function: int) -> Callable[..., None]:
    """A function of the wrapper's arguments that launches ``function``: written out, because it is called once a kernel and call."""
    grid = record["grid"]
    arguments = "".join(f"{argument}, " for argument in record["arguments"])
    lines = [
        f"def run({', '.join([*record['parameters'], 'stream'])}):",
        *(f"    {line}" for line in record["prelude"]),
        # As Inductor's own launcher does: an empty grid is no error here, and would be one for the driver.
        f"    grid_0, grid_1, grid_2 = {grid[0]}, {grid[1]}, {grid[2]}",
        "    if grid_0 and grid_1 and grid_2:",
        f"        launch(function, grid_0, grid_1, grid_2, {record['n_warps']}, {record['shared_bytes']}, "
        f"{record['types']!r}, ({arguments}), stream)",
    ]
    scope: dict[str, Any] = {"launch": launch, "function": function}
    exec("\n".join(lines), scope)
    run: Callable[..., None] = scope["run"]
    return run


@contextlib.contextmanager
def answering(kernel: Callable[[str], Any]) -> Iterator[None]:
    """While inside, and only for the calling thread, `kernel` gives Triton kernels by request digest. Imports Inductor."""
    from torch._inductor.async_compile import AsyncCompile

    thread = threading.get_ident()
    original = AsyncCompile.triton

    def triton(self: AsyncCompile, kernel_name: str, source_code: str, device_str: str = "cuda") -> Any:
        if threading.get_ident() != thread:
            return original(self, kernel_name, source_code, device_str)
        return kernel(request_digest(kernel_name, source_code))

    AsyncCompile.triton = triton  # type: ignore[method-assign]
    try:
        yield
    finally:
        AsyncCompile.triton = original  # type: ignore[method-assign]
