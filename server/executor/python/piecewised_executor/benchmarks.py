"""Inductor's own benchmarks, each under an exclusive lease: the measuring and nothing else, so that what compilers do on the CPU between
two measurements goes on beside other jobs.

Everything that Inductor times goes through its benchmarker: candidates of `max_autotune`, configurations of Triton kernels at their
first call, coordinate descent, padding of matrices.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch._inductor.runtime import benchmarking
from torch._inductor.runtime.triton_heuristics import CachingAutotuner

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
