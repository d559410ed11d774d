"""One piece of a model for all the sizes that it will see, for people who split graphs themselves.

The model is vLLM's class of the same name; what differs is where the compiles run. A piece is made in one of two modes:

* from its graph (compilation): the daemon compiles every entry of the plan, all of them at once (``mode="upfront"``),
  or each at its first call (``mode="lazy"``). A call waits for the entry that it needs and for no other.
* from what was compiled (precompilation): values of ``to_bytes``, or callables. No graph, no tracing, no daemon.

Compiles start from the fake inputs that the graph's placeholders carry, never from a caller's tensors: of those, two sizes
that are equal by chance would be taken for one.
"""

from __future__ import annotations

import json
import logging
import os
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from . import _core, background, counters
from .arguments import entries_of, plan_of, precompiled_argument, program_of
from .entries import Entries, State
from .errors import MISTAKES, ArtifactError, FormatError, OptionError, PiecewisedError
from .graphs import dispatched_argument
from .guards import Remembered
from .loading import Compiled, Runnable, load_folder
from .local import LocalPiece
from .options import GUARD_POLICIES, check_choice, inductor_values
from .plan import ANY_SIZE, Entry, Plan, entry_name, parse_name
from .program import Program, ProgramSummary, check_index
from .submission import Request, follow

log = logging.getLogger(__name__)

_all: weakref.WeakSet[PiecewiseBackend] = weakref.WeakSet()


