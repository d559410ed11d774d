"""What a first compile pays and later ones do not, paid ahead in the process that executors are forked from.

Each step is safe to leave out. None may start CUDA or a thread that stays: `zygote` looks after each of them, since either would make the
process one that cannot be forked.

docs/benchmarks.md of the project has what each is worth.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch

_CPU_INPUT = {
    "dtype": "float32",
    "device": {"type": "cpu"},
    "layout": "strided",
    "sizes": [{"int": 64}, {"int": 64}],
    "strides": [{"int": 64}, {"int": 1}],
}
# A product: it goes through everything up to the generated wrapper, and needs no C++ compiler, which would take seconds.
_GRAPH: dict[str, Any] = {
    "nodes": [
        {"name": "x", "op": {"placeholder": {"value": {"tensor": _CPU_INPUT}}}},
        {"name": "y", "op": {"call_function": {"target": "torch.mm", "args": [{"node": "x"}, {"node": "x"}]}}},
        {"name": "output", "op": {"output": {"value": {"tuple": [{"node": "y"}]}}}},
    ]
}


def steps() -> list[Callable[[], None]]:
    """In the order of what they are worth to the next executor."""
    with contextlib.suppress(ImportError):
        import tqdm

        # fx has a progress bar, which it does not show, and which starts a thread to look after it.
        tqdm.tqdm.monitor_interval = 0
    return [_modules, _a_compile, _tables, _driver]


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """While inside, operators run on the calling thread and start no others."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)


def forget() -> None:
    """Undoes what this process knows of its own surroundings: it is an executor now, with others."""
    import torch._inductor.config as inductor_config

    from . import headers, settings

    inductor_config.compile_threads = settings.compile_threads()
    headers.place()
    for holder in _knowing_devices():
        for value in list(vars(holder).values()):
            # Also of static and class methods.
            clear = getattr(getattr(value, "__func__", value), "cache_clear", None)
            if callable(clear):
                clear()
    # As in a fresh process: the default seed for torch, and one that nobody else has for numpy (`random` sees to itself).
    torch.default_generator.manual_seed(torch.default_generator.initial_seed())
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed()


def _knowing_devices() -> list[Any]:
    """What remembers answers about GPUs, which there were none of for the zygote, or about folders."""
    import torch._dynamo.device_interface
    import torch._inductor.runtime.hints
    import torch._inductor.utils
    import torch.utils._triton
    from torch._inductor import codecache

    return [
        torch._dynamo.device_interface,
        torch._inductor.runtime.hints,
        torch._inductor.runtime.hints.DeviceProperties,
        torch._inductor.runtime.runtime_utils,
        torch._inductor.utils,
        torch.utils._triton,
        codecache.CacheBase,
    ]


def _modules() -> None:
    """Imports that Inductor leaves for when they are needed."""
    import importlib

    for name in (
        "torch._inductor.codegen.cpp",
        "torch._inductor.codegen.cpp_wrapper_cpu",
        "torch._inductor.codegen.triton",
        "torch._inductor.codegen.cuda_combined_scheduling",
        "torch._inductor.codegen.wrapper",
        "torch._inductor.fx_passes.post_grad",
        "torch._inductor.fx_passes.joint_graph",
        "torch._inductor.kernel.mm",
        "torch._inductor.kernel.bmm",
        "torch._inductor.kernel.conv",
        "torch._inductor.runtime.triton_heuristics",
        "torch._inductor.autotune_process",
        "torch.testing",
        "triton.compiler.compiler",
        "triton.backends.nvidia.compiler",
    ):
        try:
            importlib.import_module(name)
        except ImportError:
            continue  # Triton is not everywhere, and module names are torch's to change.


def _a_compile() -> None:
    """One whole compile: patterns, decompositions, lowerings, code generation, and every cache on the way."""
    from . import program
    from .guards import Guards
    from .parts import Job, Recipe, compile_interval
    from .phases import Phases

    class Quiet:
        def send(self, name: str, fields: dict[str, Any], blob: bytes = b"") -> None:
            """Nobody is told."""

    request = {"graph": _GRAPH, "options": {}, "device": {"type": "cpu"}, "format": "inductor"}
    try:
        with one_thread():
            compile_interval(Job(request, None, Phases(Quiet(), None), Guards(_GRAPH)), None, Recipe("range", None))  # type: ignore[arg-type]
    finally:
        program.reset()


def _tables() -> None:
    """What the daemon asks for at its start, and keys are made of."""
    from . import allowlist, settings
    from .runtime import fingerprint

    allowlist.function_names()
    allowlist.method_names()
    allowlist.attribute_names()
    settings.inductor_options()
    fingerprint.toolchain()
    fingerprint.cpu_device()
    os.sched_getaffinity(0)


def _driver() -> None:
    """What Triton asks of the driver through a library of its own, which it has gcc build in each process. Loading it starts nothing."""
    from torch._inductor.runtime import triton_helpers

    from . import probe

    if probe.has_device_file():
        with probe.cuda_answers(lambda: True):
            triton_helpers.set_driver_to_gpu()
