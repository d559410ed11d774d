"""The entries of one piece, and what each is waiting for.

An entry is asked for at most once, by whoever comes first, and gets one end: something to call, or an error. Threads
wait for the entry that they need and for no other.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from . import _core
from .errors import ArtifactError, PiecewisedError
from .guards import finder
from .loading import Compiled, Runnable
from .plan import Entry, entry_name


@dataclass
class State:
    """One entry."""

    span: Entry
    #: Whether somebody has asked for it.
    is_asked: bool = False
    #: From a size to what runs it; raises NotCovered. Set at a good end.
    find: Callable[[int], Runnable] | None = None
    #: Where what runs it came from an artifact.
    compiled: Compiled | None = None
    #: Set at a bad end.
    error: PiecewisedError | None = None

    @property
    def has_end(self) -> bool:
        """Whether it is known what became of it."""
        return self.find is not None or self.error is not None


class Entries:
    """Entries by position. ``argument``: the one that is dispatched on, None without a symbolic input."""

    def __init__(self, spans: Sequence[Entry], argument: int | None, returns_tuple: bool | None) -> None:
        self.states = [State(span) for span in spans]
        self.argument = argument
        self._unpacks = returns_tuple is False
        self._table = _core.DispatchTable(list(spans))
        self._changed = threading.Condition()
        self._is_finished = False

    def position(self, size: int) -> int:
        """The entry for a size. Raises NotCovered."""
        return self._table.lookup(size)

    def ask(self, positions: Sequence[int]) -> list[int]:
        """Those of them that nobody has asked for before, and that the caller now has to see to."""
        with self._changed:
            new = [position for position in positions if not self.states[position].is_asked]
            for position in new:
                self.states[position].is_asked = True
            return new

    def wait(self, position: int) -> State:
        """Waits for the end of an entry that was asked for."""
        state = self.states[position]
        if not state.has_end:
            with self._changed:
                # Without a deadline: whoever was asked promises an end, and Ctrl-C ends the wait.
                self._changed.wait_for(lambda: state.has_end)
        return state

    def put_callable(self, position: int, run: Runnable) -> None:
        """A callable for every size of an entry."""
        run = self._returning(run, is_sequence=True)
        self._end(position, find=lambda size: run)

    def put(self, position: int, compiled: Compiled) -> None:
        """A compiled entry. Raises ArtifactError where it is another one's."""
        self._end(position, find=self._finder(position, compiled), compiled=compiled)

    def replace(self, position: int, compiled: Compiled) -> Compiled | None:
        """Other code for an entry that can be called; what was there. Raises as ``put`` does, and has changed nothing then."""
        was = self.states[position].compiled
        self.put(position, compiled)
        return was

    def _finder(self, position: int, compiled: Compiled) -> Callable[[int], Runnable]:
        state = self.states[position]
        handle = compiled.handle
        found = handle["dispatch_argument"]
        if found != self.argument:
            raise ArtifactError(
                f"what was compiled for {entry_name(state.span)} is dispatched on {_argument(found)}, and this piece on "
                f"{_argument(self.argument)}",
                reason="BAD_HANDLES",
            )
        if handle["range"] is not None and tuple(handle["range"]) != state.span:
            raise ArtifactError(
                f"what is to run {entry_name(state.span)} was compiled for {entry_name(tuple(handle['range']))}",
                reason="BAD_HANDLES",
            )
        dispatcher = _core.Dispatcher([json.dumps(handle)])
        runs = {
            entry: self._returning(run, is_sequence=handle["returns_tuple"])
            for entry, run in compiled.runnables.items()
        }
        targets = [runs[entry] for _, entry in dispatcher.targets]
        return finder(dispatcher, targets.__getitem__)

    def fail(self, position: int, error: PiecewisedError) -> None:
        """A bad end."""
        self._end(position, error=error)

    def take(self, position: int, run: Runnable) -> None:
        """Something else to call, in place of the bad end that an entry had."""
        self._end(position, find=lambda size: run)

    def finish(self) -> bool:
        """Whether every entry has an end now, and nobody was told so before."""
        with self._changed:
            was_finished = self._is_finished
            self._is_finished = all(state.has_end for state in self.states)
            return self._is_finished and not was_finished

    def forget_parent(self) -> None:
        """In a forked child: nobody sees to what the parent was asked for."""
        self._changed = threading.Condition()
        for state in self.states:
            state.is_asked = state.has_end

    def _end(self, position: int, **end: Any) -> None:
        with self._changed:
            for name, value in end.items():
                setattr(self.states[position], name, value)
            self.states[position].is_asked = True
            self._changed.notify_all()

    def _returning(self, run: Runnable, is_sequence: bool) -> Runnable:
        """With ``returns_tuple=False``, the value of what may give a tuple of one."""
        if not (self._unpacks and is_sequence):
            return run

        def bare(*args: Any) -> Any:
            result = run(*args)
            return result[0] if isinstance(result, tuple | list) else result

        return bare


def _argument(position: int | None) -> str:
    return "nothing (it has no symbolic input)" if position is None else f"argument {position}"
