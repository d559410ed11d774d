"""Operators that torch does not have, in AOTInductor packages: called where that can be, refused by name where not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import executor_harness as h
import torch
from test_executor_frontends import LAYER_NAME, SCALE, called, compiled, configured, engine, failed, graph, of_layer

__all__ = ["engine"]

SHIFTED = graph(
    h.function_node("z", "torch.ops.scaling.shift_.default", h.ref("x"), {"float": "1.5"}),
    h.function_node("y", "_operator.mul", h.ref("x"), {"int": 2}),
)

_WITHOUT = """
import sys, types
import torch
package = types.ModuleType("piecewised")
package.__path__ = [sys.argv[1]]
sys.modules["piecewised"] = package
from piecewised.runtime.errors import LoadError
from piecewised.runtime.load import load_entry
try:
    load_entry(sys.argv[2], "e0")
except LoadError as error:
    print(error)
"""


def test_operators_are_called_from_packages(engine: h.Executor, tmp_path: Path) -> None:
    fields, artifact = compiled(engine, SHIFTED, format="aoti", **configured())
    assert fields["verification"]["outcome"] == "passed", fields["verification"]
    (entry,) = h.manifest(artifact)["entries"]
    assert entry["operators"] == ["scaling::shift_"]
    x = torch.arange(32.0).reshape(4, 8)
    (y,) = called(tmp_path, fields, artifact, 4, x)
    assert torch.equal(x, torch.arange(32.0).reshape(4, 8) + 1.5) and torch.equal(y, x * 2)


def test_a_process_without_the_operators_is_told_which(engine: h.Executor, tmp_path: Path) -> None:
    # Without Python the runner has no operators of Python libraries.
    runner = tmp_path / "runner"
    _, artifact = compiled(engine, SHIFTED, format="aoti", **configured())
    folder = h.materialise(artifact, tmp_path / "artifact")
    command = [sys.executable, "-c", _WITHOUT, str(h.CLIENT_SOURCE / "piecewised"), str(folder)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "scaling::shift_" in said and "import what defines it" in said
    fields, _ = compiled(engine, SHIFTED, format="aoti", runner=str(runner), **configured())
    assert fields["verification"]["checker"] == "executor"
    assert "does not have the operators scaling::shift_" in fields["verification"]["note"]


def test_an_operator_that_a_package_cannot_call_is_refused_by_its_name(engine: h.Executor) -> None:
    weighed = graph(
        h.function_node("y", "torch.ops.scaling.weigh.default", h.ref("x"), {"list": [{"int": 1}, {"float": "2.5"}]})
    )
    reason, message = failed(engine, weighed, format="aoti", **configured())
    assert reason == "UNSUPPORTED" and "scaling::weigh" in message and "'inductor'" in message
    compiled(engine, weighed, **configured())


def test_an_input_that_is_no_tensor_is_refused(engine: h.Executor) -> None:
    name = {"name": "name", "op": {"placeholder": {"value": {"opaque": LAYER_NAME}}}}
    reason, message = failed(engine, of_layer(h.ref("name"), name), format="aoti", **configured())
    assert reason == "UNSUPPORTED" and "argument 2" in message and "tensors only" in message


def test_passes_take_part(engine: h.Executor, tmp_path: Path) -> None:
    fields, artifact = compiled(engine, SCALE, format="aoti", verify=False, **configured(factor=2.5))
    assert h.manifest(artifact)["entries"][0]["operators"] == []
    x = torch.arange(32.0).reshape(4, 8)
    assert torch.equal(called(tmp_path, fields, artifact, 4, x)[0], x * 2.5)
