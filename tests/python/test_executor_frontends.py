"""Frontends: their passes, operators and objects in the compile, in trials, and what is refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import executor_harness as h
import pytest
import torch

PACKAGES = Path(__file__).parent / "packages"
MODULE = "scaling_engine.frontend"
ENVIRONMENT = {"PIECEWISED_FRONTENDS": MODULE, "PYTHONPATH": f"{h.EXECUTOR_SOURCE}:{PACKAGES}"}
LAYER_NAME = "scaling_engine.operators.LayerName"

sys.path.insert(0, str(PACKAGES))


@pytest.fixture(scope="module")
def engine() -> Iterator[h.Executor]:
    """An executor that is there for the engine's jobs."""
    with h.Executor(ENVIRONMENT) as process:
        process.hello(frontend=MODULE)
        yield process


def configured(**config: Any) -> dict[str, Any]:
    """The fields of a request whose worker is configured so."""
    from scaling_engine import frontend

    config = {"factor": 2.0, "runs": True, **config}
    return {
        "frontend": {"name": MODULE, "version": "1.0", "identity": frontend.identity(config)},
        "blob": json.dumps(config).encode(),
    }


def graph(*nodes: dict[str, Any], returns: str = "y") -> dict[str, Any]:
    """A graph over `x: f32[s0, 8]`."""
    n = h.symbol("s0")
    x = h.tensor_input("x", [n, h.number(8)], [h.number(8), h.number(1)])
    placeholders = [node for node in nodes if "placeholder" in node["op"]]
    others = [node for node in nodes if "placeholder" not in node["op"]]
    all_nodes = [h.int_input("n", n), x, *placeholders, *others, h.output_node({"tuple": [h.ref(returns)]})]
    return {"nodes": all_nodes, "symbols": [{"name": "s0", "hint": 8, "min": 2}]}


def compiled(process: h.Executor, graph: dict[str, Any], **request: Any) -> tuple[dict[str, Any], bytes]:
    name, fields, artifact = process.compile(graph, range=[2, 16], dispatch_argument=0, hint=8, **request)
    assert name == "done", fields["message"]
    return fields, artifact


def failed(process: h.Executor, graph: dict[str, Any], **request: Any) -> tuple[str, str]:
    name, fields, _ = process.compile(graph, range=[2, 16], dispatch_argument=0, hint=8, **request)
    assert name == "failed", fields
    return fields["reason"], fields["message"]


def called(folder: Path, fields: dict[str, Any], artifact: bytes, *args: Any) -> list[torch.Tensor]:
    """What the artifact gives in this process, which has the engine's operators."""
    from scaling_engine import operators

    load_entry = h.client_module("runtime.load").load_entry
    entry = load_entry(str(h.materialise(artifact, folder)), h.entry_for(fields, args[0]))
    with torch.no_grad(), operators.engine(first=7.0, second=11.0):
        return list(entry(*args))


SCALE = graph(h.function_node("y", "torch.ops.scaling.scale", h.ref("x")))


def test_what_the_toolchain_has_is_told_without_importing_it() -> None:
    with h.Executor({**ENVIRONMENT, "PIECEWISED_FRONTENDS": f"{MODULE},no_such_package.frontend"}) as process:
        assert MODULE in process.hello()["frontends"]
    with h.Executor() as process:
        assert MODULE not in process.hello()["frontends"]


def test_passes_change_the_code(engine: h.Executor, tmp_path: Path) -> None:
    x = torch.arange(32.0).reshape(4, 8)
    for factor in (2.0, 2.5):
        # A factor of 2.5 is not what eager gives: a pass may do so, and then the artifact does not verify.
        request = configured(factor=factor)
        fields, artifact = compiled(engine, SCALE, verify=factor == 2.0, **request)
        assert torch.equal(called(tmp_path / str(factor), fields, artifact, 4, x)[0], x * factor)
    reason, message = failed(engine, SCALE, **configured(factor=2.5))
    assert reason == "VERIFICATION_FAILED", message


def test_operators_that_stay_are_called_and_verified(engine: h.Executor, tmp_path: Path) -> None:
    shifted = graph(
        h.function_node("z", "torch.ops.scaling.shift_.default", h.ref("x"), {"float": "1.5"}),
        h.function_node("y", "_operator.mul", h.ref("x"), {"int": 2}),
    )
    fields, artifact = compiled(engine, shifted, **configured())
    assert fields["verification"]["outcome"] == "passed", fields["verification"]
    x = torch.arange(32.0).reshape(4, 8)
    (y,) = called(tmp_path, fields, artifact, 4, x)
    assert torch.equal(x, torch.arange(32.0).reshape(4, 8) + 1.5) and torch.equal(y, x * 2)


