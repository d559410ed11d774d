"""The serializer: what Dynamo captures becomes the protocol's JSON, and the executor makes the same graph of that."""

from __future__ import annotations

import json
import operator
from collections.abc import Callable
from typing import Any

import executor_harness as h
import pytest
import torch
import torch.fx
import transformers
from piecewised_executor import allowlist
from piecewised_executor.errors import CompileError, Unsupported
from piecewised_executor.rebuild import rebuild
from piecewised_executor.symbols import Bounds, Symbols

fxgraph = h.client_module("fxgraph")

SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 4}
TEXT = {**SMALL, "vocab_size": 128}
GROUPED = {**TEXT, "num_key_value_heads": 2}


def _causal(config: Any) -> Callable[[], tuple[torch.nn.Module, dict[str, Any]]]:
    def make() -> tuple[torch.nn.Module, dict[str, Any]]:
        model = transformers.AutoModelForCausalLM.from_config(config)
        return model, {"input_ids": _tokens(), "use_cache": False}

    return make


def _tokens() -> torch.Tensor:
    ids = torch.randint(0, 128, (1, 7))
    torch._dynamo.mark_dynamic(ids, 1)
    return ids


def _t5() -> tuple[torch.nn.Module, dict[str, Any]]:
    config = transformers.T5Config(d_model=64, d_kv=16, d_ff=128, num_layers=1, num_heads=4, vocab_size=128)
    inputs = {"input_ids": _tokens(), "decoder_input_ids": _tokens(), "use_cache": False}
    return transformers.T5ForConditionalGeneration(config), inputs


def _vit() -> tuple[torch.nn.Module, dict[str, Any]]:
    pixels = torch.randn(3, 3, 32, 32)
    torch._dynamo.mark_dynamic(pixels, 0)
    return transformers.ViTModel(transformers.ViTConfig(**SMALL, image_size=32, patch_size=8)), {"pixel_values": pixels}


MODELS = {
    "llama": _causal(transformers.LlamaConfig(**GROUPED)),
    "qwen3": _causal(transformers.Qwen3Config(**GROUPED, head_dim=16)),
    "gemma2": _causal(transformers.Gemma2Config(**GROUPED, head_dim=16)),
    # Its default is a custom op of transformers, and those are registered later than an executor's list is made.
    "mixtral": _causal(transformers.MixtralConfig(**GROUPED, num_local_experts=4, experts_implementation="batched_mm")),
    "gpt2": _causal(
        transformers.GPT2Config(n_embd=64, n_layer=1, n_head=4, vocab_size=128, bos_token_id=0, eos_token_id=0)
    ),
    "bert": lambda: (transformers.BertModel(transformers.BertConfig(**TEXT)), {"input_ids": _tokens()}),
    "t5": _t5,
    "vit": _vit,
}


def _captured(name: str) -> tuple[torch.fx.GraphModule, list[Any], dict[str, Any]]:
    model, inputs = MODELS[name]()
    gm, example_inputs = h.capture(model.eval(), **inputs)
    return gm, example_inputs, json.loads(json.dumps(fxgraph.to_graph(gm)))


