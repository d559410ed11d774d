"""From an fx.GraphModule, as Dynamo hands it to a backend, to the typed graph of the protocol.

The result is the JSON form of server/graph/src/model.rs, made of dicts, lists and strings. Everything a node can hold
has a form there or is refused: :class:`UnsupportedGraph` names the node and the type, and the caller compiles locally.
Nothing is pickled. What does not influence the compiled code (who captured the graph, whether a gradient is wanted) is
left out; node and symbol names stay as they are, since the daemon renumbers them.
"""

from __future__ import annotations

import base64
import ctypes
import operator
from collections.abc import Callable, Sequence
from typing import Any

import sympy
import torch
import torch.fx
from torch._library.fake_class_registry import FakeScriptObject
from torch.utils._sympy.numbers import int_oo

from .runtime.expressions import NoForm, to_tree
from .runtime.names import function_name

Json = dict[str, Any]

#: The text from which the request's frontend makes an object again; None: it can't.
Opaque = Callable[[Any], str | None]

# Constants travel by value; what is larger belongs into the inputs.
MAX_CONSTANT_BYTES = 1 << 20

_I64_MIN, _I64_MAX = -(2**63), 2**63 - 1


class UnsupportedGraph(Exception):
    """The graph holds something that the protocol has no form for.

    `node` is the name of the node (empty: the graph as a whole) and `type_name` the type that has no form.
    """

    def __init__(self, node: str, type_name: str, why: str) -> None:
        self.node = node
        self.type_name = type_name
        self.message = f"node {node}: {why}" if node else why
        super().__init__(self.message)


def to_graph(
    gm: torch.fx.GraphModule, example_inputs: Sequence[Any] | None = None, opaque: Opaque | None = None
) -> Json:
    """The Graph of `gm`. Raises UnsupportedGraph.

    What each placeholder looks like is read from its `example_value` (or `val`); `example_inputs`, in the order of the
    placeholders, stand in where it has none. `gm` is left as it is. `opaque` is asked about objects that the protocol has no form for: for a
    graph that is sent with a frontend, which makes them again.
    """
    return _Writer(opaque).outermost(gm, example_inputs)


class _Writer:
    """Collects the symbols that the graph and the graphs nested in it use."""

    def __init__(self, opaque: Opaque | None) -> None:
        self.opaque = opaque
        self._symbols: dict[str, Json] = {}
        self._shape_env: Any = None

    def outermost(self, gm: torch.fx.GraphModule, example_inputs: Sequence[Any] | None) -> Json:
        graph = self.graph(gm, example_inputs)
        if self._symbols:
            graph["symbols"] = list(self._symbols.values())
        return graph

    def graph(self, gm: torch.fx.GraphModule, example_inputs: Sequence[Any] | None = None) -> Json:
        inputs = iter(example_inputs or ())
        scope = _Scope(self, gm)
        nodes: list[Json] = []
        for node in gm.graph.nodes:
            example = next(inputs, None) if node.op == "placeholder" else None
            written: Json = {"name": node.name, "op": scope.op(node, example)}
            if node.stack_trace:
                written["stack_trace"] = node.stack_trace
            nodes.append(written)
        graph: Json = {"nodes": nodes}
        if scope.constants:
            graph["constants"] = list(scope.constants.values())
        if scope.subgraphs:
            graph["subgraphs"] = [{"name": name, "graph": nested} for name, nested in scope.subgraphs.items()]
        return graph

    def number(self, value: int | float | bool | torch.SymInt | torch.SymFloat | torch.SymBool, node: str) -> Json:
        """A SymExpr."""
        if isinstance(value, bool):
            return {"bool": value}
        if isinstance(value, int):
            return {"int": _i64(value, node)}
        if isinstance(value, float):
            return {"real": repr(value)}
        sym_node = value.node
        self._shape_env = getattr(sym_node, "shape_env", None)
        return self.expr(sympy.sympify(sym_node.expr), node)

    def expr(self, expr: sympy.Basic, node: str) -> Json:
        def name(symbol: sympy.Symbol) -> str:
            self.declare(symbol, node)
            return symbol.name

        try:
            return to_tree(expr, name)
        except NoForm as error:
            raise UnsupportedGraph(node, error.type_name, str(error)) from error

    def declare(self, symbol: sympy.Symbol, node: str) -> None:
        """Notes a symbol with its hint and value range, at first sight."""
        if symbol.name in self._symbols:
            return
        env = self._shape_env
        hints = getattr(env, "backed_var_to_val", None) or getattr(env, "var_to_val", {})
        if symbol not in hints:
            why = f"the size {symbol} is only known from data (it has no hint)"
            raise UnsupportedGraph(node, "unbacked symbol", why)
        written: Json = {"name": symbol.name, "hint": _i64(int(hints[symbol]), node)}
        bounds = env.var_to_range.get(symbol)
        if bounds is not None:
            if bounds.lower == -int_oo or bounds.lower <= _I64_MIN:
                written["min"] = _I64_MIN
            elif bounds.lower != 0:
                written["min"] = int(bounds.lower)
            if bounds.upper != int_oo and bounds.upper < _I64_MAX:
                written["max"] = int(bounds.upper)
        self._symbols[symbol.name] = written

    def tensor(self, tensor: torch.Tensor, node: str) -> Json:
        """A TensorMeta."""
        kind = type(tensor).__name__
        if torch.utils._python_dispatch.is_traceable_wrapper_subclass(tensor):
            raise UnsupportedGraph(node, kind, f"a tensor of the subclass {kind}")
        if tensor.layout != torch.strided or tensor.is_nested or tensor.is_quantized:
            raise UnsupportedGraph(node, kind, f"a tensor with layout {tensor.layout}, nested or quantized")
        if tensor.is_conj() or tensor.is_neg():
            raise UnsupportedGraph(node, kind, "a tensor that is a lazy conjugate or negation")
        meta: Json = {
            "dtype": _torch_name(tensor.dtype),
            "device": _device(tensor.device),
            "layout": _torch_name(tensor.layout),
            "sizes": [self.number(size, node) for size in tensor.size()],
            "strides": [self.number(stride, node) for stride in tensor.stride()],
        }
        offset = self.number(tensor.storage_offset(), node)
        if offset != {"int": 0}:
            meta["storage_offset"] = offset
        if isinstance(tensor, torch.nn.Parameter):
            meta["is_parameter"] = True
        return meta


