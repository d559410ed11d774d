"""Outputs that hold what nobody has written, and are compared with nothing."""

from __future__ import annotations

from typing import Any

import executor_harness as harness
import pytest
import torch

harness.cpu_device()

from piecewised_executor import unset  # noqa: E402
from piecewised_executor.rebuild import rebuild  # noqa: E402
from piecewised_executor.symbols import Symbols  # noqa: E402

ROW = [harness.number(4), harness.number(8)]
ALLOCATED = harness.function_node("buffer", "torch.empty_like", harness.ref("x"))


def leaves(*nodes: dict[str, Any], returned: list[str]) -> set[int]:
    """Of a graph over `x: f32[4, 8]`."""
    x = harness.tensor_input("x", ROW, [harness.number(8), harness.number(1)])
    output = harness.output_node({"tuple": [harness.ref(name) for name in returned]})
    graph = {"nodes": [x, *nodes, output]}
    return unset.leaves(rebuild(graph, Symbols([], {}, {}, {})).module)


def test_memory_that_is_only_allocated_is_nobodys() -> None:
    y = harness.function_node("y", "torch.exp", harness.ref("x"))
    assert leaves(ALLOCATED, y, returned=["y", "buffer"]) == {1}


def test_a_view_of_it_is_nobodys_too() -> None:
    view = harness.method_node("view", "view", harness.ref("buffer"), {"int": 8}, {"int": 4})
    assert leaves(ALLOCATED, view, returned=["view", "x"]) == {0}


@pytest.mark.parametrize("method", ["copy_", "add_"])
def test_what_a_method_writes_to_is_compared(method: str) -> None:
    written = harness.method_node("written", method, harness.ref("buffer"), harness.ref("x"))
    assert leaves(ALLOCATED, written, returned=["buffer"]) == set()


def test_what_is_written_through_a_view_is_compared() -> None:
    view = harness.method_node("view", "view", harness.ref("buffer"), {"int": 32})
    written = harness.method_node("written", "zero_", harness.ref("view"))
    assert leaves(ALLOCATED, view, written, returned=["buffer"]) == set()


def test_what_a_registered_operator_writes_to_is_compared() -> None:
    library = torch.library.Library("piecewised_unset", "FRAGMENT")
    library.define("fill(Tensor x, Tensor(a!) out) -> ()")
    library.impl("fill", lambda x, out: None, "CompositeExplicitAutograd")
    library._register_fake("fill", lambda x, out: None)
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    buffer = graph.call_function(torch.empty_like, (x,))
    other = graph.call_function(torch.empty_like, (x,))
    graph.call_function(torch.ops.piecewised_unset.fill.default, (x, buffer))
    graph.output((buffer, other))
    module = torch.fx.GraphModule(torch.nn.Module(), graph)
    for node, value in zip((x, buffer, other), torch.zeros(3, 4, 8), strict=True):
        node.meta["example_value"] = value.clone()
    assert unset.leaves(module) == {1}
