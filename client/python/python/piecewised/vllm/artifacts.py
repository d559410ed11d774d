"""Pieces inside vLLM's own ahead-of-time artifacts: an artifact of the daemon's with its handle, whole and checked when it is loaded again."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .. import _core, credentials
from ..errors import ArtifactError
from ..loading import Compiled, load_folder
from ..piece import Piece


@dataclass(frozen=True)
class Bundle:
    """One piece for one range: `parts` are what Cache.to_bundle gives of each artifact, which need neither daemon nor cache folder. Pickled by vLLM."""

    parts: tuple[bytes, ...]


def bundle(handles: Sequence[dict[str, Any]]) -> Bundle:
    """The artifacts that handles name, which this process has loaded. Raises ArtifactError where one is gone from the cache folder."""
    cache = _core.Cache(**credentials.of_cache())
    parts = []
    for handle in handles:
        part = cache.to_bundle(json.dumps(handle))
        if part is None:
            raise ArtifactError(
                f"artifact {handle['digest'][:12]} is no longer in the cache folder, so it can't be saved; nothing else deletes from "
                "PIECEWISED_CACHE_DIR while workers run",
                reason="NOT_HERE",
            )
        parts.append(part)
    return Bundle(tuple(parts))


def load(found: Bundle) -> Callable[..., Any]:
    """What was bundled, ready to be called. Raises PiecewisedError for bytes that are damaged or don't fit this process."""
    cache = _core.Cache(**credentials.of_cache())
    taken = [cache.take_bundle(part) for part in found.parts]
    return runnable([load_folder(json.loads(text), folder) for text, folder in taken])


def runnable(compiled: Sequence[Compiled]) -> Callable[..., Any]:
    """What runs a piece, for any size that its handles are for. Raises PiecewisedError."""
    runnables = {(i, entry): run for i, one in enumerate(compiled) for entry, run in one.runnables.items()}
    return Piece([json.dumps(one.handle) for one in compiled], runnables).run


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
