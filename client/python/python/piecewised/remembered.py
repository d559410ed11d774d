"""What was found for a call, remembered until it is to be forgotten."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

from .loading import Runnable

# Sizes beyond this many are looked up each time; a server sees some thousands at most.
_MAX_REMEMBERED = 1 << 16

Key = TypeVar("Key", bound=Hashable)


class Remembered(dict[Key, Runnable]):
    """From a size to what runs it. Finds it by ``find`` for a size that it doesn't have; what that raises isn't kept.

    ``plain`` makes a key of what a call has: a SymInt or a numpy integer is a size too, but no key of its own.
    """

    __slots__ = ("_epoch", "_find", "_plain")

    def __init__(self, find: Callable[[Key], Runnable], plain: Callable[[Any], Key]) -> None:
        super().__init__()
        self._find = find
        self._plain = plain
        self._epoch = object()

    def __missing__(self, key: Any) -> Runnable:
        epoch = self._epoch
        plain = self._plain(key)
        run = self._find(plain)
        if len(self) < _MAX_REMEMBERED:
            self[plain] = run
            if self._epoch is not epoch:
                # Forgotten since: what was found may be what is not to be run any more.
                self.pop(plain, None)
        return run

    def forget(self) -> None:
        """Every size is found anew, by the calls that follow. For after what ``find`` finds has changed: no thread remembers what was
        before, whatever it was in the middle of."""
        self._epoch = object()
        self.clear()
