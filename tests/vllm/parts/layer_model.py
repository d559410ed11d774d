"""A model whose layers are alike but for their names, which an operator inside their pieces takes."""

from __future__ import annotations

from typing import Any

import layer_ops
import torch
import toy_ops  # noqa: F401
from torch import nn
from vllm.compilation.decorators import support_torch_compile
from vllm.config import VllmConfig
from vllm.utils.torch_utils import LayerName


class Layer(nn.Module):
    """Experts behind an operator, then attention."""

    def __init__(self, name: str, factor: float) -> None:
        super().__init__()
        self.name = LayerName(name)
        layer_ops.FACTORS[name] = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.ops.vllm.toy_experts(x.sin(), self.name)
        x = (x * 2).cos()
        out = torch.empty_like(x)
        torch.ops.toy.attention(x, x, x, out)
        return out


@support_torch_compile(dynamic_arg_dims={"x": 0})
class Model(nn.Module):
    """Three layers with factors 1, 2 and 3, over x: f32[n, hidden]."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "", hidden: int = 16, **kwargs: Any) -> None:
        super().__init__()
        self.hidden = hidden
        self.layers = nn.ModuleList(Layer(f"layers.{i}", float(i + 1)) for i in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x + 1
