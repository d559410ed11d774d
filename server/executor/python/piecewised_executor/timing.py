"""How long calls take, compared fairly: in turn, on the same inputs, as medians.

On a GPU a call is captured as a CUDA graph and replayed, so that the kernels are timed and not the host that launches
them; where it cannot be captured (it synchronises, say), single calls are timed between events. On a CPU: the whole call.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

_N_ROUNDS = 15
_MAX_REPEATS = 1000


def medians_us(
    calls: Sequence[Callable[..., Any]], arguments: Sequence[Any], device_type: str, seconds: float
) -> list[float]:
    """Microseconds of each call with `arguments`, in some `seconds` a call in all. In-place inputs change meanwhile: their values
    drift, which no kernel's time depends on."""
    if device_type == "cuda":
        return _gpu([_captured(call, arguments) for call in calls], seconds)
    return _cpu([lambda call=call: call(*arguments) for call in calls], seconds)


def _cpu(calls: Sequence[Callable[[], Any]], seconds: float) -> list[float]:
    times: list[list[float]] = [[] for _ in calls]
    repeats = []
    for call in calls:
        call()
        started = time.perf_counter()
        call()
        repeats.append(_repeats(time.perf_counter() - started, seconds))
    for _ in range(_N_ROUNDS):
        for i, call in enumerate(calls):
            started = time.perf_counter()
            for _ in range(repeats[i]):
                call()
            times[i].append((time.perf_counter() - started) / repeats[i])
    return [statistics.median(one) * 1e6 for one in times]


def _gpu(calls: Sequence[Callable[[], Any]], seconds: float) -> list[float]:
    times: list[list[float]] = [[] for _ in calls]
    repeats = []
    for call in calls:
        call()
        repeats.append(_repeats(_between_events(call, 1), seconds))
    for _ in range(_N_ROUNDS):
        for i, call in enumerate(calls):
            times[i].append(_between_events(call, repeats[i]) / repeats[i])
    return [statistics.median(one) * 1e6 for one in times]


def _repeats(one_s: float, seconds: float) -> int:
    return max(1, min(int(seconds / _N_ROUNDS / max(one_s, 1e-7)), _MAX_REPEATS))


def _between_events(call: Callable[[], Any], n: int) -> float:
    """Seconds of `n` calls on the GPU."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    for _ in range(n):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def _captured(call: Callable[..., Any], arguments: Sequence[Any]) -> Callable[[], Any]:
    """The call's replay, or the call itself where it can't be captured."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            call(*arguments)
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            call(*arguments)
    except RuntimeError:
        torch.cuda.synchronize()
        return lambda: call(*arguments)
    return graph.replay