def _nodes(graph: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    found = [next(iter(node["op"].items())) for node in graph["nodes"]]
    for nested in graph.get("subgraphs", []):
        found += _nodes(nested["graph"])
    return found


def _symbols(graph: dict[str, Any], **narrowed: Bounds) -> Symbols:
    return Symbols(graph.get("symbols", []), narrowed, {}, {})


@pytest.mark.parametrize("name", MODELS)
def test_what_the_usual_models_call_is_allowed(name: str) -> None:
    _, _, graph = _captured(name)
    functions, methods, attributes = allowlist.function_names(), allowlist.method_names(), allowlist.attribute_names()
    for kind, op in _nodes(graph):
        if kind == "call_function":
            assert op["target"] in functions
            if op["target"] == "builtins.getattr":
                assert op["args"][1]["str"] in attributes
        elif kind == "call_method":
            assert op["method"] in methods


@pytest.fixture(scope="module")
def llama() -> tuple[torch.fx.GraphModule, list[Any], dict[str, Any]]:
    return _captured("llama")


def test_symbols_carry_hint_and_range(llama: Any) -> None:
    (symbol,) = llama[2]["symbols"]
    assert (symbol["hint"], symbol["min"]) == (7, 2) and "max" not in symbol


def test_a_rebuilt_graph_is_the_same_graph(llama: Any) -> None:
    """Same operations on the same arguments, same inputs, and the same result on real tensors."""
    gm, _, graph = llama
    rebuilt = rebuild(graph, _symbols(graph))
    before = [node for node in gm.graph.nodes if node.op not in ("placeholder", "output")]
    after = [node for node in rebuilt.module.graph.nodes if node.op not in ("placeholder", "output")]
    assert [(n.op, n.target) for n in before] == [(n.op, n.target) for n in after]

    placeholders = [node for node in gm.graph.nodes if node.op == "placeholder"]
    assert rebuilt.n_arguments == len(placeholders) == len(rebuilt.kept)
    for node, made in zip(placeholders, rebuilt.inputs, strict=True):
        given = node.meta["example_value"]
        if isinstance(given, torch.Tensor):
            assert (given.dtype, given.device, given.ndim) == (made.dtype, made.device, made.ndim)
            assert isinstance(made, torch.nn.Parameter) == isinstance(given, torch.nn.Parameter)
            assert [isinstance(s, int) for s in given.shape] == [isinstance(s, int) for s in made.shape]

    torch.manual_seed(0)
    real = [
        5 if isinstance(node.meta["example_value"], torch.SymInt) else _real(node.meta["example_value"], 5)
        for node in placeholders
    ]
    with torch.no_grad():
        torch.testing.assert_close(rebuilt.module(*real), gm(*real))


def _real(fake: torch.Tensor, size: int) -> torch.Tensor:
    sizes = [s if isinstance(s, int) else size for s in fake.shape]
    return torch.randn(sizes) if fake.dtype.is_floating_point else torch.randint(0, 128, sizes)


def test_every_node_has_an_example_value(llama: Any) -> None:
    rebuilt = rebuild(llama[2], _symbols(llama[2]))
    calls = [node for node in rebuilt.module.graph.nodes if node.op.startswith("call_")]
    assert calls and all("example_value" in node.meta for node in calls)


def test_writing_leaves_no_guards(llama: Any) -> None:
    gm, _, graph = llama
    symint = next(n for n in gm.graph.nodes if n.op == "placeholder").meta["example_value"]
    before = len(symint.node.shape_env.guards)
    assert fxgraph.to_graph(gm) == graph
    assert len(symint.node.shape_env.guards) == before


def test_a_higher_order_op_keeps_its_branches() -> None:
    def branches(p: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return torch.cond(p, lambda x: x.sin(), lambda x: x.cos() * 2, (x,))

    gm, _ = h.capture(branches, torch.tensor(True), torch.randn(5, 4), dynamic=True)
    graph = json.loads(json.dumps(fxgraph.to_graph(gm)))
    assert len(graph["subgraphs"]) == 2
    assert "torch.ops.higher_order.cond" in [op.get("target") for _, op in _nodes(graph)]
    rebuild(graph, _symbols(graph))


def _single(*args: Any, **kwargs: Any) -> torch.fx.GraphModule:
    """A graph of one call with these arguments; `torch.add` is as good as any."""
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    x.meta["example_value"] = torch.empty(2, 3)
    graph.output((graph.call_function(torch.add, (x, *args), kwargs),))
    return torch.fx.GraphModule(torch.nn.Module(), graph)


VALUES = [
    (1, {"int": 1}),
    (True, {"bool": True}),
    (1e-06, {"float": "1e-06"}),
    (float("inf"), {"float": "inf"}),
    (float("nan"), {"float": "nan"}),
    (-0.0, {"float": "-0.0"}),
    (1 + 2j, {"complex": ["1.0", "2.0"]}),
    (None, "none"),
    (..., "ellipsis"),
    ("text", {"str": "text"}),
    (torch.bfloat16, {"dtype": "bfloat16"}),
    (torch.device("cuda", 1), {"device": {"type": "cuda", "index": 1}}),
    (torch.device("cpu"), {"device": {"type": "cpu"}}),
    (torch.strided, {"layout": "strided"}),
    (torch.channels_last, {"memory_format": "channels_last"}),
    (slice(None, 2), {"slice": ["none", {"int": 2}, "none"]}),
    ((1, [2]), {"tuple": [{"int": 1}, {"list": [{"int": 2}]}]}),
    (torch.Size([2]), {"tuple": [{"int": 2}]}),
    ({"a": 1}, {"dict": [[{"str": "a"}, {"int": 1}]]}),
]


@pytest.mark.parametrize(("value", "written"), VALUES, ids=lambda v: repr(v)[:20])
def test_an_argument_has_one_form(value: Any, written: Any) -> None:
    graph = fxgraph.to_graph(_single(value, out=value))
    op = graph["nodes"][1]["op"]["call_function"]
    assert op == {"target": "torch.add", "args": [h.ref("x"), written], "kwargs": [["out", written]]}


class _Thing:
    pass


REFUSED = [
    (_Thing(), "test_fxgraph._Thing"),
    (2**63, "int"),
    (frozenset(), "builtins.frozenset"),
    (torch.iinfo(torch.int8), "torch.iinfo"),
]


@pytest.mark.parametrize(("value", "type_name"), REFUSED, ids=lambda v: repr(v)[:20])
def test_an_argument_without_a_form_is_named(value: Any, type_name: str) -> None:
    gm = _single()
    node = next(node for node in gm.graph.nodes if node.op == "call_function")
    # Past fx's own check, which knows some of these.
    object.__setattr__(node, "_args", (*node.args, value))
    with pytest.raises(fxgraph.UnsupportedGraph) as refused:
        fxgraph.to_graph(gm)
    assert (refused.value.node, refused.value.type_name) == ("add", type_name)
    assert "node add" in refused.value.message


def test_a_function_that_no_module_names_is_refused() -> None:
    graph = torch.fx.Graph()
    graph.output((graph.call_function(lambda: 1),))
    with pytest.raises(fxgraph.UnsupportedGraph, match="no module names"):
        fxgraph.to_graph(torch.fx.GraphModule(torch.nn.Module(), graph))


def _holding(value: Any) -> torch.fx.GraphModule:
    root = torch.nn.Module()
    root.held = value
    graph = torch.fx.Graph()
    graph.output((graph.get_attr("held"),))
    return torch.fx.GraphModule(root, graph)


def test_a_small_tensor_is_held_by_value() -> None:
    held = torch.arange(6, dtype=torch.int64).view(2, 3).t()
    (constant,) = fxgraph.to_graph(_holding(held))["constants"]
    assert constant["meta"]["sizes"] == [{"int": 3}, {"int": 2}]
    assert constant["meta"]["strides"] == [{"int": 2}, {"int": 1}]
    rebuilt = rebuild(fxgraph.to_graph(_holding(held)), _symbols({}))
    values = torch.frombuffer(bytearray(rebuilt.constants[0].data), dtype=torch.int64).view(3, 2)
    assert torch.equal(values, held)


@pytest.mark.parametrize(
    ("value", "why"),
    [(torch.zeros(1 << 19), "limit 1 MiB"), (torch.empty(3, device="meta"), "has no values"), (_Thing(), "_Thing")],
    ids=["large", "meta", "object"],
)
def test_what_a_graph_cannot_hold_is_refused(value: Any, why: str) -> None:
    with pytest.raises(fxgraph.UnsupportedGraph, match=why):
        fxgraph.to_graph(_holding(value))


def test_example_inputs_stand_in_for_missing_metadata() -> None:
    gm = torch.fx.symbolic_trace(lambda x: x + 1)
    with pytest.raises(fxgraph.UnsupportedGraph, match="not known"):
        fxgraph.to_graph(gm)
    meta = fxgraph.to_graph(gm, [torch.empty(2, 3)[:, 1:]])["nodes"][0]["op"]["placeholder"]["value"]["tensor"]
    assert meta["sizes"] == [{"int": 2}, {"int": 2}] and meta["strides"] == [{"int": 3}, {"int": 1}]
    assert meta["storage_offset"] == {"int": 1}


NAMES = [
    (operator.add, "_operator.add"),
    (operator.iadd, "_operator.iadd"),
    (operator.setitem, "_operator.setitem"),
    (torch.add, "torch.add"),
    (torch.einsum, "torch.einsum"),
    (torch.nn.functional.silu, "torch.nn.functional.silu"),
    (torch.nn.functional.linear, "torch._C._nn.linear"),
    (torch.nn.functional.gelu, "torch._C._nn.gelu"),
    (torch.ops.aten.mul.Tensor, "torch.ops.aten.mul.Tensor"),
    (torch.ops.aten.relu.default, "torch.ops.aten.relu.default"),
    (torch.ops.aten.mul, "torch.ops.aten.mul"),
    (torch.ops.higher_order.cond, "torch.ops.higher_order.cond"),
    (torch.sym_max, "torch.sym_max"),
    (torch._C._log_api_usage_once, "torch._C._log_api_usage_once"),
    (torch.Size, "torch.Size"),
    (getattr, "builtins.getattr"),
]


@pytest.mark.parametrize(("target", "name"), NAMES, ids=[name for _, name in NAMES])
def test_a_function_and_its_name_lead_to_each_other(target: Any, name: str) -> None:
    assert h.client_module("runtime.names").function_name(target) == name
    assert allowlist.function(name) == target


def test_the_allow_list_names_what_the_client_names() -> None:
    function_name = h.client_module("runtime.names").function_name
    names = [name for name in allowlist.function_names() if not name.startswith("torch.ops.")]
    assert {name: function_name(allowlist.function(name)) for name in names} == {name: name for name in names}


FORBIDDEN = [
    *("torch.load", "torch.save", "torch.hub.load", "torch.from_file", "torch.compile", "torch._C._jit_pass_inline"),
    *("torch.ops.load_library", "torch.ops.aten.from_file", "os.system"),
    *("builtins.eval", "builtins.exec", "builtins.__import__"),
]


@pytest.mark.parametrize("name", FORBIDDEN)
def test_nothing_that_reaches_beyond_tensors_is_allowed(name: str) -> None:
    assert allowlist.function(name) is None and name not in allowlist.function_names()


def test_a_reference_to_nothing_is_refused() -> None:
    graph = {"nodes": [h.function_node("add", "torch.add", h.ref("nowhere")), h.output_node(h.ref("add"))]}
    with pytest.raises(Unsupported, match="node add: refers to nowhere"):
        rebuild(graph, _symbols(graph))


def test_an_operator_that_refuses_its_inputs_is_a_compile_error() -> None:
    inputs = [h.tensor_input(name, [h.number(n)], [h.number(1)]) for name, n in (("a", 2), ("b", 3))]
    graph = {
        "nodes": [*inputs, h.function_node("sum", "torch.add", h.ref("a"), h.ref("b")), h.output_node(h.ref("sum"))]
    }
    with pytest.raises(CompileError, match=r"node sum \(torch.add\)"):
        rebuild(graph, _symbols(graph))
