"""From a materialised artifact to a callable, without a compiler and without starting a process.

The folder is what docs/artifact.md describes; it is read and never written. While an entry is deserialised, Inductor
looks for the generated wrapper below the folder's `cache/`, the wrapper is executed for the GPU that it is to run on
(:mod:`.devices`), and its kernels come from the indices there (:mod:`.kernels`, :mod:`.gpu_kernels`). All redirections hold
for the loading thread only and end with the load, so that nothing of the worker's own torch.compile is disturbed, neither
later nor in another thread meanwhile.
"""

from __future__ import annotations

import contextlib
import json
import operator
import os
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch._inductor import codecache
from torch._inductor.standalone_compile import AOTCompiledArtifact

from . import devices, fingerprint, gpu_kernels, kernels, outputs

# The container_version that this loader reads.
CONTAINER_VERSION = 2

# Deserialising goes through tables of Inductor that are not made for threads.
_LOAD_LOCK = threading.Lock()


class LoadError(RuntimeError):
    """The artifact can't be loaded in this process; the message says why."""


def load_entry(folder: str | os.PathLike[str], entry: str, device_index: int = 0) -> Callable[..., Any]:
    """The compiled callable `entry` of the artifact in `folder`.

    It takes as many arguments as the graph has placeholders, in their order (ints for the integer ones), and returns
    what the graph returns. `device_index` is the GPU, as this process numbers them, whose tensors it will be called with;
    without meaning for a CPU artifact. Raises LoadError when the artifact is for another toolchain or device, or has no
    such entry. Safe to call from several threads.
    """
    folder = os.fspath(folder)
    with open(os.path.join(folder, "manifest.json"), encoding="utf-8") as file:
        manifest = json.load(file)
    check(manifest, device_index)
    record = next((item for item in manifest["entries"] if item["name"] == entry), None)
    if record is None:
        names = ", ".join(item["name"] for item in manifest["entries"])
        raise LoadError(f"the artifact in {folder} has no entry {entry!r}; it has {names}")
    with open(os.path.join(folder, record["program"]), "rb") as file:
        serialized = file.read()
    constants = tuple(_constant(folder, constant, device_index) for constant in record["constants"])
    cache = os.path.join(folder, "cache")
    with (
        _LOAD_LOCK,
        _cache_folder(cache),
        _wrappers_on(device_index),
        kernels.answering(cache),
        gpu_kernels.answering(cache, device_index),
    ):
        # Innermost first: two layers that only forward the call are left out.
        compiled = AOTCompiledArtifact.deserialize(serialized).inner_fn.compiled_fn
    return _adapted(compiled, record, constants)


def check(manifest: dict[str, Any], device_index: int = 0) -> None:
    """Raises LoadError unless this process can load the artifact with that manifest, for the GPU of that index."""
    version = manifest.get("container_version")
    if version != CONTAINER_VERSION or manifest.get("format") != "inductor":
        raise LoadError(
            f"the artifact is a container of version {version!r}, format {manifest.get('format')!r}; "
            f"this loader reads version {CONTAINER_VERSION}, format 'inductor'"
        )
    theirs, ours = manifest["toolchain"], fingerprint.toolchain()
    if theirs["fingerprint"] != ours["fingerprint"]:
        raise LoadError(f"the artifact was made by {toolchain_name(theirs)}; this process is {toolchain_name(ours)}")
    device = manifest["device"]
    here = fingerprint.devices(device["type"])
    if device not in here:
        raise LoadError(f"the artifact is for the device {device}; this process has {here or 'none of that kind'}")
    if device["type"] == "cuda" and fingerprint.cuda_device(device_index) != device:
        raise LoadError(
            f"the artifact is for the device {device}; cuda:{device_index} of this process is "
            f"{fingerprint.cuda_device(device_index) or 'absent'}"
        )


def toolchain_name(toolchain: dict[str, str]) -> str:
    """A toolchain for people."""
    return (
        f"toolchain {toolchain['fingerprint'][:16]} (Python {toolchain['python_version']}, torch "
        f"{toolchain['torch_version']}, triton {toolchain['triton_version'] or 'none'}, CUDA "
        f"{toolchain['cuda_version'] or 'none'})"
    )


def _constant(folder: str, constant: dict[str, Any], device_index: int) -> torch.Tensor:
    """A tensor of the graph's own, from its bytes."""
    dtype = getattr(torch, constant["dtype"])
    with open(os.path.join(folder, constant["path"]), "rb") as file:
        data = bytearray(file.read())
    flat = torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
    return flat.view(dtype).reshape(constant["sizes"]).to(devices.tensor_device(constant["device"], device_index))


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


def _adapted(
    compiled: Callable[..., Any], record: dict[str, Any], constants: tuple[torch.Tensor, ...]
) -> Callable[..., Any]:
    """Passes what the program takes of the graph's arguments, and its constants; gives back the graph's structure.

    Each of the two costs a call and is left out where it has nothing to do, which is the usual case.
    """
    wanted = record["arguments"]
    if constants or wanted != list(range(record["n_arguments"])):
        inner = compiled
        if wanted == list(range(record["n_arguments"])):
            compiled = lambda *args: inner(*args, *constants)  # noqa: E731
        elif len(wanted) > 1:
            select = operator.itemgetter(*wanted)
            compiled = lambda *args: inner(*select(args), *constants)  # noqa: E731
        else:
            compiled = lambda *args: inner(*(args[i] for i in wanted), *constants)  # noqa: E731
    if outputs.is_flat_tuple(record["output"], record["n_outputs"]):
        return compiled
    flat, restore = compiled, outputs.restorer(record["output"])
    return lambda *args: restore(flat(*args))
