"""From a Graph (the JSON of server/graph/src/model.rs) to an fx.GraphModule with fake inputs.

Nothing of the graph is executed but its operators, on fake tensors: names are looked up in the allow-list, nested
graphs become submodules, and constants become inputs of their own, whose values travel beside the program (AOTAutograd
lifts a module's buffers in front of the arguments, and its serialised form forgets that it did).

Works on canonical and on other graphs: names of nodes, constants and nested graphs are labels only.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.fx
from torch._dispatch.python import enable_python_dispatcher
from torch._library.fake_class_registry import FakeScriptObject, maybe_to_fake_obj
from torch._subclasses.fake_tensor import FakeTensorMode

from . import allowlist, frontends, settings, written
from .errors import JobError, OperatorRefused, Unsupported, describe
from .frontends import Frontend
from .runtime.names import function_name
from .symbols import Symbols

# Nested far deeper than any higher-order op nests; the daemon's limit is lower.
MAX_DEPTH = 64


@dataclass
class ConstantTensor:
    """A tensor by value: row-major, little-endian."""

    dtype: str
    sizes: list[int]
    device: str
    data: bytes


@dataclass
class Rebuilt:
    """A graph ready to compile.

    `module` takes `inputs`: the kept placeholders in order, then the constants. `kept` are the positions of those
    placeholders among the graph's, `known` the values of the others by position. `mutated` are the positions in `inputs`
    of those that the graph changes in place; of `consumed` among them nobody can say what they hold then. `module` returns a flat tuple; `structure` is what the graph returns (see
    `runtime.outputs`).
    """

    module: torch.fx.GraphModule
    inputs: list[Any]
    kept: list[int]
    known: dict[int, Any]
    mutated: list[int]
    consumed: list[int]
    n_arguments: int
    constants: list[ConstantTensor]
    structure: dict[str, Any]
    n_outputs: int
    fake_mode: FakeTensorMode


@dataclass
class _Scope:
    """One graph while it is built."""

    graph: torch.fx.Graph
    module: torch.nn.Module
    nodes: dict[str, Any] = field(default_factory=dict)
    # From fx's names back to the request's, for messages.
    labels: dict[str, str] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)


def rebuild(graph: dict[str, Any], symbols: Symbols, frontend: Frontend = frontends.NONE) -> Rebuilt:
    """Raises Unsupported for what the allow-list or this executor does not have, OperatorRefused where an operator
    refuses its fake inputs. With a frontend a graph may name any operator, and objects that the frontend makes."""
    fake_mode = FakeTensorMode(shape_env=symbols.shape_env, allow_non_fake_inputs=False)
    return _Builder(symbols, fake_mode, frontend).outermost(graph)


class _Builder:
    def __init__(self, symbols: Symbols, fake_mode: FakeTensorMode, frontend: Frontend) -> None:
        self.symbols = symbols
        self.fake_mode = fake_mode
        self.frontend = frontend
        self.constants: list[ConstantTensor] = []

    def outermost(self, graph: dict[str, Any]) -> Rebuilt:
        scope = _Scope(torch.fx.Graph(), torch.nn.Module())
        placeholders = [node for node in graph["nodes"] if "placeholder" in node["op"]]
        inputs: list[Any] = []
        kept: list[int] = []
        known: dict[int, Any] = {}
        for position, node in enumerate(placeholders):
            value = self.input(node["op"]["placeholder"]["value"], node["name"])
            # Anything else is known now: its uses get the value, and the argument is not passed. (AOTAutograd would
            # make a new symbol of a plain integer.)
            if isinstance(value, (torch.Tensor, torch.SymInt, FakeScriptObject)):
                scope.nodes[node["name"]] = scope.graph.placeholder(f"arg{position}")
                inputs.append(value)
                kept.append(position)
            else:
                scope.nodes[node["name"]] = known[position] = value
        for constant in graph.get("constants", []):
            tensor, value = self.constant(constant)
            scope.attributes[constant["name"]] = scope.graph.placeholder(f"constant{len(self.constants)}")
            self.constants.append(tensor)
            inputs.append(value)

        returned = self.body(graph, scope, 0)
        leaves: list[Any] = []
        structure = _flatten(returned, leaves)
        scope.graph.output(tuple(leaves))
        module = torch.fx.GraphModule(scope.module, scope.graph)
        versions = [value._version if isinstance(value, torch.Tensor) else None for value in inputs]
        self.run(module, inputs, scope.labels)
        mutated = {
            i for i, value in enumerate(inputs) if isinstance(value, torch.Tensor) and value._version != versions[i]
        }
        by_schema, consumed = written.by_operators(module, inputs, self.frontend.consuming)
        return Rebuilt(
            module=module,
            inputs=inputs,
            kept=kept,
            known=known,
            mutated=sorted(mutated | by_schema | consumed),
            consumed=sorted(consumed - mutated - by_schema),
            n_arguments=len(placeholders),
            constants=self.constants,
            structure=structure,
            n_outputs=len(leaves),
            fake_mode=self.fake_mode,
        )

    def nested(self, graph: dict[str, Any], depth: int) -> torch.fx.GraphModule:
        """A nested graph as a module; it returns as the graph says."""
        if depth > MAX_DEPTH:
            raise Unsupported(f"graphs nested more than {MAX_DEPTH} deep")
        if graph.get("constants"):
            raise Unsupported("constants in a nested graph; make them inputs of it")
        scope = _Scope(torch.fx.Graph(), torch.nn.Module())
        for position, node in enumerate(node for node in graph["nodes"] if "placeholder" in node["op"]):
            made = scope.graph.placeholder(f"arg{position}")
            made.meta["example_value"] = self.input(node["op"]["placeholder"]["value"], node["name"])
            scope.nodes[node["name"]] = made
        scope.graph.output(self.body(graph, scope, depth))
        return torch.fx.GraphModule(scope.module, scope.graph)

    def body(self, graph: dict[str, Any], scope: _Scope, depth: int) -> Any:
        """Builds every node but placeholders and output, and gives what the output holds."""
        for index, subgraph in enumerate(graph.get("subgraphs", [])):
            name = f"graph{index}"
            setattr(scope.module, name, self.nested(subgraph["graph"], depth + 1))
            scope.attributes[subgraph["name"]] = name
        returned: Any = None
        for node in graph["nodes"]:
            ((kind, op),) = node["op"].items()
            if kind == "output":
                returned = self.argument(op["value"], scope, depth)
            elif kind != "placeholder":
                try:
                    made = self.node(kind, op, scope, depth)
                except Unsupported as error:
                    raise Unsupported(f"node {node['name']}: {error}") from error
                scope.nodes[node["name"]] = made
                if isinstance(made, torch.fx.Node):
                    scope.labels.setdefault(made.name, node["name"])
        return returned

    def node(self, kind: str, op: dict[str, Any], scope: _Scope, depth: int) -> Any:
        if kind == "get_attr":
            attribute = scope.attributes.get(op["target"])
            if attribute is None:
                raise Unsupported(f"get_attr of {op['target']}, which the graph does not hold")
            return scope.graph.get_attr(attribute) if isinstance(attribute, str) else attribute
        args = tuple(self.argument(arg, scope, depth) for arg in op["args"])
        kwargs = {name: self.argument(arg, scope, depth) for name, arg in op.get("kwargs", [])}
        if kind == "call_function":
            return scope.graph.call_function(self.function(op["target"], args), args, kwargs)
        if kind == "call_method":
            if not allowlist.allows_method(op["method"]):
                raise Unsupported(f"the method {op['method']} is not in the allow-list")
            return scope.graph.call_method(op["method"], args, kwargs)
        if kind == "call_module" and isinstance(attribute := scope.attributes.get(op["target"]), str):
            return scope.graph.call_module(attribute, args, kwargs)
        raise Unsupported(f"{kind} of {op.get('target')}")

    def argument(self, argument: Any, scope: _Scope, depth: int) -> Any:
        """The Python value of an Argument; nodes are those of `scope`."""
        if argument == "none":
            return None
        if argument == "ellipsis":
            return ...
        ((kind, value),) = argument.items()
        recurse: Callable[[Any], Any] = lambda child: self.argument(child, scope, depth)  # noqa: E731
        if kind == "node":
            if value not in scope.nodes:
                raise Unsupported(f"refers to {value}, which does not come before it")
            return scope.nodes[value]
        if kind == "dict":
            return {recurse(key): recurse(child) for key, child in value}
        if kind == "graph":
            name = f"inline{sum(1 for _ in scope.module.children())}"
            setattr(scope.module, name, self.nested(value, depth + 1))
            return scope.graph.get_attr(name)
        if kind in ("tuple", "list", "slice"):
            return {"tuple": tuple, "list": list, "slice": lambda it: slice(*it)}[kind](recurse(c) for c in value)
        if kind in ("sym_int", "sym_float", "sym_bool"):
            return self.symbols.number(kind, value)
        if kind == "opaque":
            return self.frontend.opaque(value["type"], value["value"])
        return _literal(kind, value)

    def function(self, name: str, args: tuple[Any, ...]) -> Callable[..., Any]:
        """What a call_function node calls."""
        found = allowlist.function(name)
        if found is None and self.frontend is not frontends.NONE:
            found = allowlist.any_operator(name)
        if found is None:
            raise Unsupported(f"the function {name} is not in the allow-list")
        if found is getattr and not (len(args) > 1 and allowlist.allows_attribute(args[1])):
            raise Unsupported(f"getattr of {args[1:]!r}: only tensor attributes are allowed")
        return found

    def input(self, value: dict[str, Any], name: str) -> Any:
        """What a placeholder is called with: a fake tensor, a number that may be symbolic, or a constant."""
        ((kind, meta),) = value.items()
        if kind == "tensor":
            return self.tensor(meta)
        if kind == "opaque":
            return maybe_to_fake_obj(self.fake_mode, self.frontend.opaque(meta, ""))
        if kind == "constant":
            return self.argument(meta, _Scope(torch.fx.Graph(), torch.nn.Module()), 0)
        number = self.symbols.number(kind, meta)
        if isinstance(number, (torch.SymFloat, torch.SymBool)):
            raise Unsupported(f"the input {name} is a {kind} that is not known now; only integers may be")
        return number

    def tensor(self, meta: dict[str, Any]) -> torch.Tensor:
        """A fake tensor with these sizes, strides and storage offset."""
        if meta["layout"] != "strided":
            raise Unsupported(f"a tensor with layout {meta['layout']}; only strided ones compile")
        sizes = [self.symbols.integer(size) for size in meta["sizes"]]
        strides = [self.symbols.integer(stride) for stride in meta["strides"]]
        offset = self.symbols.integer(meta.get("storage_offset", {"int": 0}))
        dtype, device = settings.dtype(meta["dtype"]), _device(meta["device"])
        with self.fake_mode:
            if isinstance(offset, int) and offset == 0:
                made = torch.empty_strided(sizes, strides, dtype=dtype, device=device)
            else:
                # A base with room behind the offset; the compiled code never sees how large it is.
                extent = sum(((size - 1) * stride for size, stride in zip(sizes, strides, strict=True)), 1)
                base = torch.empty([offset + extent], dtype=dtype, device=device)
                made = torch.as_strided(base, sizes, strides, offset)
            if meta.get("is_parameter"):
                made = torch.nn.Parameter(made, requires_grad=False)
        return made

    def constant(self, constant: dict[str, Any]) -> tuple[ConstantTensor, torch.Tensor]:
        meta = constant["meta"]
        value = self.tensor(meta)
        data = base64.b64decode(constant["data"])
        sizes = [int(size) for size in value.shape]
        if len(data) != value.numel() * value.element_size() or not value.is_contiguous():
            raise Unsupported(f"the constant {constant['name']} has {len(data)} bytes, not those of its sizes")
        return ConstantTensor(meta["dtype"], sizes, str(value.device), data), value

    def run(self, module: torch.fx.GraphModule, inputs: list[Any], labels: dict[str, str]) -> None:
        """Fills `example_value` of every node by running the graph on its fake inputs."""
        with self.fake_mode, enable_python_dispatcher(), torch.no_grad():
            _MetaInterpreter(module, labels).run(*inputs)


class _MetaInterpreter(torch.fx.Interpreter):
    """Keeps what every node gave, and says which node failed."""

    def __init__(self, module: torch.fx.GraphModule, labels: dict[str, str]) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.labels = labels

    def run_node(self, n: torch.fx.Node) -> Any:
        try:
            result = super().run_node(n)
        except JobError:
            raise
        except Exception as error:
            what = function_name(n.target) if callable(n.target) else n.target
            raise OperatorRefused(f"node {self.labels.get(n.name, n.name)} ({what}): {describe(error)}") from error
        n.meta["example_value"] = result
        return result


def _literal(kind: str, value: Any) -> Any:
    if kind in ("int", "bool", "str"):
        return value
    if kind == "float":
        return float(value)
    if kind == "complex":
        return complex(float(value[0]), float(value[1]))
    if kind == "dtype":
        return settings.dtype(value)
    if kind == "layout":
        return settings.layout(value)
    if kind == "memory_format":
        return settings.memory_format(value)
    if kind == "device":
        return _device(value)
    raise Unsupported(f"an argument of kind {kind}")


def _device(device: dict[str, Any]) -> torch.device:
    index = device.get("index")
    if index is None and device["type"] == "cuda":
        index = 0
    return torch.device(device["type"]) if index is None else torch.device(device["type"], index)


def _flatten(value: Any, leaves: list[Any]) -> dict[str, Any]:
    """The structure of a returned value; nodes and numbers that may be symbolic go into `leaves`."""
    if isinstance(value, (torch.fx.Node, torch.SymInt)):
        leaves.append(value)
        return {"leaf": len(leaves) - 1}
    if isinstance(value, (tuple, list)):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_flatten(child, leaves) for child in value]}
    if isinstance(value, dict):
        return {"dict": [[key, _flatten(child, leaves)] for key, child in value.items()]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return {"constant": value}
    raise Unsupported(f"the graph returns a {type(value).__name__}")
