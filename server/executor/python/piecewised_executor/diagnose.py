"""What `piecewised doctor` wants to know of an interpreter beyond that it can compile: one JSON object on stdout.

Each part says what was found, or in `problem` what is wrong; nothing is raised, since the other parts are of use all the same.
"""

from __future__ import annotations

import ctypes
import json
import sys
from typing import Any


def main() -> None:
    """Writes the report."""
    # What libraries print belongs to people.
    out, sys.stdout = sys.stdout, sys.stderr
    gpus = _gpus()
    report = {"compiler": _compiler(), "packages": _packages(), "gpus": gpus, "runner": _runner(gpus), "vllm": _vllm()}
    json.dump(report, out)


def _part(found: Any = None, problem: str = "") -> dict[str, Any]:
    return {"found": found, "problem": problem}


def _compiler() -> dict[str, Any]:
    """The C++ compiler that Inductor takes for CPU code: whether it builds anything."""
    from torch._inductor import cpp_builder

    from . import compilers
    from .errors import describe

    try:
        compiler = cpp_builder.get_cpp_compiler()
        compilers.build_probe(compiler)
    except Exception as error:
        return _part(problem=f"there is no C++ compiler that works: {describe(error)[:500]}")
    return _part(compiler)


def _packages() -> dict[str, Any]:
    """The one that AOTInductor packages are built with."""
    from . import compilers
    from .errors import describe

    try:
        return _part(compilers.for_packages())
    except Exception as error:
        return _part(problem=describe(error)[:1000])


def _gpus() -> dict[str, Any]:
    import torch

    from .probe import has_device_file

    if not torch.cuda.is_available():
        if not has_device_file():
            return _part([])
        try:
            torch.cuda.init()
        except Exception as error:
            return _part(problem=f"there are GPUs, and torch {torch.__version__} does not get at them: {error}")
        return _part(problem=f"there are GPUs, and torch {torch.__version__} sees none of them")
    driver = _driver()
    gpus = []
    for index in range(torch.cuda.device_count()):
        free_bytes, total_bytes = torch.cuda.mem_get_info(index)
        gpus.append(
            {
                "index": index,
                "name": torch.cuda.get_device_name(index),
                "free_bytes": free_bytes,
                "total_bytes": total_bytes,
                "driver_cuda": driver,
            }
        )
    return _part(gpus)


def _driver() -> str:
    """The newest CUDA that the driver can do: "13.0"."""
    version = ctypes.c_int()
    ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    return f"{version.value // 1000}.{version.value % 1000 // 10}"


def _runner(gpus: dict[str, Any]) -> dict[str, Any]:
    """The program that tries packages, which the command line names."""
    from . import runner

    if not (named := sys.argv[1:]):
        return _part()
    return _part(named[0], runner.why_not(named[0], "cuda" if gpus["found"] else "cpu"))


def _vllm() -> dict[str, Any]:
    import importlib.metadata

    try:
        return _part(importlib.metadata.version("vllm"))
    except importlib.metadata.PackageNotFoundError:
        return _part()
