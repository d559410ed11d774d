"""Pieces that this machine has from an earlier start: their handles in vLLM's own cache, their artifacts in the client's cache folder.

A start with warm folders needs no daemon for them, as stock vLLM's needs no compiler. vLLM names its cache by a hash of its configuration and the sources;
what the graph holds is compared here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from vllm.config.utils import Range
from vllm.logger import init_logger

from .. import _core, credentials
from ..errors import PiecewisedError
from ..loading import load_folder
from .asking import Answer

log = init_logger("vllm.piecewised")

# In the place of a compiler's name: stock vLLM, which may use the same folders without the plugin, never asks for it.
_NAME = "piecewised"


def is_noted(manager: Any, size_range: tuple[int, int], index: int) -> bool:
    """Whether an earlier start had the piece for the range. `manager`: vLLM's CompilerManager."""
    return _key(size_range, index) in manager.cache


def note(
    manager: Any, size_range: tuple[int, int], index: int, content: bytes, handles: Sequence[dict[str, Any]]
) -> None:
    """Has the manager keep handles with what else it saves. `content`: digest of the graph."""
    if not manager.disable_cache:
        manager.cache[_key(size_range, index)] = {
            "graph_handle": (content.hex(), json.dumps(handles)),
            "cache_key": None,
        }
        manager.is_cache_updated = True


def find(manager: Any, size_range: tuple[int, int], index: int, content: bytes, device: int | None) -> Answer | None:
    """The piece, loaded. None where the graph is another one, or an artifact is gone or no longer fits this process."""
    try:
        noted, text = manager.cache[_key(size_range, index)]["graph_handle"]
        if noted != content.hex():
            return None
        cache = _core.Cache(**credentials.of_cache())
        compiled = []
        for handle in json.loads(text):
            if (folder := cache.find(json.dumps(handle))) is None:
                return None
            compiled.append(replace(load_folder(handle, folder, device), source="kept"))
        return Answer(compiled)
    except (KeyError, TypeError, ValueError, PiecewisedError) as error:
        log.debug("piecewised: piece %d for %s is not taken from vLLM's cache: %s", index, size_range, error)
        return None


def _key(size_range: tuple[int, int], index: int) -> tuple[Any, int, str]:
    return Range(*size_range), index, _NAME
