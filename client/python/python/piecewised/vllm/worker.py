"""What of this worker's vLLM goes along with a piece."""

from __future__ import annotations

from typing import Any

from ..errors import UnsupportedPiece
from ..runtime.vllm import modules
from ..runtime.vllm.identity import identity
from ..runtime.vllm.passes import Configured
from ..runtime.vllm.reads import NotPortable
from ..runtime.vllm.setup import Payload, Setup, vllm_version
from ..submission import Frontend
from .node import FRONTEND


class Worker:
    """One model part's configuration, taken down and made again, as the executor will make it. Raises UnsupportedPiece where that can't be."""

    def __init__(self, backend: Any) -> None:
        try:
            self._setup = Setup.of_worker(backend.vllm_config).to_bytes()
            # From the bytes, as the executor has it, so that both note the same.
            self._configured = Configured(Setup.from_bytes(self._setup))
        except NotPortable as error:
            raise _not_portable(error) from error

    def frontend(self, graph: Any, size_range: tuple[int, int]) -> Frontend:
        """For one piece and range. Raises UnsupportedPiece."""
        try:
            payload = Payload(
                setup=self._setup,
                range=size_range,
                modules=modules.modules_of(graph),
            )
            text = identity(self._configured, payload)
        except NotPortable as error:
            raise _not_portable(error) from error
        return Frontend(FRONTEND, vllm_version(), text, payload.to_bytes())


def refuse_special(vllm_config: Any, options: dict[str, Any]) -> None:
    """Raises UnsupportedPiece where vLLM is configured in a way that is its own compiler's. `options`: Inductor's."""
    from vllm.compilation.compiler_interface import is_compile_cache_enabled
    from vllm.config.compilation import DynamicShapesType

    compilation = vllm_config.compilation_config
    if not is_compile_cache_enabled(options):
        raise _not_wanted("vLLM's compile cache is off, and with it every other")
    if compilation.use_inductor_graph_partition:
        raise _not_wanted(
            "with use_inductor_graph_partition Inductor cuts the graph, and the daemon has no artifact for that"
        )
    if compilation.dynamic_shapes_config.type != DynamicShapesType.BACKED:
        raise _not_wanted(
            f"the daemon compiles for sizes of the kind BACKED, not {compilation.dynamic_shapes_config.type.name}"
        )


def _not_wanted(why: str) -> UnsupportedPiece:
    return UnsupportedPiece(why, reason="NOT_WANTED")


def _not_portable(error: NotPortable) -> UnsupportedPiece:
    return UnsupportedPiece(
        f"what the code depends on can't be sent to the daemon: {error}", reason="CONFIG_NOT_PORTABLE"
    )
