"""What the client has to know about a graph that is in the project's JSON form already."""

from __future__ import annotations

from typing import Any


def symbolic_inputs(graph: dict[str, Any]) -> list[Any]:
    """The expressions of the inputs that are symbolic integers, in order."""
    values = (value["sym_int"] for value in _inputs(graph) if "sym_int" in value)
    return [expression for expression in values if "int" not in expression]


def is_static(graph: dict[str, Any]) -> bool:
    """Whether no input is a symbolic integer, so that there is nothing to dispatch on."""
    return not symbolic_inputs(graph)


def input_devices(graph: dict[str, Any]) -> list[dict[str, Any]]:
    """The devices of the tensor inputs, in order."""
    return [value["tensor"]["device"] for value in _inputs(graph) if "tensor" in value]


def _inputs(graph: dict[str, Any]) -> list[dict[str, Any]]:
    return [node["op"]["placeholder"]["value"] for node in graph["nodes"] if "placeholder" in node["op"]]
