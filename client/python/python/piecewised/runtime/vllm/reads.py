"""Notes what is read of a configuration: of vLLM's config objects, and of its environment variables.

A shadow is a copy of a config object whose class is a subclass of the object's own, so that `isinstance` holds, and which notes each
field as it is read. Methods and properties run on the shadow, so that what they read is noted too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import functools
import threading
from collections.abc import Iterator, Mapping, Set
from pathlib import Path
from typing import Any

import torch

_STATE = "__piecewised__"

# Read by vLLM while it configures or runs passes, and without influence on what they do: counters, logs, dumps, and how vLLM keeps
# what its own compiler makes.
IRRELEVANT = frozenset(
    {
        "compilation_config.compile_cache_save_format",
        "compilation_config.debug_dump_path",
        "compilation_config.disabled_custom_ops",
        "compilation_config.enabled_custom_ops",
        "environment.VLLM_DEBUG_DUMP_PATH",
        "environment.VLLM_PATTERN_MATCH_DEBUG",
        "environment.VLLM_USE_MEGA_AOT_ARTIFACT",
        "environment.VLLM_USE_STANDALONE_COMPILE",
    }
)


class NotPortable(Exception):
    """Something that the passes read has no form in which it could travel."""


class Reads:
    """Fields and variables by path (`compilation_config.pass_config.enable_sp`, `environment.VLLM_X`), as they were when they were first read.

    Only what the thread that made it reads counts: others of a worker have other business with the configuration. `pruned`: paths of
    what was left out of the configuration, so that reading it can't give what the worker has.
    """

    def __init__(self, pruned: Set[str] = frozenset()) -> None:
        self._pruned = pruned
        self._values: dict[str, Any] = {}
        self._late: dict[str, None] = {}
        self._is_sealed = False
        self._is_paused = False
        self._thread = threading.get_ident()
        self._shadows: dict[int, tuple[Any, Any]] = {}

    def shadow(self, config: Any, path: str = "") -> Any:
        """The shadow of a config object at that path. The same object has one, by whichever path it is reached."""
        known = self._shadows.get(id(config))
        if known is None:
            made = object.__new__(_recording(type(config)))
            made.__dict__.update(vars(config))
            made.__dict__[_STATE] = (path, self)
            known = self._shadows[id(config)] = (config, made)
        return known[1]

    def note(self, path: str, value: Any) -> None:
        """Something was read."""
        if self._is_paused or path in IRRELEVANT or threading.get_ident() != self._thread:
            return
        if path not in self._values:
            if self._is_sealed:
                self._late[path] = None
                return
            self._values[path] = NotPortable(f"{path}, which stays in the worker") if path in self._pruned else value

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """While inside, nothing is noted: what runs is not what is compiled."""
        before, self._is_paused = self._is_paused, True
        try:
            yield
        finally:
            self._is_paused = before

    def seal(self) -> None:
        """What is read from now on and was not read before is late."""
        self._is_sealed = True

    def take_late(self) -> list[str]:
        """The paths that were read too late to be in :meth:`canonical`; forgets them."""
        late, self._late = list(self._late), {}
        return late

    def canonical(self) -> dict[str, Any]:
        """Every path with its value in a form that JSON has. Raises NotPortable."""
        values = {}
        for path, value in sorted(self._values.items()):
            if isinstance(value, NotPortable):
                raise value
            try:
                values[path] = canonical(value)
            except NotPortable as error:
                raise NotPortable(f"{path}: {error}") from error
        return values


@functools.cache
def _recording(cls: type) -> type:
    namespace = {"__getattribute__": _getattribute, "__module__": cls.__module__, "__qualname__": cls.__qualname__}
    return type(cls.__name__, (cls,), namespace)


def _getattribute(self: Any, name: str) -> Any:
    value = object.__getattribute__(self, name)
    fields = object.__getattribute__(self, "__dict__")
    state = fields.get(_STATE)
    if state is None or name.startswith("__") or name not in fields:
        return value
    path, reads = state
    child = f"{path}.{name}" if path else name
    if _is_config(value):
        return reads.shadow(value, child)
    reads.note(child, value)
    return value


def _is_config(value: Any) -> bool:
    cls = type(value)
    return dataclasses.is_dataclass(cls) and cls.__module__.startswith("vllm.config") and hasattr(value, "__dict__")


@contextlib.contextmanager
def environment(values: Mapping[str, Any], reads: Reads) -> Iterator[None]:
    """While inside, the calling thread reads `values` where vLLM reads its environment variables, and `reads` notes them."""
    from vllm import envs

    original = envs.__getattr__
    thread = threading.get_ident()

    def recorded(name: str) -> Any:
        if threading.get_ident() != thread:
            return original(name)
        value = values[name] if name in values else original(name)
        reads.note(f"environment.{name}", value)
        return value

    envs.__getattr__ = recorded
    try:
        yield
    finally:
        envs.__getattr__ = original


def canonical(value: Any) -> Any:
    """A value in a form that JSON has, the same for equal values in every process. Raises NotPortable."""
    if value is None or isinstance(value, (bool, str)) or type(value) is int:
        return value
    if isinstance(value, enum.Enum):
        return [_name(type(value)), value.name]
    if isinstance(value, (int, float)):
        return {"number": repr(value)}
    if isinstance(value, torch.dtype):
        return str(value)
    if isinstance(value, torch.device):
        # The index is no part of what is compiled.
        return value.type
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, type):
        return _name(value)
    if callable(uuid := getattr(value, "uuid", None)):
        return [_name(type(value)), canonical(uuid())]
    if isinstance(value, Mapping):
        return {"map": sorted([str(key), canonical(item)] for key, item in value.items())}
    if isinstance(value, (list, tuple)):
        return [canonical(item) for item in value]
    if isinstance(value, Set):
        return {"set": sorted(map(canonical, value), key=repr)}
    if callable(to_dict := getattr(value, "to_dict", None)):
        # A model's configuration from transformers.
        return [_name(type(value)), canonical({k: v for k, v in to_dict().items() if k not in _MODEL_NOTES})]
    if dataclasses.is_dataclass(value):
        return [_name(type(value)), {f.name: canonical(getattr(value, f.name)) for f in dataclasses.fields(value)}]
    raise NotPortable(f"a {_name(type(value))} can't be compared between processes")


_MODEL_NOTES = ("_name_or_path", "transformers_version")


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
