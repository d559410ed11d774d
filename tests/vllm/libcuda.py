"""A libcuda.so.1 for machines without a GPU: vLLM's extension modules link against it, and run without it being able to do anything.

Every function that they name is there and returns CUDA_ERROR_NO_DEVICE.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Collection
from pathlib import Path

NO_DEVICE = 100
# What the CUDA runtime asks for before anything else.
_ALWAYS = ("cuInit", "cuDriverGetVersion", "cuDeviceGetCount", "cuGetProcAddress", "cuGetProcAddress_v2")


def build(folder: Path, modules: Path, others: Collection[str] = ()) -> Path:
    """The folder that has libcuda.so.1, for LD_LIBRARY_PATH: with the functions that shared objects in `modules` name, and `others`. Needs gcc and nm."""
    names = {*_ALWAYS, *others}
    for module in modules.glob("*.so"):
        listed = subprocess.run(
            ["nm", "-D", "--undefined-only", module], check=True, capture_output=True, text=True
        ).stdout
        names.update(re.findall(r"\b(cu[A-Z]\w*)$", listed, re.MULTILINE))
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / "libcuda.c"
    source.write_text("".join(f"int {name}(void) {{ return {NO_DEVICE}; }}\n" for name in sorted(names)))
    library = folder / "libcuda.so.1"
    subprocess.run(["gcc", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", library, source], check=True)
    return folder
