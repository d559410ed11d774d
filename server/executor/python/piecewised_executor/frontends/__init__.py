"""Frontends: what made a graph and takes part in its compile, with passes, options, operators and objects of its own.

A frontend is a module of this package (those that piecewised brings along, by their short names) or one that the operator names in full
(`frontends` in the daemon's configuration). The module has

* ``preload()``: imports what its jobs need, and does nothing else. It runs once in the process that executors of this frontend are forked
  from, so it may start neither CUDA nor a thread; where it does, they are started one by one, which costs each of them the import;
* ``load(version, payload)``: a :class:`Frontend` from what the worker's side of it sent. Raises Unsupported for what can't be used here, which
  fails the job as a mismatch.

An executor has jobs of one frontend only, or of none: importing one may change torch.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import importlib.util
import json
import os
import sys
import time
import types
from collections.abc import Iterator
from typing import Any

from ..errors import FrontendMismatch, FrontendUnknown, JobError, Outside, Unsupported, describe, from_outside

# Of this package, by name.
_OWN = ("vllm",)
# How many differences of two identities a message names.
_MAX_NAMED = 8
# Configurations that one executor keeps: a model has a few (one for each range and size).
_MAX_KEPT = 64


class Frontend:
    """What one configuration of a frontend does to a compile. What is here does nothing."""

    #: JSON text: everything that the code depends on, computed from the payload by the code that the worker computed it with.
    identity: str = "null"
    #: Of torch.ops: the workers that send this have their operators.
    namespaces: frozenset[str] = frozenset()
    #: Operators ("namespace::name.overload", "namespace::name.default") that may use the memory of arguments that they are said to write to as they like: what such an
    #: argument holds afterwards is nobody's business, and is not compared.
    consuming: frozenset[str] = frozenset()

    def patches(self) -> dict[str, Any]:
        """Options of Inductor, its custom passes among them, on top of the request's."""
        return {}

    @contextlib.contextmanager
    def compiling(self) -> Iterator[None]:
        """Around the compile."""
        yield

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Around calls of the graph and of what it was compiled to, with made-up inputs: where autotuning is settled, and in trials.

        Operators that only run inside an engine may be replaced meanwhile. What still fails is no failure of the compile.
        """
        yield

    def opaque(self, type_name: str, value: str) -> object:
        """The object of an Opaque argument, or (``value`` is empty then) any of its type, for an input that is known at the call only.
        Raises Unsupported for a type that it does not know."""
        raise Unsupported(f"an object of type {type_name}, which this frontend does not know")


#: For jobs without one.
NONE = Frontend()


def names() -> list[str]:
    """The frontends that this toolchain has. Imports none of them."""
    return sorted(name for name in (*_OWN, *_operators()) if _is_there(name))


def preload(name: str) -> None:
    """Imports what the jobs of a frontend need. Where that fails it is said, and again to whoever asks for a compile."""
    started = time.monotonic()
    try:
        _module(name).preload()
    except Exception as error:
        print(f"piecewised_executor: cannot import the frontend {name}: {describe(error)}", file=sys.stderr, flush=True)
    else:
        seconds = time.monotonic() - started
        print(f"piecewised_executor: imported the frontend {name} in {seconds:.1f} s", file=sys.stderr, flush=True)


def find(fields: dict[str, Any] | None, payload: bytes) -> Frontend:
    """The frontend of a job (`name`, `version`, `identity` as the worker computed it) and its payload; without fields, :data:`NONE`.

    Raises FrontendUnknown where the toolchain does not have it, and FrontendMismatch where the payload can't be used here or the identity comes
    out differently.
    """
    if fields is None:
        return NONE
    return _found(fields["name"], fields["version"], fields["identity"], _Payload(payload))


class _Payload:
    """Bytes that are compared by their digest."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self._digest = hashlib.sha256(data).digest()

    def __hash__(self) -> int:
        return hash(self._digest)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Payload) and self._digest == other._digest


@functools.lru_cache(maxsize=_MAX_KEPT)
def _found(name: str, version: str, identity: str, payload: _Payload) -> Frontend:
    module = _module(name)
    try:
        frontend: Frontend = module.load(version, payload.data)
    except (FrontendMismatch, FrontendUnknown, *Outside):
        raise
    except JobError as error:
        # Whatever the reason: a payload is in no key, so nothing may be held against the key for its sake.
        raise FrontendMismatch(str(error)) from error
    except Exception as error:
        if (outside := from_outside(error)) is not None:
            raise outside from error
        raise FrontendMismatch(f"the frontend {name} cannot use what the worker sent: {describe(error)}") from error
    if differing := differences(json.loads(identity), json.loads(frontend.identity)):
        raise FrontendMismatch(
            f"what the code depends on is not the same in the worker and in the executor: {'; '.join(differing)}. "
            f"Run the daemon with the interpreter, packages and environment of the worker"
        )
    return frontend


def differences(theirs: Any, ours: Any, path: str = "") -> list[str]:
    """Where two identities differ, as sentences; bounded."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        found: list[str] = []
        for key in sorted({*theirs, *ours}):
            at = f"{path}.{key}" if path else key
            if key not in theirs:
                found.append(f"{at} is not there in the worker")
            elif key not in ours:
                found.append(f"{at} is not there in the executor")
            else:
                found += differences(theirs[key], ours[key], at)
        return _bounded(found)
    if isinstance(theirs, list) and isinstance(ours, list) and len(theirs) == len(ours):
        pairs = enumerate(zip(theirs, ours, strict=True))
        return _bounded([said for i, (one, other) in pairs for said in differences(one, other, f"{path}[{i}]")])
    if type(theirs) is type(ours) and theirs == ours:
        return []
    return [f"{path or 'it'} is {_short(theirs)} in the worker and {_short(ours)} in the executor"]


def _bounded(found: list[str]) -> list[str]:
    more = len(found) - _MAX_NAMED
    return found if more <= 1 else [*found[:_MAX_NAMED], f"and {more} more"]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 120 else f"{text[:117]}..."


def _operators() -> list[str]:
    """The modules that the operator named."""
    return [name for name in os.environ.get("PIECEWISED_FRONTENDS", "").split(",") if name]


def _is_there(name: str) -> bool:
    try:
        if name in _OWN and importlib.util.find_spec(f"{__name__}.{name}") is None:
            return False
        # Of a package only: asking for a module in it would import it.
        return importlib.util.find_spec(name.partition(".")[0]) is not None
    except (ImportError, ValueError):
        return False


def _module(name: str) -> types.ModuleType:
    if name not in (*_OWN, *_operators()):
        raise FrontendUnknown(f"there is no frontend {name!r}; list its module in the daemon's `frontends`")
    try:
        return importlib.import_module(f"{__name__}.{name}" if name in _OWN else name)
    except ImportError as error:
        raise FrontendUnknown(
            f"the frontend {name!r} cannot be imported by {sys.executable}: {describe(error)}; install what is missing there, or name "
            "another interpreter with --python"
        ) from error
