"""A captured graph, split into pieces at the operators that are to run as they are.

The rules are those of vLLM 0.26: every splitting operator starts a piece that is not compiled, and ends it; splitting
operators that follow each other directly share one. What unpacks a tuple stays in the piece that makes the tuple. An
allocation that would be a compiled piece alone joins the last compiled piece before it. Everything else keeps its order,
so that what changes a tensor in place does so when it did before.

Guaranteed beyond that: the graph that is given stays as it is; every input of a piece has an ``example_value``; a piece
with an input of symbolic size has that symbol as an integer input of its own, the symbols in the order of the whole
graph's, so that all pieces dispatch on the same one; no ``torch.Size`` crosses from piece to piece.

Left out: compiling (what compiles is put in with :meth:`Split.with_callables`), and tensors that share memory. Two
inputs of one piece may be views of one tensor, which the piece's graph doesn't show.
"""

from __future__ import annotations

import contextlib
import copy
import difflib
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sympy
import torch
import torch.fx
from torch.fx.experimental.symbolic_shapes import free_symbols
from torch.fx.passes.split_module import split_module

from .errors import OptionError, UnsupportedPiece

Runnable = Callable[..., Any]

_ALLOCATIONS = (torch.empty, torch.empty_like, torch.empty_permuted, torch.empty_strided)
_ALLOCATING_METHODS = ("new_empty", "new_empty_strided")
# They hold for the nodes after them, so split_module repeats them in every piece that they hold for.
_STATE = (torch.amp._enter_autocast, torch.amp._exit_autocast, torch._C._set_grad_enabled)
# In no piece: inputs, what the graph holds, and its results.
_OUTSIDE = ("placeholder", "get_attr", "output")


@dataclass(frozen=True)
class GraphPiece:
    """One piece."""

    #: Its position among all pieces.
    index: int
    #: The submodule of :attr:`Split.module` that it is.
    name: str
    module: torch.fx.GraphModule
    #: Whether it holds splitting operators, and so runs as it is.
    is_splitting: bool


@dataclass(frozen=True)
class Split:
    """A graph in pieces."""

    #: Takes and gives what the whole graph does, by calling the pieces in order.
    module: torch.fx.GraphModule
    #: All of them, in the order in which they run.
    pieces: list[GraphPiece]

    @property
    def compiled(self) -> list[GraphPiece]:
        """The pieces that are to be compiled, in order."""
        return [piece for piece in self.pieces if not piece.is_splitting]

    def with_callables(self, callables: Mapping[int, Runnable]) -> Runnable:
        """A function that takes and gives what the whole graph does, and calls ``callables[index]`` for each piece.

        Each takes and gives what its piece's module does: a bare value where that gives one. A piece that ``callables``
        lacks runs as it is. Between the calls there are only local variables, each dropped after its last use.
        """
        unknown = set(callables) - {piece.index for piece in self.pieces}
        if unknown:
            raise ValueError(f"there are {len(self.pieces)} pieces; none has the index {min(unknown)}")
        runnables = {piece.name: callables.get(piece.index, piece.module.forward) for piece in self.pieces}
        return _stitched(self.module, runnables)


def split_graph(gm: torch.fx.GraphModule, splitting_ops: Sequence[str]) -> Split:
    """Splits a graph that Dynamo captured at ``splitting_ops``; see :class:`SplittingOps` for their names.

    Raises OptionError for a name that is none, and UnsupportedPiece where a value that would cross from piece to piece
    can't be described.
    """
    ops = SplittingOps(splitting_ops)
    whole = torch.fx.GraphModule(gm, copy.deepcopy(gm.graph))
    _add_values(whole)
    bound = _bind_inputs(whole.graph)
    _replace_sizes(whole.graph)
    groups = _merge_state(_merge_lone_allocations(_groups(whole.graph, ops)))
    piece_of = _reorder(whole.graph, groups)
    _check_crossings(whole.graph, piece_of)
    module = split_module(whole, None, piece_of.__getitem__, keep_original_order=True)  # type: ignore[arg-type]
    _unbind_inputs(module.graph, bound)
    is_changed = _restore_grad_mode(whole.graph, module.graph) or bool(bound)
    ranks = {_symbol(_value(node)): rank for rank, node in reversed([*enumerate(whole.graph.nodes)])}
    pieces = []
    for index, group in enumerate(groups):
        piece = GraphPiece(index, f"submod_{index}", getattr(module, f"submod_{index}"), group.is_splitting)
        (call,) = module.graph.find_nodes(op="call_module", target=piece.name)
        if _order_symbols(call, piece.module.graph, ranks):
            piece.module.recompile()
            is_changed = True
        pieces.append(piece)
    if is_changed:
        module.recompile()
    return Split(module, pieces)


