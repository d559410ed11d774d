"""Pieces inside vLLM's own ahead-of-time artifacts: an artifact of the daemon's with its handle, whole and checked when it is loaded again."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .. import _core, credentials
from ..errors import ArtifactError
from ..loading import Compiled, load_folder
from ..piece import Piece


@dataclass(frozen=True)
class Bundle:
    """One piece for one range: `data` is what Cache.to_bundle gives, which needs neither daemon nor cache folder. Pickled by vLLM."""

    data: bytes


def bundle(handle: dict[str, Any]) -> Bundle:
    """The artifact that a handle names, which this process has loaded. Raises ArtifactError where it is gone from the cache folder."""
    data = _core.Cache(**credentials.of_cache()).to_bundle(json.dumps(handle))
    if data is None:
        raise ArtifactError(
            f"artifact {handle['digest'][:12]} is no longer in the cache folder, so it can't be saved; nothing else deletes from "
            "PIECEWISED_CACHE_DIR while workers run",
            reason="NOT_HERE",
        )
    return Bundle(data)


def load(found: Bundle) -> Callable[..., Any]:
    """What was bundled, ready to be called. Raises PiecewisedError for bytes that are damaged or don't fit this process."""
    text, folder = _core.Cache(**credentials.of_cache()).take_bundle(found.data)
    return runnable(load_folder(json.loads(text), folder))


def runnable(compiled: Compiled) -> Callable[..., Any]:
    """What runs a piece, for any size that its handle is for. Raises PiecewisedError."""
    runnables = {(0, entry): run for entry, run in compiled.runnables.items()}
    return Piece([json.dumps(compiled.handle)], runnables).run


def load_all(original: Callable[..., Any], store: Any) -> None:
    """StandaloneCompiledArtifacts.load_all, which knows its own kind only: pieces of the daemon's are loaded here."""
    from vllm.compilation.counter import compilation_counter

    if len(store.loaded_submodule_store) == len(store.submodule_bytes_store):
        return
    loaded: dict[str, Any] = {}
    for digest, data in store.submodule_bytes_store.items():
        entry = pickle.loads(data)
        if isinstance(entry, Bundle):
            loaded[digest] = load(entry)
            compilation_counter.num_compiled_artifacts_loaded += 1
    if not loaded:
        original(store)
        return
    every = store.submodule_bytes_store
    try:
        store.submodule_bytes_store = {digest: data for digest, data in every.items() if digest not in loaded}
        original(store)
    finally:
        store.submodule_bytes_store = every
    store.loaded_submodule_store.update(loaded)