def test_what_an_operator_leaves_behind_is_not_compared(engine: h.Executor, tmp_path: Path) -> None:
    donated = graph(h.function_node("y", "torch.ops.scaling.donate", h.ref("x")))
    fields, artifact = compiled(engine, donated, **configured())
    assert fields["verification"]["outcome"] == "passed", fields["verification"]
    x = torch.arange(32.0).reshape(4, 8)
    assert torch.equal(called(tmp_path, fields, artifact, 4, x.clone())[0], x * 3)


def of_layer(name: dict[str, Any], *nodes: dict[str, Any]) -> dict[str, Any]:
    doubled = h.function_node("z", "torch.ops.scaling.of_layer.default", h.ref("x"), name)
    return graph(*nodes, doubled, h.function_node("y", "_operator.add", h.ref("z"), {"int": 1}))


def test_objects_are_inputs_of_the_code(engine: h.Executor, tmp_path: Path) -> None:
    from scaling_engine.operators import LayerName

    layer = {"name": "layer", "op": {"placeholder": {"value": {"opaque": LAYER_NAME}}}}
    fields, artifact = compiled(engine, of_layer(h.ref("layer"), layer), **configured())
    assert fields["verification"]["outcome"] == "passed", fields["verification"]
    x = torch.arange(32.0).reshape(4, 8)
    for name, factor in (("first", 7), ("second", 11)):
        found = called(tmp_path / name, fields, artifact, 4, x, LayerName(name))
        assert torch.equal(found[0], x * factor + 1), name


def test_an_operator_that_needs_an_engine_is_not_compared(engine: h.Executor) -> None:
    layer = {"name": "layer", "op": {"placeholder": {"value": {"opaque": LAYER_NAME}}}}
    fields, _ = compiled(engine, of_layer(h.ref("layer"), layer), **configured(runs=False))
    assert fields["verification"]["outcome"] == "not_comparable"
    assert "no engine runs" in fields["verification"]["note"]


def test_what_is_not_there_is_refused_by_name(engine: h.Executor) -> None:
    for target in ("torch.ops.scaling.no_such_op", "torch.ops.scaling.scale.no_such_overload", "torch.ops.nothing.op"):
        reason, message = failed(engine, graph(h.function_node("y", target, h.ref("x"))), **configured())
        assert reason == "UNSUPPORTED" and target in message and "node y" in message, message
    unknown = of_layer({"opaque": {"type": "other.Type", "value": "v"}})
    reason, message = failed(engine, unknown, **configured())
    assert reason == "UNSUPPORTED" and "other.Type" in message, message


def test_without_a_frontend_its_operators_are_not_allowed(engine: h.Executor) -> None:
    reason, message = failed(engine, SCALE)
    assert reason == "UNSUPPORTED" and "torch.ops.scaling.scale is not in the allow-list" in message


def test_an_identity_that_comes_out_differently_is_refused_with_what_differs(engine: h.Executor) -> None:
    request = configured()
    request["blob"] = json.dumps({"factor": 3.0, "runs": True, "elsewhere": "/home"}).encode()
    reason, message = failed(engine, SCALE, **request)
    assert reason == "FRONTEND_MISMATCH" and "factor is 2.0 in the worker and 3.0 in the executor" in message
    # What is in no identity is nobody's business.
    request["blob"] = json.dumps({"factor": 2.0, "runs": True, "elsewhere": "/home"}).encode()
    compiled(engine, SCALE, **request)


def test_a_payload_that_cannot_be_used_is_refused(engine: h.Executor) -> None:
    reason, message = failed(engine, SCALE, **{**configured(), "blob": b"{"})
    assert reason == "FRONTEND_MISMATCH" and "cannot use what the worker sent: JSONDecodeError" in message
    other = configured()
    other["frontend"]["version"] = "2.0"
    assert failed(engine, SCALE, **other) == (
        "FRONTEND_MISMATCH",
        "the scaling engine is 1.0 here and 2.0 in the worker",
    )
    other["frontend"]["name"] = "os"
    reason, message = failed(engine, SCALE, **other)
    assert reason == "FRONTEND_UNKNOWN" and "no frontend 'os'" in message


def test_executors_are_forked_with_the_frontend_imported(tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    environment = {**ENVIRONMENT, "SCALING_ENGINE_MARKS": str(marks)}
    with h.Zygote(environment, frontend=MODULE) as zygote:
        assert zygote.hello[1]["refusal"] == ""
        for _ in range(2):
            executor = zygote.fork()
            executor.hello(is_known=True, frontend=MODULE)
            fields, _ = compiled(executor, SCALE, **configured())
            assert fields["verification"]["outcome"] == "passed"
        assert marks.read_text().split() == [str(zygote.process.pid)], "imported once, in the zygote"
