"""What is asked of the daemon for one piece and range, and the answer."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from .. import background
from .._core import Stop
from ..capture import graph_of, options_of
from ..choices import Choices
from ..connections import connect
from ..errors import BudgetSpent, PiecewisedError, UnsupportedPiece
from ..graphs import is_static, symbolic_inputs
from ..loading import Compiled
from ..plan import ANY_SIZE, Entry
from ..settings import device_index_of, device_of, toolchain
from ..submission import Frontend, Request, follow
from . import artifacts
from .node import FRONTEND
from .normal import normal_form
from .worker import Worker, refuse_special

# Requests at once; more would wait in the daemon's queue and nowhere else.
_IN_FLIGHT = threading.BoundedSemaphore(64)


class Asking:
    """Makes the requests of one model part. Raises PiecewisedError where none can be made, for the reason that all would fail for."""

    def __init__(self, backend: Any, options: dict[str, Any]) -> None:
        refuse_special(backend.vllm_config, options)
        # First, since the rest takes longer.
        _check_daemon()
        self._worker = Worker(backend)
        self._sizes = frozenset(backend.compilation_config.compile_sizes or ())
        self._label = f"{_model_name(backend.vllm_config)}/{_plain(backend.prefix)}"

    def request(self, piece: Described, size_range: tuple[int, int], index: int) -> tuple[Request, tuple[Entry, ...]]:
        """The request for a graph, and its entries. Raises UnsupportedPiece."""
        graph, typed = piece.graph, piece.typed
        entries, hints = _entries(typed, size_range, self._sizes)
        frontend: Frontend = self._worker.frontend(graph, size_range)
        choices = Choices(specialisation="generic", hints=hints)
        request = Request(
            graph=json.dumps(typed),
            options=options_of({}, choices),
            toolchain=json.dumps(toolchain()),
            device=json.dumps(device_of(typed)),
            endpoint=None,
            budget_s=None,
            cache_dir=None,
            choices=choices,
            device_index=piece.device_index,
            frontend=frontend,
            label=f"{self._label}/{index}"[-256:],
        )
        return request, entries


@dataclass(frozen=True)
class Described:
    """A piece's graph: as vLLM has it, in the project's JSON form, and a digest of what it holds, without names."""

    graph: Any
    typed: dict[str, Any]
    content: bytes

    @staticmethod
    def of(graph: Any) -> Described:
        """Raises UnsupportedPiece."""
        typed = graph_of(graph, opaque=_opaque)
        return Described(graph, typed, hashlib.sha256(json.dumps(normal_form(typed)).encode()).digest())

    @property
    def device_index(self) -> int | None:
        """The GPU that its inputs are on; None: the current one, if any."""
        return device_index_of(self.typed)


class Answer:
    """What runs a piece for a range: here, one that is there from the beginning."""

    def __init__(self, compiled: Sequence[Compiled] = ()) -> None:
        self.error: PiecewisedError | None = None
        #: Of each entry, once all are there; they share out the range's sizes.
        self.compiled = tuple(compiled)
        self._run: Callable[..., Any] | None = None

    @property
    def is_done(self) -> bool:
        """Whether the answer is there."""
        return True

    def wait(self, deadline: float | None) -> PiecewisedError | None:
        """Waits for the answer until the deadline (of time.monotonic; None: for ever); why there is none."""
        return self.error

    def stop(self) -> None:
        """Waits no longer."""

    def runnable(self) -> Callable[..., Any]:
        """What runs it, for any size that it was asked for. Raises PiecewisedError."""
        if self._run is None:
            self._run = artifacts.runnable(self.compiled)
        return self._run

    def serialize(self) -> artifacts.Bundle:
        """The artifacts, as they can be pickled."""
        return artifacts.bundle([compiled.handle for compiled in self.compiled])


class Asked(Answer):
    """One request, and in the end what it gave. Pieces that are alike share it."""

    def __init__(self, request: Request, entries: Sequence[Entry]) -> None:
        super().__init__()
        self.request = request
        self.entries = list(entries)
        self._ready: dict[int, Compiled] = {}
        self._done = threading.Event()
        self._stop: Stop | None = None

    def start(self) -> None:
        """Asks, in a thread of its own."""
        background.start(self._follow, "piecewised-vllm")

    @property
    def is_done(self) -> bool:
        """Whether the answer is there."""
        return self._done.is_set()

    def wait(self, deadline: float | None) -> PiecewisedError | None:
        """Waits for the answer until the deadline (of time.monotonic; None: for ever); why there is none."""
        if not self._done.wait(None if deadline is None else max(0.0, deadline - time.monotonic())):
            self.stop()
            return BudgetSpent("the daemon has not answered in the time that it had", reason="BUDGET_SPENT")
        return self.error

    def stop(self) -> None:
        """Waits no longer."""
        if self._stop is not None:
            self._stop.set()

    def wants(self, position: int) -> bool:
        """Of Sink."""
        return True

    def ready(self, position: int, compiled: Compiled) -> None:
        """Of Sink."""
        self._ready[position] = compiled
        if len(self._ready) == len(self.entries):
            self.compiled = tuple(compiled for _, compiled in sorted(self._ready.items()))
            self._done.set()

    def failed(self, position: int, error: PiecewisedError) -> None:
        """Of Sink."""
        self.error = error
        self._done.set()

    def _follow(self, stop: Stop) -> None:
        self._stop = stop
        try:
            with _IN_FLIGHT:
                follow(self.request, self.entries, None, self, stop)
        except Exception as error:
            self.error = PiecewisedError(f"the request failed: {type(error).__name__}: {error}", reason="INTERNAL")
            raise
        finally:
            self._done.set()


def _check_daemon() -> None:
    """Raises PiecewisedError where no daemon takes a frontend from this process. One that is too old to know what that is would compile without
    vLLM's passes, and say nothing."""
    capabilities = json.loads(connect(None).capabilities(FRONTEND))
    if not capabilities["trusts_frontend"]:
        raise PiecewisedError(
            f"the daemon (version {capabilities['version']}) takes no configuration of vLLM's from this process: run it as the same user, start it with "
            "--trusted-frontend-peers all, or install a newer one",
            reason="FRONTEND_NOT_TRUSTED",
        )


