"""What the client says of its process and refuses to say."""

from __future__ import annotations

from typing import Any

import pytest
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


@pytest.mark.parametrize(
    "devices", [[{"type": "cuda", "index": 1}], [{"type": "cuda", "index": 0}, {"type": "cuda", "index": 3}]]
)
def test_another_gpu_than_the_first_is_refused_with_what_to_do(devices: list[dict[str, Any]]) -> None:
    # Decided before CUDA is asked for anything: code for the first GPU must not run on another's tensors.
    with pytest.raises(UnsupportedPiece, match="CUDA_VISIBLE_DEVICES") as caught:
        settings.device_of(graph({"type": "cpu"}, *devices))
    assert caught.value.reason == "NOT_FIRST_GPU"
