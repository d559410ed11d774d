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
    """The DeviceKind that a graph runs on: the GPU where one of its inputs is on a GPU, else the CPU.

    Raises UnsupportedPiece where that is not the process's first GPU. Inductor writes the device's index into its code, artifacts
    are made for the first one, and code for it would read another GPU's tensors through the wrong stream, or not at all.
    """
    on_gpus = [device for device in input_devices(graph) if device["type"] == "cuda"]
    if not on_gpus:
        return fingerprint.devices("cpu")[0]
    on_gpu = next((device for device in on_gpus if device.get("index") not in (None, 0)), on_gpus[0])
    if on_gpu.get("index") not in (None, 0):
        raise UnsupportedPiece(
            f"the piece is on cuda:{on_gpu['index']}, and artifacts run on a process's first GPU; start each worker with "
            "CUDA_VISIBLE_DEVICES naming its own",
            reason="NOT_FIRST_GPU",
        )
    kinds = fingerprint.devices("cuda")
    if len(kinds) == 1:
        return kinds[0]
    # GPUs of several kinds in one machine: the one that the tensor is on.
    index = on_gpu.get("index")
    name = torch.cuda.get_device_properties(torch.cuda.current_device() if index is None else index).name
    return next(kind for kind in kinds if kind["name"] == name)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
