"""A model as one rank of a tensor-parallel group has it: its part of the vocabulary is in its first piece, as constants; all else is the same."""

from __future__ import annotations

from typing import Any

import torch
import toy_ops  # noqa: F401
from torch import nn
from vllm.compilation.decorators import support_torch_compile
from vllm.config import VllmConfig


@support_torch_compile(dynamic_arg_dims={"x": 0})
class Model(nn.Module):
    """Over x: f32[n, hidden], of which the token is the first column. `rank` of two."""

    def __init__(
        self, *, vllm_config: VllmConfig, prefix: str = "", rank: int = 0, hidden: int = 28, **kwargs: Any
    ) -> None:
        super().__init__()
        self.hidden = hidden
        self.n_tokens = 100
        self.start = rank * self.n_tokens
        self.table = nn.Parameter(torch.rand(self.n_tokens, hidden), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = (x[:, 0].abs() * 100).to(torch.int64)
        is_ours = (tokens >= self.start) & (tokens < self.start + self.n_tokens)
        rows = torch.nn.functional.embedding((tokens - self.start) * is_ours, self.table)
        x = rows * is_ours.unsqueeze(-1)
        for _ in range(2):
            out = torch.empty_like(x)
            torch.ops.toy.attention(x, x, x, out)
            x = out.tanh() * 3
        return x
