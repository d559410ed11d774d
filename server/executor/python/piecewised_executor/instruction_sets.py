"""Which vector instructions the C++ compiler and torch have been found to get along with: kept beside the precompiled headers, for executors and daemons to come.

Inductor asks by building a small library for each set of instructions and loading it: seconds of g++ for each, in every process. What the answer follows from is the compiler, its
search paths, torch and the question. Whether the processor has the instructions is asked before, and each time. Only a yes is kept: a no may be a compiler that was killed, and would
be slow code from then on.

A yes is an empty file whose name is the digest of what it follows from.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch._inductor import codecache, cpu_vec_isa

_FOLDER = "instruction_sets"
# Where compilers and what they build look for headers and libraries beside their own places.
_SEARCH_PATHS = ("CPATH", "CPLUS_INCLUDE_PATH", "LIBRARY_PATH", "LD_LIBRARY_PATH")

_original = cpu_vec_isa.VecISA.check_build


def place() -> None:
    """Has this process look there first. `headers.place` says where, and is called before."""
    cpu_vec_isa.VecISA.check_build = check_build  # type: ignore[method-assign]


def check_build(isa: Any, code: str) -> bool:
    """VecISA.check_build, and a yes is remembered."""
    mark = Path(codecache._HEADER_DIR, _FOLDER, _premises(isa, code))
    if mark.exists():
        return True
    if not _original(isa, code):
        return False
    try:
        mark.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        mark.touch()
    except OSError as error:
        print(f"piecewised_executor: {mark} cannot be kept: {error}", file=sys.stderr)
    return True


def _premises(isa: Any, code: str) -> str:
    from torch._inductor.cpp_builder import get_cpp_compiler

    premises = [
        code,
        # The flags, the compiler's version and torch's.
        cpu_vec_isa._get_isa_dry_compile_fingerprint(isa._arch_flags),
        isa._macro,
        get_cpp_compiler(),
        torch.version.git_version,
        os.path.dirname(torch.__file__),
        sys.version,
        [os.environ.get(name) for name in _SEARCH_PATHS],
    ]
    return hashlib.blake2b(json.dumps(premises).encode(), digest_size=16).hexdigest()
