"""What this process got from the daemon, and what it did by itself."""

from __future__ import annotations

import copy
import os
import threading
from typing import Any

_lock = threading.Lock()


def _empty() -> dict[str, Any]:
    return {
        # Pieces that run what the daemon compiled, and those compiled here.
        "n_pieces": 0,
        "n_local": 0,
        # How often each reason led to a local compile.
        "local_reasons": {},
        # One record for each compiled range: see record_range().
        "ranges": [],
        # One record for each part of a model that vLLM compiled: see record_part().
        "parts": [],
        # vLLM's ahead-of-time artifacts: see stats().
        "snapshots": {"n_fetched": 0, "n_put": 0, "n_failed": 0},
        # vLLM's own Triton kernels: see stats().
        "kernels": {"n_fetched": 0, "n_put": 0, "n_failed": 0},
        # Ranges that started with code that is not tuned, by what became of that: see stats().
        "tiered": {"n_waiting": 0, "n_swapped": 0, "n_kept": 0, "n_failed": 0, "failed_reasons": {}},
    }


_stats = _empty()
_pid = os.getpid()


def _mine() -> dict[str, Any]:
    """The counters of this process: a forked child starts from nothing."""
    global _stats, _pid
    if _pid != os.getpid():
        _stats, _pid = _empty(), os.getpid()
    return _stats


def stats() -> dict[str, Any]:
    """A copy of the counters of this process.

    ``n_pieces`` and ``n_local``: pieces compiled by the daemon and here; ``local_reasons``: how often each reason led
    to the latter; ``ranges``: for each range that the daemon compiled a dict with ``key``, ``range`` ([start, end], or
    None for a piece without a symbolic input), ``source`` ("store", "compiled", "joined"), ``tuning`` ("fast", "full"),
    ``compile_s`` (of the compile, whenever it was), ``size_bytes``, ``fetch_s``, ``was_local`` (nothing was transferred)
    and ``load_s``. A range whose tuned code came later has a second one.

    ``tiered``: with ``tuning="tiered"``, the ranges that started with code that is not tuned: ``n_waiting`` for the
    tuned code, ``n_swapped`` to it, ``n_kept`` as they are (a CUDA graph was captured, or ``swap="never"``),
    ``n_failed``, with ``failed_reasons``.

    ``parts``: with the vLLM plugin, for each part of a model a dict with ``name``, ``n_pieces``, ``n_distinct`` (by content), ``n_ranges``;
    ``n_compiled`` (for this process), ``n_joined``, ``n_from_store`` and ``n_kept`` (on this machine since an earlier start), of distinct pieces and
    ranges; ``n_local`` (compiled by vLLM's own compiler), of all, with ``local_reasons``; ``compile_s`` (of the first kind), ``saved_s`` (of the others), and ``elapsed_s`` (wall).
    ``snapshots``: of vLLM's ahead-of-time artifacts, those that came from the daemon, were given to it, and could not be; ``kernels``: likewise of Triton
    kernels that vLLM launches beside its compiled graphs, their launchers counted apart.
    """
    with _lock:
        return copy.deepcopy(_mine())


def record_range(**record: Any) -> None:
    """Counts one range that can be called."""
    with _lock:
        _mine()["ranges"].append(record)


def record_piece() -> None:
    """Counts one piece that runs what the daemon compiled."""
    with _lock:
        _mine()["n_pieces"] += 1


def record_part(**record: Any) -> None:
    """Counts one part of a model."""
    with _lock:
        _mine()["parts"].append(record)


def record_snapshot(name: str) -> None:
    """Counts one of vLLM's ahead-of-time artifacts, in ``stats()["snapshots"]``."""
    with _lock:
        _mine()["snapshots"][name] += 1


def record_kernel(name: str) -> None:
    """Counts one of vLLM's own Triton kernels, in ``stats()["kernels"]``."""
    with _lock:
        _mine()["kernels"][name] += 1


def record_tier(name: str, change: int = 1) -> None:
    """Counts one range that is, or no longer is, in this state of ``stats()["tiered"]``."""
    with _lock:
        _mine()["tiered"][name] += change


def record_tier_failure(reason: str) -> bool:
    """Counts the reason for which a range's tuned code can't be had. Whether it is the first time."""
    with _lock:
        reasons: dict[str, int] = _mine()["tiered"]["failed_reasons"]
        reasons[reason] = reasons.get(reason, 0) + 1
        return reasons[reason] == 1


def record_local(reason: str) -> bool:
    """Counts one piece that was compiled here. Whether it is the first for this reason."""
    with _lock:
        mine = _mine()
        mine["n_local"] += 1
        reasons: dict[str, int] = mine["local_reasons"]
        reasons[reason] = reasons.get(reason, 0) + 1
        return reasons[reason] == 1
