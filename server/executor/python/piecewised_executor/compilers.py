"""The C++ compiler that packages are built with: one whose shared objects use the process's libstdc++.

A compiler that puts a copy of libstdc++ into what it links (some are configured so) makes packages that crash when they are loaded: a process
that has torch in it has a libstdc++ already, and two copies do not share locale facets. What a compiler does is found out by building
a small shared object and reading what it asks the dynamic linker for; nothing of it is run.
"""

from __future__ import annotations

import os
import subprocess
import tempfile

from torch._inductor import config

from . import elf
from .errors import Unsupported

_LIBRARY = "libstdc++.so."
# Something that only the library has: what the compiler could do inline would need nothing.
_SOURCE = """#include <iostream>
extern "C" void piecewised_probe(int n) { std::cout << n << std::endl; }
"""
# Beside the one that Inductor would take, which is what CXX names, or g++.
_OTHERS = ("g++", "/usr/bin/g++", "c++")
_TIMEOUT_S = 60.0

# From the candidates to the one that was found.
_found: dict[tuple[str, ...], str] = {}


def for_packages() -> str:
    """The compiler to build packages with, found out once in a process and those forked from it. Raises Unsupported where there is none."""
    candidates = _candidates()
    if candidates not in _found:
        _found[candidates] = _choose(candidates)
    return _found[candidates]


def check(shared_object: bytes) -> None:
    """Raises Unsupported for a package's shared object that has a libstdc++ of its own."""
    if not _is_dynamic(elf.needed(shared_object)):
        raise Unsupported(
            "the package's shared object does not use the process's libstdc++ (it was linked statically) and would crash where it is "
            f"loaded; {_REMEDY}"
        )


_REMEDY = "start the daemon with CXX naming a C++ compiler that links libstdc++ dynamically, as a distribution's g++ does (CXX=/usr/bin/g++)"


def _choose(candidates: tuple[str, ...]) -> str:
    problems = []
    for compiler in candidates:
        try:
            if _is_dynamic(elf.needed(build_probe(compiler))):
                return compiler
            problems.append(f"{compiler} links libstdc++ statically")
        except (OSError, subprocess.SubprocessError, elf.NotElf) as error:
            problems.append(f"{compiler} does not build a shared object ({_words(error)})")
    raise Unsupported(f"there is no C++ compiler for AOTInductor packages here: {'; '.join(problems)}. {_REMEDY}")


def _candidates() -> tuple[str, ...]:
    configured = config.cpp.cxx
    search = configured if isinstance(configured, (list, tuple)) else (configured,)
    named = [os.environ.get("CXX"), *search, *_OTHERS]
    return tuple(dict.fromkeys(name for name in named if name))


def build_probe(compiler: str) -> bytes:
    """A small shared object that a compiler built. Raises OSError, SubprocessError."""
    with tempfile.TemporaryDirectory(prefix="piecewised-compiler-") as folder:
        source, target = os.path.join(folder, "probe.cpp"), os.path.join(folder, "probe.so")
        with open(source, "w", encoding="ascii") as file:
            file.write(_SOURCE)
        command = [compiler, "-shared", "-fPIC", "-o", target, source]
        subprocess.run(command, check=True, capture_output=True, timeout=_TIMEOUT_S, stdin=subprocess.DEVNULL)
        with open(target, "rb") as built:
            return built.read()


def _is_dynamic(libraries: list[str]) -> bool:
    return any(name.startswith(_LIBRARY) for name in libraries)


def _words(error: Exception) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        lines = error.stderr.decode(errors="replace").strip().splitlines()
        return lines[0][:200] if lines else f"exit code {error.returncode}"
    return str(error)[:200]
