"""One vLLM process: builds models, runs them, and says what it saw."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import sys
import time
import traceback
from typing import Any


def main(task: dict[str, Any], folder: str) -> None:
    """Does `task` and leaves `result.json`, `tensors.pt` and `log` in a folder.

    `environment`: variables; `has_plugin`: whether vLLM's plugins are loaded; `models`: one after the other, see :func:`run`.
    """
    log = os.open(os.path.join(folder, "log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.update(task.get("environment", {}))
    try:
        _main(task, folder)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def _main(task: dict[str, Any], folder: str) -> None:
    import torch
    from vllm.compilation.counter import compilation_counter
    from vllm.plugins import load_general_plugins

    torch.set_num_threads(1)
    if task.get("has_plugin", True):
        load_general_plugins()
    result: dict[str, Any] = {"models": []}
    tensors = []
    for model in task["models"]:
        started = time.monotonic()
        outputs = run(**model)
        tensors.append(outputs)
        result["models"].append({"seconds": time.monotonic() - started})
    result["counters"] = dataclasses.asdict(compilation_counter)
    import piecewised

    result["stats"] = piecewised.stats()
    torch.save(tensors, os.path.join(folder, "tensors.pt"))
    with open(os.path.join(folder, "result.json"), "w") as file:
        json.dump(result, file)


def config(**compilation: Any) -> Any:
    """A VllmConfig for the CPU, without passes that need a GPU. `compilation`: of CompilationConfig, on top of the tests' own."""
    from vllm.config import CompilationConfig, CompilationMode, CUDAGraphMode, DeviceConfig, PassConfig, VllmConfig

    names = [field.name for field in dataclasses.fields(PassConfig) if field.name.startswith(("fuse_", "enable_"))]
    ours: dict[str, Any] = {
        "mode": CompilationMode.VLLM_COMPILE,
        "splitting_ops": ["toy::attention"],
        "cudagraph_mode": CUDAGraphMode.NONE,
        "compile_sizes": [4],
        "compile_ranges_endpoints": [16],
        "custom_ops": ["none"],
        "pass_config": PassConfig(**{**dict.fromkeys(names, False), **compilation.pop("pass_config", {})}),
    }
    return VllmConfig(
        device_config=DeviceConfig(device="cpu"), compilation_config=CompilationConfig(**{**ours, **compilation})
    )


def run(
    sizes: list[int],
    name: str = "Model",
    module: str = "toy_model",
    compilation: dict[str, Any] | None = None,
    arguments: dict[str, Any] | None = None,
) -> dict[int, Any]:
    """The outputs of a model by size; the first size is what it is traced with. `compilation`: of :func:`config`; `arguments`: of the model."""
    import torch
    from vllm.config import set_current_vllm_config
    from vllm.forward_context import set_forward_context

    # What of a model vLLM's hash of its ahead-of-time artifacts has from the model's configuration, which these models have none of.
    vllm_config = config(**(compilation or {}))
    vllm_config.additional_config = {"model": [module, name, arguments or {}]}
    torch.manual_seed(0)
    with set_current_vllm_config(vllm_config):
        model = getattr(importlib.import_module(module), name)(vllm_config=vllm_config, **(arguments or {}))
    outputs = {}
    with torch.no_grad(), set_forward_context(None, vllm_config):
        for size in sizes:
            x = torch.randn(size, model.hidden, generator=torch.Generator().manual_seed(size))
            outputs[size] = model(x).clone()
    return outputs
