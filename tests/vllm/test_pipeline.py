"""vLLM's whole pipeline with its pieces compiled by the daemon, against the same pipeline with vLLM's own compiler."""

from __future__ import annotations

from typing import Any

import torch
from conftest import Daemon, Workers

MODEL = {"name": "Model", "sizes": [64, 2, 1, 4, 16, 17], "arguments": {"hidden": 32}}
ENCODER = {"name": "Encoder", "sizes": [40, 3, 3000], "arguments": {"hidden": 48}}


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """The same values, bit for bit."""
    assert len(found["tensors"]) == len(expected["tensors"])
    for ours, theirs in zip(found["tensors"], expected["tensors"], strict=True):
        assert ours.keys() == theirs.keys()
        for size, tensor in ours.items():
            torch.testing.assert_close(
                tensor, theirs[size], rtol=0, atol=0, msg=lambda text, size=size: f"size {size}: {text}"
            )


def parts(result: dict[str, Any]) -> list[dict[str, Any]]:
    return result["stats"]["parts"]


def test_results_equal_those_of_vllms_own_compiler(daemon: Daemon, workers: Workers) -> None:
    stock = workers.start(MODEL, ENCODER).result()
    found = workers.start(MODEL, ENCODER, endpoint=daemon.endpoint).result()
    print(found["log"], found["stats"], found["counters"], stock["counters"])
    assert_same(found, stock)