class PiecewiseBackend:
    """The compiled entries of one piece; calling it calls the one for the size in the argument that is dispatched on.

    Exactly one of ``graph`` (an fx.GraphModule whose placeholders have an ``example_value``) and ``compiled_runnables``
    (by name of the entry, ``"[1, 16]"``: a value of ``to_bytes``, or a callable) is given.

    The plan: ``compile_ranges`` or ``compile_range_endpoints``, ``compile_sizes``, ``is_encoder`` with
    ``max_num_batched_tokens``; or ``plan``, all entries as pairs. Precompiled, the plan may be left out: it is what there is.
    A piece without a symbolic input has exactly one entry, whose bounds don't count.

    ``sym_shape_indices[0]`` is the argument to dispatch on, [] for none. It is derived from graphs and from values of
    ``to_bytes``, has to agree with them, and is required for callables. ``returns_tuple=False``: a tuple of one is
    given as the bare value; by default a piece returns what its graph does.

    ``piece_index`` and ``n_pieces`` are the piece's place; ``program`` is the :class:`Program` it belongs to, or the
    name of one, to which ``run`` and ``on_complete`` then belong. ``on_error="local"`` compiles ranges that the daemon
    can't have compiled in this process, ``"raise"`` raises at the call. Where compiled code is valid for some calls of a range only, ``guards="dispatch"`` decides
    at each call and raises NotCovered where nothing is valid; ``"strict"`` counts such a range as one that can't be compiled.
    ``options`` is Inductor's configuration.
    """

    def __init__(
        self,
        graph: Any = None,
        *,
        compile_ranges: Sequence[Sequence[int]] | None = None,
        compile_range_endpoints: Sequence[int] | None = None,
        compile_sizes: Sequence[int] | None = None,
        is_encoder: bool = False,
        max_num_batched_tokens: int | None = None,
        plan: Sequence[Entry] | None = None,
        compiled_runnables: Mapping[str, bytes | Runnable | Compiled] | None = None,
        sym_shape_indices: Sequence[int] | None = None,
        returns_tuple: bool | None = None,
        piece_index: int = 0,
        n_pieces: int | None = None,
        program: Program | str | None = None,
        run: str | None = None,
        on_complete: Callable[[ProgramSummary], object] | None = None,
        mode: str = "upfront",
        on_error: str = "local",
        guards: str = "dispatch",
        options: Mapping[str, Any] | None = None,
        endpoint: str | None = None,
        budget_s: float | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        if (graph is None) == (compiled_runnables is None):
            raise OptionError(
                "give exactly one of graph (to compile it) and compiled_runnables (to run what was compiled)",
                reason="BAD_OPTION",
                metadata={"option": "graph"},
            )
        check_choice("mode", mode, ("upfront", "lazy"))
        check_choice("on_error", on_error, ("local", "raise"))
        check_choice("guards", guards, GUARD_POLICIES)
        given = plan_of(
            plan,
            {
                "compile_ranges": compile_ranges,
                "compile_range_endpoints": compile_range_endpoints,
                "compile_sizes": compile_sizes,
                "is_encoder": is_encoder,
                "max_num_batched_tokens": max_num_batched_tokens,
            },
            is_required=graph is not None,
        )
        #: The program that it belongs to.
        self.program = program_of(program, n_pieces, run, on_complete, is_compiling=graph is not None)
        self.n_pieces = self.program.n_pieces if self.program is not None else 1 if n_pieces is None else n_pieces
        check_index(piece_index, self.n_pieces)
        self.piece_index = piece_index
        self._mode = mode
        self._on_error = on_error
        self._cache_dir = None if cache_dir is None else os.fspath(cache_dir)
        self._request: Request | None = None
        self._local: LocalPiece | None = None
        if graph is not None:
            argument = dispatched_argument(graph, sym_shape_indices)
            assert given is not None
            self._entries = Entries(entries_of(given, argument), argument, returns_tuple)
            self._local = LocalPiece(graph, dict(options or {}))
            values = inductor_values(options or {})
            self._prepare(graph, values, endpoint, budget_s, strict_guards=guards == "strict")
        else:
            assert compiled_runnables is not None
            self._precompiled(compiled_runnables, given, sym_shape_indices, returns_tuple)
        #: The argument whose value is dispatched on; None: no symbolic input.
        self.argument = self._entries.argument
        self._runs = Remembered(self._find, int)
        self._only: Runnable = self._static
        if graph is not None:
            _all.add(self)
            if mode == "upfront":
                self._submit(range(len(self.entries)))

    @property
    def entries(self) -> list[Entry]:
        """What it is compiled for."""
        return [state.span for state in self._entries.states]

    @property
    def is_first_graph(self) -> bool:
        """Whether it is the first piece."""
        return self.piece_index == 0

    @property
    def is_last_graph(self) -> bool:
        """Whether it is the last piece."""
        return self.piece_index == self.n_pieces - 1

    @property
    def is_full_graph(self) -> bool:
        """Whether it is the only piece."""
        return self.n_pieces == 1

    def __call__(self, *args: Any) -> Any:
        """Runs what was compiled for the size that ``args`` have. Raises NotCovered, and what ``wait`` does."""
        if self.argument is None:
            return self._only(*args)
        return self._runs[args[self.argument]](*args)

    def __repr__(self) -> str:
        place = f"piece {self.piece_index} of {self.n_pieces}"
        return f"piecewised.PiecewiseBackend({place}, {', '.join(map(entry_name, self.entries))})"

    def wait(self) -> None:
        """Waits until every entry can be called; in ``lazy`` mode this asks for all of them. Raises the first error."""
        self._submit(range(len(self.entries)))
        for position in range(len(self.entries)):
            self._runnable_state(position)

    def to_bytes(self) -> dict[str, bytes]:
        """By name of the entry, every entry that was compiled by the daemon, as bytes that need nothing else.

        Another process loads them with ``PiecewiseBackend(compiled_runnables=...)``, without a graph or a daemon. Does
        not wait: what isn't compiled is left out. Raises ArtifactError and what a connection raises.
        """
        out = {}
        for state in self._entries.states:
            if state.compiled is None:
                log.debug("entry %s has no artifact (yet), so it is left out of the bytes", entry_name(state.span))
            else:
                out[entry_name(state.span)] = self._bundle(state.compiled)
        return out

    # Finding what to call. The way of every call is above; this is the way of the first call with a size.

    def _find(self, size: int) -> Runnable:
        state = self._runnable_state(self._entries.position(size))
        assert state.find is not None
        return state.find(size)

    def _static(self, *args: Any) -> Any:
        state = self._runnable_state(0)
        assert state.find is not None
        self._only = state.find(0)
        return self._only(*args)

    def _runnable_state(self, position: int) -> State:
        """The entry, which can be called now."""
        self._submit([position])
        state = self._entries.wait(position)
        if state.find is None:
            error = state.error
            assert error is not None
            if self._local is None or not self._falls_back(error):
                raise error.with_traceback(None)
            self._entries.take(position, self._local.runnable(error))
        return state

    def _falls_back(self, error: PiecewisedError) -> bool:
        return self._on_error == "local" and not isinstance(error, MISTAKES)

    # Compilation.

    def _prepare(
        self,
        graph: Any,
        inductor: dict[str, Any],
        endpoint: str | None,
        budget_s: float | None,
        *,
        strict_guards: bool,
    ) -> None:
        """Writes the request down now: what it says of this process may be something else later."""
        from .capture import request_of

        try:
            self._request = request_of(
                graph,
                inductor,
                endpoint=endpoint,
                budget_s=budget_s,
                cache_dir=self._cache_dir,
                strict_guards=strict_guards,
            )
        except PiecewisedError as error:
            for position in self._entries.ask(range(len(self.entries))):
                self._entries.fail(position, error)
            self._entries.finish()
            self._piece_ended(None)

    def _submit(self, positions: Sequence[int]) -> None:
        """Asks for those entries that nobody has asked for yet."""
        request = self._request
        if request is None or not (new := self._entries.ask(positions)):
            return
        is_whole = len(new) == len(self.entries)

        def work(stop: _core.Stop) -> None:
            status = self._follow(request, new, is_whole, _Sink(self._entries, new), stop)
            if self._entries.finish():
                if not is_whole and self.program is not None and self._has_all():
                    # The program's run hears of whole pieces only; the store has all of it.
                    status = self._follow(request, range(len(self.entries)), True, None, stop)
                self._piece_ended(status)

        background.start(work, f"piecewised-{self.piece_index}")

    def _follow(
        self, request: Request, positions: Sequence[int], is_whole: bool, sink: _Sink | None, stop: _core.Stop
    ) -> dict[str, Any] | None:
        spans = [self.entries[position] for position in positions] if self.argument is not None else [ANY_SIZE]
        place = self.program.place(self.piece_index) if self.program is not None and is_whole else None
        return follow(request, spans, place, sink, stop)

    def _has_all(self) -> bool:
        return all(state.compiled is not None for state in self._entries.states)

    def _piece_ended(self, status: dict[str, Any] | None) -> None:
        """Every entry has an end."""
        if self._has_all():
            counters.record_piece()
        if self.program is not None:
            n_local = sum(state.compiled is None for state in self._entries.states)
            self.program.piece_ended(self.piece_index, status, n_local)

    def _forget_parent(self) -> None:
        self._entries.forget_parent()
        # The run is the parent's, and goes on there.
        self.program = None

    # Precompilation.

    def _precompiled(
        self,
        runnables: Mapping[str, bytes | Runnable | Compiled],
        plan: Plan | None,
        sym_shape_indices: Sequence[int] | None,
        returns_tuple: bool | None,
    ) -> None:
        by_entry: dict[Entry, Runnable | Compiled] = {}
        cache = None
        for name, value in runnables.items():
            entry = parse_name(name)
            if isinstance(value, bytes):
                cache = cache or _core.Cache(self._cache_dir)
                handle, folder = cache.take_bundle(value)
                by_entry[entry] = load_folder(json.loads(handle), folder)
            elif isinstance(value, Compiled) or callable(value):
                by_entry[entry] = value
            else:
                raise FormatError(
                    f"what is to run {name} is a value of to_bytes or a callable, not a {type(value).__name__}",
                    reason="BAD_RUNNABLE",
                )
        argument = precompiled_argument(list(by_entry.values()), sym_shape_indices)
        spans = entries_of(plan or Plan.of_entries(list(by_entry)), argument)
        missing = [entry for entry in spans if entry not in by_entry]
        if missing:
            raise ArtifactError(
                f"nothing is compiled for {', '.join(map(entry_name, missing))}; there is "
                f"{', '.join(map(entry_name, by_entry)) or 'nothing'}",
                reason="MISSING_RANGE",
            )
        self._entries = Entries(spans, argument, returns_tuple)
        for position, entry in enumerate(spans):
            found = by_entry[entry]
            if isinstance(found, Compiled):
                self._entries.put(position, found)
            else:
                self._entries.put_callable(position, found)

    def _bundle(self, compiled: Compiled) -> bytes:
        cache = _core.Cache(self._cache_dir)
        handle = json.dumps(compiled.handle)
        bundle = cache.to_bundle(handle)
        if bundle is None and self._request is not None:
            # Somebody has emptied the cache folder since.
            self._request.client().fetch(handle)
            bundle = cache.to_bundle(handle)
        if bundle is None:
            raise ArtifactError(
                f"artifact {compiled.handle['digest'][:12]} is no longer in the cache folder {cache.folder}",
                reason="NO_SUCH_ARTIFACT",
            )
        return bundle


class _Sink:
    """Puts what a submission has into the entries at ``positions``."""

    def __init__(self, entries: Entries, positions: Sequence[int]) -> None:
        self._entries = entries
        self._positions = positions

    def ready(self, position: int, compiled: Compiled) -> None:
        try:
            self._entries.put(self._positions[position], compiled)
        except PiecewisedError as error:
            self.failed(position, error)

    def failed(self, position: int, error: PiecewisedError) -> None:
        self._entries.fail(self._positions[position], error)


def _in_child() -> None:
    for backend in list(_all):
        backend._forget_parent()


os.register_at_fork(after_in_child=_in_child)
