"""What crosses from piece to piece, and that the pieces together are still the model."""

from __future__ import annotations

import itertools
import json
import operator
import weakref
from collections.abc import Callable
from typing import Any

import executor_harness as h
import pytest
import split_harness as s
import torch
import torch.fx
import transformers
from piecewised_executor.rebuild import rebuild
from piecewised_executor.symbols import Symbols
from torch.fx.experimental.proxy_tensor import make_fx

outputs = h.client_module("runtime.outputs")


def test_sizes_cross_as_integers() -> None:
    """A torch.Size can't; and what equals an input of the whole graph is that input."""

    def function(x: torch.Tensor) -> tuple[Any, ...]:
        y = torch.cat([x, x])
        shifted = s.shift(y)
        a = shifted.view(y.size()) + torch.zeros(x.shape).sum() + torch.zeros(size=x.size()).sum()
        return a.reshape(y.shape[0] // 2, -1), x.size(0), y.shape[0], s.shift(a).new_zeros(x.size(1), y.size(0))

    result = s.split_at(function, s.SHIFT)
    for piece in result.pieces:
        assert not piece.module.graph.find_nodes(op="call_method", target="size")
        for node in piece.module.graph.find_nodes(op="placeholder"):
            assert isinstance(node.meta["example_value"], torch.Tensor | torch.SymInt)


def test_a_size_itself_is_still_one_where_it_is_needed() -> None:
    gm = s.capture(lambda x: s.shift(x).reshape(x.size()), s.rows())
    (size,) = gm.graph.find_nodes(op="call_method", target="size")
    (reshape,) = gm.graph.find_nodes(op="call_method", target="reshape")
    with gm.graph.inserting_before(reshape):
        count = gm.graph.call_method("numel", (size,))
        count.meta["example_value"] = size.meta["example_value"].numel()
    reshape.args = (reshape.args[0], count)
    gm.recompile()
    result = s.split.split_graph(gm, [s.SHIFT])
    s.check_equal(gm, result)
    assert "numel" in s.calls(result.pieces[-1])


def test_symbols_keep_the_order_of_the_whole_graph() -> None:
    """So that no piece dispatches on another symbol than the rest, whatever tensors it happens to use first."""

    def function(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        a = s.shift(x.sin())
        b = s.shift(y.cos())
        return b @ y.T @ (y @ a.T) @ x

    args = (s.rows(6), s.rows(5))
    gm = s.capture(function, *args)
    result = s.split.split_graph(gm, [s.SHIFT])
    s.check_pieces(gm, result)
    s.check_equal(gm, result)
    order, last = (
        [symbol for node in graph.find_nodes(op="placeholder") if (symbol := s.symbol(node))]
        for graph in (gm.graph, result.pieces[-1].module.graph)
    )
    assert len(order) == 2 and last == order


def test_a_symbol_that_is_no_input_is_read_from_a_tensor() -> None:
    """Dynamo makes each symbol an input. A graph of another tracer has only tensors, and other names for their values."""

    def function(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return s.shift(x @ w).sin() + x.shape[0]

    gm = make_fx(function, tracing_mode="symbolic")(s.rows(), s.rows(8))
    assert not any(s.symbol(node) for node in gm.graph.find_nodes(op="placeholder"))
    result = s.split.split_graph(gm, [s.SHIFT])
    assert [piece.is_splitting for piece in result.pieces] == [False, True, False]
    for piece in result.compiled:
        assert not s.graphs.is_static(s.fxgraph.to_graph(piece.module))
    run = result.with_callables({})
    for n in (3, 7):
        x, w = s.rows(n), s.rows(8)
        torch.testing.assert_close(run(x, w), function(x, w))
        torch.testing.assert_close(result.module(x, w), function(x, w))


def test_a_size_that_only_data_tells_crosses_if_something_reads_it() -> None:
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        gm = s.capture(lambda x: s.shift(s.where(x > 0)).sum(), s.rows())
    result = s.split.split_graph(gm, [s.SHIFT])
    s.check_equal(gm, result)
    assert "u0" in [s.symbol(node) for node in result.pieces[-1].module.graph.find_nodes(op="placeholder")]
    # The splitting operator itself may be what tells it.
    by_data = s.split.split_graph(gm, ["split_test::shift", "split_test::where"])
    s.check_equal(gm, by_data)
    assert s.structure(by_data)[1:3] == [(True, ["where", "sym_size.int"]), (False, ["ge", "_assert_scalar.default"])]
    (read,) = gm.graph.find_nodes(op="call_function", target=torch.ops.aten.sym_size.int)
    for node in [*reversed([*read.users, *itertools.chain(*(user.users for user in read.users))]), read]:
        gm.graph.erase_node(node)
    with pytest.raises(s.errors.UnsupportedPiece, match="nothing gives the size u0") as caught:
        s.split.split_graph(gm, [s.SHIFT])
    assert caught.value.reason == "UNSUPPORTED_GRAPH" and caught.value.metadata["node"]


def test_a_tensor_that_the_graph_holds_is_an_input_of_the_pieces() -> None:
    gm = s.capture(lambda x: s.shift(x.sin()) * 2, s.rows())
    held = torch.randn(8)
    gm.register_buffer("held", held)
    (product,) = gm.graph.find_nodes(op="call_function", target=operator.mul)
    with gm.graph.inserting_before(product):
        product.args = (product.args[0], gm.graph.get_attr("held"))
    gm.recompile()
    result = s.split.split_graph(gm, [s.SHIFT])
    s.check_pieces(gm, result)
    s.check_equal(gm, result)
    held.mul_(3)
    s.check_equal(gm, result)


def test_nested_graphs_stay_with_their_operator() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        y = s.shift(x)
        return torch.cond(y.sum() > 0, lambda y: y.sin(), lambda y: y.cos() * 2, (y,))

    gm = s.capture(function, s.rows())
    result = s.split.split_graph(gm, [s.SHIFT])
    s.check_equal(gm, result)
    assert len(s.fxgraph.to_graph(result.pieces[-1].module)["subgraphs"]) == 2


def test_autocast_and_gradients_are_switched_as_before() -> None:
    def function(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with torch.autocast("cpu", torch.bfloat16):
            a = x @ x.T
            b = s.shift(a)
            with torch.no_grad():
                c = s.shift(b @ x)
            d = c @ x.T
        return a, b, c, d, d.float() @ x

    gm = s.capture(function, s.rows(), grad=True)
    switches = gm.graph.find_nodes(op="call_function", target=torch._C._set_grad_enabled)
    assert len(switches) == 2
    result = s.split.split_graph(gm, [s.SHIFT])
    assert [piece.is_splitting for piece in result.pieces] == [False, True] * 2 + [False]
    # A compiled piece switches nothing for its caller.
    keeping = {piece.index: _keeping_grad_mode(piece.module) for piece in result.compiled}
    inputs = s.inputs(gm, (5,))
    wanted = gm(*inputs)
    for run in (result.module, result.with_callables({}), result.with_callables(keeping)):
        torch.testing.assert_close(run(*inputs), wanted, rtol=0, atol=0)
        assert torch.is_grad_enabled()


def _keeping_grad_mode(module: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any) -> Any:
        with torch.set_grad_enabled(torch.is_grad_enabled()):
            return module(*args)

    return run


def test_callables_take_the_place_of_pieces() -> None:
    gm = s.capture(s.Layers(3), s.rows())
    result = s.split.split_graph(gm, [s.ATTENTION])
    called: list[int] = []

    def counting(piece: Any) -> Callable[..., Any]:
        return lambda *args: called.append(piece.index) or piece.module(*args)

    inputs = s.inputs(gm, (4,))
    with torch.no_grad():
        some = result.with_callables({piece.index: counting(piece) for piece in result.compiled[1:]})
        torch.testing.assert_close(some(*inputs), gm(*inputs), rtol=0, atol=0)
        assert called == [piece.index for piece in result.compiled[1:]]
    with pytest.raises(ValueError, match="none has the index 9"):
        result.with_callables({0: gm, 9: gm})


def test_results_are_dropped_after_their_last_use() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        return s.shift(s.shift(s.shift(x.sin()).cos()).exp())

    gm = s.capture(function, s.rows())
    result = s.split.split_graph(gm, [s.SHIFT])
    made: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []

    def watching(piece: Any) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            alive.append(sum(ref() is not None for ref in made))
            value = piece.module(*args)
            made.append(weakref.ref(value))
            return value

        return run

    run = result.with_callables({piece.index: watching(piece) for piece in result.pieces})
    with torch.no_grad():
        run(*s.inputs(gm, (4,)))
    # Only what the call itself is given.
    assert alive == [0, 1, 1, 1, 1, 1]


def test_results_of_every_form_come_back() -> None:
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    x.meta["example_value"] = torch.empty(2)
    y = graph.call_function(s.shift, (x,))
    y.meta["example_value"] = torch.empty(2)
    graph.output({"list": [y, None, x], "tuple": (y,), "plain": (1, 2.5, float("inf"), "text", True, torch.float32)})
    gm = torch.fx.GraphModule(torch.nn.Module(), graph)
    given = torch.ones(2)
    got, wanted = s.split.split_graph(gm, [s.SHIFT]).with_callables({})(given), gm(given)
    assert got["plain"] == wanted["plain"] and got["list"][2] is given and got["list"][1] is None
    assert torch.equal(got["tuple"][0], wanted["tuple"][0]) and type(got["tuple"]) is tuple


def _llama_attention(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any
) -> tuple[torch.Tensor, None]:
    repeats = query.shape[1] // key.shape[1]
    out = torch.zeros_like(query)
    s.attention(query, key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1), out)
    return out.transpose(1, 2).contiguous(), None


def test_llama() -> None:
    transformers.AttentionInterface.register("split_test", _llama_attention)
    config = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=128, attn_implementation="split_test",
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config).eval()

    def tokens(n: int) -> torch.Tensor:
        torch.manual_seed(n)
        ids = torch.randint(0, 128, (1, n))
        torch._dynamo.mark_dynamic(ids, 1)
        return ids

    results: list[Any] = []

    def backend(gm: torch.fx.GraphModule, _: list[Any]) -> Callable[..., Any]:
        results.append(s.split.split_graph(gm, [s.ATTENTION]))
        s.check_pieces(gm, results[-1])
        return results[-1].with_callables({})

    torch._dynamo.reset()
    compiled = torch.compile(model, backend=backend)
    with torch.no_grad():
        for n in (7, 3, 12):
            wanted = model(input_ids=tokens(n), use_cache=False).logits
            got = compiled(input_ids=tokens(n), use_cache=False).logits
            torch.testing.assert_close(got, wanted, rtol=0, atol=0)
    (result,) = results
    assert [piece.is_splitting for piece in result.pieces] == [False, True] * 3 + [False]


def test_pieces_that_went_through_the_protocol_are_the_pieces() -> None:
    """Serialised, rebuilt and put back, they are still the model."""
    gm = s.capture(s.Layers(3), s.rows())
    result = s.split.split_graph(gm, [s.ATTENTION])
    rebuilt = {}
    for piece in result.compiled:
        graph = json.loads(json.dumps(s.fxgraph.to_graph(piece.module)))
        made = rebuild(graph, Symbols(graph["symbols"], {}, {}, {}))
        assert made.n_arguments == len(made.kept) == len(made.inputs)
        rebuilt[piece.index] = _restoring(made.module, outputs.restorer(made.structure))
    run = result.with_callables(rebuilt)
    with torch.no_grad():
        for n in (2, 5, 9):
            inputs = s.inputs(gm, (n,))
            torch.testing.assert_close(run(*inputs), gm(*inputs), rtol=0, atol=0)


def _restoring(flat: Callable[..., Any], restore: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args: restore(flat(*args))