class _Scope:
    """One graph: the nodes, constants and nested graphs that names in it refer to."""

    def __init__(self, writer: _Writer, gm: torch.fx.GraphModule) -> None:
        self._writer = writer
        self._gm = gm
        self.constants: dict[str, Json] = {}
        self.subgraphs: dict[str, Json] = {}

    def op(self, node: torch.fx.Node, example: Any) -> Json:
        if node.op == "placeholder":
            return {"placeholder": {"value": self.placeholder(node, example)}}
        if node.op == "get_attr":
            self.attribute(node, str(node.target))
            return {"get_attr": {"target": str(node.target)}}
        if node.op == "output":
            return {"output": {"value": self.argument(node.args[0], node.name)}}
        args = [self.argument(arg, node.name) for arg in node.args]
        kwargs = [[name, self.argument(arg, node.name)] for name, arg in node.kwargs.items()]
        rest: Json = {"args": args, **({"kwargs": kwargs} if kwargs else {})}
        if node.op == "call_function":
            return {"call_function": {"target": _function_name(node), **rest}}
        if node.op == "call_method":
            return {"call_method": {"method": str(node.target), **rest}}
        if node.op == "call_module":
            self.attribute(node, str(node.target))
            return {"call_module": {"target": str(node.target), **rest}}
        raise UnsupportedGraph(node.name, node.op, f"the operation {node.op}")

    def placeholder(self, node: torch.fx.Node, example: Any) -> Json:
        """A ValueMeta."""
        value = node.meta.get("example_value", node.meta.get("val", example))
        if isinstance(value, torch.Tensor):
            return {"tensor": self._writer.tensor(value, node.name)}
        if isinstance(value, torch.SymInt):
            return {"sym_int": self._writer.number(value, node.name)}
        if isinstance(value, torch.SymFloat):
            return {"sym_float": self._writer.number(value, node.name)}
        if isinstance(value, torch.SymBool):
            return {"sym_bool": self._writer.number(value, node.name)}
        if isinstance(value, FakeScriptObject):
            real = value.real_obj
            if self._writer.opaque is None or self._writer.opaque(real) is None:
                raise UnsupportedGraph(node.name, _type_name(real), f"an input of type {_type_name(real)}")
            # Another one at each call: what this one holds is no part of the graph.
            return {"opaque": _type_name(real)}
        if value is None and example is None:
            why = "the input has neither an example_value nor an example input; what it looks like is not known"
            raise UnsupportedGraph(node.name, "NoneType", why)
        return {"constant": self.argument(value, node.name)}

    def attribute(self, node: torch.fx.Node, target: str) -> None:
        """Notes the constant or nested graph that `target` names."""
        if target in self.constants or target in self.subgraphs:
            return
        value = operator.attrgetter(target)(self._gm)
        if isinstance(value, torch.fx.GraphModule):
            self.subgraphs[target] = self._writer.graph(value)
        elif isinstance(value, torch.Tensor) and node.op == "get_attr":
            self.constants[target] = self.constant(node, target, value)
        else:
            kind = _type_name(value)
            raise UnsupportedGraph(node.name, kind, f"{node.op} of {target}, which is a {kind}")

    def constant(self, node: torch.fx.Node, target: str, tensor: torch.Tensor) -> Json:
        kind = type(tensor).__name__
        n_bytes = tensor.numel() * tensor.element_size()
        if n_bytes > MAX_CONSTANT_BYTES:
            why = f"the tensor {target} is held by the graph and has {n_bytes} bytes; make it an input (limit 1 MiB)"
            raise UnsupportedGraph(node.name, kind, why)
        if torch._subclasses.fake_tensor.is_fake(tensor) or tensor.device.type == "meta":
            raise UnsupportedGraph(node.name, kind, f"the tensor {target} is held by the graph and has no values")
        plain = tensor.detach().contiguous()
        meta = self._writer.tensor(plain, node.name)
        meta.pop("storage_offset", None)
        meta["strides"] = [{"int": stride} for stride in torch.empty(plain.shape, device="meta").stride()]
        on_cpu = plain.cpu()
        data = ctypes.string_at(on_cpu.data_ptr(), n_bytes) if n_bytes else b""
        return {"name": target, "meta": meta, "data": base64.b64encode(data).decode()}

    def argument(self, value: Any, node: str) -> Any:
        """An Argument."""
        exact = _EXACT.get(type(value))
        if exact is not None:
            return exact(value, node)
        if isinstance(value, torch.fx.Node):
            return {"node": value.name}
        if isinstance(value, slice):
            return {"slice": [self.argument(part, node) for part in (value.start, value.stop, value.step)]}
        if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
            kind = {torch.SymInt: "sym_int", torch.SymFloat: "sym_float", torch.SymBool: "sym_bool"}[type(value)]
            return {kind: self._writer.number(value, node)}
        # fx's own immutable list and dict, and torch.Size, are these with other names; other subclasses (a
        # namedtuple, say) mean more than their items.
        if isinstance(value, (tuple, list, dict)) and type(value).__module__ in _CONTAINER_MODULES:
            if isinstance(value, dict):
                items = value.items()
                return {"dict": [[self.key(key, node), self.argument(child, node)] for key, child in items]}
            kind = "tuple" if isinstance(value, tuple) else "list"
            return {kind: [self.argument(child, node) for child in value]}
        if isinstance(value, torch.fx.GraphModule):
            return {"graph": self._writer.graph(value)}
        if self._writer.opaque is not None and (text := self._writer.opaque(value)) is not None:
            return {"opaque": {"type": _type_name(value), "value": text}}
        raise UnsupportedGraph(node, _type_name(value), f"an argument of type {_type_name(value)}")

    def key(self, key: Any, node: str) -> Any:
        if key is not None and type(key) not in (str, int, bool):
            raise UnsupportedGraph(node, type(key).__name__, f"a dict key of type {type(key).__name__}")
        return self.argument(key, node)


