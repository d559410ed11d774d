"""Finding what runs a call whose code has guards.

Guards that are about nothing but the size are decided when a size is seen for the first time, like everything else that a
dispatcher finds. Where they are about other sizes of the call as well, those are read from its arguments and are part of
what is remembered. Where there are no guards, nothing here is on the way of a call.

What a finder has found is of the dispatcher that it was made with: whoever replaces code makes a new finder, and forgets what the
old one has found, what it remembers by other sizes with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from . import _core
from .loading import Runnable
from .remembered import Remembered

Place = tuple[int, "int | None"]


def finder(dispatcher: _core.Dispatcher, runnable: Callable[[int], Runnable]) -> Callable[[int], Runnable]:
    """From a size to what runs every call of that size. It raises NotCovered; where guards need more than the size, what it
    gives raises that at the call. ``runnable``: what runs one of the dispatcher's targets, by position."""
    places = dispatcher.places

    def find(size: int) -> Runnable:
        if not dispatcher.depends_on_values(size):
            return runnable(dispatcher.lookup(size))
        return _by_values(lambda values: runnable(dispatcher.lookup(size, values)), places)

    return find


def _by_values(find: Callable[[tuple[int, ...]], Runnable], places: Sequence[Place]) -> Runnable:
    """What runs calls of one size, by the other values that guards are about."""
    runs = Remembered(find, lambda values: tuple(map(int, values)))

    def run(*args: Any) -> Any:
        values = tuple(
            args[argument] if dimension is None else args[argument].shape[dimension] for argument, dimension in places
        )
        return runs[values](*args)

    return run
