"""One call of vLLM's backend: the pieces of one model part, submitted as they come, compiled side by side, and all there at its end."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vllm.compilation.counter import compilation_counter
from vllm.logger import init_logger

from .. import counters, local
from ..errors import BudgetSpent, ConnectionBroken, PiecewisedError, Unreachable
from . import kept
from .asking import Answer, Asked, Asking, Described
from .piece import Piece
from .summary import Summary

log = init_logger("vllm.piecewised")

#: How long the daemon may take for a model part, in seconds, where PIECEWISED_VLLM_BUDGET_S does not say otherwise.
BUDGET_S = 600.0

# After one of these the daemon is asked for nothing more of the part: the next piece would hear the same.
_FOR_ALL = (
    "CONFIG_NOT_PORTABLE", "FRONTEND_MISMATCH", "FRONTEND_NOT_TRUSTED", "FRONTEND_UNKNOWN", "NO_DEVICE", "NO_TOOLCHAIN", "NOT_WANTED",
    "TOOLCHAIN_MISMATCH", "UNIMPLEMENTED",
)  # fmt: skip


class Part:
    """The pieces of one call of a VllmBackend."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self._asking: Asking | None = None
        self._described: Described | None = None
        self._pieces: list[_Placed] = []
        #: By all that the code depends on: pieces that are alike wait for one answer.
        self._asked: dict[tuple[Any, ...], Answer] = {}
        #: Why the daemon is asked for nothing more; None: it is.
        self._refusal: PiecewisedError | None = None
        self._deadline = time.monotonic() + _budget_s()
        self._summary = Summary(backend.prefix)

    def submit(
        self, graph: Any, options: dict[str, Any], size_range: tuple[int, int], call: Callable[[], Any]
    ) -> Piece | None:
        """Asks the daemon for one piece and range, and returns at once. None: the stock compiler has to do it. `call` has it done by
        the stock compiler later, if need be."""
        self._note_failures()
        manager, index = _place(call)
        self._summary.submitted(index, size_range)
        is_noted = kept.is_noted(manager, size_range, index)
        if self._refusal is not None and not is_noted:
            self._local(self._refusal)
            return None
        try:
            described = self._describe(graph)
            found = self._kept(manager, described, size_range, index) if is_noted else None
            if found is None and self._refusal is not None:
                raise self._refusal
            asked = found or self._ask(described, options, size_range, index)
        except Exception as failure:
            # Whatever it is: a model that can't be asked for is no reason not to start.
            error = failure if isinstance(failure, PiecewisedError) else _unexpected(failure)
            self._fail(error)
            self._local(error)
            return None
        self._summary.content(index, described.content)
        piece = Piece(asked, call)
        self._pieces.append(_Placed(piece, size_range, index, described.content))
        return piece

    def _describe(self, graph: Any) -> Described:
        # vLLM asks for all ranges of a piece before it comes to the next piece.
        if self._described is None or self._described.graph is not graph:
            self._described = Described.of(graph)
        return self._described

    def _kept(self, manager: Any, piece: Described, size_range: tuple[int, int], index: int) -> Answer | None:
        alike = (piece.content, size_range, "kept")
        if (known := self._asked.get(alike)) is not None:
            return known
        found = kept.find(manager, size_range, index, piece.content, piece.device_index)
        if found is not None:
            self._asked[alike] = found
        return found

    def _ask(self, piece: Described, options: dict[str, Any], size_range: tuple[int, int], index: int) -> Answer:
        if self._asking is None:
            self._asking = Asking(self._backend, options)
        request, entries = self._asking.request(piece, size_range, index)
        assert request.frontend is not None
        alike = (piece.content, request.options, request.frontend.identity, entries)
        if (known := self._asked.get(alike)) is not None:
            return known
        asked = self._asked[alike] = Asked(request, entries)
        asked.start()
        return asked

    def finish(self, manager: Any) -> None:
        """Waits until every piece can be called; the stock compiler makes what the daemon could not."""
        pieces, self._pieces = self._pieces, []
        failed: list[tuple[Piece, PiecewisedError]] = []
        for placed in pieces:
            error = self._answer(placed.piece)
            if error is None:
                counters.record_piece()
                placed.note(manager)
                continue
            self._fail(error)
            failed.append((placed.piece, error))
        for asked in self._asked.values():
            self._summary.asked(asked)
        if failed:
            self._compile_here(manager, failed)
        self._say()

    def close(self) -> None:
        """Ends what is still waited for, where the backend's call failed."""
        for asked in self._asked.values():
            asked.stop()

    def _answer(self, piece: Piece) -> PiecewisedError | None:
        """Waits for a piece; why it can't be had."""
        if self._refusal is not None and not piece.asked.is_done:
            piece.asked.stop()
            return self._refusal
        return piece.asked.wait(self._deadline) or piece.take()

    def _compile_here(self, manager: Any, failed: list[tuple[Piece, PiecewisedError]]) -> None:
        """By the stock compiler, in the order in which vLLM asked, through vLLM's own manager: with its contexts, and into its cache."""
        ours, manager.compiler = manager.compiler, manager.compiler.stock
        try:
            for piece, error in failed:
                self._local(error)
                # It was counted when it was asked for.
                compilation_counter.num_backend_compilations -= 1
                piece.replace(piece.call())
        finally:
            manager.compiler = ours

    def _local(self, error: PiecewisedError) -> None:
        local.count(error)
        self._summary.local(error)

    def _note_failures(self) -> None:
        for asked in self._asked.values():
            if self._refusal is None and asked.is_done and asked.error is not None:
                self._fail(asked.error)

    def _fail(self, error: PiecewisedError) -> None:
        is_for_all = isinstance(error, (Unreachable, ConnectionBroken, BudgetSpent)) or error.reason in _FOR_ALL
        if self._refusal is None and is_for_all:
            self._refusal = error

    def _say(self) -> None:
        for error, n in self._summary.reasons():
            what = local.advice(error.reason)
            log.warning(
                "piecewised: %s: %d of %d compiles are vLLM's own in this process: %s.%s",
                *(self._backend.prefix, n, self._summary.n_submitted, str(error).strip().rstrip(".")),
                f" To change that, {what}." if what else "",
            )
        if self._summary.n_submitted:
            counters.record_part(**self._summary.record())
            log.info("piecewised: %s", self._summary)


