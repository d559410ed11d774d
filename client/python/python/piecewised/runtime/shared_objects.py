"""Compiled C++ kernels: Python extension modules that Inductor's CPU backend built.

The index is a JSON object, request digest (`kernels.request_digest`) to file (relative to the index), beside the kernels.
Loading one needs torch alone.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from collections.abc import Callable
from typing import Any

import torch

from .errors import MissingKernel

INDEX = "kernels.json"

# The function that a kernel's module has (CppPythonBindingsCodeCache.entry_function).
ENTRY = "kernel"


# What an index may name: a file of the artifact, by its content.
_NAME = re.compile(r"kernels/[0-9a-f]{64}\.(so|cubin)")


def kernel_path(folder: str, name: str) -> str:
    """The file that an index below `folder` names. Raises MissingKernel for a name that could lead elsewhere."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise MissingKernel(
            f"the artifact in {folder} names {name!r} as a kernel, which no artifact holds; it is damaged or forged"
        )
    return os.path.join(folder, name)


def load(path: str, name: str, entry: str = ENTRY) -> Callable[..., Any]:
    """The function `entry` of the shared library at `path`. `name` is its file's, by content, so each is loaded once."""
    module_name = f"piecewised_kernel_{os.path.splitext(os.path.basename(name))[0]}.{entry}"
    module = sys.modules.get(module_name)
    if module is None:
        # The kernel's own initialisation reads the address from the environment, as Inductor's loader sets it.
        os.environ["_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR"] = str(
            torch._C._dynamo.guards._torchinductor_pyobject_tensor_data_ptr
        )
        spec = importlib.util.spec_from_file_location(module_name, path)
        if spec is None or spec.loader is None:
            raise MissingKernel(f"{path} is not a Python extension module")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules[module_name] = module
    function: Callable[..., Any] = getattr(module, entry)
    return function
