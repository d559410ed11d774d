"""Finding what runs a call whose code has guards.

Guards that are about nothing but the size are decided when a size is seen for the first time, like everything else that a
dispatcher finds. Where they are about other sizes of the call as well, those are read from its arguments and are part of
what is remembered. Where there are no guards, nothing here is on the way of a call.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

from . import _core
from .loading import Runnable

# Sizes beyond this many are looked up each time; a server sees some thousands at most.
_MAX_REMEMBERED = 1 << 16

Key = TypeVar("Key", bound=Hashable)
Place = tuple[int, "int | None"]


class Remembered(dict[Key, Runnable]):
    """From a size to what runs it. Finds it by ``find`` for a size that it doesn't have; what that raises isn't kept.

    ``plain`` makes a key of what a call has: a SymInt or a numpy integer is a size too, but no key of its own.
    """

    __slots__ = ("_find", "_plain")

    def __init__(self, find: Callable[[Key], Runnable], plain: Callable[[Any], Key]) -> None:
        super().__init__()
        self._find = find
        self._plain = plain

    def __missing__(self, key: Any) -> Runnable:
        plain = self._plain(key)
        run = self._find(plain)
        if len(self) < _MAX_REMEMBERED:
            self[plain] = run
        return run


def finder(dispatcher: _core.Dispatcher, targets: Sequence[Runnable]) -> Callable[[int], Runnable]:
    """From a size to what runs every call of that size. It raises NotCovered; where guards need more than the size, what it
    gives raises that at the call."""
    places = dispatcher.places

    def find(size: int) -> Runnable:
        if not dispatcher.depends_on_values(size):
            return targets[dispatcher.lookup(size)]
        return _by_values(lambda values: targets[dispatcher.lookup(size, values)], places)

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