class SplittingOps:
    """Operators by name: ``ns::op``, ``ns.op`` (all its overloads), ``ns::op.overload``, ``ns.op.overload``.

    Raises OptionError for what isn't the name of a registered operator.
    """

    def __init__(self, names: Sequence[str]) -> None:
        if isinstance(names, str) or not isinstance(names, Sequence | set | frozenset):
            raise _bad_option(f"splitting_ops takes a list of operators' names, not {names!r}")
        #: Operators with an overload; None: all of them.
        self._names = {_parsed(given) for given in names}

    def called_by(self, node: torch.fx.Node) -> bool:
        """Whether a node calls one of them."""
        op, overload = _op_name(node)
        overloads = {overload for name, overload in self._names if name == op}
        if not overloads or None in overloads:
            return bool(overloads)
        # Where it can't be told which overload is called, the graph is split: that is never wrong.
        return (overload or _overload_of_call(node)) in (*overloads, None)


def _op_name(node: torch.fx.Node) -> tuple[str, str | None]:
    """The qualified name of the operator that a node calls, "" if it calls none, and the overload if the node says it."""
    if isinstance(node.target, torch._ops.OpOverload):
        return node.target._schema.name, node.target._overloadname
    if isinstance(node.target, torch._ops.OpOverloadPacket):
        return node.target._qualified_op_name, None
    return "", None


def _parsed(given: Any) -> tuple[str, str | None]:
    """An operator's qualified name, and the overload if the name says one."""
    if not isinstance(given, str):
        raise _bad_option(f"splitting_ops takes operators' names as strings; {given!r} is a {type(given).__name__}")
    namespace, _, rest = given.partition("::") if "::" in given else given.partition(".")
    name, dot, overload = rest.partition(".")
    if not all(part.isidentifier() for part in (namespace, name, *([overload] if dot else []))):
        raise _bad_option(f"splitting_ops: {given!r} is no operator's name, which is 'ns::op' or 'ns::op.overload'")
    packet = getattr(getattr(torch.ops, namespace), name, None)
    if isinstance(packet, torch._ops.HigherOrderOperator):
        raise _bad_option(f"splitting_ops: {given!r} is a higher-order operator; only registered operators can split")
    if not isinstance(packet, torch._ops.OpOverloadPacket):
        names = {full.partition(".")[0] for full in torch._C._dispatch_get_all_op_names()}
        close = difflib.get_close_matches(f"{namespace}::{name}", names, n=1, cutoff=0.8)
        hint = f"; did you mean {close[0]!r}?" if close else "; import what registers it before compiling"
        raise _bad_option(f"splitting_ops: no operator {given!r} is registered{hint}")
    if dot and overload not in packet.overloads():
        these = ", ".join(packet.overloads())
        raise _bad_option(f"splitting_ops: {namespace}::{name} has no overload {overload!r}; it has {these}")
    return f"{namespace}::{name}", overload if dot else None


def _bad_option(message: str) -> OptionError:
    return OptionError(message, reason="BAD_OPTION", metadata={"option": "splitting_ops"})


def _overload_of_call(node: torch.fx.Node) -> str | None:
    """Which overload a call that doesn't say it is; None: can't be told."""
    args, kwargs = torch.fx.map_arg((node.args, node.kwargs), _value)
    with contextlib.suppress(RuntimeError):
        return torch._C._jit_resolve_packet(_op_name(node)[0], *args, **kwargs)
    return None


def _value(node: torch.fx.Node) -> Any:
    return node.meta.get("example_value")


def _symbol(value: Any) -> sympy.Symbol | None:
    """The symbol that a SymInt is, if it is nothing but one."""
    expr = value.node.expr if isinstance(value, torch.SymInt) else None
    return expr if isinstance(expr, sympy.Symbol) else None


def _symbols(value: Any) -> set[sympy.Symbol]:
    """The symbols in a value and in its sizes."""
    if isinstance(value, tuple | list):
        return set().union(*map(_symbols, value))
    has_any = isinstance(value, torch.Tensor | torch.SymInt | torch.SymFloat | torch.SymBool)
    return set(free_symbols(value)) if has_any else set()


