"""Ranges whose code is right for some calls only: a size that it is not right for never runs it.

Compiled by a real executor, dispatched by the client's own dispatcher, and called in a fresh worker.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import executor_harness as h
import piecewised
import pytest
import torch
from piecewised import _core
from test_dispatch import handle

N, M = h.symbol("s0"), h.symbol("s1")


def _graph(*nodes: dict[str, Any]) -> dict[str, Any]:
    return {"nodes": list(nodes), "symbols": [{"name": "s0"}, {"name": "s1", "hint": 16}]}


# Only sizes that are a multiple of 8 have this view.
BY_EIGHT = _graph(
    h.int_input("n", N),
    h.tensor_input("x", [N], [h.number(1)]),
    h.method_node("view", "view", h.ref("x"), {"tuple": [{"int": -1}, {"int": 8}]}),
    h.method_node("sum", "sum", h.ref("view"), {"int": 1}),
    h.output_node({"tuple": [h.ref("sum")]}),
)

# There is a second row from size 2 up only.
SECOND_ROW = _graph(
    h.int_input("n", N),
    h.tensor_input("x", [N, h.number(4)], [h.number(4), h.number(1)]),
    h.method_node("row", "narrow", h.ref("x"), {"int": 0}, {"int": 1}, {"int": 1}),
    h.function_node("product", "_operator.mul", h.ref("x"), h.ref("row")),
    h.output_node({"tuple": [h.ref("product")]}),
)

# There are 8 columns where another dimension than the dispatched one has them.
COLUMNS = _graph(
    h.int_input("n", N),
    h.tensor_input("x", [N, M], [M, h.number(1)]),
    h.method_node("cut", "narrow", h.ref("x"), {"int": 1}, {"int": 0}, {"int": 8}),
    h.function_node("product", "_operator.mul", h.ref("cut"), {"float": "2.0"}),
    h.output_node({"tuple": [h.ref("product")]}),
)

# With one column the transposed input is contiguous, so that its code is another.
FLAT = _graph(
    h.int_input("n", N),
    h.tensor_input("a", [N], [h.number(1)]),
    h.tensor_input("x", [h.number(4), M], [h.number(1), h.number(4)]),
    h.method_node("flat", "contiguous", h.ref("x")),
    h.method_node("view", "view", h.ref("flat"), {"int": -1}),
    h.method_node("sum", "sum", h.ref("view")),
    h.function_node("total", "_operator.add", h.ref("a"), h.ref("sum")),
    h.output_node({"tuple": [h.ref("total"), h.ref("view")]}),
)

REQUESTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "few": (BY_EIGHT, {"range": [1, 64], "hint": 8}),
    "many": (BY_EIGHT, {"range": [1, 4096], "hint": 64}),
    "from 2": (SECOND_ROW, {"range": [1, 16], "hint": 4}),
    "columns": (COLUMNS, {"range": [2, 16], "hint": 8}),
    "columns at 5": (COLUMNS, {"range": [5, 5], "hint": 5}),
    "flat": (FLAT, {"range": [2, 16], "hint": 8}),
    "few, tuned": (BY_EIGHT, {"range": [1, 64], "hint": 8, "options": {"tuning": "full"}}),
    "many, tuned": (BY_EIGHT, {"range": [1, 4096], "hint": 64, "options": {"tuning": "full"}}),
    "flat, tuned": (FLAT, {"range": [2, 16], "hint": 8, "options": {"tuning": "full"}}),
    "many, generic": (BY_EIGHT, {"range": [1, 4096], "hint": 4096, "options": {"specialisation": "generic"}}),
    "columns, generic": (COLUMNS, {"range": [1, 16], "hint": 16, "options": {"specialisation": "generic"}}),
}


@pytest.fixture(scope="module")
def made(executor: h.Executor) -> dict[str, tuple[dict[str, Any], bytes]]:
    """What came of each of REQUESTS: the fields of `done`, and the artifact."""
    found = {}
    for name, (graph, request) in REQUESTS.items():
        message, fields, blob = executor.compile(graph, dispatch_argument=0, **request)
        assert message == "done", f"{name}: {fields}"
        found[name] = fields, blob
    return found


def dispatcher(name: str, done: dict[str, Any]) -> _core.Dispatcher:
    """The client's dispatcher over what an executor answered."""
    whole = json.loads(handle(tuple(REQUESTS[name][1]["range"])))
    return _core.Dispatcher(
        [json.dumps({**whole, **{key: done[key] for key in ("segments", "guard_symbols", "n_arguments")}})]
    )


