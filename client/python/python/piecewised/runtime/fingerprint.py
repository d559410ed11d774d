"""Which toolchain and which devices this process has.

Code is only good for the toolchain and device that it was compiled for, so the worker compares these before it loads
anything. Cheap: no subprocess, and CUDA is touched only by :func:`cuda_devices`.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import platform
import sys
from typing import Any

import torch

_DIGEST_BYTES = 32


def _digest(parts: list[str]) -> str:
    """BLAKE2b-256, hexadecimal, over the parts with their lengths (the standard library has no BLAKE3)."""
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for part in parts:
        data = part.encode()
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()


@functools.cache
def _toolchain() -> tuple[tuple[str, str], ...]:
    try:
        triton_version = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        triton_version = ""
    fields = {
        "python_version": f"{sys.version_info.major}.{sys.version_info.minor}",
        "torch_version": str(torch.__version__),
        "torch_git_version": torch.version.git_version or "",
        "triton_version": triton_version,
        "cuda_version": torch.version.cuda or "",
    }
    fingerprint = _digest([f"{name}={value}" for name, value in fields.items()])
    return tuple({"fingerprint": fingerprint, **fields, "executable": sys.executable}.items())


def toolchain() -> dict[str, str]:
    """This process's Toolchain. The fingerprint covers every field but `executable`."""
    return dict(_toolchain())


@functools.cache
def _cpu() -> tuple[str, str]:
    return platform.machine(), _digest(sorted(_cpu_flags()))


def _cpu_flags() -> set[str]:
    """The instruction set extensions of the first CPU: `flags` on x86, `Features` on ARM."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                name, _, value = line.partition(":")
                if name.strip() in ("flags", "Features"):
                    return set(value.split())
    except OSError:
        pass
    # Elsewhere than on Linux: what torch dispatches on.
    return {torch.backends.cpu.get_cpu_capability()}


def cpu_device() -> dict[str, str]:
    """This machine's CPU as a DeviceKind."""
    name, capability = _cpu()
    return {"type": "cpu", "name": name, "capability": capability}


def cuda_device(index: int) -> dict[str, str] | None:
    """The kind of the GPU that this process calls cuda:`index`; None: there is none. Starts CUDA in this process."""
    if not torch.cuda.is_available() or index >= torch.cuda.device_count():
        return None
    properties = torch.cuda.get_device_properties(index)
    return {"type": "cuda", "name": properties.name, "capability": f"{properties.major}.{properties.minor}"}


def cuda_devices() -> list[dict[str, str]]:
    """The kinds of GPU that this process sees, each once. Starts CUDA in this process."""
    kinds: list[dict[str, str]] = []
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            kind = cuda_device(index)
            if kind is not None and kind not in kinds:
                kinds.append(kind)
    return kinds


def devices(device_type: str | None = None) -> list[dict[str, str]]:
    """The device kinds of `device_type` ("cpu", "cuda"); None: all of them, CPU first."""
    kinds: list[dict[str, Any]] = []
    if device_type in (None, "cpu"):
        kinds.append(cpu_device())
    if device_type in (None, "cuda"):
        kinds.extend(cuda_devices())
    return kinds
