"""How far the compiles of one piece are: one line per range on stderr, redrawn in place.

On anything but a terminal nothing is written, unless it was asked for: then one line when a range is done. Where the
terminal has too few lines, one line counts.
"""

from __future__ import annotations

import shutil
import sys
import time
from typing import Any, TextIO

_BAR = 10
# The phases of a job and how much of it is done when each begins, for the bar. Nothing depends on it.
_SHARE = {
    **{"queued": 0.0, "started": 0.05, "rebuild": 0.1, "compile": 0.25, "settle": 0.65, "prove": 0.7},
    **{"pack": 0.75, "tune": 0.8, "verify": 0.9, "store": 0.95},
}
_DONE = ("loaded", "failed")


class Progress:
    """The display of one piece."""

    def __init__(self, entries: list[tuple[int, int]] | None, wanted: bool | None, out: TextIO | None = None) -> None:
        """``entries``: the plan's, None for a piece without a symbolic input. ``wanted`` None: only on a terminal."""
        self._out = out if out is not None else sys.stderr
        self._redraws = wanted is not False and _is_terminal(self._out)
        self._writes = self._redraws or wanted is True
        self._names = ["any size"] if entries is None else [_range_name(*entry) for entry in entries]
        self._width = max(map(len, self._names))
        # Phase, words, and when that began.
        self._states = [("queued", "", 0.0) for _ in self._names]
        self._started = time.monotonic()
        self._n_drawn = 0

    def update(self, event: dict[str, Any]) -> None:
        """Takes notice of an event of the compile."""
        state = _state(event)
        if self._writes and state is not None:
            self._set(event["index"], *state)

    def loaded(self, index: int, words: str) -> None:
        """A range can be called now."""
        if self._writes:
            self._set(index, "loaded", words)

    def _set(self, index: int, phase: str, words: str) -> None:
        self._states[index] = (phase, words, time.monotonic() - self._started)
        if self._redraws:
            self._draw()
        elif phase in _DONE:
            self._out.write(f"piecewised {self._line(index)}\n")
            self._out.flush()

    def _draw(self) -> None:
        columns, rows = shutil.get_terminal_size()
        lines = [f"piecewised {self._line(index)}" for index in range(len(self._names))]
        if len(lines) >= rows:
            n_done = sum(phase in _DONE for phase, _, _ in self._states)
            lines = [f"piecewised {n_done} of {len(lines)} ranges in {self._now():.1f} s"]
        # A line that wraps would be two for the terminal, and the next redraw would begin in the wrong place.
        drawn = [f"{line[: columns - 1]}\x1b[K\n" for line in lines]
        up = f"\x1b[{self._n_drawn}A" if self._n_drawn else ""
        self._out.write(up + "".join(drawn))
        self._out.flush()
        self._n_drawn = len(drawn)

    def _line(self, index: int) -> str:
        phase, words, since = self._states[index]
        filled = round(_BAR * (1.0 if phase in ("ready", "loaded") else _SHARE.get(phase, 0.0)))
        bar = "#" * filled + "." * (_BAR - filled)
        seconds = since if phase in _DONE else self._now()
        return f"{self._names[index]:<{self._width}}  {bar}  {phase:<8} {seconds:6.1f} s  {words}".rstrip()

    def _now(self) -> float:
        return time.monotonic() - self._started


def _state(event: dict[str, Any]) -> tuple[str, str] | None:
    """The phase that an event begins, and what to say beside it."""
    match event["event"]:
        case "queued":
            return "queued", f"{event['position']} before it" if event["position"] else ""
        case "joined":
            return event["phase"], "compiled for another process already"
        case "started":
            return "started", "" if event["attempt"] <= 1 else f"try {event['attempt']}"
        case "progress":
            return event["phase"], ""
        case "ready":
            return "ready", ""
        case "failed":
            return "failed", event["reason"]
    return None


def _range_name(start: int, end: int) -> str:
    return f"[{start}]" if start == end else f"[{start}, {end}]"


def _is_terminal(out: TextIO) -> bool:
    try:
        return out.isatty()
    except (AttributeError, ValueError):
        return False