def _unexpected(failure: Exception) -> PiecewisedError:
    log.debug("piecewised: a request could not be made", exc_info=failure)
    return PiecewisedError(f"the request could not be made: {type(failure).__name__}: {failure}", reason="INTERNAL")


@dataclass(frozen=True)
class _Placed:
    """A piece, and what vLLM knows it by."""

    piece: Piece
    size_range: tuple[int, int]
    index: int
    content: bytes

    def note(self, manager: Any) -> None:
        """Has vLLM's cache hold what it is now, for a start without a daemon."""
        compiled = self.piece.asked.compiled
        if any(one.source != "kept" for one in compiled):
            kept.note(manager, self.size_range, self.index, self.content, [one.handle for one in compiled])


def _place(call: Any) -> tuple[Any, int]:
    """The manager and the index of the piece in a call of CompilerManager.compile."""
    return call.args[0], int(call.keywords.get("graph_index", 0))


def _budget_s() -> float:
    text = os.environ.get("PIECEWISED_VLLM_BUDGET_S", "")
    try:
        budget = float(text) if text else BUDGET_S
    except ValueError:
        budget = -1.0
    if not 0 < budget < float("inf"):
        log.warning(
            "piecewised: PIECEWISED_VLLM_BUDGET_S is a number of seconds above 0, not %r; it is taken as %s",
            text,
            BUDGET_S,
        )
        return BUDGET_S
    return budget
