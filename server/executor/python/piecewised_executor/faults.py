"""Whether the GPU still answers this process.

After an illegal access, a failed launch or a device-side assertion every later CUDA call of the process fails, wherever it comes from: the
context is lost. That is nothing to hold against the graph that happened to notice, and no further job can run here.
"""

from __future__ import annotations

import torch

from .errors import describe


class DeviceFault(Exception):
    """This process's CUDA context is lost. Not a JobError: no part of a job may take it for its own failure and go on."""


def check() -> None:
    """Raises DeviceFault where the context is lost. Starts no CUDA; waits for what runs on the GPU."""
    if not torch.cuda.is_initialized():
        return
    try:
        torch.cuda.synchronize()
        torch.ones(1, device="cuda").add_(1).item()
    except torch.OutOfMemoryError:
        return  # The GPU is full, and well.
    except RuntimeError as error:
        raise DeviceFault(describe(error)) from error


def give_back() -> None:
    """Returns to the GPU what no tensor of this process uses any more: the inference engine beside it wants that memory. What is left is
    the context itself, which goes with the process."""
    if not torch.cuda.is_initialized():
        return
    torch.cuda.synchronize()
    torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.empty_cache()
