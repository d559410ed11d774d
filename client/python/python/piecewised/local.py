"""What happens without the daemon: Inductor compiles in this process, as backend="inductor" would.

Each reason is said once per process, with what to do about it, and counted in :func:`piecewised.stats`.
"""

from __future__ import annotations

import logging
import threading
import types
import warnings
from collections.abc import Callable, Sequence
from typing import Any, cast

from . import counters, reporting
from .errors import OptionError, PiecewisedError, PiecewisedWarning

log = logging.getLogger(__name__)

# By reason: what a person can do about it.
_ADVICE = {
    "UNREACHABLE": "start it with `piecewised serve`, or name its address with PIECEWISED_ENDPOINT",
    "FRONTEND_MISMATCH": "start the daemon with the worker's interpreter and environment",
    "FRONTEND_NOT_TRUSTED": "run the daemon as the worker's user, or start it with --trusted-frontend-peers all",
    "FRONTEND_UNKNOWN": "start the daemon with --python naming an interpreter that has this vLLM",
    "NO_TOOLCHAIN": "start the daemon with --python naming an interpreter that has this torch",
    "TOOLCHAIN_MISMATCH": "start the daemon with --python naming this process's interpreter",
    "NEEDS_GRADIENT": "wrap the call in torch.inference_mode() or torch.no_grad()",
    "CACHE_NOT_PRIVATE": "name another folder with PIECEWISED_CACHE_DIR",
    "CACHE_IO": "make room, or name another folder with PIECEWISED_CACHE_DIR",
    "BUDGET_SPENT": "raise the option budget_s (with vLLM: PIECEWISED_VLLM_BUDGET_S); the daemon goes on, so that the next start finds what it made",
}


def advice(reason: str) -> str:
    """What a person can do about a reason; empty: nothing is known."""
    return _ADVICE.get(reason, "")


def compile_locally(
    gm: Any, example_inputs: Sequence[Any], inductor: dict[str, Any], why: PiecewisedError
) -> Callable[..., Any]:
    """Compiles ``gm`` by Inductor in this process, and says why."""
    _announce(why)
    # Late: this brings Inductor into a process that otherwise needs no compiler.
    from torch._inductor.compile_fx import compile_fx

    _check_options(inductor, why)
    return cast("Callable[..., Any]", compile_fx(gm, list(example_inputs), config_patches=dict(inductor)))


class LocalPiece:
    """A piece compiled in this process, for the ranges that the daemon doesn't have: one compile for all of them.

    Dynamo captures it anew at its first call, as a function of every size. Its guards, unlike the daemon's proof, know
    nothing of ranges: where sizes come that the code is not valid for, it captures again.
    """

    def __init__(self, gm: Any, inductor: dict[str, Any]) -> None:
        self._gm = gm
        self._inductor = inductor
        self._lock = threading.Lock()
        self._run: Callable[..., Any] | None = None

    def runnable(self, why: PiecewisedError) -> Callable[..., Any]:
        """What runs any size; says why it has to."""
        with self._lock:
            _announce(why)
            if self._run is None:
                _check_options(self._inductor, why)
                self._run = _compiled(self._gm, self._inductor)
            return self._run


# While one holds it, Dynamo's settings are others than the process's: see _compiled.
_CAPTURING = threading.Lock()


def _compiled(gm: Any, inductor: dict[str, Any]) -> Callable[..., Any]:
    """What runs a graph for any size, compiled at its first call."""
    import torch
    from torch._inductor.compile_fx import compile_fx

    def backend(captured: Any, example_inputs: Sequence[Any]) -> Any:
        return compile_fx(captured, list(example_inputs), config_patches=dict(inductor))

    function = _function_of(gm)
    # dynamic=True changes a setting of the whole process during each call, and two threads that do so at once can leave
    # it changed. So only the first call has it, one at a time, and the others find what that one compiled.
    # (torch.compile would wrap the backend, and each of the two would have code of its own.)
    first = torch._dynamo.optimize(backend, dynamic=True)(function)
    further = torch._dynamo.optimize(backend)(function)
    is_captured = False

    def run(*args: Any) -> Any:
        nonlocal is_captured
        if not is_captured:
            with _CAPTURING:
                if not is_captured:
                    result = first(*args)
                    is_captured = True
                    return result
        return further(*args)

    return run


def _function_of(gm: Any) -> Callable[..., Any]:
    """A graph as a function that Dynamo captures: the frames of a GraphModule's own call are none that it looks at."""

    def piece(*args: Any) -> Any:
        return gm(*args)

    # Dynamo counts captures by code object, and gives up after some: each piece has its own.
    return types.FunctionType(piece.__code__.replace(), globals(), piece.__name__, None, piece.__closure__)


def count(why: PiecewisedError) -> bool:
    """Counts one piece that is compiled here, for this process and for the daemon. Whether it is the first for this reason."""
    reason = why.reason or type(why).__name__
    reporting.note(reason)
    return counters.record_local(reason)


def _announce(why: PiecewisedError) -> None:
    if count(why):
        what = advice(why.reason)
        warnings.warn(
            f"piecewised: {_sentence(why)}. The model runs all the same: this process compiles it by itself, as every "
            f"other one has to.{f' To change that, {what}.' if what else ''}",
            PiecewisedWarning,
            stacklevel=3,
        )
    else:
        log.debug("compiling locally: %s", why)


def _check_options(inductor: dict[str, Any], why: PiecewisedError) -> None:
    from torch._inductor import config

    known = config.get_config_copy()
    for name in inductor:
        if name not in known:
            raise OptionError(
                f"Inductor has no option {name!r}", reason="UNKNOWN_OPTION", metadata={"option": name}
            ) from why


def _sentence(error: PiecewisedError) -> str:
    return str(error).strip().rstrip(".")
