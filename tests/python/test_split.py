"""Splitting: which node goes into which piece, and which names stand for splitting operators."""

from __future__ import annotations

import copy
import itertools
import json
import operator
from collections.abc import Callable
from typing import Any

import pytest
import split_harness as s
import torch
import torch.fx


def test_a_model_is_split_at_each_of_its_attentions() -> None:
    result = s.split_at(s.Layers(3), s.ATTENTION)
    assert [piece.is_splitting for piece in result.pieces] == [False, True] * 3 + [False]
    assert [piece.name for piece in result.compiled] == ["submod_0", "submod_2", "submod_4", "submod_6"]
    assert all(s.calls(piece) == ["attention"] for piece in result.pieces if piece.is_splitting)


def test_layers_alike_are_pieces_alike() -> None:
    """But for names, so that they share one artifact."""
    result = s.split_at(s.Layers(4), s.ATTENTION)
    first, second = (_nameless(s.fxgraph.to_graph(result.pieces[index].module)) for index in (2, 4))
    assert first == second


def _nameless(graph: dict[str, Any]) -> str:
    text = json.dumps({**graph, "nodes": [{"op": node["op"]} for node in graph["nodes"]]})
    for number, node in enumerate(graph["nodes"]):
        text = text.replace(json.dumps({"node": node["name"]}), f"<{number}>")
    return text


def _before_and_after(x: torch.Tensor) -> torch.Tensor:
    return s.shift(x.sin()).cos()


@pytest.mark.parametrize(
    ("function", "structure"),
    [
        pytest.param(_before_and_after, [(False, ["sin"]), (True, ["shift"]), (False, ["cos"])], id="middle"),
        pytest.param(lambda x: s.shift(x).cos(), [(True, ["shift"]), (False, ["cos"])], id="start"),
        pytest.param(lambda x: s.shift(x.sin()), [(False, ["sin"]), (True, ["shift"])], id="end"),
        pytest.param(lambda x: s.shift(x), [(True, ["shift"])], id="alone"),
        pytest.param(lambda x: x.sin().cos(), [(False, ["sin", "cos"])], id="none"),
        pytest.param(
            lambda x: s.shift(s.shift.by(x.sin(), 3)).cos(),
            [(False, ["sin"]), (True, ["shift.by", "shift"]), (False, ["cos"])],
            id="consecutive",
        ),
        pytest.param(
            lambda x: s.shift(s.shift(x).cos()),
            [(True, ["shift"]), (False, ["cos"]), (True, ["shift"])],
            id="start and end",
        ),
    ],
)
def test_splitting_ops_are_pieces_of_their_own(function: Any, structure: Any) -> None:
    assert s.structure(s.split_at(lambda x: (function(x),), s.SHIFT)) == structure


def test_no_ops_at_all_make_one_piece() -> None:
    result = s.split_at(_before_and_after)
    assert s.structure(result) == [(False, ["sin", "shift", "cos"])]


def test_nothing_to_call_makes_no_piece() -> None:
    graph = torch.fx.Graph()
    graph.output((graph.placeholder("x"), 3))
    result = s.split.split_graph(torch.fx.GraphModule(torch.nn.Module(), graph), [s.SHIFT])
    assert result.pieces == []
    assert result.module(5) == result.with_callables({})(5) == (5, 3)


def test_what_a_splitting_op_gives_is_unpacked_in_its_piece() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        a, b = s.pair(x.exp())
        c, d = s.pair(a + b)
        return a * d - c

    assert s.structure(s.split_at(function, s.PAIR)) == [
        (False, ["exp"]),
        (True, ["pair", "getitem", "getitem"]),
        (False, ["add"]),
        (True, ["pair", "getitem", "getitem"]),
        (False, ["mul", "sub"]),
    ]


def test_a_tuple_is_unpacked_where_it_is_made_even_if_used_later() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        first, second = x.chunk(2, dim=-1)
        return s.shift(first) * second

    gm = s.capture(function, s.rows())
    _, second = gm.graph.find_nodes(op="call_function", target=operator.getitem)
    (product,) = gm.graph.find_nodes(op="call_function", target=operator.mul)
    product.prepend(second)
    gm.recompile()
    result = s.split.split_graph(gm, [s.SHIFT])
    s.check_equal(gm, result)
    assert s.structure(result) == [(False, ["chunk", "getitem", "getitem"]), (True, ["shift"]), (False, ["mul"])]


