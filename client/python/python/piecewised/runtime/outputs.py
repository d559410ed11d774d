"""The structure of what a graph returns, as data.

The compiled callable returns a flat tuple; the graph may return a bare value, or nested tuples, lists and dicts with
constants in them. A structure (JSON) says how to build the latter from the former:

* ``{"leaf": i}``: the i-th value of the flat tuple;
* ``{"tuple": [...]}``, ``{"list": [...]}``: of structures;
* ``{"dict": [[key, structure], ...]}``;
* ``{"constant": value}``: None, bool, int, float or str.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Structure = dict[str, Any]


def is_flat_tuple(structure: Structure, n_leaves: int) -> bool:
    """Whether the flat tuple is already what the graph returns."""
    return structure == {"tuple": [{"leaf": i} for i in range(n_leaves)]}


def returns_sequence(structure: Structure) -> bool:
    """Whether the graph returns a tuple or a list, rather than a bare value or a dict."""
    return "tuple" in structure or "list" in structure


def restorer(structure: Structure) -> Callable[[Any], Any]:
    """A function from the flat tuple to what the graph returns."""
    ((kind, value),) = structure.items()
    if kind == "leaf":
        return lambda flat: flat[value]
    if kind == "constant":
        return lambda flat: value
    if kind == "dict":
        items = [(key, restorer(child)) for key, child in value]
        return lambda flat: {key: child(flat) for key, child in items}
    make = {"tuple": tuple, "list": list}[kind]
    children = [restorer(child) for child in value]
    return lambda flat: make(child(flat) for child in children)
