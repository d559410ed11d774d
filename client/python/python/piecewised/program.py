"""Programs: pieces that are compiled together, and what is said when the last of them is ready.

A :class:`Program` is shared by the pieces of one model part in one process. It is complete when the daemon has committed
its manifest, which it does when every range of every piece is ready, and when every piece is loaded here. Then, once:
its times are logged and ``on_complete`` is called, in a thread of the package's own. A program of which a range had to
be compiled locally leaves no manifest; that is logged once instead, and ``wait`` says so.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from . import _core
from .errors import ProgramError
from .tiered import Captures

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ProgramSummary:
    """What became of one run of a program."""

    program: str
    run: str
    n_pieces: int
    #: Whether the manifest is committed under the program's name.
    is_complete: bool
    #: Of the manifest, hexadecimal; None: there is none.
    manifest_digest: str | None
    #: Different graphs among the pieces: the layers of a transformer are alike.
    n_distinct_pieces: int
    #: Ranges of all pieces, by where they came from.
    n_compiled: int
    n_joined: int
    n_from_store: int
    n_local: int
    #: From the making of the Program to its last piece, loaded.
    seconds: float
    #: Of the compiles, wherever and whenever they ran, each counted once.
    phase_seconds: dict[str, float] = field(default_factory=dict)


class Program:
    """One run of the program ``name``, which has ``n_pieces`` pieces. Give it to each :class:`PiecewiseBackend` of it.

    ``on_complete`` is called with the :class:`ProgramSummary`, once, when the manifest is committed and every piece is
    loaded. ``run`` tells runs apart (ranks and replicas have one each); by default it is a new UUID. Raises
    ProgramError.
    """

    def __init__(
        self,
        name: str,
        n_pieces: int,
        *,
        on_complete: Callable[[ProgramSummary], object] | None = None,
        run: str | None = None,
    ) -> None:
        if not isinstance(name, str):
            raise ProgramError(f"the name of a program is a string, not {name!r}", reason="BAD_PROGRAM_NAME")
        _core.check_program_name(name)
        if isinstance(n_pieces, bool) or not isinstance(n_pieces, int) or not 1 <= n_pieces < 2**32:
            raise ProgramError(f"a program has at least one piece, not {n_pieces!r}", reason="BAD_PIECE_INDEX")
        self.name = name
        self.n_pieces = n_pieces
        self.run = uuid.uuid4().hex if run is None else run
        _core.check_program_name(self.run)
        self._on_complete = on_complete
        self._started = time.monotonic()
        self._changed = threading.Condition()
        # By index: how many of the piece's ranges are local.
        self._ended: dict[int, int] = {}
        self._status: dict[str, Any] = {}
        self._summary: ProgramSummary | None = None
        #: Whether a CUDA graph of any of its pieces was captured.
        self.captures = Captures()

    def __repr__(self) -> str:
        return f"piecewised.Program({self.name!r}, {self.n_pieces}, run={self.run!r})"

    @property
    def summary(self) -> ProgramSummary | None:
        """What became of it; None while pieces are missing."""
        return self._summary

    def wait(self, timeout_s: float | None = None) -> ProgramSummary:
        """Waits until every piece has an end, good or bad. Raises TimeoutError."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._summary is not None, timeout_s):
                raise TimeoutError(
                    f"program {self.name}: {len(self._ended)} of {self.n_pieces} pieces after {timeout_s} s"
                )
            assert self._summary is not None
            return self._summary

    def place(self, index: int) -> dict[str, Any]:
        """The ProgramPiece of a piece, in the project's JSON form. Raises ProgramError."""
        check_index(index, self.n_pieces)
        return {"program": self.name, "run": self.run, "index": index, "n_pieces": self.n_pieces}

    def piece_ended(self, index: int, status: dict[str, Any] | None, n_local: int) -> None:
        """Every range of a piece has an end. ``status``: the daemon's ProgramStatus, if it came."""
        with self._changed:
            self._ended[index] = n_local
            if status is not None and status["n_pieces_ready"] >= self._status.get("n_pieces_ready", 0):
                self._status = status
            if len(self._ended) < self.n_pieces or self._summary is not None:
                return
            summary = self._summary = self._summarise()
            self._changed.notify_all()
        self._announce(summary)

    def _summarise(self) -> ProgramSummary:
        status = self._status
        return ProgramSummary(
            program=self.name,
            run=self.run,
            n_pieces=self.n_pieces,
            is_complete=status.get("is_complete", False),
            manifest_digest=status.get("manifest_digest"),
            n_distinct_pieces=status.get("n_distinct_pieces", 0),
            n_compiled=status.get("n_compiled", 0),
            n_joined=status.get("n_joined", 0),
            n_from_store=status.get("n_from_store", 0),
            n_local=sum(self._ended.values()),
            seconds=time.monotonic() - self._started,
            phase_seconds={timing["phase"]: timing["seconds"] for timing in status.get("phases", ())},
        )

    def _announce(self, summary: ProgramSummary) -> None:
        if not summary.is_complete:
            log.warning(
                "program %s is not complete and leaves no manifest: %d of its ranges are compiled in this process",
                *(self.name, summary.n_local),
            )
            return
        phases = ", ".join(f"{phase} {seconds:.1f} s" for phase, seconds in summary.phase_seconds.items())
        log.info(
            "program %s is complete after %.1f s: %d pieces, %d of them distinct; ranges: %d compiled, %d joined, "
            "%d from the store, %d local; compiles: %s",
            *(self.name, summary.seconds, summary.n_pieces, summary.n_distinct_pieces),
            *(summary.n_compiled, summary.n_joined, summary.n_from_store, summary.n_local, phases or "none"),
        )
        if self._on_complete is not None:
            try:
                self._on_complete(summary)
            except Exception:
                log.exception("on_complete of program %s raised", self.name)


_begun: list[Program] = []


def programs() -> list[Program]:
    """The programs that ``torch.compile`` has begun in this process, oldest first: one for each graph that was split."""
    return list(_begun)


def begin(program: Program) -> Program:
    """Adds one to :func:`programs`."""
    _begun.append(program)
    return program


def check_index(index: int, n_pieces: int) -> None:
    """Raises ProgramError unless there is a piece ``index`` among ``n_pieces``."""
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < n_pieces:
        raise ProgramError(
            f"piece {index!r} of {n_pieces} is not possible: indices go from 0 to {n_pieces - 1}",
            reason="BAD_PIECE_INDEX",
        )
