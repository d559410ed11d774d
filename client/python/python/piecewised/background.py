"""Threads that wait for the daemon while the process goes on.

They never keep the process from ending: at exit whatever they wait for is ended, and they are joined before the
interpreter goes, since a thread that comes back from native code into an interpreter that is gone takes the process
down. A forked child has none of its parent's.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
from collections.abc import Callable

from . import _core

log = logging.getLogger(__name__)

_JOIN_S = 5.0

_is_ending = False
_live: dict[threading.Thread, _core.Stop] = {}
_lock = threading.Lock()


def start(work: Callable[[_core.Stop], None], name: str) -> None:
    """Runs ``work`` in a thread; it hands the Stop that it gets to every native call that waits."""
    stop = _core.Stop()

    def run() -> None:
        try:
            work(stop)
        except Exception:
            log.exception("%s ended with an error of its own", name)
        finally:
            with _lock:
                _live.pop(threading.current_thread(), None)

    thread = threading.Thread(target=run, name=name, daemon=True)
    with _lock:
        _live[thread] = stop
    thread.start()


def is_ending() -> bool:
    """Whether the process is about to end: what goes wrong from then on is nobody's concern."""
    return _is_ending


def _end() -> None:
    global _is_ending  # noqa: PLW0603
    _is_ending = True
    with _lock:
        live = dict(_live)
    for stop in live.values():
        stop.set()
    for thread in live:
        thread.join(_JOIN_S)


def _in_child() -> None:
    global _lock  # noqa: PLW0603
    # Another thread of the parent may have held it.
    _lock = threading.Lock()
    _live.clear()


atexit.register(_end)
os.register_at_fork(after_in_child=_in_child)