_CONTAINER_MODULES = ("builtins", "torch", "torch.fx.immutable_collections")

_EXACT: dict[type, Callable[[Any, str], Any]] = {
    type(None): lambda value, node: "none",
    type(...): lambda value, node: "ellipsis",
    bool: lambda value, node: {"bool": value},
    int: lambda value, node: {"int": _i64(value, node)},
    float: lambda value, node: {"float": repr(value)},
    complex: lambda value, node: {"complex": [repr(value.real), repr(value.imag)]},
    str: lambda value, node: {"str": value},
    torch.dtype: lambda value, node: {"dtype": _torch_name(value)},
    torch.device: lambda value, node: {"device": _device(value)},
    torch.layout: lambda value, node: {"layout": _torch_name(value)},
    torch.memory_format: lambda value, node: {"memory_format": _torch_name(value)},
}


def _function_name(node: torch.fx.Node) -> str:
    name = function_name(node.target)
    if name is None:
        target = f"{getattr(node.target, '__module__', '?')}.{getattr(node.target, '__qualname__', node.target)}"
        raise UnsupportedGraph(node.name, type(node.target).__name__, f"a call of {target}, which no module names")
    return name


def _type_name(value: Any) -> str:
    """`package.module.Type` of an object."""
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _torch_name(value: Any) -> str:
    """`float32` of torch.float32."""
    return str(value).removeprefix("torch.")


def _device(device: torch.device) -> Json:
    return {"type": device.type, **({} if device.index is None else {"index": device.index})}


def _i64(value: int, node: str) -> int:
    if not _I64_MIN <= value <= _I64_MAX:
        raise UnsupportedGraph(node, "int", f"the integer {value} does not fit into 64 bits")
    return value
