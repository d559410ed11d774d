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

from . import _core, background, counters, credentials, graph_files
from .arguments import entries_of, plan_of, precompiled_argument, program_of
from .choices import check_choice, parse_choices
from .entries import Entries, State
from .errors import MISTAKES, ArtifactError, FormatError, OptionError, PiecewisedError
from .graphs import dispatched_argument
from .loading import Compiled, Runnable, load_folder
from .local import LocalPiece
from .options import inductor_values
from .plan import ANY_SIZE, Entry, Plan, entry_name, parse_name
from .program import Program, ProgramSummary, check_index
from .remembered import Remembered
from .submission import Request, follow
from .tiered import Captures, Tier

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
    can't have compiled in this process, ``"raise"`` raises at the call. ``options`` is Inductor's configuration; ``tuning``,
    ``specialisation``, ``compile_hints``, ``artifact_format``, ``swap``, ``guards``, ``priority`` and ``warm_up`` are the backend's options of these names.
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
        tuning: str = "fast",
        specialisation: str = "range",
        compile_hints: Mapping[str | Entry, int] | None = None,
        artifact_format: str = "inductor",
        swap: str = "auto",
        guards: str = "dispatch",
        priority: str = "interactive",
        warm_up: bool = False,
        on_error: str = "local",
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
        self._tier: Tier | None = None
        self._runs = Remembered(self._find, int)
        self._only: Runnable = self._static
        chosen = {
            "tuning": tuning,
            "specialisation": specialisation,
            "compile_hints": compile_hints,
            "artifact_format": artifact_format,
            "swap": swap,
            "guards": guards,
            "priority": priority,
            "warm_up": warm_up,
        }
        self._choices = parse_choices(chosen, given.entries if given is not None else [])
        if graph is not None:
            argument = dispatched_argument(graph, sym_shape_indices)
            assert given is not None
            self._entries = Entries(entries_of(given, argument), argument, returns_tuple)
            self._local = LocalPiece(graph, dict(options or {}))
            values = inductor_values(options or {})
            self._prepare(graph, values, endpoint, budget_s)
        else:
            assert compiled_runnables is not None
            self._precompiled(compiled_runnables, given, sym_shape_indices, returns_tuple)
        #: The argument whose value is dispatched on; None: no symbolic input.
        self.argument = self._entries.argument
        if graph is not None:
            _all.add(self)
            if self._choices.is_tiered:
                captures = self.program.captures if self.program is not None else Captures()
                self._tier = Tier(swap, captures, replace=self._entries.replace, forget=self._forget)
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
        position = self._entries.position(size) if self.argument is not None else 0
        state = self._runnable_state(position)
        assert state.find is not None
        run = state.find(size)
        return run if self._tier is None else self._tier.watched(position, run)

    def _static(self, *args: Any) -> Any:
        run = self._only = self._runs[0]
        if self._runs.get(0) is not run:
            # Forgotten since: it may be what is not to be run any more.
            self._only = self._static
        return run(*args)

    def _forget(self) -> None:
        """What was found is found anew."""
        self._runs.forget()
        self._only = self._static

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
    ) -> None:
        """Writes the request down now: what it says of this process may be something else later."""
        from .capture import request_of

        try:
            self._request = request_of(
                *(graph, inductor, self._choices), endpoint=endpoint, budget_s=budget_s, cache_dir=self._cache_dir
            )
            graph_files.recorded(self._request, Plan.of_entries(self.entries), self._label())
        except PiecewisedError as error:
            for position in self._entries.ask(range(len(self.entries))):
                self._entries.fail(position, error)
            self._entries.finish()
            self._piece_ended(None)

    def _label(self) -> str:
        """What it is called in files, where the request does not say."""
        return f"{self.program.name}/{self.piece_index}" if self.program is not None else str(self.piece_index)

    def _submit(self, positions: Sequence[int]) -> None:
        """Asks for those entries that nobody has asked for yet."""
        request = self._request
        if request is None or not (new := self._entries.ask(self._together(positions))):
            return
        new = self._together(new)
        is_whole = len(new) == len(self.entries)

        def work(stop: _core.Stop) -> None:
            status = self._follow(request, new, is_whole, _Sink(self._entries, new, self._tier), stop)
            if self._entries.finish():
                if not is_whole and self.program is not None and self._has_all():
                    # The program's run hears of whole pieces only; the store has all of it.
                    status = self._follow(request, range(len(self.entries)), True, None, stop)
                self._piece_ended(status)
            if self._tier is not None:
                self._tier.follow(request, self._spans(new), new, stop)

        background.start(work, f"piecewised-{self.piece_index}")

    def _follow(
        self, request: Request, positions: Sequence[int], is_whole: bool, sink: _Sink | None, stop: _core.Stop
    ) -> dict[str, Any] | None:
        place = self.program.place(self.piece_index) if self.program is not None and is_whole else None
        return follow(request, self._spans(positions), place, sink, stop)

    def _spans(self, positions: Sequence[int]) -> list[Entry]:
        return [self.entries[position] for position in positions] if self.argument is not None else [ANY_SIZE]

    def _together(self, positions: Sequence[int]) -> Sequence[int]:
        """With all those that have to be asked for with them: one compile for all ranges depends on which these are."""
        ranges = [position for position, (start, end) in enumerate(self.entries) if start != end]
        if not self._choices.is_generic or self.argument is None or not set(ranges) & set(positions):
            return positions
        return sorted({*ranges, *positions})

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
                cache = cache or _core.Cache(self._cache_dir, **credentials.of_cache())
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
        cache = _core.Cache(self._cache_dir, **credentials.of_cache())
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
    """Puts what a submission has into the entries at ``positions``. ``tier``: they may get tuned code later."""

    def __init__(self, entries: Entries, positions: Sequence[int], tier: Tier | None) -> None:
        self._entries = entries
        self._positions = positions
        self._tier = tier

    def wants(self, position: int) -> bool:
        return True

    def ready(self, position: int, compiled: Compiled) -> None:
        at = self._positions[position]
        if self._tier is not None:
            self._tier.expect(at, compiled)
        try:
            self._entries.put(at, compiled)
        except PiecewisedError as error:
            if self._tier is not None:
                self._tier.withdraw(at)
            self.failed(position, error)

    def failed(self, position: int, error: PiecewisedError) -> None:
        self._entries.fail(self._positions[position], error)


def _in_child() -> None:
    for backend in list(_all):
        backend._forget_parent()


os.register_at_fork(after_in_child=_in_child)