def texts(done: dict[str, Any]) -> list[tuple[list[int], bool]]:
    """Each segment's sizes, and whether it has guards."""
    return [(segment["range"], bool(segment["guards"])) for segment in done["segments"]]


def test_what_is_proven_is_split_off_while_it_is_little(made: dict[str, Any]) -> None:
    assert texts(made["few"][0]) == [([n, n], False) for n in range(8, 65, 8)]
    assert texts(made["from 2"][0]) == [([2, 16], False)]


def test_what_is_not_little_gets_a_guard(made: dict[str, Any]) -> None:
    done = made["many"][0]
    guarded, exact = done["segments"]
    # At size 8 the view has one row, which the compile makes special.
    assert (guarded["range"], exact["range"], exact["guards"]) == ([16, 4096], [8, 8], [])
    assert h.call("eq", h.call("mod", N, h.number(8)), h.number(0)) in guarded["guards"]
    assert done["guard_symbols"] == [{"name": "s0", "argument": 0, "dimension": None}]


def test_another_dimension_gets_a_guard(made: dict[str, Any]) -> None:
    for name, sizes in (("columns", (2, 16)), ("columns at 5", (5, 5))):
        done = made[name][0]
        assert {(tuple(segment["range"]), bool(segment["guards"])) for segment in done["segments"]} == {(sizes, True)}
        assert done["guard_symbols"] == [{"name": "s1", "argument": 1, "dimension": 1}]


def test_where_a_guard_fails_other_code_is_compiled(made: dict[str, Any]) -> None:
    segments = made["flat"][0]["segments"]
    assert len({segment["entry"] for segment in segments}) == 2
    assert segments[0]["guards"] and segments[0]["range"] == [2, 16]


def test_what_runs_under_guards_is_verified_where_they_hold(made: dict[str, Any]) -> None:
    for name, (done, _) in made.items():
        verification = done["verification"]
        assert verification["outcome"] == "passed" and not verification["note"], f"{name}: {verification}"
        assert verification["sizes"], name
        checked = {(checked["entry"], checked["size"]) for checked in verification["sizes"]}
        for segment in done["segments"]:
            low, high = segment["range"]
            assert any(segment["entry"] == entry and low <= size <= high for entry, size in checked), (
                f"{name}: {segment}"
            )
    sizes = [checked["size"] for checked in made["many"][0]["verification"]["sizes"]]
    assert set(sizes) == {64, 8, 4096}


def test_what_has_guards_is_not_compared_with_other_candidates(made: dict[str, Any]) -> None:
    for name in ("many, tuned", "flat, tuned"):
        report = made[name][0]["tuning"]
        assert report["mode"] == "full"
        guarded = [candidate for candidate in report["candidates"] if "under guards only" in candidate["failure"]]
        assert guarded and not any(candidate["latencies"] for candidate in guarded), name
    # The sizes that are proven one by one were measured, and have no guard.
    candidates = made["few, tuned"][0]["tuning"]["candidates"]
    assert {latency["size"] for candidate in candidates for latency in candidate["latencies"]} == {8, 16, 32, 64}
    assert not any(segment["guards"] for segment in made["few, tuned"][0]["segments"])


WRONG: list[tuple[str, int, list[int], str]] = [
    *((name, n, [], "SIZE_NOT_COVERED") for name in ("few", "few, tuned") for n in (1, 7, 9, 63)),
    *((name, n, [], "GUARD_FAILED") for name in ("many, tuned", "many, generic") for n in (17, 63, 4095)),
    *(("columns, generic", n, [7], "GUARD_FAILED") for n in (1, 2, 16)),
    *(("many", n, [], "SIZE_NOT_COVERED") for n in (1, 7, 9, 15)),
    *(("many", n, [], "GUARD_FAILED") for n in (17, 63, 4095)),
    ("from 2", 1, [], "SIZE_NOT_COVERED"),
    ("columns", 4, [7], "GUARD_FAILED"),
    ("columns at 5", 5, [7], "GUARD_FAILED"),
]