def _add_values(whole: torch.fx.GraphModule) -> None:
    """Gives the nodes an example_value that have it under another name, and the tensors that the graph holds."""
    fake_mode = torch._guards.detect_fake_mode([_value(node) for node in whole.graph.nodes])
    for node in whole.graph.nodes:
        if "val" in node.meta:
            node.meta.setdefault("example_value", node.meta["val"])
        elif node.op == "get_attr" and "example_value" not in node.meta:
            held = operator.attrgetter(str(node.target))(whole)
            if isinstance(held, torch.Tensor):
                fake = fake_mode and fake_mode.from_tensor(held, static_shapes=True)
                node.meta["example_value"] = held if fake is None else fake


def _bind_inputs(graph: torch.fx.Graph) -> dict[str, tuple[str, int]]:
    """Adds an integer input for each symbol that only tensor inputs have: its name → the tensor and the dimension.

    Dynamo gives each symbol an input of its own; other graphs need not. These inputs are there for the split only.
    """
    inputs = list(graph.find_nodes(op="placeholder"))
    known = {_symbol(_value(node)) for node in inputs}
    bound: dict[str, tuple[str, int]] = {}
    for node in inputs:
        for dim, size in enumerate(getattr(_value(node), "shape", ())):
            if (symbol := _symbol(size)) is None or symbol in known:
                continue
            known.add(symbol)
            with graph.inserting_after(inputs[-1]):
                added = graph.placeholder(f"piecewised_size_{symbol}")
            added.meta["example_value"] = size
            bound[str(added.target)] = (str(node.target), dim)
    return bound


def _unbind_inputs(graph: torch.fx.Graph, bound: Mapping[str, tuple[str, int]]) -> None:
    """Takes the inputs of _bind_inputs out again: between the pieces, the sizes are read from the tensors."""
    inputs = {str(node.target): node for node in graph.find_nodes(op="placeholder")}
    last = next(reversed(inputs.values()), None)
    for name, (tensor, dim) in bound.items():
        if inputs[name].users:
            with graph.inserting_after(last):
                size = graph.call_function(torch.ops.aten.sym_size.int, (inputs[tensor], dim))
            size.meta = dict(inputs[name].meta)
            inputs[name].replace_all_uses_with(size)
        graph.erase_node(inputs[name])


def _replace_sizes(graph: torch.fx.Graph) -> None:
    """Replaces the sizes that nodes read from tensors by numbers and by the integer inputs that they equal.

    A torch.Size can't cross from piece to piece, and an input can be had everywhere, without the tensor.
    """
    inputs: dict[sympy.Symbol, torch.fx.Node] = {}
    for node in graph.find_nodes(op="placeholder"):
        if (symbol := _symbol(_value(node))) is not None:
            inputs.setdefault(symbol, node)
    read: dict[tuple[torch.fx.Node, int], torch.fx.Node] = {}

    def number(node: torch.fx.Node, dim: int, size: Any) -> Any:
        if not isinstance(size, torch.SymInt):
            return size
        if (symbol := _symbol(size)) in inputs:
            return inputs[symbol]
        tensor = node.args[0]
        if (tensor, dim) not in read:
            # Where the tensor is made, so that the number can cross instead of the tensor.
            with graph.inserting_before(node) if tensor.op in _OUTSIDE else graph.inserting_after(tensor):
                read[tensor, dim] = graph.call_function(torch.ops.aten.sym_size.int, (tensor, dim))
            read[tensor, dim].meta["example_value"] = size
        return read[tensor, dim]

    for node in graph.find_nodes(op="call_method", target="size"):
        value = _value(node)
        if isinstance(value, torch.Size):
            _replace_whole_size(graph, node, tuple(number(node, dim, size) for dim, size in enumerate(value)))
        elif isinstance(value, int) or _symbol(value) in inputs:
            _replace(node, number(node, 0, value), node.users)
        if not node.users:
            graph.erase_node(node)


def _replace_whole_size(graph: torch.fx.Graph, node: torch.fx.Node, numbers: tuple[Any, ...]) -> None:
    for user in list(node.users):
        is_operator = getattr(user.target, "__module__", None) in ("_operator", "builtins")
        if user.target is operator.getitem and isinstance(user.args[1], int):
            _replace(user, numbers[user.args[1]], user.users)
            graph.erase_node(user)
        elif user.op == "output" or is_operator or (user.op == "call_method" and user.args[0] is node):
            # What is done with the size itself, such as `size.numel()` or `size == other`, needs one.
            with graph.inserting_before(user):
                size = graph.call_function(torch.Size, (list(numbers),))
            size.meta = dict(node.meta)
            _replace(node, size, [user])
        else:
            _replace(node, numbers, [user])


