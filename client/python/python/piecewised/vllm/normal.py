"""A graph with names that say nothing: layers that are alike have the same, and are asked for once."""

from __future__ import annotations

from typing import Any


def normal_form(graph: dict[str, Any]) -> dict[str, Any]:
    """The graph with its nodes, symbols and their uses numbered, and without stack traces. ``graph``: in the project's JSON form."""
    names = {node["name"]: f"n{i}" for i, node in enumerate(graph["nodes"])}
    symbols = {symbol["name"]: f"s{i}" for i, symbol in enumerate(graph.get("symbols", []))}
    renamed: dict[str, Any] = _renamed({**graph, "nodes": [], "symbols": []}, names, symbols)
    renamed["nodes"] = [
        {"name": names[node["name"]], "op": _renamed(node["op"], names, symbols)} for node in graph["nodes"]
    ]
    if symbols:
        renamed["symbols"] = [{**symbol, "name": symbols[symbol["name"]]} for symbol in graph["symbols"]]
    else:
        del renamed["symbols"]
    return renamed


def _renamed(value: Any, names: dict[str, str], symbols: dict[str, str]) -> Any:
    if isinstance(value, list):
        return [_renamed(item, names, symbols) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        ((kind, what),) = value.items()
        if kind == "node" and isinstance(what, str):
            return {"node": names.get(what, what)}
        if kind == "symbol" and isinstance(what, str):
            return {"symbol": symbols.get(what, what)}
        if kind == "str":
            return value
    if value.get("nodes"):
        # A nested graph has names of its own, and the symbols of the outermost.
        names = {node["name"]: f"n{i}" for i, node in enumerate(value["nodes"])}
        nodes = [{"name": names[node["name"]], "op": _renamed(node["op"], names, symbols)} for node in value["nodes"]]
        rest = {key: _renamed(item, names, symbols) for key, item in value.items() if key != "nodes"}
        return {**rest, "nodes": nodes}
    return {key: _renamed(item, names, symbols) for key, item in value.items()}