def test_indexing_a_tensor_happens_after_what_changes_it() -> None:
    """It is a getitem too, but not one that unpacks: moved to s.where `out` is made, it would read what isn't there."""

    def function(x: torch.Tensor) -> torch.Tensor:
        out = x.exp()
        s.attention(x, x, x, out)
        order = torch.arange(x.shape[0])
        return out[order] + out[0]

    result = s.split_at(function, s.ATTENTION)
    assert s.structure(result) == [
        (False, ["exp"]),
        (True, ["attention"]),
        (False, ["arange", "getitem", "getitem", "add"]),
    ]


ALLOCATIONS = {
    "empty": lambda x: torch.empty(x.shape[0], 8),
    "empty of a size": lambda x: torch.empty(x.size(), dtype=x.dtype),
    "empty_like": torch.empty_like,
    "empty_strided": lambda x: torch.empty_strided((x.shape[0], 8), (8, 1)),
    "new_empty": lambda x: x.new_empty(x.shape[0], 8),
    "aten.empty": lambda x: torch.ops.aten.empty.memory_format([x.shape[0], 8]),
    "aten.new_empty": lambda x: torch.ops.aten.new_empty(x, [x.shape[0], 8]),
}


@pytest.mark.parametrize("allocate", ALLOCATIONS.values(), ids=ALLOCATIONS)
def test_a_lone_allocation_joins_the_compiled_piece_before(allocate: Any) -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        y = x.sin().cos()
        shifted = s.shift(y)
        out = allocate(x)
        s.attention(shifted, y, y, out)
        return out

    gm = s.capture(function, s.rows())
    result = s.split.split_graph(gm, [s.SHIFT, s.ATTENTION])
    s.check_pieces(gm, result)
    assert [piece.is_splitting for piece in result.pieces] == [False, True, True]
    assert len(s.calls(result.pieces[0])) == 3 and s.calls(result.pieces[1]) == ["shift"]


def _without_a_piece_before(x: torch.Tensor) -> torch.Tensor:
    shifted = s.shift(x)
    out = torch.empty_like(x)
    s.attention(shifted, x, x, out)
    return out


def _like_what_the_splitting_op_gives(x: torch.Tensor) -> torch.Tensor:
    shifted = s.shift(x.sin())
    out = torch.empty_like(shifted)
    s.attention(shifted, x, x, out)
    return out


def _two(x: torch.Tensor) -> torch.Tensor:
    shifted = s.shift(x.sin())
    out, other = torch.empty_like(x), torch.empty_like(x)
    s.attention(shifted, x, x, out)
    return out * other


@pytest.mark.parametrize(
    ("function", "structure"),
    [
        (_without_a_piece_before, [True, False, True]),
        (_like_what_the_splitting_op_gives, [False, True, False, True]),
        (_two, [False, True, False, True, False]),
    ],
)
def test_an_allocation_that_has_to_stay_stays(function: Any, structure: list[bool]) -> None:
    gm = s.capture(function, s.rows())
    result = s.split.split_graph(gm, [s.SHIFT, s.ATTENTION])
    s.check_pieces(gm, result)
    assert [piece.is_splitting for piece in result.pieces] == structure


def test_an_allocation_named_as_splitting_op_splits() -> None:
    result = s.split.split_graph(
        s.capture(lambda x: torch.ops.aten.empty_like(x.sin()), s.rows()), ["aten::empty_like"]
    )
    assert s.structure(result) == [(False, ["sin"]), (True, ["empty_like"])]


