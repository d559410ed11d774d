"""A piece the size of one layer of Llama-3.1-8B between two attentions, and one of its small operations only.

bfloat16 on a GPU; what vLLM cuts out of that model: output projection, norm, gate-up, silu-mul, down, norm, qkv, rope. The
second piece is the same without the matrix products.
"""

from __future__ import annotations

from typing import Any

import torch

HIDDEN, FFN, HEADS, KV_HEADS, HEAD = 4096, 14336, 32, 8, 128
QKV = (HEADS + 2 * KV_HEADS) * HEAD
MAX_POSITIONS = 16384


def norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """RMS norm, computed in float32."""
    wide = x.float()
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5)).to(x.dtype) * weight


def rope(qkv: torch.Tensor, positions: torch.Tensor, table: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Splits and rotates, neox style."""
    q, k, v = qkv.split([HEADS * HEAD, KV_HEADS * HEAD, KV_HEADS * HEAD], dim=-1)
    cos, sin = table.index_select(0, positions).chunk(2, dim=-1)

    def rotated(x: torch.Tensor) -> torch.Tensor:
        first, second = x.view(x.shape[0], -1, HEAD).chunk(2, dim=-1)
        c, s = cos.unsqueeze(-2), sin.unsqueeze(-2)
        return torch.cat((first * c - second * s, second * c + first * s), dim=-1).flatten(1)

    return rotated(q), rotated(k), v


def layer(attn, residual, positions, w_o, n_1, w_gate_up, w_down, n_2, w_qkv, table):  # type: ignore[no-untyped-def]  # noqa: PLR0917
    """The piece."""
    hidden = torch.nn.functional.linear(attn, w_o) + residual
    gate, up = torch.nn.functional.linear(norm(hidden, n_1), w_gate_up).chunk(2, dim=-1)
    hidden = torch.nn.functional.linear(torch.nn.functional.silu(gate) * up, w_down) + hidden
    return (hidden, *rope(torch.nn.functional.linear(norm(hidden, n_2), w_qkv), positions, table))


def small(attn, residual, gate_up, qkv, positions, n_1, n_2, table):  # type: ignore[no-untyped-def]  # noqa: PLR0917
    """The same without its matrix products."""
    hidden = attn + residual
    # One number of tokens for all: what else would tell the compiler.
    gate, up = gate_up.view(attn.shape[0], 2 * FFN).chunk(2, dim=-1)
    qkv, positions = qkv.view(attn.shape[0], QKV), positions.view(attn.shape[0])
    return (
        hidden,
        norm(hidden, n_1),
        torch.nn.functional.silu(gate) * up,
        norm(hidden, n_2),
        *rope(qkv, positions, table),
    )


def arguments(function: Any, n: int, device: str = "cuda") -> list[torch.Tensor]:
    """Arguments for `n` tokens."""
    make = lambda *sizes: torch.randn(*sizes, device=device, dtype=torch.bfloat16)  # noqa: E731
    weight = lambda out, k: torch.nn.Parameter(make(out, k) / k**0.5, requires_grad=False)  # noqa: E731
    positions = torch.arange(n, device=device) % MAX_POSITIONS
    if function is small:
        return [
            *(make(n, HIDDEN), make(n, HIDDEN), make(n, 2 * FFN), make(n, QKV), positions),
            *(make(HIDDEN), make(HIDDEN), make(MAX_POSITIONS, HEAD)),
        ]
    return [
        *(make(n, HIDDEN), make(n, HIDDEN), positions, weight(HIDDEN, HIDDEN), make(HIDDEN), weight(2 * FFN, HIDDEN)),
        *(weight(HIDDEN, FFN), make(HIDDEN), weight(QKV, HIDDEN), make(MAX_POSITIONS, HEAD)),
    ]


def n_dynamic(function: Any) -> list[int]:
    """The positions of the arguments whose first dimension is the number of tokens."""
    return [0, 1, 2] if function is layer else [0, 1, 2, 3, 4]
