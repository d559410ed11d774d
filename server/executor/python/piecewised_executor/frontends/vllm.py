"""vLLM: its passes, its Inductor options, its operators and those of its model files (the other end is ``piecewised.vllm``).

What a job depends on is made again from its payload by the code that the worker made it with (`runtime.vllm`).
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from typing import Any

from ..errors import Unsupported
from ..runtime.vllm import OPAQUE_TYPE
from . import Frontend, stand_ins

# vLLM sets it for its own compiles, which it makes one after the other; how many compilers an executor runs is the daemon's to say.
_COMPILE_THREADS = "TORCHINDUCTOR_COMPILE_THREADS"


def preload() -> None:
    """Imports vLLM with what its passes and operators need."""
    threads = os.environ.get(_COMPILE_THREADS)
    try:
        import vllm.compilation.backends
        import vllm.ir.ops  # noqa: F401

        from ..runtime.vllm import identity  # noqa: F401
    finally:
        os.environ.pop(_COMPILE_THREADS, None)
        if threads is not None:
            os.environ[_COMPILE_THREADS] = threads


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
