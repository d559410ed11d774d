"""Tells the daemon of pieces that this process compiled without it, for the daemon's metrics.

Best effort, in a thread of its own, and never in anybody's way: what can't be told is kept for the next time, and a daemon that is away, or too
old to listen, changes nothing.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
from collections import Counter

from . import connections

log = logging.getLogger(__name__)

# Pieces that fall back usually do so one right after the other.
_PAUSE_S = 0.5

_lock = threading.Lock()
_pending: Counter[str] = Counter()
_timer: threading.Timer | None = None


def note(reason: str) -> None:
    """Counts one piece that was compiled here."""
    global _timer  # noqa: PLW0603
    with _lock:
        _pending[reason] += 1
        if _timer is None:
            _timer = threading.Timer(_PAUSE_S, _flush)
            _timer.daemon = True
            _timer.start()


def _flush() -> None:
    global _timer  # noqa: PLW0603
    with _lock:
        _timer = None
        reasons = dict(_pending)
        _pending.clear()
    if not reasons or _tell(reasons):
        return
    with _lock:
        _pending.update(reasons)


def _tell(reasons: dict[str, int]) -> bool:
    """Whether a daemon that this process is connected to was told. A connection is not made for this."""
    for client in connections.made():
        try:
            client.report_fallbacks(reasons)
        except Exception as error:
            log.debug("the daemon could not be told of local compiles: %s", error)
        else:
            return True
    return False


def _in_child() -> None:
    # Another thread of the parent may have held the lock, and its timer runs there alone; so are its pieces the parent's.
    global _lock, _timer
    _lock, _timer = threading.Lock(), None
    _pending.clear()


os.register_at_fork(after_in_child=_in_child)
atexit.register(_flush)
