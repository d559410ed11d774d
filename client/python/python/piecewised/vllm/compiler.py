"""The compiler that vLLM gets: it asks the daemon for each piece and range, and has vLLM's own do what the daemon can't."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vllm.compilation.compiler_interface import CompilerInterface

from .part import Part


class DaemonCompiler(CompilerInterface):
    """Around `stock`, the compiler that vLLM would have without the plugin.

    It has the stock compiler's name and hash: what lies in vLLM's cache was compiled here, by the stock compiler.
    """

    def __init__(self, stock: CompilerInterface) -> None:
        self.stock = stock
        self.name = stock.name
        #: The call of vLLM's backend that is under way; None: a compile outside of one is the stock compiler's.
        self.part: Part | None = None
        #: The call of CompilerManager.compile that is under way, to be made again where the daemon fails.
        self.call: Callable[[], Any] | None = None

    def compute_hash(self, vllm_config: Any) -> str:
        """The stock compiler's: what it makes here is what it makes anywhere."""
        return self.stock.compute_hash(vllm_config)

    def initialize_cache(self, cache_dir: str, disable_cache: bool = False, prefix: str = "") -> None:
        """The stock compiler's."""
        self.stock.initialize_cache(cache_dir=cache_dir, disable_cache=disable_cache, prefix=prefix)

    def compile(
        self,
        graph: Any,
        example_inputs: list[Any],
        compiler_config: dict[str, Any],
        compile_range: Any,
        key: str | None = None,
    ) -> tuple[Callable[..., Any] | None, Any | None]:
        """A callable that waits for the daemon, and no handle: what comes from the daemon is kept by it, not by vLLM's cache."""
        if self.part is not None and self.call is not None:
            piece = self.part.submit(graph, compiler_config, (compile_range.start, compile_range.end), self.call)
            if piece is not None:
                return piece, None
        return self.stock.compile(graph, example_inputs, compiler_config, compile_range, key)

    def load(self, handle: Any, graph: Any, example_inputs: list[Any], graph_index: int, compile_range: Any) -> Any:
        """What the stock compiler has put into vLLM's cache."""
        return self.stock.load(handle, graph, example_inputs, graph_index, compile_range)
