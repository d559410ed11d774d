"""How the C++ of a package is built: without this machine's paths in it, and without building again what is the same in all packages.

AOTInductor writes one source for each package, of which by far the most is the interface that libtorch loads packages through. It takes seconds to
compile, and is the same text every time. So it is compiled once, kept beside the precompiled headers, and linked to what is left of each source. Where a
source does not hold that text (another torch), it is compiled as it is.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch._inductor import codecache, cpp_builder
from torch.utils._filelock import FileLock

_RUNTIME = os.path.join(os.path.dirname(torch.__file__), "_inductor", "codegen", "aoti_runtime", "interface.cpp")
# What the rest of a source needs of it. Members of the base class are instantiated where the interface is, and nowhere else.
_DECLARATIONS = """#include <torch/csrc/inductor/aoti_runtime/model.h>
namespace torch::aot_inductor { extern template class AOTInductorModelBase<AOTInductorModel>; }
"""
_INSTANTIATION = """
namespace torch::aot_inductor { template class AOTInductorModelBase<AOTInductorModel>; }
"""
_SOURCE, _OBJECT, _LIBRARY = ".wrapper.cpp", ".wrapper.o", ".wrapper.so"
_LOCK_TIMEOUT_S = 600

RunCommand = Callable[[str, str], None]


@contextlib.contextmanager
def building(folder: str) -> Iterator[None]:
    """While inside, AOTInductor's compiler runs as above. `folder`: what is built lies below it."""
    original = cpp_builder.run_compile_cmd
    # Neither where it is built is in what comes out, nor where torch is installed.
    places = {folder: "", os.path.dirname(torch.__file__): "torch"}
    flags = "".join(f" -ffile-prefix-map={shlex.quote(f'{place}={name}')}" for place, name in places.items())
    interface: str | None = None

    def run_compile_cmd(cmd_line: str, cwd: str) -> None:
        nonlocal interface
        words = shlex.split(cmd_line)
        target = words[words.index("-o") + 1] if "-o" in words else ""
        source = next((word for word in words if word.endswith(_SOURCE)), None)
        if source is not None and target.endswith(_OBJECT):
            interface = _split(source, cmd_line, flags, lambda command: original(command, cwd))
        extra = f" {shlex.quote(interface)}" if interface is not None and target.endswith(_LIBRARY) else ""
        original(cmd_line + flags + extra, cwd)

    cpp_builder.run_compile_cmd = run_compile_cmd
    try:
        yield
    finally:
        cpp_builder.run_compile_cmd = original


def _split(source: str, cmd_line: str, flags: str, run: Callable[[str], None]) -> str | None:
    """Takes the interface out of a source, and gives the object that has it; None: the source is whole."""
    text, part = Path(source).read_text(encoding="utf-8"), _interface()
    if part is None or text.count(part) != 1:
        return None
    before, _, after = text.partition(part)
    # As any name of this machine's would be in the object, which is the same for all.
    content = f"{before}{part}{_INSTANTIATION}"
    path = os.path.join(os.path.dirname(source), "interface.cpp")
    target = os.path.join(codecache._HEADER_DIR, f"interface-{_identity(source, cmd_line, content)}.o")
    os.makedirs(codecache._HEADER_LOCK_DIR, exist_ok=True)
    with FileLock(
        os.path.join(codecache._HEADER_LOCK_DIR, f"{os.path.basename(target)}.lock"), timeout=_LOCK_TIMEOUT_S
    ):
        if not os.path.exists(target):
            Path(path).write_text(content, encoding="utf-8")
            built = f"{path}.o"
            command = cmd_line.replace(source, path).replace(source.removesuffix(_SOURCE) + _OBJECT, built)
            run(command + flags)
            # In one step: whoever is killed in between leaves nothing that another would take.
            scratch = f"{target}.{os.getpid()}"
            Path(scratch).write_bytes(Path(built).read_bytes())
            os.replace(scratch, target)
    Path(source).write_text(f"{before}{_DECLARATIONS}{after}", encoding="utf-8")
    return target


def _identity(source: str, cmd_line: str, content: str) -> str:
    """Of all that the object depends on. Precompiled headers hold what their sources do, which are torch's."""
    command = re.sub(r"-include \S+", "", cmd_line.replace(os.path.dirname(source), ""))
    compiler = cpp_builder.get_compiler_version_info(shlex.split(cmd_line)[0])
    parts = [command, compiler, torch.__version__, torch.version.git_version or "", content]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


@functools.cache
def _interface() -> str | None:
    try:
        return Path(_RUNTIME).read_text(encoding="utf-8").strip()
    except OSError:
        return None
