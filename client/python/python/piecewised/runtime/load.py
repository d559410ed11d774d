"""From a materialised artifact to a callable, without a compiler and without starting a process.

The folder is what docs/artifact.md describes; it is read and never written. Most programs are direct (:mod:`.direct`) and
need torch alone, as AOTInductor packages do (:mod:`.package`); the others are what Inductor serialises (:mod:`.whole`), which brings in
torch.compile.
"""

from __future__ import annotations

import json
import operator
import os
from collections.abc import Callable
from typing import Any

import torch

from . import devices, direct, fingerprint, outputs, package
from .errors import LoadError

# The container_version that this loader reads, and the formats.
CONTAINER_VERSION = 2
FORMATS = ("inductor", "aoti")


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
    constants = tuple(_constant(folder, constant, device_index) for constant in record["constants"])
    cache, path = os.path.join(folder, "cache"), os.path.join(folder, record["program"])
    if record["kind"] == "package":
        return package.load(path, record, constants, device_index if manifest["device"]["type"] == "cuda" else None)
    if record["kind"] == "direct":
        compiled = direct.load(path, cache, record, device_index)
    elif record["kind"] != "whole":
        raise LoadError(f"the entry {entry!r} is of the kind {record['kind']!r}, which this loader does not know")
    else:
        # Late: it brings the compiler into the process.
        from . import whole

        compiled = whole.load(path, cache, device_index)
    return _adapted(compiled, record, constants)


def check(manifest: dict[str, Any], device_index: int = 0) -> None:
    """Raises LoadError unless this process can load the artifact with that manifest, for the GPU of that index."""
    version = manifest.get("container_version")
    if version != CONTAINER_VERSION or manifest.get("format") not in FORMATS:
        raise LoadError(
            f"the artifact is a container of version {version!r}, format {manifest.get('format')!r}; "
            f"this loader reads version {CONTAINER_VERSION}, format {' or '.join(map(repr, FORMATS))}"
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
    device = devices.tensor_device(constant["device"], device_index)
    with open(os.path.join(folder, constant["path"]), "rb") as file:
        return tensor_of(file.read(), constant["dtype"], constant["sizes"], device)


def tensor_of(data: bytes, dtype: str, sizes: list[int], device: str) -> torch.Tensor:
    """A tensor of its bytes, row-major and little-endian."""
    flat = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
    return flat.view(getattr(torch, dtype)).reshape(sizes).to(device)


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
