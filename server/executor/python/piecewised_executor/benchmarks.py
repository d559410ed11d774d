"""Inductor's own benchmarks under exclusive leases: the measuring and nothing else, so that what compilers do on the CPU between
two measurements goes on beside other jobs.

Everything that Inductor times goes through its benchmarker: candidates of `max_autotune`, configurations of Triton kernels at their
first call, coordinate descent, padding of matrices. Candidates for one operation are timed under one lease, and so are the configurations of one
kernel: each lease is waited for behind all other jobs, and a benchmark takes some 20 ms. What a candidate compiles or loads at its first call it does before.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch._inductor.async_compile import CompiledTritonKernels
from torch._inductor.autotune_process import TritonBenchmarkRequest
from torch._inductor.codecache import PyCodeCache
from torch._inductor.runtime import benchmarking
from torch._inductor.runtime.triton_heuristics import CachingAutotuner
from torch._inductor.select_algorithm import AlgorithmSelectorCache

from . import lease

_MARK = "piecewised_leased"


def install() -> None:
    """Puts the leases around; once is enough."""
    _wrap(benchmarking.Benchmarker, "benchmark_cpu", lambda: lease.timing("cpu"))
    for benchmarker in (benchmarking.TritonBenchmarker, benchmarking.InductorBenchmarker):
        _wrap(benchmarker, "benchmark_gpu", lambda: lease.timing("cuda"))
    # What a kernel's first call does on the CPU, in the middle of a program that runs under a shared lease: compiling.
    for name in ("precompile", "coordinate_descent_tuning"):
        _wrap(CachingAutotuner, name, lease.paused)
    _wrap(CachingAutotuner, "benchmark_all_configs", lambda: lease.timing("cuda"))
    AlgorithmSelectorCache.benchmark_choices = classmethod(_benchmark_choices)  # type: ignore[assignment]


_original_benchmark_choices = AlgorithmSelectorCache.benchmark_choices.__func__  # type: ignore[attr-defined]


def _benchmark_choices(cls: Any, choices: Sequence[Any], *args: Any, **kwargs: Any) -> Any:
    """AlgorithmSelectorCache.benchmark_choices, under one lease where the candidates run on a GPU."""
    if not any(choice.layout.device.type == "cuda" for choice in choices):
        return _original_benchmark_choices(cls, choices, *args, **kwargs)
    for choice in choices:
        # A candidate that does not load says so again where it is timed, and is dropped.
        with contextlib.suppress(Exception):
            _load(choice)
    with lease.timing("cuda"):
        return _original_benchmark_choices(cls, choices, *args, **kwargs)


def _load(choice: Any) -> None:
    """Has a candidate's kernel in this process, and on the GPU. It was compiled by another process."""
    request = getattr(choice, "bmreq", None)
    if not isinstance(request, TritonBenchmarkRequest):
        return
    module = PyCodeCache.load_by_key_path(request.module_cache_key, request.module_path)
    if getattr(module, request.kernel_name).launchers:
        return
    # What the other process gave; the module's own would be compiled here, from Triton's cache, in ten times the time.
    given = CompiledTritonKernels.get(Path(request.module_path).read_text(encoding="utf-8"))
    if given is not None:
        setattr(module, request.kernel_name, given.result())
    else:
        getattr(module, request.kernel_name).precompile()


def _wrap(owner: type, name: str, around: Callable[[], Any]) -> None:
    original = owner.__dict__.get(name)
    # One that is inherited is wrapped where it is defined.
    if original is None or hasattr(original, _MARK):
        return

    @functools.wraps(original)
    def leased(*args: Any, **kwargs: Any) -> Any:
        with around():
            return original(*args, **kwargs)

    setattr(leased, _MARK, True)
    setattr(owner, name, leased)
