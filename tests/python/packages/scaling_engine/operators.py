"""The engine's operators. Importing this registers them."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator

import torch
from torch._library.opaque_object import register_opaque_type
from torch._opaque_base import OpaqueBase

# Layers of the engine that runs, by name; empty: none runs.
LAYERS: dict[str, float] = {}
_LEFTOVERS = itertools.count()


class LayerName(OpaqueBase):
    """Names a layer; another one at each call of a piece that layers share."""

    def __init__(self, value: str) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LayerName) and self.value == other.value

    def __hash__(self) -> int:
        return hash(self.value)

    def __fx_repr__(self) -> tuple[str, dict[str, type]]:
        return f"LayerName({self.value!r})", {"LayerName": LayerName}


register_opaque_type(LayerName, typ="value", hoist=True)

_library = torch.library.Library("scaling", "DEF")
_library.define("scale(Tensor x) -> Tensor")
_library.define("shift_(Tensor(a!) x, float by) -> ()")
# No package can call it with numbers of two kinds.
_library.define("weigh(Tensor x, Scalar[] by) -> Tensor")
_library.define("donate(Tensor(a!) x) -> Tensor")
_library.define(f"of_layer(Tensor x, {LayerName.__module__}.{LayerName.__qualname__} name) -> Tensor")


def _shift(x: torch.Tensor, by: float) -> None:
    x.add_(by)


def _donate(x: torch.Tensor) -> torch.Tensor:
    result = x * 3
    # Something else each time: nobody may look at it.
    x.fill_(next(_LEFTOVERS))
    return result


def _of_layer(x: torch.Tensor, name: LayerName) -> torch.Tensor:
    if name.value not in LAYERS:
        raise RuntimeError(f"there is no layer {name.value!r}: no engine runs")
    return x * LAYERS[name.value]


_library.impl("scale", lambda x: x * 2, "CPU")
_library.impl("shift_", _shift, "CPU")
_library.impl("weigh", lambda x, by: x * sum(by), "CPU")
_library.impl("donate", _donate, "CPU")
_library.impl("of_layer", _of_layer, "CPU")
torch.library.register_fake("scaling::scale", lambda x: torch.empty_like(x), lib=_library)
torch.library.register_fake("scaling::shift_", lambda x, by: None, lib=_library)
torch.library.register_fake("scaling::weigh", lambda x, by: torch.empty_like(x), lib=_library)
torch.library.register_fake("scaling::donate", lambda x: torch.empty_like(x), lib=_library)
torch.library.register_fake("scaling::of_layer", lambda x, name: torch.empty_like(x), lib=_library)


@contextlib.contextmanager
def engine(**layers: float) -> Iterator[None]:
    """While inside, an engine with these layers runs."""
    LAYERS.update(layers)
    try:
        yield
    finally:
        LAYERS.clear()
