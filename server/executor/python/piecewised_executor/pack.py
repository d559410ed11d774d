"""The artifact container of docs/artifact.md: a deterministic tar with a manifest in front."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from dataclasses import dataclass, field
from typing import Any

from .program import Program
from .rebuild import Rebuilt
from .runtime import gpu_kernels, shared_objects

CONTAINER_VERSION = 2


@dataclass
class Container:
    """Collects members; equal content is kept once."""

    entries: list[dict[str, Any]] = field(default_factory=list)
    members: dict[str, bytes] = field(default_factory=dict)
    kernel_index: dict[str, str] = field(default_factory=dict)
    gpu_kernel_index: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, name: str, rebuilt: Rebuilt, program: Program) -> None:
        """Adds a part that segments can name."""
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
        constants = []
        for constant in rebuilt.constants:
            path = f"constants/{_sha256(constant.data)}.bin"
            self.members[path] = constant.data
            constants.append(
                {"path": path, "dtype": constant.dtype, "sizes": constant.sizes, "device": constant.device}
            )
        how: dict[str, Any]
        if program.direct is not None:
            path = f"programs/{name}.py"
            self.members[path] = program.direct.source.encode()
            how = {
                "kind": "direct",
                "program": path,
                "realigned": program.direct.realigned,
                "written_back": program.direct.written_back,
                "bumped": program.direct.bumped,
                "views": program.direct.views,
            }
        else:
            path = f"programs/{name}.bin"
            self.members[path] = program.serialized
            how = {"kind": "whole", "program": path}
        self.entries.append(
            {
                "name": name,
                **how,
                "n_arguments": rebuilt.n_arguments,
                "arguments": rebuilt.kept,
                "constants": constants,
                "n_outputs": rebuilt.n_outputs,
                "output": rebuilt.structure,
            }
        )

    def to_bytes(self, toolchain: dict[str, str], device: dict[str, str]) -> bytes:
        """The finished container."""
        members = dict(self.members)
        if self.kernel_index:
            members[f"cache/{shared_objects.INDEX}"] = _json(dict(sorted(self.kernel_index.items())))
        if self.gpu_kernel_index:
            members[f"cache/{gpu_kernels.INDEX}"] = _json(dict(sorted(self.gpu_kernel_index.items())))
        manifest = {
            "container_version": CONTAINER_VERSION,
            "format": "inductor",
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
