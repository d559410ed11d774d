"""Compiled C++ kernels, found by what was asked for instead of by where and how they were built.

Inductor's generated wrapper asks for a kernel by source. Inductor answers from its cache folder, under a name that
depends on the compiler's command line; to know that name it looks for a compiler, asks it for its version and takes
the include folders into account, so that even a cache hit needs a working C++ compiler. Here a kernel's name is a
digest of the request alone (:func:`request_digest`): the executor records what each request was answered with, and
the worker answers the same requests with the recorded files. Neither a compiler nor a subprocess is needed for it.

`shared_objects` has the index and loads what it names.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch._inductor.codecache import CppPythonBindingsCodeCache

from . import shared_objects

# A function without arguments that gives the kernel, when it is needed.
Loader = Callable[[], Any]


def request_digest(cls: type, argtypes: Sequence[str], source: str, **options: Any) -> str:
    """Names a request to `cls.load_pybinding_async`: SHA-256, hexadecimal, over all that shapes the kernel's source."""
    options.pop("submit_fn", None)
    request = [cls.__name__, list(argtypes), source, sorted(options.items())]
    return hashlib.sha256(json.dumps(request, default=list).encode()).hexdigest()


@contextlib.contextmanager
def recording(record: dict[str, str]) -> Iterator[None]:
    """While inside, each kernel that Inductor compiles in this process is put into `record`: request digest to the
    path of its shared library. Kernels are complete when the compile is.

    The libraries are built but not loaded before they are called, which only a program for a GPU with parts on the CPU
    does: this process could never unload them, and Python would answer a later request for the same kernel with the
    first library, whose file is gone by then.
    """

    def load(original: Loader, cls: type, argtypes: Sequence[str], source: str, **options: Any) -> Loader:
        get_kernel = original(cls, argtypes, source, **options)

        def result() -> Any:
            kernel = get_kernel()
            record[request_digest(cls, argtypes, source, **options)] = kernel.path
            return kernel

        return result

    def load_library(cls: type, path: str, key: str) -> types.ModuleType:
        module = types.ModuleType(key)
        setattr(module, cls.entry_function, _Unloaded(path, cls.entry_function))
        return module

    with _replaced("load_pybinding_async", _request_hook(load)), _replaced("_load_library_inner", load_library):
        yield


class _Unloaded:
    """Stands for a kernel that was built in `path`, and loads it when it is called."""

    def __init__(self, path: str, entry: str) -> None:
        self.path = path
        self.entry = entry

    def __call__(self, *args: Any) -> Any:
        return shared_objects.load(self.path, self.path, self.entry)(*args)


@contextlib.contextmanager
def answering(kernel: Callable[[str, str], Any]) -> Iterator[None]:
    """While inside, and only for the calling thread, `kernel` gives kernels by request digest and name of their function."""
    thread = threading.get_ident()

    def load(original: Loader, cls: type, argtypes: Sequence[str], source: str, **options: Any) -> Loader:
        if threading.get_ident() != thread:
            return original(cls, argtypes, source, **options)
        found = kernel(request_digest(cls, argtypes, source, **options), cls.entry_function)
        return lambda: found

    with _replaced("load_pybinding_async", _request_hook(load)):
        yield


def _request_hook(load: Callable[..., Loader]) -> Callable[..., Loader]:
    """`load` as the method that every request ends in, from `load_pybinding` (one thread) and from a pool alike; it
    gets the original as its first argument."""
    original = CppPythonBindingsCodeCache.__dict__["load_pybinding_async"].__func__

    def load_pybinding_async(cls: type, argtypes: Sequence[str], main_code: str, **options: Any) -> Loader:
        return load(original, cls, argtypes, main_code, **options)

    return load_pybinding_async


@contextlib.contextmanager
def _replaced(name: str, function: Callable[..., Any]) -> Iterator[None]:
    """A class method of Inductor's cache of kernels, replaced while inside."""
    original = CppPythonBindingsCodeCache.__dict__[name]
    setattr(CppPythonBindingsCodeCache, name, classmethod(function))
    try:
        yield
    finally:
        setattr(CppPythonBindingsCodeCache, name, original)
