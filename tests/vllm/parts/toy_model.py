"""Models as vLLM compiles them: decorated, split at their attention, of layers that are alike."""

from __future__ import annotations

from typing import Any

import torch
import toy_ops  # noqa: F401
from torch import nn
from vllm import ir
from vllm.compilation.decorators import support_torch_compile
from vllm.config import VllmConfig


class Layer(nn.Module):
    """Norm, an MLP, an operator that stays in its piece, attention."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.norm = nn.Parameter(torch.rand(hidden) + 0.5, requires_grad=False)
        self.up = nn.Linear(hidden, 2 * hidden, bias=False)
        self.down = nn.Linear(2 * hidden, hidden, bias=False)
        self.requires_grad_(False)

    def forward(self, x: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x, residual = ir.ops.fused_add_rms_norm.maybe_inplace(x, residual, self.norm, 1e-6)
        x = self.down(torch.nn.functional.silu(self.up(x)))
        x = torch.ops.toy.scale(x, 0.5)
        out = torch.empty_like(x)
        torch.ops.toy.attention(x, x.sin(), x.cos(), out)
        return out, residual


@support_torch_compile(dynamic_arg_dims={"x": 0})
class Model(nn.Module):
    """`n_layers` layers over x: f32[n, hidden]."""

    def __init__(
        self, *, vllm_config: VllmConfig, prefix: str = "", n_layers: int = 3, hidden: int = 32, **kwargs: Any
    ) -> None:
        super().__init__()
        self.hidden = hidden
        self.layers = nn.ModuleList(Layer(hidden) for _ in range(n_layers))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        residual = x * 0.25
        for layer in self.layers:
            x, residual = layer(x, residual)
        return x + residual


@support_torch_compile(dynamic_arg_dims={"x": 0}, is_encoder=True)
class Encoder(nn.Module):
    """An encoder: its inputs may be longer than any batch."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "", hidden: int = 32, **kwargs: Any) -> None:
        super().__init__()
        self.hidden = hidden
        self.layer = Layer(hidden)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, residual = self.layer(x, x * 0.5)
        return x - residual
