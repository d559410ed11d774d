"""An attention of its own, as model files register them: the graph is split at it, and it runs as it is."""

from __future__ import annotations

import torch
from torch.library import Library

library = Library("toy", "FRAGMENT")


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor) -> None:
    """`out` = q * 2 + k + v, of the same shapes."""
    out.copy_(q * 2 + k + v)


def attention_fake(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor) -> None:
    """Changes nothing that a fake tensor has."""


def scale(x: torch.Tensor, factor: float) -> torch.Tensor:
    """x * factor, opaque to the compiler."""
    return x * factor


def scale_fake(x: torch.Tensor, factor: float) -> torch.Tensor:
    """A tensor like x."""
    return torch.empty_like(x)


def register() -> None:
    """Defines the operators."""
    library.define("attention(Tensor q, Tensor k, Tensor v, Tensor(a!) out) -> ()")
    library.impl("attention", attention, "CPU")
    library._register_fake("attention", attention_fake)
    library.define("scale(Tensor x, float factor) -> Tensor")
    library.impl("scale", scale, "CPU")
    library._register_fake("scale", scale_fake)


register()
