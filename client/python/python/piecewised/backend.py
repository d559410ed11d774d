"""``torch.compile(model, backend="piecewised", options={...})``.

The daemon compiles the ranges of the plan; this process loads and dispatches. Where the daemon can't help, this process
compiles by itself with Inductor and says so once, unless ``on_error="raise"``. What the user wrote wrongly is always
raised: compiling anyway would hide it.

Options: ``compile_ranges`` ([[start, end], ...], inclusive) or ``compile_range_endpoints``, ``compile_sizes``,
``endpoint``, ``on_error`` ("local", "raise"), ``progress`` ("auto", True, False), ``budget_s``, ``cache_dir``; every
other name is one of ``torch._inductor.config``.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from . import _core, settings
from .errors import EndpointError, NotCovered, OptionError, PiecewisedError, PlanError, Unreachable, UnsupportedPiece
from .graphs import forget_first_size, is_static
from .local import compile_locally
from .options import BackendOptions, parse
from .piece import Piece

# The user's own mistakes, which no other way of compiling makes right.
_MISTAKES = (PlanError, OptionError, EndpointError, NotCovered)

# After a daemon didn't answer, the pieces that follow at once don't each wait for it again.
_FORGET_UNREACHABLE_S = 10.0

_lock = threading.Lock()
_clients: dict[tuple[Any, ...], _core.Client] = {}
_unreachable: dict[tuple[Any, ...], tuple[float, Unreachable]] = {}


def piecewised(
    gm: torch.fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    options: Mapping[str, Any] | None = None,
    mode: str | None = None,
    **kwargs: Any,
) -> Callable[..., Any]:
    """The backend that Dynamo calls with each graph."""
    if kwargs:
        raise OptionError(
            f"the piecewised backend takes no {', '.join(map(repr, kwargs))}; everything is given in options={{...}}",
            reason="UNKNOWN_OPTION",
        )
    parsed = parse(options, _options_of_mode(mode))
    try:
        return _compile(gm, example_inputs, parsed)
    except _MISTAKES:
        raise
    except PiecewisedError as error:
        if parsed.on_error == "raise":
            raise
        return compile_locally(gm, example_inputs, parsed.inductor, error)


def _compile(gm: torch.fx.GraphModule, example_inputs: Sequence[Any], options: BackendOptions) -> Callable[..., Any]:
    _refuse_training(example_inputs)
    client = _client(options)
    graph = _graph(gm, example_inputs)
    forget_first_size(graph)
    piece = Piece.compile(
        client,
        graph,
        ranges=options.ranges,
        sizes=options.sizes,
        options={"inductor": options.inductor_values(), "torch": settings.torch_settings()},
        toolchain=settings.toolchain(),
        device=settings.device_of(graph),
        progress=options.progress,
        is_static=is_static(graph),
    )
    return piece.run


def _graph(gm: torch.fx.GraphModule, example_inputs: Sequence[Any]) -> dict[str, Any]:
    from .fxgraph import UnsupportedGraph, to_graph

    try:
        return to_graph(gm, example_inputs)
    except UnsupportedGraph as error:
        metadata = {"node": str(error.node), "type": str(error.type_name)}
        raise UnsupportedPiece(
            f"the graph can't be sent: {error}", reason="UNSUPPORTED_GRAPH", metadata=metadata
        ) from error


def _refuse_training(example_inputs: Sequence[Any]) -> None:
    if torch.is_grad_enabled() and any(isinstance(x, torch.Tensor) and x.requires_grad for x in example_inputs):
        raise UnsupportedPiece(
            "the daemon compiles for inference, and this call records gradients", reason="NEEDS_GRADIENT"
        )


def _options_of_mode(mode: str | None) -> dict[str, Any]:
    """What ``torch.compile``'s ``mode`` stands for, as Inductor's options."""
    if mode is None or mode == "default":
        return {}
    from torch._inductor import list_mode_options

    try:
        return dict(list_mode_options(mode))
    except RuntimeError as error:
        raise OptionError(str(error), reason="UNKNOWN_OPTION", metadata={"option": "mode"}) from error
