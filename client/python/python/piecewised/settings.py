"""What of this process ends up in generated code: torch's settings, the toolchain, the device.

Read at the moment of the compile. Asks nothing of CUDA unless the graph has CUDA tensors: a CPU worker must not start
it.
"""

from __future__ import annotations

from typing import Any

import torch

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
    """The DeviceKind that a graph runs on: the GPU where one of its inputs is on a GPU, else the CPU."""
    on_gpu = next((device for device in input_devices(graph) if device["type"] == "cuda"), None)
    if on_gpu is None:
        return fingerprint.devices("cpu")[0]
    kinds = fingerprint.devices("cuda")
    if len(kinds) == 1:
        return kinds[0]
    # GPUs of several kinds in one machine: the one that the tensor is on.
    index = on_gpu.get("index")
    name = torch.cuda.get_device_properties(torch.cuda.current_device() if index is None else index).name
    return next(kind for kind in kinds if kind["name"] == name)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
