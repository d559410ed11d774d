"""What of this process ends up in generated code: torch's settings, the toolchain, the device.

Read at the moment of the compile. Asks nothing of CUDA unless the graph has CUDA tensors: a CPU worker must not start
it.
"""

from __future__ import annotations

from typing import Any

import torch

from .errors import UnsupportedPiece
from .graphs import input_devices
from .runtime import fingerprint

_AUTOCAST_DEVICES = ("cpu", "cuda")


def torch_settings() -> dict[str, Any]:
    """This process's TorchSettings, in the project's JSON form."""
    return {
        "default_dtype": _name(torch.get_default_dtype()),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "num_threads": torch.get_num_threads(),
        "autocast": [
            [device, _name(torch.get_autocast_dtype(device))]
            for device in _AUTOCAST_DEVICES
            if torch.is_autocast_enabled(device)
        ],
    }


def toolchain() -> dict[str, str]:
    """This process's Toolchain."""
    return fingerprint.toolchain()


def device_of(graph: dict[str, Any]) -> dict[str, str]:
    """The DeviceKind that a graph runs on: the GPU where one of its inputs is on a GPU, else the CPU. Raises UnsupportedPiece as
    :func:`device_index_of` does."""
    index = device_index_of(graph)
    if index is None:
        return fingerprint.devices("cpu")[0]
    kind = fingerprint.cuda_device(index)
    if kind is None:
        raise UnsupportedPiece(f"the piece is on cuda:{index}, which this process does not have", reason="NO_DEVICE")
    return kind


def device_index_of(graph: dict[str, Any]) -> int | None:
    """The index of the GPU that a graph's inputs are on, as this process numbers them; None: it has none on a GPU.

    Raises UnsupportedPiece where they are on several: an artifact runs on one.
    """
    on_gpus = [device.get("index") for device in input_devices(graph) if device["type"] == "cuda"]
    if not on_gpus:
        return None
    # Without an index a tensor is on the current one.
    indices = {torch.cuda.current_device() if index is None else index for index in on_gpus}
    if len(indices) > 1:
        named = ", ".join(f"cuda:{index}" for index in sorted(indices))
        raise UnsupportedPiece(
            f"the piece's inputs are on {named}, and an artifact runs on one GPU; split the model where it changes GPUs",
            reason="SEVERAL_GPUS",
        )
    return indices.pop()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
