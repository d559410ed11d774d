"""Direct programs: a generated wrapper that is called as it is, in a process that has imported torch and nothing more.

`piecewised_executor.direct` makes them and says which pieces have one. A program is Python source that defines ``call``,
which takes its arguments as a list that it empties, and gives a tuple. It finds here what its header would have imported
from the compiler: kernels by digest, and the operators that the compiler calls external kernels.
"""

from __future__ import annotations

import json
import os
import types
from collections.abc import Callable, Sequence
from typing import Any

import torch

from . import devices, gpu_kernels, shared_objects
from .errors import MissingKernel

# What programs call the functions that give kernels by digest.
GPU_KERNEL = "_gpu_kernel"
CPU_KERNEL = "_cpu_kernel"

#: The names that a program may use without defining them.
GIVEN = (GPU_KERNEL, CPU_KERNEL, "extern_kernels")

# Bytes that generated kernels take tensors to be aligned to.
ALIGNMENT = 16


def _bias_addmm(
    inp: torch.Tensor, a: torch.Tensor, b: torch.Tensor, *, out: Any = None, alpha: Any = 1, beta: Any = 1
) -> Any:
    """addmm with a bias that is one row: cuBLAS adds it on its own where it is given as one."""
    if inp.size(0) != 0 and (inp.stride(0) == 0 or inp.size(0) == 1):
        return torch.addmm(inp[0], a, b, out=out, alpha=alpha, beta=beta)
    return torch.addmm(inp, a, b, out=out, alpha=alpha, beta=beta)


#: External kernels that are no function of torch's own.
EXTERN_KERNELS: dict[str, Callable[..., Any]] = {"bias_addmm": _bias_addmm}


class _ExternKernels:
    """``extern_kernels`` of a wrapper: torch's function of that name, or one of EXTERN_KERNELS."""

    def __getattr__(self, name: str) -> Any:
        found = EXTERN_KERNELS.get(name) or getattr(torch, name)
        setattr(self, name, found)
        return found


class Kernels:
    """The kernels of one artifact for one device, each loaded once."""

    def __init__(self, folder: str, device_index: int) -> None:
        self._folder = folder
        self._device_index = device_index
        self._loaded: dict[str, Any] = {}
        self._indexes: dict[str, dict[str, Any]] = {}

    def gpu(self, digest: str) -> Any:
        """What launches the Triton kernel of that request."""
        if digest not in self._loaded:
            record = self._indexed(gpu_kernels.INDEX, digest)
            self._loaded[digest] = gpu_kernels.Kernel(record, self._folder, self._device_index)
        return self._loaded[digest]

    def cpu(self, digest: str, entry: str = shared_objects.ENTRY) -> Any:
        """The C++ kernel of that request: the function `entry` of its library."""
        if digest not in self._loaded:
            name = self._indexed(shared_objects.INDEX, digest)
            self._loaded[digest] = shared_objects.load(shared_objects.kernel_path(self._folder, name), name, entry)
        return self._loaded[digest]

    def _indexed(self, index: str, digest: str) -> Any:
        if index not in self._indexes:
            try:
                with open(os.path.join(self._folder, index), encoding="utf-8") as file:
                    self._indexes[index] = json.load(file)
            except FileNotFoundError:
                self._indexes[index] = {}
        if digest not in self._indexes[index]:
            raise MissingKernel(
                f"the artifact in {self._folder} has no kernel for a request of its own program; it is damaged or incomplete"
            )
        return self._indexes[index][digest]


def load(path: str, cache: str, record: dict[str, Any], device_index: int) -> Callable[..., Any]:
    """The program in the file `path`, whose kernels are below `cache`, for the GPU of that index. It takes what the program
    takes and gives its flat tuple."""
    kernels = Kernels(cache, device_index)
    with open(path, encoding="utf-8") as file:
        source = devices.on_device(file.read(), device_index)
    module = types.ModuleType(f"piecewised_program_{os.path.basename(os.path.dirname(os.path.dirname(path)))}")
    module.__file__ = path
    vars(module).update({GPU_KERNEL: kernels.gpu, CPU_KERNEL: kernels.cpu, "extern_kernels": _ExternKernels()})
    exec(compile(source, path, "exec", dont_inherit=True), vars(module))
    return _callable(module.call, record)


def _callable(call: Callable[[list[Any]], Any], record: dict[str, Any]) -> Callable[..., Any]:
    """What a call does beside the program: no gradients are recorded, tensors that are not aligned are copied."""
    realigned, written_back, bumped, views = (record[name] for name in ("realigned", "written_back", "bumped", "views"))
    is_grad_enabled, set_grad_enabled = torch.is_grad_enabled, torch._C._set_grad_enabled

    def run(*args: Any) -> Any:
        arguments = list(args)
        for i in realigned:
            if arguments[i].data_ptr() % ALIGNMENT:
                return realigned_call(arguments)
        if not is_grad_enabled():
            return call(arguments)
        set_grad_enabled(False)
        try:
            return call(arguments)
        finally:
            set_grad_enabled(True)

    def realigned_call(arguments: list[Any]) -> Any:
        copied = {}
        for i in realigned:
            given = arguments[i]
            if given.data_ptr() % ALIGNMENT:
                arguments[i] = aligned(given)
                copied[i] = given, arguments[i]
        with torch.no_grad():
            result = list(call(arguments))
            for i, (given, copy) in copied.items():
                if i in written_back:
                    given.copy_(copy)
            for at, i in views:
                if i in copied:
                    # It looks into the copy, and has to look into what the caller gave.
                    view, (given, copy) = result[at], copied[i]
                    offset = given.storage_offset() + view.storage_offset() - copy.storage_offset()
                    result[at] = torch.as_strided(given, view.size(), view.stride(), offset)
        return tuple(result)

    if not bumped:
        return run

    def run_and_tell(*args: Any) -> Any:
        torch.autograd.graph.increment_version([args[i] for i in bumped])
        return run(*args)

    return run_and_tell


def extent(sizes: Sequence[int], strides: Sequence[int]) -> int:
    """How many elements lie between the first and the last that a strided tensor reaches, both included."""
    return 0 if 0 in sizes else 1 + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))


def aligned(tensor: torch.Tensor) -> torch.Tensor:
    """A copy with the same sizes and strides at the beginning of storage of its own."""
    base = torch.as_strided(tensor, (extent(tensor.shape, tensor.stride()),), (1,)).clone()
    return torch.as_strided(base, tensor.shape, tensor.stride())