def _replace(node: torch.fx.Node, new: Any, users: Iterable[torch.fx.Node]) -> None:
    for user in list(users):
        user.args, user.kwargs = torch.fx.map_arg((user.args, user.kwargs), lambda arg: new if arg is node else arg)


@dataclass(eq=False)
class _Group:
    """The nodes of a piece."""

    is_splitting: bool
    nodes: list[torch.fx.Node] = field(default_factory=list)


def _groups(graph: torch.fx.Graph, ops: SplittingOps) -> list[_Group]:
    groups: list[_Group] = []
    group_of: dict[torch.fx.Node, _Group] = {}
    for node in graph.nodes:
        if node.op in _OUTSIDE:
            continue
        group = group_of.get(node.args[0]) if _unpacks(node) else None
        if group is None:
            is_splitting = ops.called_by(node)
            directly_after = is_splitting and ops.called_by(node.prev)
            if not groups or groups[-1].is_splitting != is_splitting or (is_splitting and not directly_after):
                groups.append(_Group(is_splitting))
            group = groups[-1]
        group.nodes.append(node)
        group_of[node] = group
    return groups


def _unpacks(node: torch.fx.Node) -> bool:
    """Whether a node takes an item out of a tuple or list, or a size out of a tensor.

    Indexing a tensor is not that: its place counts if something changes the tensor, and its index may come later.
    """
    if node.target is torch.ops.aten.sym_size.int:
        return True
    if node.target is not operator.getitem or not isinstance(node.args[0], torch.fx.Node):
        return False
    return isinstance(node.args[1], int) and not isinstance(_value(node.args[0]), torch.Tensor)


def _merge_lone_allocations(groups: Iterable[_Group]) -> list[_Group]:
    """Puts an allocation that is alone in its piece into the last compiled piece before it.

    Alone it would be a compiled piece that computes nothing, and a CUDA graph of no kernels.
    """
    kept: list[_Group] = []
    before: set[torch.fx.Node] = set()  # In the last compiled piece or earlier.
    since: set[torch.fx.Node] = set()
    target: _Group | None = None
    for group in groups:
        if target is not None and not group.is_splitting and len(group.nodes) == 1 and _allocates(group.nodes[0]):
            (allocation,) = group.nodes
            if all(node.op in _OUTSIDE or node in before for node in allocation.all_input_nodes):
                target.nodes.append(allocation)
                before.add(allocation)
                continue
        kept.append(group)
        since.update(group.nodes)
        if not group.is_splitting:
            target = group
            before |= since
            since.clear()
    return kept


