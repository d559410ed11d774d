"""``torch.compile(..., backend="piecewised", options={"splitting_ops": [...]})``: a graph in pieces, compiled as one program.

All pieces are submitted at once, and the backend returns: a call waits for the ranges that it needs. Splitting operators
run as they are, in between. A graph that Dynamo captures anew is a program of its own.
"""

from __future__ import annotations

import hashlib
import json
import threading
from typing import Any

import torch.fx

from .capture import graph_of
from .graphs import dispatched_argument
from .loading import Runnable
from .options import BackendOptions
from .piecewise_backend import PiecewiseBackend
from .plan import ANY_SIZE
from .program import Program, begin
from .split import Split, split_graph

# By the name that the user gave: what was compiled under it in this process, in order.
_names: dict[str, list[str]] = {}
_lock = threading.Lock()


def compile_split(gm: torch.fx.GraphModule, options: BackendOptions) -> Runnable:
    """What runs a graph that Dynamo captured. Raises PiecewisedError where it can't be split or a piece can't be described."""
    split = split_graph(gm, options.splitting_ops)
    if not split.compiled:
        return gm.forward
    program = begin(Program(_program_name(split, options), len(split.compiled), on_complete=options.on_complete))
    backends = {
        piece.index: _backend(piece.module, place, program, options) for place, piece in enumerate(split.compiled)
    }
    return split.with_callables(backends)


def _backend(module: torch.fx.GraphModule, place: int, program: Program, options: BackendOptions) -> PiecewiseBackend:
    # The plan is for the pieces that have sizes; one without has one entry, whatever the plan.
    is_static = dispatched_argument(module, None) is None
    ranges, sizes = ([ANY_SIZE], []) if is_static else (options.ranges, options.sizes)
    choices = options.choices
    return PiecewiseBackend(
        module,
        compile_ranges=ranges,
        compile_sizes=sizes,
        piece_index=place,
        program=program,
        mode=options.compile_mode,
        tuning=choices.tuning,
        specialisation=choices.specialisation,
        compile_hints=None if is_static else choices.hints,
        artifact_format=choices.artifact_format,
        swap=choices.swap,
        guards=choices.guards,
        priority=choices.priority,
        warm_up=choices.warm_up,
        on_error=options.on_error,
        options=options.inductor,
        endpoint=options.endpoint,
        budget_s=options.budget_s,
        cache_dir=options.cache_dir,
    )


def _program_name(split: Split, options: BackendOptions) -> str:
    """The user's name; with a number behind it for the second and further graphs. Without one, a digest of what is compiled."""
    graphs = [_without_traces(graph_of(piece.module)) for piece in split.compiled]
    content = [graphs, options.ranges, options.sizes, options.inductor_values(), options.choices.content()]
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    if options.program is None:
        return f"graph-{digest[:32]}"
    with _lock:
        digests = _names.setdefault(options.program, [])
        if digest not in digests:
            digests.append(digest)
        number = digests.index(digest)
    return options.program if number == 0 else f"{options.program}.{number}"


def _without_traces(graph: dict[str, Any]) -> dict[str, Any]:
    """Without what differs from capture to capture: stack traces, and the sizes that happened to be captured with."""
    symbols = [{name: value for name, value in symbol.items() if name != "hint"} for symbol in graph.get("symbols", [])]
    nodes = [{name: value for name, value in node.items() if name != "stack_trace"} for node in graph["nodes"]]
    return {**graph, "symbols": symbols, "nodes": nodes}
