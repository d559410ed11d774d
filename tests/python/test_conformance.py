"""The conformance vectors (tests/conformance) on what Python has of plans and dispatch.

`most_likely_first` is the daemon's to follow; nothing here decides it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import piecewised
import pytest
from piecewised import options, plan
from piecewised.loading import Compiled
from test_dispatch import handle
from test_dispatch import piece as piece_of

FOLDER = Path(__file__).resolve().parents[1] / "conformance"


def vectors(name: str) -> list[Any]:
    """The cases of one file, each with its name."""
    cases = json.loads((FOLDER / name).read_text())
    return [pytest.param(case, id=case["name"]) for case in cases]


def check_error(case: dict[str, Any], reasons: set[str], run: Callable[[], Any]) -> None:
    with pytest.raises(piecewised.PiecewisedError) as raised:
        run()
    assert raised.value.reason in reasons
    for text in case.get("message_has", []):
        assert text in str(raised.value)


@pytest.mark.parametrize("case", vectors("plan.json"))
def test_plan(case: dict[str, Any]) -> None:
    parsers: list[Callable[[], Any]] = [
        lambda: plan.parse_plan(case["plan"]).entries,
        lambda: piecewised.plan_entries((parsed := options.parse(case["plan"])).ranges, parsed.sizes),
    ]
    for entries in parsers:
        if "error" in case:
            check_error(case, {case["error"]}, entries)
        else:
            assert entries() == [tuple(entry) for entry in case["entries"]]


def static_backend(entries: list[tuple[int, int]]) -> Callable[[int], Any]:
    backend = piecewised.PiecewiseBackend(compiled_runnables=runnables(entries), plan=entries, sym_shape_indices=[])
    return lambda size: backend(size)


def runnables(entries: list[tuple[int, int]]) -> dict[str, Any]:
    """Each answers with its own entry."""
    return {plan.entry_name(entry): lambda *_, entry=entry: entry for entry in entries}


def backend(entries: list[tuple[int, int]]) -> Callable[[int], Any]:
    """The public class, made from callables."""
    made = piecewised.PiecewiseBackend(compiled_runnables=runnables(entries), plan=entries, sym_shape_indices=[1])
    return lambda size: made("x", size)


def piece(entries: list[tuple[int, int]]) -> Callable[[int], Any]:
    """A piece made from handles, as the backend of torch.compile makes it."""
    made = piece_of([handle(entry, entry) for entry in entries])
    return lambda size: entries[made(size)[0]]


def table(entries: list[tuple[int, int]]) -> Callable[[int], Any]:
    """The bare table."""
    made = piecewised.DispatchTable(entries)
    return lambda size: entries[made.lookup(size)]


def static_piece(entries: list[tuple[int, int]]) -> Callable[[int], Any]:
    made = piece_of([handle(None, None, argument=None) for _ in entries])
    return lambda size: entries[made(size)[0]]


@pytest.mark.parametrize("case", vectors("dispatch.json"))
@pytest.mark.parametrize("way", ["table", "piece", "backend"])
def test_dispatch(case: dict[str, Any], way: str) -> None:
    is_static = case.get("static", False)
    makers = {"table": table, "piece": piece, "backend": backend}
    if is_static:
        makers = {"piece": static_piece, "backend": static_backend}
    if way not in makers:
        assert is_static, "a bare table knows no pieces"
        return
    make = makers[way]
    entries = [tuple(entry) for entry in case["entries"]]
    if "error" in case:
        check_error(case, {case["error"], "BAD_HANDLES"}, lambda: make(entries))
        return
    look_up = make(entries)
    # Twice: what was found once is remembered.
    for lookup in case["lookups"] * 2:
        if "entry" in lookup:
            assert look_up(lookup["size"]) == tuple(lookup["entry"])
            continue
        with pytest.raises(piecewised.NotCovered) as raised:
            look_up(lookup["size"])
        assert raised.value.reason == lookup["error"]
        assert str(lookup["size"]) in str(raised.value)
        at = [str(raised.value).rindex(plan.entry_name(tuple(entry))) for entry in lookup["considered"]]
        assert at == sorted(at), "ranges, then sizes"


def guarded_handles(case: dict[str, Any]) -> list[str]:
    """The handles of a case of segments.json, with segments named e0, e1, ..."""
    made = []
    for entry in case["entries"]:
        one = json.loads(handle(tuple(entry["range"]), *(segment["range"] for segment in entry["segments"])))
        for segment, vector in zip(one["segments"], entry["segments"], strict=True):
            segment["guards"] = vector["guards"]
        made.append(json.dumps({**one, "guard_symbols": case["guard_symbols"], "n_arguments": 3}))
    return made


class Sized:
    """Has a shape, as the tensors of a call have, of which nothing but one dimension is looked at."""

    def __init__(self, dimension: int, size: int) -> None:
        self.shape = {dimension: size}


def guarded_call(case: dict[str, Any], lookup: dict[str, Any]) -> list[Any]:
    """The arguments of a call that has the values of a lookup."""
    args: list[Any] = [lookup["size"], None, None]
    for symbol in case["guard_symbols"]:
        if symbol["name"] in lookup.get("values", {}):
            value = lookup["values"][symbol["name"]]
            dimension = symbol["dimension"]
            args[symbol["argument"]] = value if dimension is None else Sized(dimension, value)
    return args


@pytest.mark.parametrize("case", vectors("segments.json"))
@pytest.mark.parametrize("way", ["piece", "backend"])
def test_segments_and_guards(case: dict[str, Any], way: str) -> None:
    handles = guarded_handles(case)

    def backend() -> Callable[..., Any]:
        compiled = {}
        for position, text in enumerate(handles):
            one = json.loads(text)
            runs = {
                segment["entry"]: lambda *args, at=position, entry=segment["entry"]: (at, entry)
                for segment in one["segments"]
            }
            compiled[plan.entry_name(tuple(one["range"]))] = Compiled(one, runs)
        return piecewised.PiecewiseBackend(compiled_runnables=compiled)

    make = {"piece": lambda: piece_of(handles), "backend": backend}[way]
    if "error" in case:
        check_error(case, {case["error"]}, make)
        return
    made = make()
    # Twice: what was found once is remembered.
    for lookup in case["lookups"] * 2:
        args = guarded_call(case, lookup)
        if "error" not in lookup:
            assert tuple(made(*args))[:2] == (lookup["entry"], f"e{lookup['segment']}"), lookup
            continue
        with pytest.raises(piecewised.NotCovered) as raised:
            made(*args)
        assert raised.value.reason == lookup["error"], lookup
        for text in lookup["message_has"]:
            assert text in str(raised.value)