def _allocates(node: torch.fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in _ALLOCATING_METHODS
    return node.target in _ALLOCATIONS or _op_name(node)[0].startswith(("aten::empty", "aten::new_empty"))


def _merge_state(groups: Sequence[_Group]) -> list[_Group]:
    """Puts what only switches autocast or gradients into the piece after it, or else before it: it's no work."""
    kept: list[_Group] = []
    waiting: list[torch.fx.Node] = []
    for group in groups:
        if all(node.target in _STATE for node in group.nodes):
            waiting += group.nodes
        else:
            kept.append(group)
            group.nodes += waiting
            waiting = []
    if waiting and kept:
        kept[-1].nodes += waiting
    return kept or list(groups)


def _reorder(graph: torch.fx.Graph, groups: Iterable[_Group]) -> dict[torch.fx.Node, int]:
    """Moves the nodes of each piece together, in the order that they have among themselves; gives each one's piece."""
    position = {node: at for at, node in enumerate(graph.nodes)}
    end = graph.output_node()
    for op in ("placeholder", "get_attr"):
        for node in graph.find_nodes(op=op):
            end.prepend(node)
    piece_of: dict[torch.fx.Node, int] = {}
    for index, group in enumerate(groups):
        for node in sorted(group.nodes, key=position.__getitem__):
            end.prepend(node)
            piece_of[node] = index
    return piece_of


def _check_crossings(graph: torch.fx.Graph, piece_of: Mapping[torch.fx.Node, int]) -> None:
    """Refuses values that a piece would get as an input of which nothing is known."""
    known = {_symbol(_value(node)) for node in graph.nodes}
    for user, index in piece_of.items():
        for node in user.all_input_nodes if user.target not in _STATE else ():
            if piece_of.get(node) == index or (node.op == "get_attr" and "example_value" not in node.meta):
                continue
            if "example_value" not in node.meta:
                raise _unsupported(node, f"it has no example_value, and {user.name} in another piece uses it")
            if unknown := _symbols(_value(node)) - known:
                raise _unsupported(node, f"nothing gives the size {min(map(str, unknown))}, which it has")
    for node in graph.output_node().all_input_nodes:
        if node.op == "get_attr" and piece_of and all(user.op == "output" for user in node.users):
            raise _unsupported(node, "the graph holds it and only returns it")


def _unsupported(node: torch.fx.Node, why: str) -> UnsupportedPiece:
    return UnsupportedPiece(
        f"the graph can't be split: node {node.name}: {why}", reason="UNSUPPORTED_GRAPH", metadata={"node": node.name}
    )


def _restore_grad_mode(whole: torch.fx.Graph, stitched: torch.fx.Graph) -> bool:
    """Leaves gradients switched as the whole graph does; gives whether that takes something.

    A piece that runs as it is switches them for its caller, and the compiled piece that would switch them back need not.
    """
    switches = whole.find_nodes(op="call_function", target=torch._C._set_grad_enabled)
    for last in list(switches)[-1:]:
        with stitched.inserting_before(stitched.output_node()):
            stitched.call_function(torch._C._set_grad_enabled, last.args)
    return bool(switches)


def _order_symbols(call: torch.fx.Node, piece: torch.fx.Graph, ranks: Mapping[sympy.Symbol | None, int]) -> bool:
    """Puts a piece's symbols into the order that they have among the whole graph's inputs; gives whether that moved any.

    The first one is dispatched on; which that is must not depend on the tensors that the piece happens to use first.
    """
    inputs = list(zip(piece.find_nodes(op="placeholder"), call.args, strict=True))
    places = [at for at, (node, _) in enumerate(inputs) if _symbol(_value(node)) is not None]
    ordered = sorted((inputs[at] for at in places), key=lambda pair: ranks[_symbol(_value(pair[0]))])
    if ordered == [inputs[at] for at in places]:
        return False
    for at, pair in zip(places, ordered, strict=True):
        inputs[at] = pair
    call.args = tuple(arg for _, arg in inputs)
    first_call = next(node for node in piece.nodes if node.op != "placeholder")
    for node, _ in inputs:
        first_call.prepend(node)
    return True


def _stitched(module: torch.fx.GraphModule, runnables: Mapping[str, Runnable]) -> Runnable:
    """The calls of a graph of submodules as one plain function, without the costs of calling modules."""
    scope: dict[str, Any] = {}
    names = {node: f"v{at}" for at, node in enumerate(module.graph.nodes)}

    def constant(value: Any) -> str:
        name = f"c{len(scope)}"
        scope[name] = value
        return name

    def text(arg: Any) -> str:
        if isinstance(arg, torch.fx.Node):
            return names[arg]
        if isinstance(arg, tuple):
            return f"({''.join(f'{text(item)}, ' for item in arg)})"
        if isinstance(arg, list):
            return f"[{', '.join(map(text, arg))}]"
        if isinstance(arg, dict):
            return f"{{{', '.join(f'{text(key)}: {text(item)}' for key, item in arg.items())}}}"
        return repr(arg) if arg is None or type(arg) in (bool, int, str) else constant(arg)

    last_uses: dict[torch.fx.Node, list[torch.fx.Node]] = {}
    for node in module.graph.nodes:
        if node.users:
            last_uses.setdefault(max(node.users), []).append(node)
    lines = []
    for node in module.graph.nodes:
        arguments = ", ".join(map(text, node.args))
        if node.op == "placeholder":
            continue
        if node.op == "output":
            lines.append(f"return {arguments}")
        elif node.op == "get_attr":
            scope[names[node]] = operator.attrgetter(str(node.target))(module)
        elif node.target is operator.getitem:
            lines.append(f"{names[node]} = {text(node.args[0])}[{text(node.args[1])}]")
        else:
            called = constant(runnables[node.target] if node.op == "call_module" else node.target)
            lines.append(f"{names[node]} = {called}({arguments})" if node.users else f"{called}({arguments})")
        dropped = [names[used] for used in last_uses.get(node, ()) if used.op != "get_attr"]
        if dropped and node.op != "output":
            lines.append(f"del {', '.join(dropped)}")
    inputs = ", ".join(names[node] for node in module.graph.find_nodes(op="placeholder"))
    source = f"def run({inputs}):\n" + "".join(f"    {line}\n" for line in lines)
    exec(compile(source, "<piecewised split>", "exec"), scope)
    return scope["run"]
