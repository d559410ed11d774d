"""vLLM's ahead-of-time artifacts, through the daemon: a start with empty folders loads what an earlier one has saved, and needs no Dynamo.

vLLM names each by a hash of its configuration and verifies the sources when it loads one; the daemon keeps it as a snapshot under
that name, and the rank's.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vllm.logger import init_logger

from .. import counters
from ..connections import connect
from ..errors import ConnectionBroken, Unreachable
from .worker import FRONTEND

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
        data = connect(None).fetch_snapshot(FRONTEND, _name(path), _toolchain())
        if data is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        # Under its name only when it is whole: other processes look there.
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(data)
        os.replace(file.name, path)
    except Exception as error:
        _failed("fetched", error)
        return
    counters.record_snapshot("n_fetched")
    log.info("piecewised: vLLM's compile %s came from the daemon (%.1f MB)", _name(path)[:12], len(data) / 1e6)


def _put(path: Path) -> None:
    try:
        connect(None).put_snapshot(FRONTEND, _name(path), _toolchain(), path.read_bytes())
    except Exception as error:
        _failed("kept", error)
        return
    counters.record_snapshot("n_put")


# Whatever goes wrong here: vLLM has its own way, and takes it.
def _failed(what: str, error: Exception) -> None:
    counters.record_snapshot("n_failed")
    # That there is no daemon, or no longer one, is said once, where the pieces are compiled.
    level = logging.DEBUG if isinstance(error, (Unreachable, ConnectionBroken)) else logging.WARNING
    log.log(
        level,
        "piecewised: vLLM's compile could not be %s by the daemon, so that starts with empty folders trace anew: %s",
        what,
        error,
    )


def _name(path: Path) -> str:
    """Of `.../<hash>/rank_<rank>_<data parallel rank>/model`."""
    return f"{path.parent.parent.name}/{path.parent.name}"


def _toolchain() -> str:
    from ..runtime import fingerprint

    return fingerprint.toolchain()["fingerprint"]
