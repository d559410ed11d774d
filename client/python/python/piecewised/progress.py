"""How far the compiles of one piece are: one line per range on stderr, redrawn in place.

On anything but a terminal nothing is written, unless it was asked for: then one line when a range is done.
"""

from __future__ import annotations

import sys
import time
from typing import Any, TextIO

_BAR = 10
# The phases of a job and how much of it is done when each begins, for the bar. Nothing depends on it.
_SHARE = {"queued": 0.0, "started": 0.05, "rebuild": 0.1, "compile": 0.25, "prove": 0.8, "pack": 0.9, "store": 0.95}


class Progress:
    """The display of one piece. Use as a context manager: leaving it ends the display."""

    def __init__(self, entries: list[tuple[int, int]] | None, wanted: bool | None, out: TextIO | None = None) -> None:
        """``entries``: the plan's, None for a piece without a symbolic input. ``wanted`` None: only on a terminal."""
        self._out = out if out is not None else sys.stderr
        is_terminal = _is_terminal(self._out)
        self._redraws = is_terminal and wanted is not False
        self._writes = self._redraws or wanted is True
        self._names = ["any size"] if entries is None else [_range_name(*entry) for entry in entries]
        self._width = max(map(len, self._names))
        self._states = [("queued", "") for _ in self._names]
        self._started = time.monotonic()
        self._n_drawn = 0

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._n_drawn:
            self._out.flush()

    def update(self, event: dict[str, Any]) -> None:
        """Takes notice of an event of the compile."""
        state = _state(event)
        if not self._writes or state is None:
            return
        index = event["index"]
        if self._states[index][0] in ("ready", "failed") and state[0] not in ("loaded", "failed"):
            return
        self._states[index] = state
        if self._redraws:
            self._draw()
        elif state[0] in ("loaded", "failed"):
            self._out.write(f"piecewised {self._line(index)}\n")

    def loaded(self, index: int, words: str) -> None:
        """A range can be called now."""
        self.update({"event": "loaded", "index": index, "words": words})

    def _draw(self) -> None:
        lines = [f"piecewised {self._line(index)}\x1b[K\n" for index in range(len(self._names))]
        if self._n_drawn:
            lines.insert(0, f"\x1b[{self._n_drawn}A")
        self._out.write("".join(lines))
        self._out.flush()
        self._n_drawn = len(self._names)

    def _line(self, index: int) -> str:
        phase, words = self._states[index]
        share = 1.0 if phase in ("ready", "loaded") else _SHARE.get(phase, 0.0)
        filled = round(_BAR * share)
        bar = "#" * filled + "." * (_BAR - filled)
        seconds = time.monotonic() - self._started
        return f"{self._names[index]:<{self._width}}  {bar}  {phase:<8} {seconds:6.1f} s  {words}".rstrip()


def _state(event: dict[str, Any]) -> tuple[str, str] | None:
    kind = event["event"]
    if kind == "queued":
        return "queued", f"{event['position']} before it" if event["position"] else ""
    if kind == "joined":
        return event["phase"], "compiled for another process already"
    if kind == "started":
        return "started", "" if event["attempt"] <= 1 else f"try {event['attempt']}"
    if kind == "progress":
        return event["phase"], ""
    if kind == "ready":
        return "ready", ""
    if kind == "loaded":
        return "loaded", event["words"]
    if kind == "failed":
        return "failed", event["reason"]
    return None


def _range_name(start: int, end: int) -> str:
    return f"[{start}]" if start == end else f"[{start}, {end}]"


def _is_terminal(out: TextIO) -> bool:
    try:
        return out.isatty()
    except (AttributeError, ValueError):
        return False
