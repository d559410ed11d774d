"""How long the candidates for an operation take, as `max_autotune` measures them: known from other compiles, where they are (`measured`).

Who measures compiles the candidates and times them. Who takes the times compiles none of them, only the winner.

Who waits owes nobody anything: it measures first what it has locks on itself. Else two that wait for each other would wait for long.
"""

from __future__ import annotations

import contextlib
import functools
import io
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch._inductor.select_algorithm import AlgorithmSelectorCache

from . import measured

# Milliseconds by candidate; infinite: it cannot be run.
Times = dict[Any, float]


class _Candidates(measured.Entry):
    """The candidates' times for one operation with its inputs' sizes, strides and types. Each has its code's digest."""

    def __init__(self, operation: str, inputs: str) -> None:
        premises = [operation, inputs, torch.get_float32_matmul_precision()]
        super().__init__("candidates", premises, on_gpu="'cuda'" in inputs)

    def times(self, choices: Sequence[Any]) -> Times | None:
        """None: they are not known of all of the candidates."""
        try:
            found = {name: math.inf if one is None else float(one) for name, one in (self.found() or {}).items()}
        except (ValueError, TypeError, AttributeError):
            return None
        names = {choice: choice.hash_key() for choice in choices}
        if not found.keys() >= set(names.values()):
            return None
        return {choice: found[name] for choice, name in names.items()}

    def keep(self, times: Times, failed: Sequence[str]) -> None:
        """For others. `failed`: the hash keys of candidates that could not be compiled."""
        finite = {choice.hash_key(): one if math.isfinite(one) else None for choice, one in times.items()}
        self.write({**dict.fromkeys(failed), **finite})


@dataclass
class _Claim:
    """What this process measures. `finish` does it now."""

    lock: io.TextIOWrapper
    choices: Sequence[Any]
    finish: Callable[[], Any]


_claims: dict[Path, _Claim] = {}
# Of the operation that is being lowered: what a later measurement of it takes beside its candidates.
_lowered: list[tuple[Any, ...]] = []

_original_call = AlgorithmSelectorCache.__call__
_original_precompile = AlgorithmSelectorCache.make_precompile_fn
_original_lookup = AlgorithmSelectorCache.lookup


def install() -> None:
    """Has Inductor's search for the fastest candidate look here first."""
    AlgorithmSelectorCache.__call__ = _call  # type: ignore[method-assign]
    AlgorithmSelectorCache.make_precompile_fn = _make_precompile_fn  # type: ignore[method-assign]
    AlgorithmSelectorCache.lookup = _lookup  # type: ignore[method-assign]


@contextlib.contextmanager
def compiling() -> Iterator[None]:
    """One compile: what it has not measured by its end others may."""
    try:
        yield
    finally:
        for path in list(_claims):
            _release(path)


def _call(self: Any, name: str, choices: Any, input_nodes: Any, layout: Any, *args: Any, **kwargs: Any) -> Any:
    input_gen_fns = args[0] if args else kwargs.get("input_gen_fns")
    _lowered.append((input_nodes, layout, input_gen_fns))
    try:
        return _original_call(self, name, choices, input_nodes, layout, *args, **kwargs)
    finally:
        _lowered.pop()


def _make_precompile_fn(
    self: Any, choices: Sequence[Any], name: str, inputs_key: str, *args: Any, **kwargs: Any
) -> Any:
    """AlgorithmSelectorCache.make_precompile_fn: what it gives has compiled the candidates when it returns, unless their times are known."""
    entry = _Candidates(name, inputs_key)

    def begin() -> Any:
        return _original_precompile(self, choices, name, inputs_key, *args, **kwargs)

    if not _lowered or entry.path in _claims or entry.times(choices) is not None:
        return begin()
    what = _lowered[-1]

    def claim(lock: io.TextIOWrapper) -> Any:
        precompile = begin()

        def finish() -> Any:
            return self.do_autotuning(name, *what, inputs_key, choices, precompile)

        _claims[entry.path] = _Claim(lock, choices, finish)
        return precompile

    lock = entry.open_lock()
    if measured.takes(lock):
        return claim(lock)

    @functools.cache
    def wait() -> Any:
        _finish_claims()
        is_ours = measured.wait(lock, lambda: entry.times(choices) is not None)
        if entry.times(choices) is not None:
            lock.close()
            return {}
        return (claim(lock) if is_ours else begin())()

    return wait


def _lookup(self: Any, choices: Sequence[Any], op: str, inputs: str, benchmark: Any, **others: Any) -> Times:
    """PersistentCache.lookup, whose cache is this compile's own; what it measures is kept for others."""
    # It is measured once more at other sizes, which the entry does not say.
    if others.get("hint_override") is not None:
        return _original_lookup(self, choices, op, inputs, benchmark, **others)
    entry = _Candidates(op, inputs)
    times = entry.times(choices)
    if times is None:
        times = _original_lookup(self, choices, op, inputs, benchmark, **others)
        if benchmark is not None and times:
            claimed = _claims[entry.path].choices if entry.path in _claims else ()
            known = {choice.hash_key() for choice in times}
            entry.keep(times, [name for choice in claimed if (name := choice.hash_key()) not in known])
    if benchmark is not None:
        _release(entry.path)
    return times


def _finish_claims() -> None:
    """Measures what others may wait for: two that wait for each other would wait for long."""
    for path, claim in list(_claims.items()):
        with contextlib.suppress(Exception):
            # What is wrong with it shows where it is measured for the compile's own sake.
            claim.finish()
        _release(path)


def _release(path: Path) -> None:
    if (claim := _claims.pop(path, None)) is not None:
        claim.lock.close()
