"""The modules that register a graph's operators: found in the worker, imported in the executor.

A model file may register operators of its own. What such a module holds is known by its content, so that an executor never compiles with
another version of it than the worker has.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.machinery
import importlib.util
import inspect
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch._library import simple_registry

from .reads import NotPortable


@dataclass(frozen=True)
class Module:
    """A module by name; `file` is where the worker has it, and `digest` the SHA-256 of that file, hexadecimal."""

    name: str
    file: str
    digest: str


def extensions() -> list[str]:
    """The compiled modules of vLLM that this process has imported."""
    suffixes = tuple(importlib.machinery.EXTENSION_SUFFIXES)
    found = [
        name
        for name, module in list(sys.modules.items())
        if name.startswith("vllm.") and str(getattr(module, "__file__", "")).endswith(suffixes)
    ]
    return sorted(found)


def import_extension(name: str) -> None:
    """Imports a compiled module that the worker has. Raises NotPortable."""
    try:
        importlib.import_module(name)
    except ImportError as error:
        raise NotPortable(f"the worker has {name}, which can't be imported here: {error}") from error


def modules_of(gm: torch.fx.GraphModule) -> list[Module]:
    """The modules that registered the operators of a graph, by name. Raises NotPortable for one that can't be imported elsewhere."""
    names = {name for target in _targets(gm) if (name := _registered_by(*target)) is not None}
    return [_module(name) for name in sorted(names)]


def namespaces() -> list[str]:
    """Of all operators that are registered in this process."""
    return sorted({name.partition("::")[0] for name in torch._C._dispatch_get_all_op_names()})


def _targets(gm: torch.fx.GraphModule) -> Iterable[tuple[str, str]]:
    """Operators as (`namespace::name`, overload)."""
    graphs = [child.graph for child in gm.modules() if isinstance(child, torch.fx.GraphModule)]
    found = set()
    for node in (node for graph in graphs for node in graph.nodes):
        if isinstance(node.target, torch._ops.OpOverload):
            found.add((node.target._schema.name, node.target._overloadname))
        elif isinstance(node.target, torch._ops.OpOverloadPacket):
            found.add((node.target._qualified_op_name, "default"))
    return sorted(found)


def _registered_by(qualified: str, overload: str) -> str | None:
    """The module whose Python function is behind an operator; None: it has none."""
    names = [qualified, *([] if overload in ("", "default") else [f"{qualified}.{overload}"])]
    entries = [simple_registry.singleton._data.get(name) for name in names]
    for entry in entries:
        kernel = entry.fake_impl.kernel if entry is not None else None
        if kernel is not None:
            return _module_of(kernel.func)
    definition: Any = torch._library.custom_ops.OPDEFS.get(qualified)
    return _module_of(definition._init_fn) if definition is not None else None


def _module_of(function: Any) -> str | None:
    while isinstance(function, functools.partial):
        function = function.func
    function = inspect.unwrap(function)
    # torch wraps what it is given in functions of its own.
    while str(getattr(function, "__module__", "")).startswith("torch.") and (inner := _enclosed(function)) is not None:
        function = inner
    return getattr(function, "__module__", None)


def _enclosed(function: Any) -> Any:
    """The one function that a function closes over; None: it is not one."""
    contents = [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
    found = [content for content in contents if callable(content) and hasattr(content, "__module__")]
    return found[0] if len(found) == 1 else None


@functools.cache
def _module(name: str) -> Module:
    if name == "__main__":
        raise NotPortable("an operator is registered by the program itself (__main__); put it into a module of its own")
    file = getattr(sys.modules.get(name), "__file__", None)
    if file is None:
        raise NotPortable(f"the module {name} registers an operator and comes from no file")
    return Module(name, file, _digest(Path(file)))


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise NotPortable(f"{path}, which registers an operator, can't be read: {error}") from error


# By name: the digest that a module's file had when this process imported it.
_imported: dict[str, str] = {}


def import_module(module: Module) -> None:
    """Imports a module by its name, or from the worker's file where there is none of that name. Raises NotPortable where what would be
    imported is not what the worker has."""
    if module.name not in _imported:
        path = _origin(module)
        digest = _digest(path)
        if digest == module.digest:
            _execute(module, path)
            _imported[module.name] = digest
        else:
            raise NotPortable(
                f"the module {module.name} in {path} is not the one that the worker has in {module.file}: install the same"
            )
    if _imported[module.name] != module.digest:
        raise NotPortable(f"the module {module.name} has changed since this executor imported it; restart the daemon")


def _origin(module: Module) -> Path:
    """The file that the module is imported from here."""
    try:
        spec = importlib.util.find_spec(module.name)
    except (ImportError, ValueError):
        spec = None
    return Path(spec.origin if spec is not None and spec.origin else module.file)


def _execute(module: Module, path: Path) -> None:
    try:
        if importlib.util.find_spec(module.name) is not None:
            importlib.import_module(module.name)
            return
    except (ModuleNotFoundError, ValueError):
        pass
    except Exception as error:
        raise NotPortable(f"the module {module.name} in {path} can't be imported: {error}") from error
    spec = importlib.util.spec_from_file_location(module.name, path)
    if spec is None or spec.loader is None:
        raise NotPortable(f"the module {module.name} can't be imported from {path}")
    made = importlib.util.module_from_spec(spec)
    sys.modules[module.name] = made
    try:
        spec.loader.exec_module(made)
    except Exception as error:
        sys.modules.pop(module.name, None)
        raise NotPortable(
            f"the module {module.name} can't be imported from {path}: {type(error).__name__}: {error}"
        ) from error
