"""Tuned code that comes later: a piece starts with what there is, and goes on with what the daemon has tuned meanwhile.

Once the first code of a piece is in use, a thread asks the daemon for the tuned code of the same entries, in the background, and
loads what comes. Each entry is replaced by itself, between two calls: a call that runs finishes on the code it began with, the next
one takes the new. Calls take no lock and look at no flag for it: what runs a size is looked up in a dict of the piece
(:class:`.remembered.Remembered`), and replacing is to make that dict forget.

A CUDA graph that the caller captures goes on with the code it was captured from, whatever is replaced here; and loading code in the
middle of a capture can end it. So while tuned code is awaited, calls on a GPU go through a function that notes whether a capture is
under way, and once one was seen nothing is fetched, loaded or replaced any more in that program: its next start finds the tuned code. Calls are
direct again as soon as an entry is replaced or given up. A capture that begins while an artifact is being loaded is not seen in time:
who captures right after the start says ``swap="never"``. Code that was replaced on a GPU is kept as long as the piece, since a graph may hold it.

Nothing here raises: what goes wrong is counted (:func:`piecewised.stats`) and logged, and the piece goes on with what it has.
"""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from . import _core, background, counters
from .errors import PiecewisedError
from .loading import Compiled, Runnable
from .plan import Entry, entry_name
from .submission import Request, follow

log = logging.getLogger(__name__)


class Captures:
    """Whether a capture was seen in any piece of a program."""

    __slots__ = ("seen",)

    def __init__(self) -> None:
        self.seen = False


class Tier:
    """The entries of one piece that run what is not tuned yet.

    ``replace`` puts something else in the place of an entry's code and gives back what was there; ``forget`` has every runnable looked up
    anew.
    """

    def __init__(
        self,
        swap: str,
        captures: Captures,
        *,
        replace: Callable[[int, Compiled], object],
        forget: Callable[[], None],
    ) -> None:
        self._is_swapping = swap != "never"
        self._captures = captures
        self._replace = replace
        self._forget = forget
        # By position: whether it runs on a GPU.
        self._waiting: dict[int, bool] = {}
        self._kept: list[object] = []
        _all.add(self)

    def expect(self, position: int, compiled: Compiled) -> None:
        """An entry is about to be called with this. Told before it is, so that no capture goes unseen."""
        if compiled.handle["tuning"]["mode"] != "full":
            self._waiting[position] = compiled.handle["device"]["type"] == "cuda"
            counters.record_tier("n_waiting")

    def withdraw(self, position: int) -> None:
        """It won't be called with that after all."""
        if self._waiting.pop(position, None) is not None:
            counters.record_tier("n_waiting", -1)

    def watched(self, position: int, run: Runnable) -> Runnable:
        """What to call in place of ``run``: itself, but on a GPU while it may be replaced."""
        if not (self._is_swapping and self._waiting.get(position)):
            return run
        return _watching(run, self._captures)

    def follow(self, request: Request, spans: Sequence[Entry], positions: Sequence[int], stop: _core.Stop) -> None:
        """Has the entries tuned, and replaces each as it comes. ``positions``: of the spans, in the piece's plan. For a thread of its own."""
        if not any(position in self._waiting for position in positions) or background.is_ending():
            return
        try:
            follow(request.tuned(), list(spans), None, _Sink(self, spans, positions), stop)
        finally:
            for position in positions:
                self._end(position, "n_failed")

    def wants(self, position: int, what: str) -> bool:
        """Whether an entry is still to be replaced."""
        if position not in self._waiting:
            return False
        if self._is_swapping and not self._captures.seen:
            return True
        why = "a CUDA graph was captured" if self._is_swapping else "swap is 'never'"
        log.debug("the tuned code of %s is left to the next start: %s", what, why)
        self._end(position, "n_kept")
        return False

    def ready(self, position: int, compiled: Compiled, what: str) -> None:
        """The tuned code of an entry is loaded."""
        if not self.wants(position, what):
            return
        replaced = self._replace(position, compiled)
        if self._waiting.get(position):
            self._kept.append(replaced)
        log.debug("%s goes on with its tuned code", what)
        self._end(position, "n_swapped")

    def failed(self, position: int, error: PiecewisedError, what: str) -> None:
        """The tuned code of an entry can't be had."""
        if position not in self._waiting:
            return
        is_first = counters.record_tier_failure(error.reason or type(error).__name__)
        level = logging.WARNING if is_first and not background.is_ending() else logging.DEBUG
        log.log(level, "the tuned code of %s can't be had, it goes on with what it has: %s", what, error)
        self._end(position, "n_failed")

    def forget_parent(self) -> None:
        """In a forked child: nobody sees to what the parent has asked for."""
        self._waiting.clear()
        self._forget()

    def _end(self, position: int, outcome: str) -> None:
        """It is known what became of an entry. From here on calls of it are direct."""
        if self._waiting.pop(position, None) is not None:
            counters.record_tier("n_waiting", -1)
            counters.record_tier(outcome)
            self._forget()


def _watching(run: Runnable, captures: Captures) -> Runnable:
    import torch

    is_capturing = torch.cuda.is_current_stream_capturing

    def watching(*args: Any) -> Any:
        if is_capturing():
            captures.seen = True
        return run(*args)

    return watching


class _Sink:
    """Tells a tier what became of the entries at ``positions``."""

    def __init__(self, tier: Tier, spans: Sequence[Entry], positions: Sequence[int]) -> None:
        self._tier = tier
        self._names = [entry_name(span) for span in spans]
        self._positions = positions

    def wants(self, position: int) -> bool:
        return self._tier.wants(self._positions[position], self._names[position])

    def ready(self, position: int, compiled: Compiled) -> None:
        try:
            self._tier.ready(self._positions[position], compiled, self._names[position])
        except PiecewisedError as error:
            self.failed(position, error)

    def failed(self, position: int, error: PiecewisedError) -> None:
        self._tier.failed(self._positions[position], error, self._names[position])


_all: weakref.WeakSet[Tier] = weakref.WeakSet()


def _in_child() -> None:
    for tier in list(_all):
        tier.forget_parent()


os.register_at_fork(after_in_child=_in_child)
