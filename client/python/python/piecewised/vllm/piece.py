"""What vLLM calls for one piece and range."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..errors import PiecewisedError
from .asking import Answer


class Piece:
    """Called by vLLM like what its own compiler gives. `asked`: the answer that it waits for; `call` has the stock compiler make it."""

    def __init__(self, asked: Answer, call: Callable[[], Any]) -> None:
        self.asked = asked
        self.call = call
        self._run: Callable[..., Any] = self._first
        self._is_local = False

    def __call__(self, *args: Any) -> Any:
        """Runs it."""
        return self._run(*args)

    def take(self) -> PiecewisedError | None:
        """Calls what the daemon gave from now on. Why that can't be; None: it can."""
        try:
            self._run = self.asked.runnable()
        except PiecewisedError as error:
            return error
        return None

    def replace(self, run: Callable[..., Any]) -> None:
        """Calls what was compiled here from now on."""
        self._run = run
        self._is_local = True

    def __getattr__(self, name: str) -> Any:
        # What can be serialised has a method for it, and vLLM looks whether there is one.
        if name != "serialize" or "_run" not in self.__dict__:
            raise AttributeError(name)
        return self._run.serialize if self._is_local else self.asked.serialize

    def _first(self, *args: Any) -> Any:
        """A call before the backend's call is at its end: waits."""
        error = self.asked.wait(None) or self.take()
        if error is not None:
            raise error
        return self._run(*args)
