"""Programs as Inductor serialises them, for pieces that need more than their generated wrapper.

While a program is deserialised, Inductor looks for the generated wrapper below the artifact's `cache/`, the wrapper is
executed for the GPU that it is to run on (:mod:`.devices`), and its kernels come from the indices there (:mod:`.kernels`,
:mod:`.gpu_kernels`). All redirections hold for the loading thread only and end with the load, so that nothing of the
worker's own torch.compile is disturbed, neither later nor in another thread meanwhile.
"""

from __future__ import annotations

import contextlib
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any

from torch._inductor import codecache
from torch._inductor.standalone_compile import AOTCompiledArtifact

from . import devices, gpu_kernels, kernels
from .direct import Kernels

# Deserialising goes through tables of Inductor that are not made for threads.
_LOAD_LOCK = threading.Lock()


def load(path: str, cache: str, device_index: int) -> Callable[..., Any]:
    """The program in the file `path`, whose wrapper and kernels are below `cache`, for the GPU of that index."""
    with open(path, "rb") as file:
        serialized = file.read()
    found = Kernels(cache, device_index)
    with (
        _LOAD_LOCK,
        _cache_folder(cache),
        _wrappers_on(device_index),
        kernels.answering(found.cpu),
        gpu_kernels.answering(found.gpu),
    ):
        # Innermost first: two layers that only forward the call are left out.
        compiled: Callable[..., Any] = AOTCompiledArtifact.deserialize(serialized).inner_fn.compiled_fn
    return compiled


@contextlib.contextmanager
def _cache_folder(folder: str) -> Iterator[None]:
    """While inside, Inductor's cache folder is `folder` for the calling thread.

    Not through TORCHINDUCTOR_CACHE_DIR: that is the whole process's, and its children's.
    """
    original = codecache.cache_dir
    thread = threading.get_ident()

    def cache_dir() -> str:
        return folder if threading.get_ident() == thread else original()

    codecache.cache_dir = cache_dir
    try:
        yield
    finally:
        codecache.cache_dir = original


@contextlib.contextmanager
def _wrappers_on(device_index: int) -> Iterator[None]:
    """While inside, wrappers that the calling thread loads are executed for the GPU of that index.

    They become modules that nobody else finds: neither Inductor's own caches nor `sys.modules` keep them.
    """
    original = codecache.PyCodeCache.__dict__["load_by_key_path"]
    thread = threading.get_ident()

    def load_by_key_path(cls: type, key: str, path: str, linemap: Any = None, attrs: Any = None) -> types.ModuleType:
        if threading.get_ident() != thread:
            loaded: types.ModuleType = original.__func__(cls, key, path, linemap, attrs)
            return loaded
        with open(path, encoding="utf-8") as file:
            source = devices.on_device(file.read(), device_index)
        module = types.ModuleType(f"piecewised_wrapper_{key}")
        module.__file__ = path
        exec(compile(source, path, "exec", dont_inherit=True), module.__dict__)
        for name, value in (attrs or {}).items():
            setattr(module, name, value)
        return module

    codecache.PyCodeCache.load_by_key_path = classmethod(load_by_key_path)
    try:
        yield
    finally:
        codecache.PyCodeCache.load_by_key_path = original
