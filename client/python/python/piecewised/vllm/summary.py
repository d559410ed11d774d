"""What became of a model part's pieces, for the log and for :func:`piecewised.stats`."""

from __future__ import annotations

import time
from typing import Any

from ..errors import PiecewisedError
from .asking import Answer


class Summary:
    """Counts one call of vLLM's backend. A compile is one piece for one range."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._started = time.monotonic()
        self._pieces: set[int] = set()
        self._ranges: set[tuple[int, int]] = set()
        self._contents: dict[int, bytes] = {}
        self._sources: dict[str, int] = {"compiled": 0, "joined": 0, "store": 0, "kept": 0}
        self._local: list[PiecewisedError] = []
        self._compile_s = 0.0
        self._saved_s = 0.0
        self.n_submitted = 0

    def submitted(self, index: int, size_range: tuple[int, int]) -> None:
        """vLLM wants a piece for a range."""
        self.n_submitted += 1
        self._pieces.add(index)
        self._ranges.add(size_range)

    def content(self, index: int, digest: bytes) -> None:
        """What a piece holds."""
        self._contents[index] = digest

    def local(self, error: PiecewisedError) -> None:
        """A compile is the stock compiler's, for that reason."""
        self._local.append(error)

    def asked(self, asked: Answer) -> None:
        """The daemon has answered, or not."""
        if not asked.compiled:
            return
        # Of several entries, the source of the one that was waited for longest, as a rule.
        self._sources[min((one.source for one in asked.compiled), key=list(self._sources).index)] += 1
        for one in asked.compiled:
            seconds = float(one.handle["timings"]["total_s"])
            if one.source == "compiled":
                self._compile_s += seconds
            else:
                self._saved_s += seconds

    def reasons(self) -> list[tuple[PiecewisedError, int]]:
        """The first error of each reason for local compiles, and how many there were for it."""
        by_reason: dict[str, list[PiecewisedError]] = {}
        for error in self._local:
            by_reason.setdefault(error.reason or type(error).__name__, []).append(error)
        return [(errors[0], len(errors)) for errors in by_reason.values()]

    def record(self) -> dict[str, Any]:
        """For stats(): see counters.py."""
        return {
            "name": self._name,
            "n_pieces": len(self._pieces),
            "n_distinct": len(set(self._contents.values())),
            "n_ranges": len(self._ranges),
            "n_compiled": self._sources["compiled"],
            "n_joined": self._sources["joined"],
            "n_from_store": self._sources["store"],
            "n_kept": self._sources["kept"],
            "n_local": len(self._local),
            "local_reasons": {error.reason or type(error).__name__: n for error, n in self.reasons()},
            "compile_s": self._compile_s,
            "saved_s": self._saved_s,
            "elapsed_s": time.monotonic() - self._started,
        }

    def __str__(self) -> str:
        it = self.record()
        return (
            f"{it['name']}: {it['n_pieces']} pieces, {it['n_distinct']} distinct, {it['n_ranges']} ranges: "
            f"{it['n_compiled']} compiled for this process, {it['n_joined']} joined, {it['n_from_store']} from the store, "
            f"{it['n_kept']} already here, {it['n_local']} local; took {it['elapsed_s']:.1f} s, saved {it['saved_s']:.1f} s of compiling"
        )
