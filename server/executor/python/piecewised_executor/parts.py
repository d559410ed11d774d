"""One compile of a graph for an interval of sizes, in one of the ways that there are."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import torch

from . import frontends, program, searches
from .errors import OutOfMemory
from .frontends import Frontend
from .guards import Guards
from .package import Package, compile_package
from .phases import Phases
from .prove import Interval, Proof, is_right, prove
from .rebuild import Rebuilt, rebuild
from .runtime.bounds import Bounds
from .settle import Settler
from .symbols import DEFAULT_HINT, Symbols

# The least size that torch.compile makes dynamic code for: 0 and 1 are others' business to it.
_STOCK_LOW = 2


@dataclass(frozen=True)
class Job:
    """One `compile` message and what it is worked on with. `dispatched`: the name of the symbol that is dispatched on."""

    request: dict[str, Any]
    dispatched: str | None
    phases: Phases
    guards: Guards
    frontend: Frontend = frontends.NONE

    @property
    def graph(self) -> dict[str, Any]:
        """The canonical graph."""
        graph: dict[str, Any] = self.request["graph"]
        return graph

    @property
    def hint(self) -> int | None:
        """The size that the caller, or the daemon for it, wants thought of."""
        return self.request.get("hint")

    @property
    def format(self) -> str:
        """The artifact format: "inductor" or "aoti"."""
        return str(self.request["format"])

    @property
    def on_gpu(self) -> bool:
        """Whether the code runs on a GPU."""
        return bool(self.request["device"]["type"] == "cuda")


@dataclass(frozen=True)
class Recipe:
    """A way to compile. `narrows`: the symbol's bounds are the interval; else only its lower end is known, as stock
    torch.compile has it. `patches`: Inductor options on top of the request's."""

    name: str
    hint: int | None
    narrows: bool = True
    patches: dict[str, Any] = field(default_factory=dict)
    #: Which of several that are alike, whose searches end differently.
    search: int = 0


@dataclass(frozen=True)
class Part:
    """One compile, and what it is proven for."""

    recipe: Recipe
    rebuilt: Rebuilt
    program: program.Program | Package
    proof: Proof
    symbols: Symbols
    #: Wall seconds.
    seconds: float
    #: What was not as it should be; empty: nothing.
    note: str


def stock_recipe(hint: int | None = None) -> Recipe:
    """What torch.compile does when it knows nothing of ranges: one dynamic compile with one hint for every size."""
    return Recipe("generic", hint or DEFAULT_HINT, narrows=False)


def compile_interval(
    job: Job, interval: Interval | None, recipe: Recipe, hints: Mapping[str, int] = MappingProxyType({})
) -> Part:
    """Compiles for the sizes of `interval`: dynamic within them, or static for a single one. `hints`: what to think of, by the symbol's
    name, instead of the recipe's hint and of what the graph says of other symbols. Raises JobError."""
    started = time.monotonic()
    dispatched = job.dispatched
    others = {name: hint for name, hint in hints.items() if name != dispatched}
    if dispatched in hints:
        recipe = replace(recipe, hint=hints[dispatched])
    narrowed: dict[str, Bounds] = {}
    fixed: dict[str, int] = {}
    wanted = dict(others)
    if dispatched and interval:
        if interval[0] == interval[1] and recipe.narrows:
            fixed[dispatched] = interval[0]
        else:
            narrowed[dispatched] = Bounds(*interval) if recipe.narrows else Bounds(_STOCK_LOW, None)
            if recipe.hint is not None:
                wanted[dispatched] = recipe.hint
    with job.phases.phase("rebuild"):
        symbols = Symbols(job.graph.get("symbols", []), narrowed, fixed, wanted)
        rebuilt = rebuild(job.graph, symbols, job.frontend)
    size, low = _settling_size(interval, recipe)
    thought_of = {name: symbols.hints[symbol] for name, symbol in symbols.by_name.items() if symbol in symbols.hints}
    settler = Settler(
        *(job.graph, dispatched, rebuilt.kept, size, low),
        others=[others, thought_of],
        is_right=lambda values: is_right(symbols, values),
        frontend=job.frontend,
    )

    def settle(compiled: Any) -> None:
        with job.phases.phase("settle"):
            settler(compiled)

    compiled: program.Program | Package
    options = job.request.get("options", {})
    with job.phases.phase("compile"), searches.numbered(recipe.search):
        if job.format == "aoti":
            # Its autotuning is settled while its code is generated: what C++ launches it cannot choose later.
            try:
                compiled = compile_package(rebuilt, symbols, options, recipe.patches, frontend=job.frontend)
            except OutOfMemory:
                smaller = (size or 0) // 2
                if not job.on_gpu or dispatched not in narrowed or smaller < (low or 1):
                    raise
                torch.cuda.empty_cache()
                part = compile_interval(job, interval, replace(recipe, hint=smaller), others)
                return replace(
                    part, note=part.note or f"autotuning was settled at size {smaller}, since {size} does not fit"
                )
        else:
            compiled = program.compile_program(rebuilt, options, settle, recipe.patches, frontend=job.frontend)
    with job.phases.phase("prove"):
        symbol = symbols.by_name[dispatched] if dispatched in narrowed else None
        # Proven is only what the compiler was told of.
        told = interval if interval is None or recipe.narrows else (max(interval[0], _STOCK_LOW), interval[1])
        proof = prove(symbols, symbol, told, lambda condition: job.guards.can_be(condition, symbols))
    return Part(recipe, rebuilt, compiled, proof, symbols, time.monotonic() - started, settler.note)


def _settling_size(interval: Interval | None, recipe: Recipe) -> tuple[int | None, int | None]:
    """The size that autotuning is settled at, and the least that may stand for it."""
    if interval is None:
        return None, None
    if not recipe.narrows:
        return recipe.hint or DEFAULT_HINT, _STOCK_LOW
    low, high = interval
    return min(max(recipe.hint or low, low), high), low
