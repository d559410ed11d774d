"""``torch.compile(model, backend="piecewised", options={...})``.

The daemon compiles the ranges of the plan; this process loads and dispatches. Where the daemon can't help, this process
compiles by itself with Inductor and says so once, unless ``on_error="raise"``. What the user wrote wrongly is always
raised: compiling anyway would hide it.

With ``splitting_ops`` the graph is split at those operators, which run as they are, and what lies between them is
compiled as one program (:mod:`.split_backend`).

Options: ``compile_ranges`` ([[start, end], ...], inclusive) or ``compile_range_endpoints``, ``compile_sizes``,
``is_encoder``, ``max_num_batched_tokens``, ``tuning`` ("fast", "full", "tiered"), ``specialisation`` ("range", "generic"),
``compile_hints`` ({"[start, end]": size}), ``artifact_format`` ("inductor", "aoti"), ``swap`` ("auto", "never"), ``splitting_ops``, ``program``, ``compile_mode`` ("upfront", "lazy"), ``endpoint``, ``on_error`` ("local", "raise"), ``guards`` ("dispatch", "strict"), ``priority`` ("interactive", "prefetch", "background"), ``warm_up`` (True, False), ``progress`` ("auto", True, False), ``budget_s``, ``cache_dir``; every
other name is one of ``torch._inductor.config``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from . import graph_files, settings
from .capture import graph_of, needs_gradient
from .connections import connect
from .errors import MISTAKES, OptionError, PiecewisedError
from .graphs import is_static
from .local import compile_locally
from .options import BackendOptions, parse
from .piece import Piece
from .split_backend import compile_split


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
    except MISTAKES:
        raise
    except PiecewisedError as error:
        if parsed.on_error == "raise":
            raise
        return compile_locally(gm, example_inputs, parsed.inductor, error)


def _compile(gm: torch.fx.GraphModule, example_inputs: Sequence[Any], options: BackendOptions) -> Callable[..., Any]:
    _refuse_training(example_inputs)
    if options.splitting_ops or options.program is not None:
        return compile_split(gm, options)
    graph = graph_of(gm, example_inputs)
    # Before there is a connection: recording needs none.
    graph_files.record(graph, options)
    client = connect(options.endpoint, budget_s=options.budget_s, cache_dir=options.cache_dir)
    piece = Piece.compile(
        client,
        graph,
        ranges=options.ranges,
        sizes=options.sizes,
        options={"inductor": options.inductor_values(), "torch": settings.torch_settings()},
        toolchain=settings.toolchain(),
        device=settings.device_of(graph),
        device_index=settings.device_index_of(graph),
        progress=options.progress,
        is_static=is_static(graph),
        choices=options.choices,
    )
    return piece.run


def _refuse_training(example_inputs: Sequence[Any]) -> None:
    if torch.is_grad_enabled() and any(isinstance(x, torch.Tensor) and x.requires_grad for x in example_inputs):
        raise needs_gradient()


def _options_of_mode(mode: str | None) -> dict[str, Any]:
    """What ``torch.compile``'s ``mode`` stands for, as Inductor's options."""
    if mode is None or mode == "default":
        return {}
    from torch._inductor import list_mode_options

    try:
        return dict(list_mode_options(mode))
    except RuntimeError as error:
        raise OptionError(str(error), reason="UNKNOWN_OPTION", metadata={"option": "mode"}) from error
