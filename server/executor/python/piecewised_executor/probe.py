"""What this interpreter can do: the `ready` message, or a sentence that says why it can't do anything."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from .protocol import PROTOCOL

MIN_PYTHON = (3, 10)
# What standalone_compile(aot=True), the loader and the ShapeEnv's fields were written against.
MIN_TORCH = (2, 11)
# Where there is a GPU for CUDA, one of them is there too: on Linux, and under WSL.
DEVICE_FILES = ("/dev/nvidiactl", "/dev/dxg")
_MAX_NVML_STARTS = 1000


class Unusable(Exception):
    """This interpreter can't compile; the message says what is missing and what to do."""


def import_torch() -> float:
    """Imports torch and everything that compiles and tries artifacts; the seconds that took. Starts no CUDA. Raises Unusable."""
    started = time.monotonic()
    if sys.version_info < MIN_PYTHON:
        raise Unusable(f"{sys.executable} is Python {sys.version.split()[0]}; name one of 3.10 or newer with --python")
    try:
        import torch
    except ImportError as error:
        raise Unusable(
            f"{sys.executable} cannot import torch ({error}); install torch there, or name an interpreter that has "
            "it with --python"
        ) from error
    version = tuple(int(part) for part in str(torch.__version__).split("+")[0].split(".")[:2])
    if version < MIN_TORCH:
        raise Unusable(
            f"{sys.executable} has torch {torch.__version__}, and piecewised needs "
            f"{MIN_TORCH[0]}.{MIN_TORCH[1]} or newer; install a newer torch there"
        )
    try:
        with cuda_answers(has_device_file):
            import torch._inductor.compile_fx

            from . import allowlist, benchmarks, candidates, check, job, searches, trial

            # Before the leases, which the search is to be without.
            searches.install()
            benchmarks.install()
            candidates.install()
            del allowlist, check, job, trial
    except ImportError as error:
        raise Unusable(f"torch {torch.__version__} of {sys.executable} cannot import Inductor: {error}") from error
    return time.monotonic() - started


def has_device_file() -> bool:
    """Whether there is a GPU for CUDA, as far as can be told without starting it."""
    return any(os.path.exists(path) for path in DEVICE_FILES)


@contextlib.contextmanager
def cuda_answers(is_available: Callable[[], bool]) -> Iterator[None]:
    """While inside, `torch.cuda.is_available` is answered without asking the driver.

    Asking it would start CUDA, and a process that has done so cannot be forked into one that uses a GPU. Importing Inductor asks once, to
    choose how to benchmark: there the driver's device file is answer enough.
    """
    import torch

    original = torch.cuda.is_available
    torch.cuda.is_available = is_available
    try:
        yield
    finally:
        torch.cuda.is_available = original


def close_nvml() -> None:
    """Ends what NVML, which counts GPUs without starting CUDA, has open in this process, whoever started it.

    A process that is forked from this one and closes what it does not know, or whose parent ends, could not use NVML otherwise: there it
    takes itself for started. Who needs it starts it again.
    """
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1", mode=os.RTLD_NOLOAD | os.RTLD_NOW)
    except OSError:
        return
    # It counts how often it was started. The bound is against a library that never says that it has ended.
    for _ in range(_MAX_NVML_STARTS):
        if library.nvmlShutdown() != 0:
            return


@contextlib.contextmanager
def without_cuda() -> Iterator[None]:
    """While inside, this machine has no GPU, as far as Python can tell: what asks for one is refused as it would be without a driver."""
    import torch

    def refuse() -> None:
        raise RuntimeError("no GPU is used in this process")

    # Fake tensors ask the driver whether there is a GPU, to do without its guards for good where there is none.
    replaced = [
        (torch.cuda, "_lazy_init", refuse),
        (torch.cuda, "device_count", lambda: 0),
        (torch._C, "_ensureCUDADeviceGuardSet", lambda: None),
    ]
    originals = [(owner, name, getattr(owner, name)) for owner, name, _ in replaced if hasattr(owner, name)]
    try:
        for owner, name, value in replaced:
            setattr(owner, name, value)
        with cuda_answers(lambda: False):
            yield
    finally:
        for owner, name, original in originals:
            setattr(owner, name, original)


def ready(import_s: float, *, is_known: bool) -> dict[str, Any]:
    """The fields of `ready`. Without `is_known` they say what this interpreter can do, and CUDA is started to see which devices there are:
    that takes longer than forking an executor, and is the same for all of them."""
    base = {"protocol": PROTOCOL, "pid": os.getpid(), "import_s": import_s}
    if is_known:
        return base
    from . import allowlist, frontends, settings
    from .runtime import fingerprint

    return {
        **base,
        "toolchain": fingerprint.toolchain(),
        "devices": fingerprint.devices(),
        "gpus": gpus(),
        "functions": allowlist.function_names(),
        "methods": allowlist.method_names(),
        "attributes": allowlist.attribute_names(),
        "options": settings.inductor_options(),
        "witnesses": witnesses(),
        "frontends": frontends.names(),
    }


def witnesses() -> list[str]:
    """Files and folders whose length or time changes with what `ready` says: a daemon that starts again looks at them before it believes what
    was said to the one before. A package that is installed or removed changes the folder that it lies in."""
    import torch

    # What each daemon makes anew: the executor's own source, which is known by its digest, and the working directories beside it.
    made_anew = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))) + os.sep
    folder = os.path.dirname(torch.__file__)
    found = {sys.executable, os.path.realpath(sys.executable), os.path.join(sys.prefix, "pyvenv.cfg")}
    found |= {os.path.abspath(path) for path in sys.path if path}
    found |= {os.path.join(folder, "lib", name) for name in ("libtorch_cpu.so", "libtorch_cuda.so", "libc10.so")}
    for name in ("torch", "torch._C", "torch.version", "torch._inductor.config", "triton", "triton._C.libtriton"):
        if (path := getattr(sys.modules.get(name), "__file__", None)) is not None:
            found.add(path)
    return sorted(path for path in found if not path.startswith(made_anew))


def gpus() -> list[dict[str, Any]]:
    """Every GPU that this process sees: its kind, and the name that CUDA_VISIBLE_DEVICES takes. Starts CUDA."""
    import torch

    from .runtime import fingerprint

    if not torch.cuda.is_available():
        return []
    # Where the operator chose by name (as with a slice of a GPU, whose own properties name the whole), those names are what works.
    chosen = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    named = chosen if all(name.startswith(("GPU-", "MIG-")) for name in chosen) else []
    found = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        found.append(
            {
                "index": index,
                "uuid": named[index] if index < len(named) else f"GPU-{properties.uuid}",
                "kind": fingerprint.cuda_device(index),
                "memory_bytes": properties.total_memory,
            }
        )
    return found
