"""Which of a graph's inputs its operators write to, by what their schemas say.

An operator that torch generated counts a tensor's versions up when it writes to it; one that a library registered need not.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.fx
from torch._ops import OpOverload, OpOverloadPacket


def by_operators(
    module: torch.fx.GraphModule, inputs: list[Any], consuming: frozenset[str]
) -> tuple[set[int], set[int]]:
    """Positions in `inputs` of what is written to, and of what operators named in `consuming` ("namespace::name.overload") may write to.

    The nodes' `example_value`s must be there. A view of an input counts as the input.
    """
    positions: dict[int, list[int]] = {}
    for i, value in enumerate(inputs):
        if isinstance(value, torch.Tensor):
            positions.setdefault(storage(value), []).append(i)
    plain: set[int] = set()
    consumed: set[int] = set()
    for node in module.graph.nodes:
        if not isinstance(node.target, (OpOverload, OpOverloadPacket)):
            continue
        overload = overload_of(node.target)
        found = consumed if _name(overload) in consuming else plain
        for tensor in _written(overload, node):
            found.update(positions.get(storage(tensor), ()))
    return plain, consumed


def written_by(node: torch.fx.Node) -> list[torch.Tensor]:
    """What a node's operator writes to; empty for what is no registered operator."""
    if not isinstance(node.target, (OpOverload, OpOverloadPacket)):
        return []
    return list(_written(overload_of(node.target), node))


def overload_of(target: OpOverload | OpOverloadPacket) -> OpOverload:
    """Of a packet the first overload: they differ in what they take, and hardly in what they write to."""
    if isinstance(target, OpOverload):
        return target
    found: OpOverload = getattr(target, target.overloads()[0])
    return found


def _name(overload: OpOverload) -> str:
    return f"{overload._schema.name}.{overload._overloadname}"


def _written(overload: OpOverload, node: torch.fx.Node) -> Iterator[torch.Tensor]:
    for i, argument in enumerate(overload._schema.arguments):
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        given = node.args[i] if i < len(node.args) else node.kwargs.get(argument.name)
        for child in given if isinstance(given, (list, tuple)) else [given]:
            value = child.meta.get("example_value") if isinstance(child, torch.fx.Node) else None
            if isinstance(value, torch.Tensor):
                yield value


def storage(tensor: torch.Tensor) -> int:
    """The same number for tensors that share memory."""
    return int(tensor.untyped_storage()._cdata)
