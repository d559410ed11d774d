"""What vLLM makes at a start beside its compiled graphs, through the daemon: its Triton kernels, and what it found out about the model's class.

Neither is in vLLM's compile cache, and both are made anew by a start with empty folders, which takes longer than loading the graphs: attention and
other kernels are compiled as they are first launched, and a model's class is imported in a process of its own to be looked at. Both are kept by
the daemon as snapshots, under names that are made of their content: Triton's key of a kernel covers its source, its options, the compiler and the GPU's kind; vLLM's hash of a model's
file what the class is. What is found locally is taken as ever, and without a daemon nothing changes.
"""

from __future__ import annotations

import io
import logging
import os
import platform
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import triton
from triton.runtime.cache import FileCacheManager

from .. import counters
from . import node

log = logging.getLogger("vllm.piecewised")

# Inductor's kernels begin so. They travel with the graphs, and a compile by vLLM's own compiler makes thousands.
_INDUCTORS = "triton_"
# What loading a kernel reads; the rest of its group are steps on the way to it.
_LOADED = (".json", ".cubin")
_LIBRARY = ".so"
_GROUP = "__grp__"
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,254}")
_MAX_BYTES = 256 << 20


class KernelCache(FileCacheManager):
    """Triton's folder of one kernel, filled from the daemon where it lacks something, and given to it where something was compiled."""

    def __init__(self, key: str, override: bool = False, dump: bool = False) -> None:
        super().__init__(key, override, dump)
        self._is_shared = not (override or dump)

    def get_file(self, filename: str) -> str | None:
        """The path of a library: Triton's own, or a kernel's launcher."""
        found = super().get_file(filename)
        if found is None and self._is_shared and filename.endswith(_LIBRARY):
            self._fetch(filename)
            found = super().get_file(filename)
        return found

    def get_group(self, filename: str) -> dict[str, str] | None:
        """The paths of a compiled kernel."""
        found = super().get_group(filename)
        if found is None and self._is_group(filename) and (names := self._fetch(_GROUP + filename)):
            super().put_group(filename, {name: self._make_path(name) for name in names})
            found = super().get_group(filename)
        return found

    def put(self, data: Any, filename: str, binary: bool = True) -> str:
        """Keeps one file."""
        path = super().put(data, filename, binary)
        if self._is_shared and filename.endswith(_LIBRARY):
            self._offer(filename, [filename])
        return path

    def put_group(self, filename: str, group: dict[str, str]) -> str:
        """Says that a kernel is whole."""
        path = super().put_group(filename, group)
        names = [name for name in group if name.endswith(_LOADED)]
        if self._is_group(filename) and any(name.endswith(".cubin") for name in names):
            self._offer(_GROUP + filename, names)
        return path

    def _is_group(self, filename: str) -> bool:
        return self._is_shared and not filename.startswith(_INDUCTORS)

    def _name(self, what: str) -> str:
        # Libraries are linked to the C library that was there.
        libc = "-".join(platform.libc_ver()) if what.endswith(_LIBRARY) else ""
        return f"triton/{self.key}/{libc}/{what[:120]}"

    def _fetch(self, what: str) -> list[str]:
        """Lays down what the daemon has under a name, and gives the names of the files."""
        data = _fetch(self._name(what))
        if data is None:
            return []
        try:
            files = unpack(data)
        except (ValueError, zipfile.BadZipFile) as error:
            _failed(f"what the daemon has as {what} is no kernel", error)
            return []
        for name, content in files.items():
            super().put(content, name)
        counters.record_kernel("n_fetched")
        return list(files)

    def _offer(self, what: str, names: list[str]) -> None:
        try:
            data = pack({name: Path(self._make_path(name)).read_bytes() for name in names})
        except (OSError, ValueError) as error:
            _failed("a kernel could not be read", error)
            return
        if _put(self._name(what), data):
            counters.record_kernel("n_put")


def use_kernel_cache() -> None:
    """Has Triton use :class:`KernelCache` in this process, unless somebody has named another one."""
    if triton.knobs.cache.manager_class is not None:
        return
    # Not in the environment, which it would also set: processes that are started find their own.
    propagates, triton.knobs.propagate_env = triton.knobs.propagate_env, False
    try:
        triton.knobs.cache.manager_class = KernelCache
    finally:
        triton.knobs.propagate_env = propagates


def load_model_info(original: Callable[..., Any], model: Any, module_hash: str) -> Any:
    """_LazyRegisteredModel._load_modelinfo_from_cache: what is not there is fetched first."""
    found = original(model, module_hash)
    if found is None and (data := _fetch(_model_name(model, module_hash))) is not None:
        path = _model_path(model)
        try:
            node.lay_down(path, data)
        except OSError as error:
            _failed("what is known of the model's class could not be written", error)
            return None
        # It is vLLM that says whether this is what it would have written.
        found = original(model, module_hash)
    return found


def save_model_info(original: Callable[..., Any], model: Any, info: Any, module_hash: str) -> None:
    """_LazyRegisteredModel._save_modelinfo_to_cache: what vLLM has written is put into the daemon too."""
    original(model, info, module_hash)
    try:
        data = _model_path(model).read_bytes()
    except OSError:
        # vLLM has said why.
        return
    _put(_model_name(model, module_hash), data)


def _model_name(model: Any, module_hash: str) -> str:
    import vllm

    return f"model-info/{vllm.__version__}/{model._get_cache_filename()[:120]}/{module_hash}"


def _model_path(model: Any) -> Path:
    path: Path = model._get_cache_dir() / model._get_cache_filename()
    return path


def pack(files: dict[str, bytes]) -> bytes:
    """Files as one blob. Raises ValueError for a name that is not one of a file in a flat folder."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in sorted(files.items()):
            archive.writestr(zipfile.ZipInfo(_checked(name)), content, zipfile.ZIP_DEFLATED)
    return packed.getvalue()


def unpack(data: bytes) -> dict[str, bytes]:
    """What :func:`pack` packed. Raises ValueError, BadZipFile."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = archive.infolist()
        if sum(member.file_size for member in members) > _MAX_BYTES:
            raise ValueError(f"it is larger than {_MAX_BYTES} bytes")
        return {_checked(member.filename): archive.read(member) for member in members}


def _checked(name: str) -> str:
    if not _FILE_NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no file's name")
    return name


def _fetch(name: str) -> bytes | None:
    if _is_off():
        return None
    try:
        return node.fetch(name)
    except Exception as error:
        _failed("it could not be fetched", error)
        return None


def _put(name: str, data: bytes) -> bool:
    if _is_off():
        return False
    try:
        node.put(name, data)
    except Exception as error:
        _failed("it could not be kept", error)
        return False
    return True


# The process in which something went wrong: it asks no more, since kernels come by the dozen and each would wait.
_off_in: int | None = None


def _is_off() -> bool:
    return _off_in == os.getpid()


def _failed(what: str, error: Exception) -> None:
    global _off_in  # noqa: PLW0603
    _off_in = os.getpid()
    counters.record_kernel("n_failed")
    said = "piecewised: kernels and model classes are no longer shared through the daemon: %s: %s"
    log.log(node.level(error), said, what, error)