def _entries(
    graph: dict[str, Any], size_range: tuple[int, int], sizes: Collection[int]
) -> tuple[tuple[Entry, ...], dict[Entry, int]]:
    """What the daemon is asked for, and the size to think of. `sizes`: vLLM's `compile_sizes`.

    vLLM makes one dynamic compile for each range, all with the hint of the batch that the model was traced with; what differs between ranges is what
    passes know of them, and that is the frontend's. So the entry reaches from the range's start to that hint, and vLLM calls it for
    the range alone.

    Dynamic code is for sizes of 2 and more. Size 1 is an entry of its own, which another executor compiles at the same time; none where vLLM has it
    compiled as a single size, which is what it calls then.
    """
    if is_static(graph):
        return (ANY_SIZE,), {}
    start, end = size_range
    if start == end:
        return (size_range,), {}
    hint = _hint(graph)
    last = max(end, hint)
    whole = (max(start, 2), last)
    ones = ((1, 1),) if start <= 1 and 1 not in sizes else ()
    return (*ones, whole), {whole: hint} if hint >= whole[0] else {}


def _hint(graph: dict[str, Any]) -> int:
    plain = next((expression["symbol"] for expression in symbolic_inputs(graph) if "symbol" in expression), None)
    if plain is None:
        raise UnsupportedPiece(
            "none of the piece's integer inputs is a plain symbol, so there is nothing to dispatch on",
            reason="NOTHING_TO_DISPATCH_ON",
        )
    return next(int(symbol["hint"]) for symbol in graph["symbols"] if symbol["name"] == plain)


def _opaque(value: Any) -> str | None:
    from vllm.utils.torch_utils import LayerName

    return value.value if isinstance(value, LayerName) else None


def _model_name(vllm_config: Any) -> str:
    model = getattr(vllm_config.model_config, "model", None) or "model"
    return _plain(str(model).rstrip("/").rpartition("/")[2])


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name)[:100] or "model"