@pytest.mark.parametrize(("name", "size", "values", "reason"), WRONG)
def test_a_wrong_size_never_runs_the_code(
    made: dict[str, Any], name: str, size: int, values: list[int], reason: str
) -> None:
    with pytest.raises(piecewised.NotCovered, match=f"size {size} ") as raised:
        dispatcher(name, made[name][0]).lookup(size, values)
    assert raised.value.reason == reason
    if reason == "GUARD_FAILED":
        text = str(raised.value)
        assert (
            ("s0 % 8 == 0 is false" in text) if name.startswith("many") else ("s1 = 7" in text and "is false" in text)
        )


def test_exactly_the_right_sizes_are_served(made: dict[str, Any]) -> None:
    """Every size of the range, against the truth."""
    few, many = range(1, 65), range(1, 4097)
    each = {"few": few, "few, tuned": few, "many": many, "many, tuned": many, "many, generic": many}
    for name, sizes in each.items():
        found = dispatcher(name, made[name][0])
        for size in sizes:
            try:
                found.lookup(size)
                is_right = True
            except piecewised.NotCovered:
                is_right = False
            assert is_right == (size % 8 == 0), f"{name} {size}"


def _by_eight(n: int, _: int) -> tuple[list[Any], Any]:
    x = torch.randn(n)
    return [n, x], (x.view(-1, 8).sum(1),)


def _second_row(n: int, _: int) -> tuple[list[Any], Any]:
    x = torch.randn(n, 4)
    return [n, x], (x * x[1:2],)


def _columns(n: int, m: int) -> tuple[list[Any], Any]:
    x = torch.randn(n, m)
    return [n, x], (x[:, :8] * 2.0,)


def _flat(n: int, m: int) -> tuple[list[Any], Any]:
    a, x = torch.randn(n), torch.randn(m, 4).t()
    view = x.contiguous().view(-1)
    return [n, a, x], (a + view.sum(), view)


CALLS: list[tuple[str, Callable[[int, int], Any], int, int]] = [
    *((name, _by_eight, n, 0) for name in ("few", "few, tuned") for n in (8, 16, 64)),
    *((name, _by_eight, n, 0) for name in ("many", "many, tuned", "many, generic") for n in (8, 16, 24, 4096)),
    *(("columns, generic", _columns, n, m) for n, m in ((1, 8), (2, 8), (16, 9))),
    *(("from 2", _second_row, n, 0) for n in (2, 3, 16)),
    *(("columns", _columns, n, m) for n, m in ((2, 8), (16, 8), (7, 33))),
    *(("columns at 5", _columns, 5, m) for m in (8, 9)),
    *((name, _flat, n, m) for name in ("flat", "flat, tuned") for n, m in ((2, 1), (16, 1), (5, 2), (9, 16))),
]


def test_right_sizes_give_what_eager_gives_in_a_fresh_worker(made: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    folders = {
        name: h.materialise(blob, tmp_path / name.replace(" ", "-").replace(",", ""))
        for name, (_, blob) in made.items()
    }
    calls, expected = [], []
    for name, make, n, m in CALLS:
        args, want = make(n, m)
        found = dispatcher(name, made[name][0])
        values = [args[argument].shape[dimension] for argument, dimension in found.places]
        calls.append((folders[name], found.targets[found.lookup(n, values)][1], args))
        expected.append(want)
    returned, _, _ = h.call_in_worker(calls, tmp_path / "worker")
    for (name, _, n, m), want, (got, _) in zip(CALLS, expected, returned, strict=True):
        torch.testing.assert_close(got, want, msg=lambda text, at=f"{name} at {n}, {m}": f"{at}: {text}")
