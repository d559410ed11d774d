"""From a captured graph to the request for its compiles."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.fx

from . import settings
from .choices import Choices
from .errors import UnsupportedPiece
from .graphs import requires_grad
from .submission import Request


def request_of(
    gm: torch.fx.GraphModule,
    inductor: dict[str, Any],
    choices: Choices,
    *,
    endpoint: str | None,
    budget_s: float | None,
    cache_dir: str | None,
) -> Request:
    """The request for a graph whose placeholders carry fake inputs, with this process's settings as they are now.

    ``inductor``: Inductor's configuration in the project's JSON form. Raises UnsupportedPiece.
    """
    if torch.is_grad_enabled() and requires_grad(gm):
        raise needs_gradient()
    graph = graph_of(gm)
    return Request(
        graph=json.dumps(graph),
        options=options_of(inductor, choices),
        toolchain=json.dumps(settings.toolchain()),
        device=json.dumps(settings.device_of(graph)),
        endpoint=endpoint,
        budget_s=budget_s,
        cache_dir=cache_dir,
        choices=choices,
        device_index=settings.device_index_of(graph),
    )


def options_of(inductor: dict[str, Any], choices: Choices) -> str:
    """The options of a request, with this process's settings as they are now; ``inductor`` as in :func:`request_of`."""
    return json.dumps(choices.in_options({"inductor": inductor, "torch": settings.torch_settings()}))


def graph_of(
    gm: torch.fx.GraphModule,
    example_inputs: Sequence[Any] | None = None,
    opaque: Callable[[Any], str | None] | None = None,
) -> dict[str, Any]:
    """The graph in the project's JSON form; `opaque` as in :func:`.fxgraph.to_graph`. Raises UnsupportedPiece."""
    from .fxgraph import UnsupportedGraph, to_graph

    try:
        return to_graph(gm, example_inputs, opaque)
    except UnsupportedGraph as error:
        metadata = {"node": str(error.node), "type": str(error.type_name)}
        raise UnsupportedPiece(
            f"the graph can't be sent: {error}", reason="UNSUPPORTED_GRAPH", metadata=metadata
        ) from error


def needs_gradient() -> UnsupportedPiece:
    """The error for a call that records gradients."""
    return UnsupportedPiece(
        "the daemon compiles for inference, and this call records gradients", reason="NEEDS_GRADIENT"
    )
