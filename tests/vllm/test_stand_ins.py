"""Operators that run inside an engine only, in an executor."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

EXECUTOR = Path(__file__).resolve().parents[2] / "server/executor/python"


def test_an_operator_that_takes_a_layers_name_gives_made_up_values(monkeypatch: pytest.MonkeyPatch) -> None:
    import preloaded  # noqa: F401

    monkeypatch.syspath_prepend(str(EXECUTOR))
    import layer_ops  # noqa: F401
    import toy_ops  # noqa: F401
    from piecewised_executor.frontends import stand_ins
    from vllm.utils.torch_utils import LayerName

    experts = torch.ops.vllm.toy_experts
    x = torch.randn(3, 5).to(torch.bfloat16)
    with pytest.raises(KeyError, match="nobody"):
        experts(x, LayerName("nobody"))
    stand_ins.install()
    stand_ins.install()
    one, other = experts(x, LayerName("nobody")), experts(x + 1, LayerName(""))
    assert (one.shape, one.dtype, one.stride()) == (x.shape, x.dtype, x.stride())
    assert torch.equal(one, other) and one.abs().max() > 0
    # Others are what they were.
    assert torch.equal(torch.ops.toy.scale(x, 0.5), x * 0.5)
