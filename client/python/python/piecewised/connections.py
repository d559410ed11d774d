"""Connections to daemons: one per process and set of options, and a short memory for daemons that don't answer."""

from __future__ import annotations

import os
import threading
import time
from typing import Any

from . import _core, credentials
from .errors import Unreachable

# After a daemon didn't answer, the pieces that follow at once don't each wait for it again.
_FORGET_UNREACHABLE_S = 10.0

_clients: dict[tuple[Any, ...], _core.Client] = {}
_unreachable: dict[tuple[Any, ...], tuple[float, Unreachable]] = {}
_lock = threading.Lock()


def connect(
    endpoint: str | None = None, *, budget_s: float | None = None, cache_dir: str | os.PathLike[str] | None = None
) -> _core.Client:
    """The connection for these options. Raises EndpointError and Unreachable."""
    cache = None if cache_dir is None else os.fspath(cache_dir)
    # The variables count when the connection is made; a changed one means another connection.
    key = (
        *(endpoint, cache, budget_s),
        os.environ.get("PIECEWISED_ENDPOINT"),
        os.environ.get("PIECEWISED_CACHE_DIR"),
        credentials.key(),
    )
    with _lock:
        if key in _clients:
            return _clients[key]
        since, error = _unreachable.get(key, (0.0, None))
        if error is not None and time.monotonic() - since < _FORGET_UNREACHABLE_S:
            raise error.with_traceback(None)
        try:
            client = _core.Client(endpoint, budget_s=budget_s, cache_dir=cache, **credentials.of_client())
        except Unreachable as error:
            _unreachable[key] = (time.monotonic(), error)
            raise
        _unreachable.pop(key, None)
        _clients[key] = client
        return client


def made() -> list[_core.Client]:
    """The connections that this process has made."""
    with _lock:
        return list(_clients.values())


def _in_child() -> None:
    # Another thread of the parent may have held it.
    global _lock  # noqa: PLW0603
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_in_child)