def test_changes_in_place_keep_their_order() -> None:
    def function(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        out = torch.zeros_like(x)
        s.attention(x, x, x, out)
        first = out.clone()
        x.mul_(2)
        out[0] = 7
        s.attention(x, out, x, out)
        out += first
        s.attention(x, x, first, x)
        return first, out, x * 2

    result = s.split_at(function, s.ATTENTION)
    assert [piece.is_splitting for piece in result.pieces] == [False, True] * 3 + [False]


def test_no_piece_is_there_only_to_switch_gradients() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return s.shift(x)

    gm = s.capture(function, s.rows(), grad=True)
    result = s.split.split_graph(gm, [s.SHIFT])
    s.check_equal(gm, result)
    (only,) = result.pieces
    assert only.is_splitting


def test_the_graph_that_is_given_stays_as_it_is() -> None:
    gm = s.capture(s.Layers(2), s.rows())
    before = str(gm.graph)
    first, second = s.split.split_graph(gm, [s.ATTENTION]), s.split.split_graph(gm, [s.ATTENTION])
    assert str(gm.graph) == before
    for one, other in zip(first.pieces, second.pieces, strict=True):
        assert str(one.module.graph) == str(other.module.graph)


@pytest.mark.parametrize(
    ("name", "n_splitting"),
    [
        ("split_test::shift", 2),
        ("split_test.shift", 2),
        ("split_test::shift.by", 1),
        ("split_test.shift.by", 1),
        ("split_test::shift.default", 1),
        ("aten::sin", 1),
        ("aten::sin.out", 0),
    ],
)
@pytest.mark.parametrize("names_overload", [True, False])
def test_names(name: str, n_splitting: int, names_overload: bool) -> None:
    """An operator stands for its overloads; a call that doesn't say which one it is, is resolved as the call will be."""

    def function(x: torch.Tensor) -> torch.Tensor:
        if names_overload:
            return s.shift.by(torch.ops.aten.sin.default(s.shift.default(x)).cos(), 2)
        return s.shift(torch.ops.aten.sin(s.shift(x)).cos(), 2)

    result = s.split_at(function, name)
    assert sum(piece.is_splitting for piece in result.pieces) == n_splitting


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["split_test::attentoin"], "did you mean 'split_test::attention'"),
        (["nowhere::to_be_found"], "no operator 'nowhere::to_be_found' is registered"),
        (["split_test::shift.sideways"], "has no overload 'sideways'; it has default, by"),
        (["higher_order::cond"], "higher-order"),
        (["attention"], "no operator's name"),
        (["split_test::"], "no operator's name"),
        (["split_test::shift."], "no operator's name"),
        (["a::b::c"], "no operator's name"),
        ([""], "no operator's name"),
        (["__class__::__name__"], "no operator"),
        (["_dir::append"], "no operator"),
        ([s.ATTENTION, 3], "3 is a int"),
        ([None], "NoneType"),
        ([s.shift.by], "OpOverload"),
        (s.ATTENTION, "takes a list"),
        (None, "takes a list"),
        (7, "takes a list"),
    ],
)
def test_names_that_are_none(names: Any, words: str) -> None:
    with pytest.raises(s.errors.OptionError, match=words) as caught:
        s.split.SplittingOps(names)
    assert (caught.value.reason, caught.value.metadata) == ("BAD_OPTION", {"option": "splitting_ops"})


def test_every_order_of_a_few_operations() -> None:
    """All programs of four steps, each of which reads and changes what those before it did."""

    def program(steps: tuple[str, ...]) -> Callable[[torch.Tensor], tuple[torch.Tensor, ...]]:
        def function(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            out, y = torch.zeros_like(x), x
            for step in steps:
                if step == "attention":
                    s.attention(x, y, y, out)
                elif step == "pair":
                    y, z = s.pair(y)
                    x.add_(z)
                elif step == "change":
                    out = out * 2
                    x[0] = out[1] + y.size(0)
                else:
                    y = torch.empty_like(out).copy_(out[torch.arange(x.shape[0])])
            return out, x + 0, y + 0

        return function

    for steps in itertools.product(("attention", "pair", "change", "allocate"), repeat=3):
        gm = s.capture(program(steps), s.rows())
        result = s.split.split_graph(gm, [s.ATTENTION, s.PAIR])
        s.check_pieces(gm, result)
        for n in (2, 5):
            inputs = s.inputs(gm, (n,))
            wanted, got = copy.deepcopy(inputs), copy.deepcopy(inputs)
            with torch.no_grad():
                torch.testing.assert_close(result.module(*got), gm(*wanted), rtol=0, atol=0, msg=str(steps))
            torch.testing.assert_close(got, wanted, rtol=0, atol=0)
