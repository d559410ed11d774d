"""What vLLM finds out about a model's class: by importing it in a process of its own, once for all starts that ask the same daemon."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from ready_daemon import Daemon, environment

SCRIPT = """
import dataclasses, json, sys
import piecewised, piecewised.vllm
from vllm.model_executor.models import registry
piecewised.vllm.register()
inspections = []
original = registry._run_in_subprocess
registry._run_in_subprocess = lambda work: inspections.append(1) or original(work)
model = registry._LazyRegisteredModel(module_name="vllm.model_executor.models.llama", class_name="LlamaForCausalLM")
info = dataclasses.asdict(model.inspect_model_cls())
print(json.dumps({"info": info, "n_inspections": len(inspections), "kernels": piecewised.stats()["kernels"]}, default=repr))
"""


def run(folder: Path, endpoint: str) -> dict[str, Any]:
    """A vLLM process whose folders are below `folder`."""
    variables = environment(
        VLLM_CACHE_ROOT=str(folder),
        PIECEWISED_CACHE_DIR=str(folder / "client"),
        PIECEWISED_ENDPOINT=endpoint,
        VLLM_LOGGING_LEVEL="ERROR",
    )
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=variables, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def test_a_models_class_is_looked_at_once(daemon: Daemon, tmp_path: Path) -> None:
    first = run(tmp_path / "first", daemon.endpoint)
    assert first["n_inspections"] == 1 and first["info"]["architecture"] == "LlamaForCausalLM"
    other = run(tmp_path / "other", daemon.endpoint)
    assert other == {**first, "n_inspections": 0}
    assert os.listdir(tmp_path / "other/modelinfos") == os.listdir(tmp_path / "first/modelinfos")
