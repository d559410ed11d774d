"""Where the plugin takes hold of vLLM: its compiler, the ends of its backend's calls, and its ahead-of-time artifacts."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable
from typing import Any

import vllm
from vllm.compilation import backends, caching, decorators
from vllm.compilation.wrapper import TorchCompileWithNoGuardsWrapper
from vllm.logger import init_logger
from vllm.model_executor.models.registry import _LazyRegisteredModel

from .. import background
from .._core import Stop
from ..connections import connect
from ..errors import PiecewisedError
from . import artifacts, beside, snapshots
from .compiler import DaemonCompiler
from .node import FRONTEND
from .part import Part

# Below vLLM's own logger, so that its handlers and levels hold. (Not by this module's name, which no vLLM logger is above.)
log = init_logger("vllm.piecewised")

#: The releases of vLLM whose inside this plugin knows.
SUPPORTED = "0.26."


def install() -> None:
    """Patches vLLM in this process, once."""
    if getattr(backends, "_piecewised", False):
        return
    if not vllm.__version__.startswith(SUPPORTED):
        log.warning(
            "piecewised: this is vLLM %s, and the plugin is for %sx; vLLM compiles by itself, as without the plugin",
            *(vllm.__version__, SUPPORTED),
        )
        return
    backends._piecewised = True
    _join_logs()
    backends.make_compiler = _make_compiler(backends.make_compiler)
    _wrap(backends.VllmBackend, "__call__", _backend_called)
    _wrap(backends.CompilerManager, "compile", _piece_compiled)
    _wrap(backends.CompilerManager, "save_to_file", _all_compiled)
    _wrap(caching.StandaloneCompiledArtifacts, "load_all", artifacts.load_all)
    decorators._try_load_aot_compiled_fn = functools.partial(snapshots.load, decorators._try_load_aot_compiled_fn)
    _wrap_decorated(decorators._support_torch_compile)
    _wrap(_LazyRegisteredModel, "_load_modelinfo_from_cache", beside.load_model_info)
    _wrap(_LazyRegisteredModel, "_save_modelinfo_to_cache", beside.save_model_info)
    beside.use_kernel_cache()


def _join_logs() -> None:
    """Has what the client says of its requests appear beside what vLLM says, where nobody has put it elsewhere."""
    client, engine = logging.getLogger("piecewised"), logging.getLogger("vllm")
    if not client.handlers:
        client.handlers = list(engine.handlers)
        client.setLevel(engine.level or logging.INFO)
        client.propagate = False


def _wrap_decorated(original: Callable[..., Any]) -> None:
    """Has models that are decorated, from now on and before, give what they save to the daemon too."""

    @functools.wraps(original)
    def decorated(cls: Any, *args: Any, **kwargs: Any) -> Any:
        is_new = TorchCompileWithNoGuardsWrapper not in cls.__bases__
        made = original(cls, *args, **kwargs)
        if is_new:
            _wrap(made, "save_aot_compiled_function", snapshots.save)
        return made

    decorators._support_torch_compile = decorated
    for cls in TorchCompileWithNoGuardsWrapper.__subclasses__():
        if "save_aot_compiled_function" in vars(cls):
            _wrap(cls, "save_aot_compiled_function", snapshots.save)


def _wrap(cls: type, name: str, around: Callable[..., Any]) -> None:
    """Has `around(original, self, ...)` called for a method."""
    original = getattr(cls, name)

    @functools.wraps(original)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        return around(original, self, *args, **kwargs)

    setattr(cls, name, wrapper)


def _make_compiler(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def make_compiler(compilation_config: Any) -> Any:
        stock = original(compilation_config)
        if compilation_config.backend != "inductor":
            return stock
        _announce(os.getpid())
        return DaemonCompiler(stock)

    return make_compiler


@functools.cache
def _announce(pid: int) -> None:
    """Tells the daemon that pieces will come, once a process: importing vLLM takes it longer than this process needs until it has some."""

    def tell(stop: Stop) -> None:
        try:
            connect(None).capabilities(FRONTEND)
        except PiecewisedError as error:
            log.debug("piecewised: the daemon was not told of vLLM: %s", error)

    background.start(tell, "piecewised-vllm-announce")


def _backend_called(original: Callable[..., Any], backend: Any, *args: Any, **kwargs: Any) -> Any:
    compiler = backend.compiler_manager.compiler
    if not isinstance(compiler, DaemonCompiler):
        return original(backend, *args, **kwargs)
    compiler.part = Part(backend)
    try:
        return original(backend, *args, **kwargs)
    finally:
        compiler.part.close()
        compiler.part = None


def _piece_compiled(original: Callable[..., Any], manager: Any, *args: Any, **kwargs: Any) -> Any:
    compiler = manager.compiler
    if isinstance(compiler, DaemonCompiler):
        compiler.call = functools.partial(original, manager, *args, **kwargs)
    return original(manager, *args, **kwargs)


def _all_compiled(original: Callable[..., Any], manager: Any) -> Any:
    if isinstance(manager.compiler, DaemonCompiler) and manager.compiler.part is not None:
        manager.compiler.part.finish(manager)
    return original(manager)
