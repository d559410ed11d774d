"""From a handle to what can be called: fetched, loaded, and counted.

Pieces that are alike share one artifact, and here one loaded program: it is kept for as long as some piece uses it.
"""

from __future__ import annotations

import json
import os
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from . import _core
from .errors import ArtifactError, PiecewisedError

Runnable = Callable[..., Any]

# By digest, entry and GPU. Two threads that load the same at once both do; one of the results is kept.
_loaded: weakref.WeakValueDictionary[tuple[str, str, int | None], Any] = weakref.WeakValueDictionary()


@dataclass(frozen=True)
class Compiled:
    """One entry of a plan, ready to be called."""

    #: Names the artifact and says what it is.
    handle: dict[str, Any]
    #: What runs each part of it that the handle names.
    runnables: Mapping[str, Runnable]
    #: "store", "compiled", "joined"; empty: it did not come from a daemon just now.
    source: str = ""


def check_fits(what: str, toolchain: dict[str, str], devices: list[dict[str, str]]) -> None:
    """Raises ArtifactError unless this process can run what was made by ``toolchain`` for ``devices``."""
    from .runtime import fingerprint
    from .runtime.load import toolchain_name

    ours = fingerprint.toolchain()
    if toolchain["fingerprint"] != ours["fingerprint"]:
        raise ArtifactError(
            f"{what} was made by {toolchain_name(toolchain)}; this process is {toolchain_name(ours)}",
            reason="TOOLCHAIN_MISMATCH",
        )
    for device in devices:
        here = fingerprint.devices(device["type"])
        if device not in here:
            raise ArtifactError(
                f"{what} is for the device {device}; this process has {here or 'none of that kind'}",
                reason="NO_DEVICE",
            )


def load_folder(handle: dict[str, Any], folder: str | os.PathLike[str], device_index: int | None = None) -> Compiled:
    """What a handle names, from its materialised artifact, for the GPU of that index; None: the current one, where it is for a GPU.
    Raises ArtifactError."""
    # Late: the loader brings in torch, and the tests of everything else don't need it.
    from .runtime.load import load_entry

    check_fits(f"artifact {handle['digest'][:12]}", handle["toolchain"], [handle["device"]])
    index = index_for(handle, device_index)
    runnables: dict[str, Runnable] = {}
    for entry in {segment["entry"] for segment in handle["segments"]}:
        key = (handle["digest"], entry, index)
        run = _loaded.get(key)
        if run is None:
            try:
                run = load_entry(folder, entry, index or 0)
            except PiecewisedError:
                raise
            except Exception as error:
                raise ArtifactError(
                    f"artifact {handle['digest'][:12]} can't be loaded: {type(error).__name__}: {error}",
                    reason="LOAD_FAILED",
                    metadata={"digest": handle["digest"], "entry": entry},
                ) from error
            _loaded[key] = run
        runnables[entry] = run
    return Compiled(handle, runnables)


def index_for(handle: dict[str, Any], device_index: int | None) -> int | None:
    """Which GPU of this process an artifact is loaded for; None: it is for a CPU."""
    if handle["device"]["type"] != "cuda":
        return None
    if device_index is not None:
        return device_index
    import torch

    return int(torch.cuda.current_device())


def fetch_and_load(
    client: _core.Client,
    handle: dict[str, Any],
    source: str,
    stop: _core.Stop | None = None,
    device_index: int | None = None,
) -> tuple[Compiled, dict[str, Any]]:
    """What a handle names, and the record of it for :func:`piecewised.stats`."""
    fetched = client.fetch(json.dumps(handle), stop)
    started = time.perf_counter()
    compiled = replace(load_folder(handle, fetched.folder, device_index), source=source)
    record = {
        "key": handle["key"],
        "range": handle["range"],
        "source": source,
        "tuning": handle["tuning"]["mode"],
        "compile_s": handle["timings"]["total_s"],
        "size_bytes": fetched.size_bytes,
        "fetch_s": fetched.seconds,
        "was_local": fetched.was_local,
        "load_s": time.perf_counter() - started,
    }
    return compiled, record
