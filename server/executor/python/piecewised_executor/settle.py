"""Autotuning, settled here instead of on every worker: one real call of what was compiled, on the device, before it is packed.

Inductor's Triton kernels come with several configurations and measure them at their first call (coordinate descent
compiles further ones meanwhile). That call is made here, with made-up arguments at the hint, so that each kernel is
left with the configuration that won for the sizes that the range really sees.

Where there is no room for the hint's size, the largest smaller one that fits stands for it; where not even that runs (no
memory at all, an operator that does not take made-up inputs), each kernel keeps its first configuration, which is the
one that Inductor's heuristics put first. The report says so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from . import faults, frontends, inputs, lease
from .errors import describe
from .frontends import Frontend
from .runtime.bounds import fixed_values

_SHARE_OF_MEMORY = 0.5


class Settler:
    """Settles one compile of `graph`, whose program takes the arguments at `kept` (and its constants).

    `size`: what the dispatched dimension is in the call, not below `low` where that has no room; None: no symbolic input. `others`:
    values for other symbols, of which the first are taken for which the code is right, as `is_right` says of all symbols' values.
    """

    def __init__(
        self,
        graph: dict[str, Any],
        dispatched: str | None,
        kept: list[int],
        size: int | None,
        low: int | None,
        *,
        others: list[dict[str, int]],
        is_right: Callable[[dict[str, int]], bool],
        frontend: Frontend = frontends.NONE,
    ) -> None:
        self._graph = graph
        self._dispatched = dispatched
        self._kept = kept
        self._size = size
        self._low = low or 1
        self._others = others
        self._is_right = is_right
        self._frontend = frontend
        #: What was not as it should be; empty: nothing.
        self.note = ""

    def __call__(self, compiled: Callable[..., Any]) -> None:
        """Calls `compiled`, which takes and gives flat tuples."""
        size = self._size
        while True:
            try:
                self._call(compiled, size)
            except torch.OutOfMemoryError as error:
                torch.cuda.empty_cache()
                if size is None or size // 2 < self._low:
                    self.note = f"autotuning is not settled, there was no memory for a call: {describe(error)[:200]}"
                    return
                size //= 2
                continue
            except Exception as error:
                faults.check()
                # Whether the code is right is found out elsewhere; here it only could not be timed.
                self.note = f"autotuning is not settled, a call with made-up inputs failed: {describe(error)[:300]}"
            if not self.note and size != self._size:
                self.note = f"autotuning was settled at size {size}, since {self._size} does not fit"
            torch.cuda.empty_cache()
            return

    def _call(self, compiled: Callable[..., Any], size: int | None) -> None:
        # Run where it is not right, code may write beyond its tensors.
        right = (
            others
            for others in self._others
            if self._is_right(fixed_values(self._graph, self._dispatched, size, others))
        )
        others = next(right, None)
        if others is None:
            raise ValueError(f"the code is not right at size {size}")
        rebuilt = inputs.fake_case(self._graph, self._dispatched, size, others, self._frontend)
        if inputs.n_peak_bytes(rebuilt) > torch.cuda.mem_get_info()[0] * _SHARE_OF_MEMORY:
            raise torch.OutOfMemoryError(f"a call at size {size} needs more than half of what is free")
        with lease.running("cuda"), self._frontend.running():
            # Zeros: whatever an integer indexes, there is one.
            case = inputs.make_case(rebuilt, size, seed=0, integer_bound=1)
            compiled(*(case.arguments[position] for position in self._kept), *case.flat[len(case.rebuilt.kept) :])
            torch.cuda.synchronize()
