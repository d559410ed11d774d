"""vLLM: its passes, its Inductor options, its operators and those of its model files (the other end is ``piecewised.vllm``).

What a job depends on is made again from its payload by the code that the worker made it with (`runtime.vllm`).
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

from .. import probe
from ..errors import Unsupported
from ..runtime.vllm import OPAQUE_TYPE
from . import Frontend, stand_ins

# vLLM sets it for its own compiles, which it makes one after the other; how many compilers an executor runs is the daemon's to say.
_COMPILE_THREADS = "TORCHINDUCTOR_COMPILE_THREADS"
_PYNVML = "vllm.third_party.pynvml"
_ASK_TIMEOUT_S = 30.0
_ASK_NVML = """
import ctypes, json
nvml = ctypes.CDLL("libnvidia-ml.so.1")
def ask(name, *arguments):
    if status := getattr(nvml, name)(*arguments):
        raise SystemExit(f"{name} gave {status}")
ask("nvmlInit_v2")
count = ctypes.c_uint()
ask("nvmlDeviceGetCount_v2", ctypes.byref(count))
devices = []
for index in range(count.value):
    handle, name, major, minor = ctypes.c_void_p(), ctypes.create_string_buffer(96), ctypes.c_int(), ctypes.c_int()
    ask("nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(index), ctypes.byref(handle))
    ask("nvmlDeviceGetName", handle, name, ctypes.c_uint(96))
    ask("nvmlDeviceGetCudaComputeCapability", handle, ctypes.byref(major), ctypes.byref(minor))
    devices.append({"name": name.value.decode(), "capability": [major.value, minor.value]})
print(json.dumps(devices))
"""


def preload() -> None:
    """Imports vLLM with what its passes and operators need."""
    threads = os.environ.get(_COMPILE_THREADS)
    try:
        with _nvml_unasked():
            _import()
    finally:
        os.environ.pop(_COMPILE_THREADS, None)
        if threads is not None:
            os.environ[_COMPILE_THREADS] = threads


def _import() -> None:
    import vllm.compilation.backends
    import vllm.ir.ops  # noqa: F401

    from ..runtime.vllm import identity  # noqa: F401


@contextlib.contextmanager
def _nvml_unasked() -> Iterator[None]:
    """While vLLM is imported inside, another process has asked NVML what vLLM asks of it then: which GPUs there are, and what they can do.

    NVML leaves a thread behind, which a process that is forked from this one would not have. What is asked later is asked of NVML itself.
    """
    if _PYNVML in sys.modules or not (devices := _nvml_devices()):
        yield
        return
    pynvml = _import_pynvml()
    replaced: dict[str, Callable[..., Any]] = {
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetCount": lambda: len(devices),
        # A handle is the device itself here.
        "nvmlDeviceGetHandleByIndex": lambda index: devices[index],
        "nvmlDeviceGetCudaComputeCapability": lambda device: tuple(device["capability"]),
        "nvmlDeviceGetName": lambda device: device["name"],
    }
    originals = {name: getattr(pynvml, name) for name in replaced}
    try:
        for name, function in replaced.items():
            setattr(pynvml, name, function)
        # Triton's drivers ask torch, which asks NVML.
        with probe.cuda_answers(lambda: True):
            yield
    finally:
        for name, function in originals.items():
            setattr(pynvml, name, function)
        _forget_devices()


def _nvml_devices() -> list[dict[str, Any]]:
    """What NVML says in a process of its own; nothing where there is none."""
    if not probe.has_device_file():
        return []
    command = [sys.executable, "-I", "-S", "-c", _ASK_NVML]
    try:
        asked = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, check=True, timeout=_ASK_TIMEOUT_S
        )
        found: list[dict[str, Any]] = json.loads(asked.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        print(f"piecewised_executor: NVML could not be asked for vLLM: {error}", file=sys.stderr)
        return []
    return found


def _forget_devices() -> None:
    """An executor has a GPU of its own, which may be of another kind than the first."""
    from vllm.platforms import current_platform

    for cls in type(current_platform).__mro__:
        for value in vars(cls).values():
            clear = getattr(getattr(value, "__func__", value), "cache_clear", None)
            if callable(clear):
                clear()


def _import_pynvml() -> Any:
    """vLLM's own copy, and the package that it lies in, before vLLM, which has asked it by the time that it is imported."""
    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("No module named 'vllm'", name="vllm")
    package, _, name = _PYNVML.rpartition(".")
    folder = os.path.join(os.path.dirname(spec.origin), package.rpartition(".")[2])
    parent = _import_file(package, os.path.join(folder, "__init__.py"))
    module = _import_file(_PYNVML, os.path.join(folder, f"{name}.py"))
    setattr(parent, name, module)
    return module


def _import_file(name: str, path: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None, "a file of Python"
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def load(version: str, payload: bytes) -> Frontend:
    """What a worker of that version of vLLM sent."""
    preload()
    from ..runtime.vllm.reads import NotPortable
    from ..runtime.vllm.setup import Payload, vllm_version

    if version != vllm_version():
        raise Unsupported(
            f"the worker has vLLM {version}, and this executor {vllm_version()}; run the daemon with the worker's interpreter"
        )
    try:
        return _Vllm(Payload.from_bytes(payload))
    except NotPortable as error:
        raise Unsupported(str(error)) from error


class _Vllm(Frontend):
    def __init__(self, payload: Any) -> None:
        from vllm.ir.op import IrOp

        from ..runtime.vllm import modules
        from ..runtime.vllm.identity import identity

        for module in payload.modules:
            modules.import_module(module)
        stand_ins.install()
        self._range = payload.range
        self._configured = _configured(payload.setup)
        self.identity = identity(self._configured, payload).decode()
        self.namespaces = frozenset(self._configured.setup.namespaces)
        in_place = [name for name, ir_op in IrOp.registry.items() if ir_op.allow_inplace]
        self.consuming = frozenset(f"vllm_ir::{name}.maybe_inplace" for name in in_place)

    def patches(self) -> dict[str, Any]:
        return self._configured.options(self._range)

    @contextlib.contextmanager
    def compiling(self) -> Iterator[None]:
        """Raises Unsupported where the compile read something that the key does not have."""
        reads = self._configured.reads
        reads.take_late()
        with self._configured.compiling(self._range):
            yield
        if late := reads.take_late():
            raise Unsupported(
                f"vLLM's passes read {', '.join(late)} while they compiled, which the key does not have; piecewised does not know this "
                "version of vLLM or this pass well enough"
            )

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        with self._configured.active(), self._configured.reads.paused():
            yield

    def opaque(self, type_name: str, value: str) -> object:
        if type_name != OPAQUE_TYPE:
            return super().opaque(type_name, value)
        from vllm.utils.torch_utils import LayerName

        return LayerName(value)


@functools.lru_cache(maxsize=8)
def _configured(data: bytes) -> Any:
    """The passes of one configuration. Making them traces their patterns, which takes seconds for some."""
    from ..runtime.vllm import modules
    from ..runtime.vllm.passes import Configured
    from ..runtime.vllm.setup import Setup

    setup = Setup.from_bytes(data)
    for name in setup.extensions:
        modules.import_extension(name)
    return Configured(setup)
