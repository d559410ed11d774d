"""Which of a graph's outputs hold what nobody has written: memory that the graph allocates for others to fill.

Attention's output buffer is the usual one, allocated in the piece before the attention. Whatever lies in it, there is nothing to compare.
"""

from __future__ import annotations

import torch
import torch.fx
from torch._ops import OpOverload, OpOverloadPacket

from .written import overload_of, storage, written_by

_FACTORIES = frozenset(("empty", "empty_like", "empty_permuted", "empty_strided", "new_empty", "new_empty_strided"))


def leaves(module: torch.fx.GraphModule) -> set[int]:
    """Positions in the flat tuple that `module` returns. The nodes' `example_value`s must be there."""
    unset: set[int] = set()
    for node in module.graph.nodes:
        value = node.meta.get("example_value")
        # Torch's own operators count a tensor's versions up when they write to it, its views' with it.
        if isinstance(value, torch.Tensor) and _allocates(node) and value._version == 0:
            unset.add(storage(value))
    for node in module.graph.nodes:
        unset.difference_update(map(storage, written_by(node)))
    returned = module.graph.output_node().args[0]
    assert isinstance(returned, tuple)
    values = [leaf.meta.get("example_value") if isinstance(leaf, torch.fx.Node) else None for leaf in returned]
    return {i for i, value in enumerate(values) if isinstance(value, torch.Tensor) and storage(value) in unset}


def _allocates(node: torch.fx.Node) -> bool:
    target = node.target
    if isinstance(target, (OpOverload, OpOverloadPacket)):
        namespace, _, name = overload_of(target)._schema.name.partition("::")
        return namespace == "aten" and name in _FACTORIES
    name = target if isinstance(target, str) else getattr(target, "__name__", "")
    return node.op in ("call_function", "call_method") and name in _FACTORIES
