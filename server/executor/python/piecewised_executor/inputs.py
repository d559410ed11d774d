"""Made-up arguments for a graph at given sizes: what settles autotuning, and what artifacts are checked and timed with.

Values follow the tensors' dtypes: normally distributed floats (parameters of two and more dimensions scaled
down, so that chains of products stay finite), small integers (they may be indices, and 0 and 1 index
nearly everything), random bools. The same seed gives the same values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
import torch.fx
from torch._library.fake_class_registry import FakeScriptObject

from . import frontends
from .errors import Unsupported
from .frontends import Frontend
from .rebuild import Rebuilt, rebuild
from .runtime import direct
from .runtime.bounds import fixed_values
from .runtime.load import tensor_of
from .symbols import Symbols

# What integers are drawn below. The first bound that eager takes is used: a large one makes indices differ, 2 is nearly
# always in range.
INTEGER_BOUNDS = (64, 2, 1)


@dataclass
class Case:
    """A graph at fixed sizes, with real arguments.

    `module(*flat)` is eager. `arguments` is what an artifact's callable takes (all placeholders in order); `flat` and
    `arguments` share their tensors.
    """

    size: int | None
    rebuilt: Rebuilt
    flat: list[Any]
    arguments: list[Any]

    @property
    def mutated(self) -> list[int]:
        """Positions in `flat` of what is written to."""
        return self.rebuilt.mutated

    @property
    def changed(self) -> list[int]:
        """Of those, the ones that hold something afterwards."""
        return [i for i in self.rebuilt.mutated if i not in self.rebuilt.consumed]


def fake_case(
    graph: dict[str, Any],
    dispatched: str | None,
    size: int | None,
    others: Mapping[str, int] = MappingProxyType({}),
    frontend: Frontend = frontends.NONE,
) -> Rebuilt:
    """The graph at fixed sizes with fake inputs: what it needs can be read off without having it."""
    values = fixed_values(graph, dispatched, size, others)
    return rebuild(graph, Symbols(graph.get("symbols", []), {}, values, {}), frontend)


def make_case(rebuilt: Rebuilt, size: int | None, seed: int, integer_bound: int) -> Case:
    """Real arguments like the fake ones, on the devices of those."""
    generators: dict[torch.device, torch.Generator] = {}

    def generator(device: torch.device, i: int) -> torch.Generator:
        if device not in generators:
            generators[device] = torch.Generator(device)
        # Each input by itself: what has the same sizes in every case (weights) has the same values too.
        return generators[device].manual_seed((seed << 32) + i)

    n_kept = len(rebuilt.kept)
    flat: list[Any] = []
    for i, fake in enumerate(rebuilt.inputs):
        if i >= n_kept:
            constant = rebuilt.constants[i - n_kept]
            flat.append(tensor_of(constant.data, constant.dtype, constant.sizes, constant.device))
        elif isinstance(fake, torch.Tensor):
            flat.append(_tensor(fake, generator(fake.device, i), integer_bound))
        elif isinstance(fake, FakeScriptObject):
            flat.append(fake.real_obj)
        else:
            raise Unsupported(f"input {rebuilt.kept[i]} is still symbolic at fixed sizes")
    arguments: list[Any] = [rebuilt.known.get(position) for position in range(rebuilt.n_arguments)]
    for position, value in zip(rebuilt.kept, flat[:n_kept], strict=True):
        arguments[position] = value
    return Case(size, rebuilt, flat, arguments)


def copied(case: Case) -> Case:
    """The same case with copies of what is changed in place; the rest is shared."""
    flat = list(case.flat)
    for i in case.mutated:
        flat[i] = _copy(flat[i])
    arguments = list(case.arguments)
    for position, value in zip(case.rebuilt.kept, flat, strict=False):
        arguments[position] = value
    return Case(case.size, case.rebuilt, flat, arguments)


def n_peak_bytes(rebuilt: Rebuilt) -> int:
    """The most that eager holds at once, inputs included: every value lives from its node to its last use."""
    last_use: dict[torch.fx.Node, torch.fx.Node] = {}
    nodes = list(rebuilt.module.graph.nodes)
    for node in nodes:
        for used in node.all_input_nodes:
            last_use[used] = node
    freed: dict[torch.fx.Node, list[torch.fx.Node]] = {}
    for used, user in last_use.items():
        freed.setdefault(user, []).append(used)
    # By storage: a view costs nothing, and keeps alive what it looks into.
    n_views: dict[int, int] = {}
    sizes: dict[int, int] = {}
    live = peak = 0

    def storages(node: torch.fx.Node) -> list[tuple[int, int]]:
        tensors = [value for value in _leaves(node.meta.get("example_value")) if isinstance(value, torch.Tensor)]
        return [(value.untyped_storage()._cdata, _n_storage_bytes(value)) for value in tensors]

    for node in nodes:
        for storage, n_bytes in storages(node):
            if n_views.get(storage, 0) == 0:
                sizes[storage] = n_bytes
                live += n_bytes
            n_views[storage] = n_views.get(storage, 0) + 1
        peak = max(peak, live)
        for dead in freed.get(node, []):
            if dead.op == "placeholder":
                continue
            for storage, _ in storages(dead):
                n_views[storage] -= 1
                if n_views[storage] == 0:
                    live -= sizes[storage]
    return peak


def _leaves(value: Any) -> list[Any]:
    if isinstance(value, (tuple, list)):
        return [leaf for child in value for leaf in _leaves(child)]
    return [value]


def _n_storage_bytes(tensor: torch.Tensor) -> int:
    sizes, strides = [int(size) for size in tensor.shape], [int(stride) for stride in tensor.stride()]
    return direct.extent(sizes, strides) * tensor.element_size()


def _tensor(fake: torch.Tensor, generator: torch.Generator, integer_bound: int) -> torch.Tensor:
    """A tensor with the sizes, strides, offset and dtype of `fake`."""
    sizes, strides = [int(size) for size in fake.shape], [int(stride) for stride in fake.stride()]
    offset = int(fake.storage_offset())
    dtype, device = fake.dtype, fake.device
    n = offset + direct.extent(sizes, strides)
    if dtype == torch.bool:
        base = torch.randint(0, 2, (n,), generator=generator, device=device, dtype=torch.uint8).to(torch.bool)
    elif dtype.is_complex:
        base = torch.randn(n, generator=generator, device=device, dtype=dtype)
    elif dtype.is_floating_point:
        narrow = dtype.itemsize == 1
        base = torch.randn(n, generator=generator, device=device, dtype=torch.float32 if narrow else dtype)
        if isinstance(fake, torch.nn.Parameter) and len(sizes) > 1:
            base *= 1 / math.sqrt(max(sizes[-1], 1))
        base = base.to(dtype)
    else:
        base = torch.randint(0, integer_bound, (n,), generator=generator, device=device, dtype=torch.int64).to(dtype)
    made = torch.as_strided(base, sizes, strides, offset)
    return torch.nn.Parameter(made, requires_grad=False) if isinstance(fake, torch.nn.Parameter) else made


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    sizes, strides, offset = tensor.shape, tensor.stride(), tensor.storage_offset()
    extent = _n_storage_bytes(tensor) // tensor.element_size()
    base = torch.as_strided(tensor, (offset + extent,), (1,), 0).clone()
    made = torch.as_strided(base, sizes, strides, offset)
    return torch.nn.Parameter(made, requires_grad=False) if isinstance(tensor, torch.nn.Parameter) else made
