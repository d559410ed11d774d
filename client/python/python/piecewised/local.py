"""What happens without the daemon: Inductor compiles in this process, as backend="inductor" would.

Each reason is said once per process, with what to do about it, and counted in :func:`piecewised.stats`.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from typing import Any, cast

from . import counters
from .errors import OptionError, PiecewisedError, PiecewisedWarning

log = logging.getLogger(__name__)

# By reason: what a person can do about it.
_ADVICE = {
    "UNREACHABLE": "start it with `piecewised serve`, or name its address with PIECEWISED_ENDPOINT",
    "NO_TOOLCHAIN": "start the daemon with --python naming an interpreter that has this torch",
    "TOOLCHAIN_MISMATCH": "start the daemon with --python naming this process's interpreter",
    "NEEDS_GRADIENT": "wrap the call in torch.inference_mode() or torch.no_grad()",
    "CACHE_NOT_PRIVATE": "name another folder with PIECEWISED_CACHE_DIR",
    "CACHE_IO": "make room, or name another folder with PIECEWISED_CACHE_DIR",
    "BUDGET_SPENT": "raise the option budget_s; the daemon goes on, so that the next start finds what it made",
}


def compile_locally(
    gm: Any, example_inputs: Sequence[Any], inductor: dict[str, Any], why: PiecewisedError
) -> Callable[..., Any]:
    """Compiles ``gm`` by Inductor in this process, and says why."""
    reason = why.reason or type(why).__name__
    if counters.record_local(reason):
        advice = _ADVICE.get(reason)
        warnings.warn(
            f"piecewised: {_sentence(why)}. The model runs all the same: this process compiles it by itself, as every "
            f"other one has to.{f' To change that, {advice}.' if advice else ''}",
            PiecewisedWarning,
            stacklevel=2,
        )
    else:
        log.debug("compiling locally: %s", why)
    # Late: this brings Inductor into a process that otherwise needs no compiler.
    from torch._inductor import config
    from torch._inductor.compile_fx import compile_fx

    known = config.get_config_copy()
    for name in inductor:
        if name not in known:
            raise OptionError(
                f"Inductor has no option {name!r}", reason="UNKNOWN_OPTION", metadata={"option": name}
            ) from why
    return cast("Callable[..., Any]", compile_fx(gm, list(example_inputs), config_patches=dict(inductor)))


def _sentence(error: PiecewisedError) -> str:
    return str(error).strip().rstrip(".")
