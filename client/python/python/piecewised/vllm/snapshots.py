"""vLLM's ahead-of-time artifacts, through the daemon: a start with empty folders loads what an earlier one has saved, and needs no Dynamo.

vLLM names each by a hash of its configuration and verifies the sources when it loads one; the daemon keeps it as a snapshot under
that name, and the rank's.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vllm.logger import init_logger

from .. import counters
from . import node

log = init_logger("vllm.piecewised")


def load(original: Callable[..., Any], model: Any, path: str) -> Any:
    """decorators._try_load_aot_compiled_fn: what is not there is fetched first."""
    if not os.path.exists(path):
        _fetch(Path(path))
    return original(model, path)


def save(original: Callable[..., Any], model: Any) -> None:
    """save_aot_compiled_function of a model's class: what vLLM has saved is put into the daemon too."""
    from vllm.compilation.counter import compilation_counter

    n_saved = compilation_counter.num_aot_artifacts_saved
    original(model)
    if compilation_counter.num_aot_artifacts_saved > n_saved:
        _put(Path(model._aot_compilation_path))


def _fetch(path: Path) -> None:
    try:
        data = node.fetch(_name(path))
        if data is None:
            return
        node.lay_down(path, data)
    except Exception as error:
        _failed("fetched", error)
        return
    counters.record_snapshot("n_fetched")
    log.info("piecewised: vLLM's compile %s came from the daemon (%.1f MB)", _name(path)[:12], len(data) / 1e6)


def _put(path: Path) -> None:
    try:
        node.put(_name(path), path.read_bytes())
    except Exception as error:
        _failed("kept", error)
        return
    counters.record_snapshot("n_put")


# Whatever goes wrong here: vLLM has its own way, and takes it.
def _failed(what: str, error: Exception) -> None:
    counters.record_snapshot("n_failed")
    log.log(
        node.level(error),
        "piecewised: vLLM's compile could not be %s by the daemon, so that starts with empty folders trace anew: %s",
        what,
        error,
    )


def _name(path: Path) -> str:
    """Of `.../<hash>/rank_<rank>_<data parallel rank>/model`."""
    return f"{path.parent.parent.name}/{path.parent.name}"
