"""The artifact container of docs/artifact.md: a deterministic tar with a manifest in front."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from dataclasses import dataclass, field
from typing import Any

from .package import Package
from .program import Program
from .rebuild import ConstantTensor, Rebuilt
from .runtime import gpu_kernels, shared_objects

CONTAINER_VERSION = 2

#: What a container can be of, as keys and requests name it.
FORMATS = ("inductor", "aoti")


@dataclass
class Container:
    """Collects members; equal content is kept once. `format`: "inductor" or "aoti", which says what is added. `dispatched`: the name of the symbol
    that is dispatched on."""

    format: str = "inductor"
    dispatched: str | None = None
    entries: list[dict[str, Any]] = field(default_factory=list)
    members: dict[str, bytes] = field(default_factory=dict)
    kernel_index: dict[str, str] = field(default_factory=dict)
    gpu_kernel_index: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, name: str, rebuilt: Rebuilt, program: Program | Package) -> None:
        """Adds a part that segments can name."""
        how = self._package(name, program) if isinstance(program, Package) else self._program(name, program, rebuilt)
        self.entries.append(
            {
                "name": name,
                **how,
                "n_arguments": rebuilt.n_arguments,
                "constants": [self._constant(constant) for constant in rebuilt.constants],
                "n_outputs": rebuilt.n_outputs,
                "output": rebuilt.structure,
            }
        )

    def _package(self, name: str, package: Package) -> dict[str, Any]:
        path = f"packages/{name}.pt2"
        self.members[path] = package.content
        return {
            "kind": "package",
            "program": path,
            "arguments": package.arguments,
            "inputs": package.inputs,
            "symbols": package.symbols,
            "dispatch_symbol": self.dispatched,
            "numbers": package.numbers,
            "operators": package.operators,
            "mutated": package.mutated,
            "is_autocast": package.is_autocast,
        }

    def _program(self, name: str, program: Program, rebuilt: Rebuilt) -> dict[str, Any]:
        for digest, content in program.kernels.items():
            path = f"kernels/{_sha256(content)}.so"
            self.members[f"cache/{path}"] = content
            self.kernel_index[digest] = path
        for digest, kernel in program.gpu_kernels.items():
            path = f"kernels/{_sha256(kernel.content)}.cubin"
            self.members[f"cache/{path}"] = kernel.content
            self.gpu_kernel_index[digest] = {**kernel.record, "cubin": path}
        for path, content in program.cache_files.items():
            self.members[f"cache/{path}"] = content
        if program.direct is None:
            path = f"programs/{name}.bin"
            self.members[path] = program.serialized
            return {"kind": "whole", "program": path, "arguments": rebuilt.kept}
        path = f"programs/{name}.py"
        self.members[path] = program.direct.source.encode()
        return {
            "kind": "direct",
            "program": path,
            "realigned": program.direct.realigned,
            "written_back": program.direct.written_back,
            "bumped": program.direct.bumped,
            "views": program.direct.views,
            "arguments": rebuilt.kept,
        }

    def _constant(self, constant: ConstantTensor) -> dict[str, Any]:
        path = f"constants/{_sha256(constant.data)}.bin"
        self.members[path] = constant.data
        return {"path": path, "dtype": constant.dtype, "sizes": constant.sizes, "device": constant.device}

    def to_bytes(self, toolchain: dict[str, str], device: dict[str, str]) -> bytes:
        """The finished container."""
        members = dict(self.members)
        if self.kernel_index:
            members[f"cache/{shared_objects.INDEX}"] = _json(dict(sorted(self.kernel_index.items())))
        if self.gpu_kernel_index:
            members[f"cache/{gpu_kernels.INDEX}"] = _json(dict(sorted(self.gpu_kernel_index.items())))
        manifest = {
            "container_version": CONTAINER_VERSION,
            "format": self.format,
            "toolchain": toolchain,
            "device": device,
            "entries": self.entries,
            "files": [
                {"path": path, "size_bytes": len(content), "sha256": _sha256(content)}
                for path, content in sorted(members.items())
            ],
        }
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for path, content in [("manifest.json", _json(manifest)), *sorted(members.items())]:
                # TarInfo's defaults are what the container asks for: a regular file, 0644, times and owners zero.
                member = tarfile.TarInfo(path)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        return buffer.getvalue()


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
