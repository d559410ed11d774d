"""What the client says of its process and refuses to say."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from piecewised import UnsupportedPiece, settings


def graph(*devices: dict[str, Any]) -> dict[str, Any]:
    """A graph with an input on each of these devices."""
    tensor = {"dtype": "float32", "layout": "strided", "sizes": [], "strides": []}
    nodes = [
        {"name": f"x{i}", "op": {"placeholder": {"value": {"tensor": tensor | {"device": device}}}}}
        for i, device in enumerate(devices)
    ]
    return {"nodes": nodes}


def test_a_cpu_graph_is_for_this_cpu() -> None:
    device = settings.device_of(graph({"type": "cpu"}))
    assert device["type"] == "cpu" and device["capability"]


def test_a_piece_on_one_gpu_is_loaded_for_it() -> None:
    assert (
        settings.device_index_of(graph({"type": "cpu"}, {"type": "cuda", "index": 3}, {"type": "cuda", "index": 3}))
        == 3
    )
    assert settings.device_index_of(graph({"type": "cpu"})) is None


def test_a_piece_on_several_gpus_is_refused_with_what_to_do() -> None:
    with pytest.raises(UnsupportedPiece, match=r"cuda:0, cuda:3.* split the model") as caught:
        settings.device_index_of(graph({"type": "cpu"}, {"type": "cuda", "index": 0}, {"type": "cuda", "index": 3}))
    assert caught.value.reason == "SEVERAL_GPUS"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_named() -> None:
    with pytest.raises(UnsupportedPiece, match="cuda:1, which this process does not have") as caught:
        settings.device_of(graph({"type": "cuda", "index": 1}))
    assert caught.value.reason == "NO_DEVICE"
