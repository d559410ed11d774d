"""The plugin as vLLM finds it, and what it does to a graph's names."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path
from typing import Any

import piecewised.vllm
import pytest
from piecewised.vllm.normal import normal_form


def test_vllm_finds_it_among_its_plugins() -> None:
    found = {point.name: point for point in importlib.metadata.entry_points(group="vllm.general_plugins")}
    assert found["piecewised"].load() is piecewised.vllm.register


def test_without_a_daemon_it_does_not_even_import_vllm(tmp_path: Path) -> None:
    script = "import sys, piecewised.vllm; piecewised.vllm.register(); assert 'vllm' not in sys.modules"
    environment = {"XDG_RUNTIME_DIR": str(tmp_path), "PATH": str(tmp_path)}
    assert not Path("/run/piecewised/piecewised.sock").exists(), "a daemon of this machine's is in the way of the test"
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)


def test_a_socket_where_daemons_listen_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIECEWISED_ENDPOINT", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    (tmp_path / "piecewised").mkdir()
    (tmp_path / "piecewised" / "piecewised.sock").touch()
    assert piecewised.vllm._is_wanted()


def graph(x: str, y: str, size: str, factor: int = 2) -> dict[str, Any]:
    """`y = x * factor` over `x: f32[size, 8]`, in the project's JSON form."""
    tensor = {"dtype": "float32", "sizes": [{"symbol": size}, {"int": 8}], "strides": [{"int": 8}, {"int": 1}]}
    return {
        "symbols": [{"name": size, "hint": 64, "min": 2}],
        "nodes": [
            {"name": "n", "op": {"placeholder": {"value": {"sym_int": {"symbol": size}}}}},
            {"name": x, "op": {"placeholder": {"value": {"tensor": tensor}}}},
            {
                "name": y,
                "op": {"call_function": {"target": "_operator.mul", "args": [{"node": x}, {"int": factor}]}},
                "stack_trace": f"File {x}",
            },
            {"name": "output", "op": {"output": {"value": {"tuple": [{"node": y}, {"str": x}]}}}},
        ],
    }


def test_graphs_that_differ_in_names_alone_have_one_normal_form() -> None:
    one, other = normal_form(graph("a", "b", "s77")), normal_form(graph("a", "c", "s1"))
    assert one == other
    assert one["symbols"] == [{"name": "s0", "hint": 64, "min": 2}]


def test_text_and_numbers_are_no_names() -> None:
    # The text is an argument here, which happens to be a node's name in one of them.
    assert normal_form(graph("a", "b", "s77")) != normal_form(graph("x", "b", "s77"))
    assert normal_form(graph("a", "b", "s77")) != normal_form(graph("a", "b", "s77", factor=3))
