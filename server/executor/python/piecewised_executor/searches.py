"""The configuration that coordinate descent ends with for a Triton kernel: known from other compiles, where it is (`measured`).

Small kernels between matrix products are in several pieces of a model, and a search compiles and times some ten to twenty configurations, one after the other.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

from torch._inductor.runtime.triton_heuristics import CachingAutotuner, HeuristicType

from . import measured

# These are not searched for.
_FIXED = (HeuristicType.TEMPLATE, HeuristicType.USER_AUTOTUNE, HeuristicType.FIXED)

# Innermost last: which of several searches for the same this is, each of which ends for itself.
_numbers: list[int] = []

_original = CachingAutotuner.coordinate_descent_tuning


def install() -> None:
    """Has coordinate descent look here first."""
    CachingAutotuner.coordinate_descent_tuning = _tuned  # type: ignore[method-assign]


@contextlib.contextmanager
def numbered(number: int) -> Iterator[None]:
    """While inside, searches are this one of several."""
    _numbers.append(number)
    try:
        yield
    finally:
        _numbers.pop()


def _tuned(self: Any, launcher: Any, *args: Any, **kwargs: Any) -> Any:
    """CachingAutotuner.coordinate_descent_tuning: the launcher of the best configuration."""
    if self.heuristic_type in _FIXED or self.device_props.type != "cuda":
        return _original(self, launcher, *args, **kwargs)
    entry = measured.Entry("searches", _premises(self, launcher, args), on_gpu=True)
    with entry.open_lock() as lock:
        measured.wait(lock, lambda: entry.found() is not None)
        if (known := _known(self, launcher, entry.found())) is not None:
            return known
        best = _original(self, launcher, *args, **kwargs)
        config = best.config
        entry.write([config.kwargs, config.num_warps, config.num_stages])
        return best


def _premises(self: Any, launcher: Any, args: tuple[Any, ...]) -> list[Any]:
    if self.fn.fn is None:
        # It was compiled by another process, which keeps the source to itself; the search would load it too.
        self.fn = self._reload_kernel().fn
    # Its number in the graph is part of its name.
    source = self.fn.src.replace(self.fn.__name__, "kernel")
    meta = {name: str(value) for name, value in self.triton_meta.items() if name != "device"}
    numbers = [value for value in args if isinstance(value, int)]
    # Not the configuration that the search begins with: which of several was the fastest is another one now and then.
    names = sorted(launcher.config.kwargs)
    return [source, sorted(meta.items()), str(self.size_hints), names, numbers, _numbers[-1:]]


def _known(self: Any, launcher: Any, found: Any) -> Any:
    """The launcher of a configuration that was found; None: there is none that is like the one that the search begins with."""
    try:
        values, n_warps, n_stages = found
        is_alike = values.keys() == launcher.config.kwargs.keys() and all(
            isinstance(value, int) for value in (*values.values(), n_warps, n_stages)
        )
    except (TypeError, ValueError, AttributeError):
        return None
    if not is_alike:
        return None
    config = copy.copy(launcher.config)
    config.kwargs, config.num_warps, config.num_stages = values, n_warps, n_stages
    config.found_by_coordesc = True
    with self.lock:
        return self._precompile_config(config).make_launcher()
