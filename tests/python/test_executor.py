"""A real executor process, driven over its protocol; what it makes is loaded in a fresh worker and compared with eager.

Compiles cost seconds, so one executor compiles everything once (`artifacts`) and one worker calls all of it
(`results`); the tests look at what came out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import executor_harness as h
import pytest
import torch

N = h.symbol("s0")


def _rows(name: str, width: int) -> dict[str, Any]:
    return h.tensor_input(name, [N, h.number(width)], [h.number(width), h.number(1)])


def _graph(*nodes: dict[str, Any], **rest: Any) -> dict[str, Any]:
    return {"nodes": list(nodes), "symbols": [{"name": "s0", "hint": 8, "min": 2}], **rest}


# relu(x) @ w + 1, with the number of rows dispatched on.
LINEAR = _graph(
    h.int_input("n", N),
    _rows("x", 4),
    h.tensor_input("w", [h.number(4), h.number(3)], [h.number(3), h.number(1)]),
    h.function_node("relu", "torch.relu", h.ref("x")),
    h.function_node("mm", "torch.matmul", h.ref("relu"), h.ref("w")),
    h.function_node("add", "_operator.add", h.ref("mm"), {"int": 1}),
    h.output_node({"tuple": [h.ref("add")]}),
)

# A view whose strides leave room at size 1 only: the transposed input is contiguous there, and nowhere else.
TRANSPOSED = _graph(
    h.int_input("n", N),
    h.tensor_input("x", [h.number(4), N], [h.number(1), h.number(4)]),
    h.method_node("flat", "contiguous", h.ref("x")),
    h.method_node("view", "view", h.ref("flat"), {"int": -1}),
    h.function_node("two", "_operator.mul", h.ref("view"), {"float": "2.0"}),
    h.output_node({"tuple": [h.ref("two")]}),
)

# Sizes 2 * s0 + 1 behind a storage offset of s0, and a bare value instead of a tuple.
OFFSET = _graph(
    h.int_input("n", N),
    h.tensor_input(
        "x", [h.call("add", h.call("mul", h.number(2), N), h.number(1)), h.number(3)], [h.number(3), h.number(1)], N
    ),
    h.method_node("sum", "sum", h.ref("x"), {"int": 0}),
    h.function_node("scaled", "_operator.mul", h.ref("sum"), h.ref("n")),
    h.output_node(h.ref("scaled")),
)

MUTATION = _graph(
    h.int_input("n", N),
    _rows("x", 4),
    h.function_node("iadd", "_operator.iadd", h.ref("x"), {"float": "1.5"}),
    h.function_node("set", "_operator.setitem", h.ref("x"), {"tuple": [{"int": 0}, {"int": 0}]}, {"float": "7.0"}),
    h.function_node("exp", "torch.exp", h.ref("iadd")),
    h.output_node({"tuple": [h.ref("exp")]}),
)

# One output is a view of an input, one is an input.
ALIAS = _graph(
    h.int_input("n", N),
    _rows("x", 4),
    h.method_node("t", "t", h.ref("x")),
    h.function_node("relu", "torch.relu", h.ref("x")),
    h.output_node({"tuple": [h.ref("t"), h.ref("relu"), h.ref("x")]}),
)

_BRANCH_INPUT = h.tensor_input("x", [N, h.number(4)], [h.number(4), h.number(1)])
COND = _graph(
    h.int_input("n", N),
    h.tensor_input("p", [], [], dtype="bool"),
    _rows("x", 4),
    {"name": "yes", "op": {"get_attr": {"target": "then"}}},
    {"name": "no", "op": {"get_attr": {"target": "otherwise"}}},
    h.function_node(
        "cond", "torch.ops.higher_order.cond", h.ref("p"), h.ref("yes"), h.ref("no"), {"tuple": [h.ref("x")]}
    ),
    h.function_node("first", "_operator.getitem", h.ref("cond"), {"int": 0}),
    h.output_node({"tuple": [h.ref("first")]}),
    subgraphs=[
        {
            "name": "then",
            "graph": {
                "nodes": [
                    _BRANCH_INPUT,
                    h.method_node("r", "sin", h.ref("x")),
                    h.output_node({"tuple": [h.ref("r")]}),
                ]
            },
        },
        {
            "name": "otherwise",
            "graph": {
                "nodes": [
                    _BRANCH_INPUT,
                    h.method_node("r", "cos", h.ref("x")),
                    h.output_node({"tuple": [h.ref("r")]}),
                ]
            },
        },
    ],
)

# Adds a table that the graph holds, returns a nested structure, and has an input that is always None.
CONSTANT = {
    "nodes": [
        h.tensor_input("x", [h.number(4)], [h.number(1)]),
        {"name": "mask", "op": {"placeholder": {"value": {"constant": "none"}}}},
        {"name": "table", "op": {"get_attr": {"target": "t"}}},
        h.function_node("sum", "torch.add", h.ref("x"), h.ref("table")),
        h.output_node({"dict": [[{"str": "sum"}, h.ref("sum")], [{"str": "mask"}, h.ref("mask")]]}),
    ],
    "constants": [
        {
            "name": "t",
            "meta": {
                "dtype": "float32",
                "device": {"type": "cpu"},
                "layout": "strided",
                "sizes": [h.number(4)],
                "strides": [h.number(1)],
            },
            "data": "AACAPwAAAEAAAEBAAACAQA==",  # 1, 2, 3, 4
        }
    ],
}

DYNAMIC = {"dispatch_argument": 0}
REQUESTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "from 2": (LINEAR, {"range": [2, 16], **DYNAMIC}),
    "single": (LINEAR, {"range": [4, 4], **DYNAMIC}),
    "from 1": (TRANSPOSED, {"range": [1, 16], **DYNAMIC}),
    "offset": (OFFSET, {"range": [1, 16], **DYNAMIC}),
    "offset single": (OFFSET, {"range": [5, 5], **DYNAMIC}),
    "mutation": (MUTATION, {"range": [2, 16], **DYNAMIC}),
    "alias": (ALIAS, {"range": [2, 16], **DYNAMIC}),
    # Under autocast a call has to switch it off, which the generated wrapper does not.
    "autocast": (LINEAR, {"range": [2, 16], "options": {"torch": {"autocast": [["cpu", "bfloat16"]]}}, **DYNAMIC}),
    "cond": (COND, {"range": [2, 16], **DYNAMIC}),
    "static": (CONSTANT, {}),
}


@pytest.fixture(scope="module")
def artifacts(executor: h.Executor) -> dict[str, tuple[dict[str, Any], bytes]]:
    """What came of each of REQUESTS: the fields of `done`, and the artifact."""
    made = {}
    for name, (graph, request) in REQUESTS.items():
        message, fields, blob = executor.compile(graph, **request)
        assert message == "done", f"{name}: {fields}"
        made[name] = fields, blob
    return made


def _linear(n: int) -> tuple[list[Any], Any]:
    x, w = torch.randn(n, 4), torch.randn(4, 3)
    return [n, x, w], (torch.relu(x) @ w + 1,)


def _transposed(n: int) -> tuple[list[Any], Any]:
    x = torch.randn(n, 4).t()
    return [n, x], (x.contiguous().view(-1) * 2.0,)


def _offset(n: int) -> tuple[list[Any], Any]:
    x = torch.randn(n + 3 * (2 * n + 1)).as_strided((2 * n + 1, 3), (3, 1), n)
    return [n, x], x.sum(0) * n


def _mutation(n: int) -> tuple[list[Any], Any]:
    x = torch.randn(n, 4)
    after = x + 1.5
    after[0, 0] = 7.0
    return [n, x], (after.exp(),)


def _alias(n: int) -> tuple[list[Any], Any]:
    x = torch.randn(n, 4)
    return [n, x], (x.t(), torch.relu(x), x)


def _autocast(n: int) -> tuple[list[Any], Any]:
    args, _ = _linear(n)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return args, (torch.relu(args[1]) @ args[2] + 1,)


def _cond(n: int) -> tuple[list[Any], Any]:
    x = torch.randn(n, 4)
    return [n, torch.tensor(n % 2 == 0), x], (x.sin() if n % 2 == 0 else x.cos(),)


def _constant(_: int) -> tuple[list[Any], Any]:
    x = torch.randn(4)
    return [x, None], {"sum": x + torch.tensor([1.0, 2.0, 3.0, 4.0]), "mask": None}


CALLS = [
    *(("from 2", _linear, n) for n in (2, 3, 16)),
    ("single", _linear, 4),
    *(("from 1", _transposed, n) for n in (1, 2, 7, 16)),
    *(("offset", _offset, n) for n in (1, 2, 16)),
    ("offset single", _offset, 5),
    *(("mutation", _mutation, n) for n in (2, 9)),
    *(("alias", _alias, n) for n in (2, 16)),
    ("autocast", _autocast, 3),
    *(("cond", _cond, n) for n in (2, 5)),
    ("static", _constant, 0),
]


@pytest.fixture(scope="module")
def results(artifacts: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Each of CALLS in a fresh worker: (name, size, expected, returned, arguments afterwards), and its traces."""
    folder: Path = tmp_path_factory.mktemp("artifacts")
    torch.manual_seed(0)
    folders = {name: h.materialise(blob, folder / name.replace(" ", "-")) for name, (_, blob) in artifacts.items()}
    calls, expected = [], []
    for name, make, size in CALLS:
        args, want = make(size)
        calls.append((folders[name], h.entry_for(artifacts[name][0], size), args))
        expected.append(want)
    returned, changed, written = h.call_in_worker(calls, folder / "worker")
    rows = [(name, n, want, *got) for (name, _, n), want, got in zip(CALLS, expected, returned, strict=True)]
    return rows, changed, written


def test_ready_says_what_the_interpreter_is(executor: h.Executor) -> None:
    ready = executor.ready
    assert ready["protocol"] == 4
    assert ready["gpus"] == [] or ready["gpus"][0]["uuid"].startswith(("GPU-", "MIG-"))
    assert ready["pid"] == executor.process.pid
    assert ready["toolchain"] == h.client_module("runtime.fingerprint").toolchain()
    assert ready["devices"][0] == h.cpu_device()
    assert {"torch.relu", "torch.ops.aten.mul.Tensor", "torch.ops.aten.mul"} <= set(ready["functions"])
    assert "view" in ready["methods"] and "shape" in ready["attributes"]
    reserved = {option["name"]: option["reserved"] for option in ready["options"]}
    assert reserved["max_autotune"] is False and reserved["cpp.cxx"] is True


def test_results_are_those_of_eager(results: Any) -> None:
    for name, size, want, got, _ in results[0]:
        torch.testing.assert_close(got, want, msg=lambda text, at=f"{name} at {size}": f"{at}: {text}")


def test_inputs_are_changed_in_place(results: Any) -> None:
    after = [args for name, _, _, _, args in results[0] if name == "mutation"]
    assert after and all(x[0, 0] == 7.0 for _, x in after)


def test_a_load_leaves_no_trace(results: Any) -> None:
    _, changed, written = results
    assert changed in ([], ["_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR"]) and written == []


def test_a_range_that_needs_it_is_split_at_size_one(artifacts: dict[str, Any]) -> None:
    segments = artifacts["from 1"][0]["segments"]
    assert [segment["range"] for segment in segments] == [[1, 1], [2, 16]]
    assert segments[0]["entry"] != segments[1]["entry"]


def test_a_proven_range_is_one_segment(artifacts: dict[str, Any]) -> None:
    assert [segment["range"] for segment in artifacts["from 2"][0]["segments"]] == [[2, 16]]
    assert [segment["range"] for segment in artifacts["single"][0]["segments"]] == [[4, 4]]
    assert [segment["range"] for segment in artifacts["static"][0]["segments"]] == [None]


def test_programs_are_direct_but_under_autocast(artifacts: dict[str, Any]) -> None:
    for name, (_, blob) in artifacts.items():
        kinds = {entry["kind"] for entry in h.manifest(blob)["entries"]}
        assert kinds == ({"whole"} if name == "autocast" else {"direct"}), name


def test_a_direct_program_runs_with_torch_alone(artifacts: dict[str, Any], tmp_path: Path) -> None:
    folder = h.materialise(artifacts["from 2"][1], tmp_path / "artifact")
    h.call_with_torch_alone(folder)


def test_done_says_how_to_call(artifacts: dict[str, Any]) -> None:
    assert artifacts["from 2"][0]["returns_tuple"] is True and artifacts["from 2"][0]["n_arguments"] == 3
    assert artifacts["offset"][0]["returns_tuple"] is False
    assert artifacts["static"][0]["n_arguments"] == 2


def test_timings_add_up(artifacts: dict[str, Any]) -> None:
    timings = artifacts["from 1"][0]["timings"]
    assert [phase["phase"] for phase in timings["phases"]] == ["rebuild", "compile", "prove", "pack", "verify"]
    assert sum(phase["seconds"] for phase in timings["phases"]) <= timings["total_s"]
    assert timings["cpu_s"] > 0


def test_the_same_job_gives_the_same_bytes(executor: h.Executor, artifacts: dict[str, Any]) -> None:
    for name in ("from 1", "mutation"):
        graph, request = REQUESTS[name]
        assert executor.compile(graph, **request)[2] == artifacts[name][1]


def test_another_process_gives_the_same_bytes(artifacts: dict[str, Any], tmp_path: Path) -> None:
    graph, request = REQUESTS["from 1"]
    with h.Executor({"TMPDIR": str(tmp_path), "PYTHONHASHSEED": "7"}) as other:
        other.hello()
        blob = other.compile(graph, **request)[2]
    assert blob == artifacts["from 1"][1]
    assert str(tmp_path).encode() not in blob


def test_phases_are_announced(executor: h.Executor) -> None:
    executor.compile(LINEAR, range=[2, 16], **DYNAMIC, options={"inductor": {"no_such_option": {"int": 1}}})
    assert executor.phases == ["rebuild", "compile"]


REFUSED = {
    "unknown option": (LINEAR, {"options": {"inductor": {"no_such_option": {"int": 1}}}}, "no option 'no_such_option'"),
    "reserved option": (LINEAR, {"options": {"inductor": {"cpp.cxx": {"str": "/bin/sh"}}}}, "executor's own"),
    "wrong type": (LINEAR, {"options": {"inductor": {"max_autotune": {"int": 1}}}}, "is a bool"),
    "foreign device": (LINEAR, {"device": {"type": "cpu", "name": "pdp11", "capability": ""}}, "pdp11"),
    "foreign format": (LINEAR, {"format": "onnx"}, "makes 'inductor' and 'aoti'"),
    "dispatch argument": (LINEAR, {"dispatch_argument": 1}, "dispatch argument 1"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_this_executor_cannot_do_is_refused(executor: h.Executor, case: str) -> None:
    graph, request, text = REFUSED[case]
    message, fields, _ = executor.compile(graph, **{"range": [2, 16], **DYNAMIC, **request})
    assert (message, fields["reason"]) == ("failed", "UNSUPPORTED")
    assert text in fields["message"]


@pytest.mark.parametrize(
    "target",
    [
        "torch.load",
        "os.system",
        "builtins.eval",
        "torch.ops.load_library",
        "torch.ops.aten.from_file",
        "torch.hub.load",
    ],
)
def test_a_function_outside_the_allow_list_is_refused(executor: h.Executor, target: str) -> None:
    graph = {"nodes": [h.function_node("bad", target, {"str": "/etc/passwd"}), h.output_node(h.ref("bad"))]}
    message, fields, _ = executor.compile(graph)
    assert (message, fields["reason"]) == ("failed", "UNSUPPORTED")
    assert f"node bad: the function {target} is not in the allow-list" in fields["message"]


def test_an_attribute_outside_the_allow_list_is_refused(executor: h.Executor) -> None:
    bad = h.function_node("bad", "builtins.getattr", h.ref("x"), {"str": "__class__"})
    graph = {"nodes": [h.tensor_input("x", [h.number(4)], [h.number(1)]), bad, h.output_node(h.ref("bad"))]}
    assert "only tensor attributes" in executor.compile(graph)[1]["message"]
    method = h.method_node("bad", "__reduce_ex__", h.ref("x"), {"int": 2})
    graph["nodes"][1] = method
    assert "__reduce_ex__ is not in the allow-list" in executor.compile(graph)[1]["message"]


def test_a_compile_error_names_the_node_and_leaves_the_executor_usable(executor: h.Executor) -> None:
    wrong = h.function_node("mm", "torch.matmul", h.ref("w"), h.ref("w"))
    graph = {**LINEAR, "nodes": [*LINEAR["nodes"][:4], wrong, *LINEAR["nodes"][5:]]}
    message, fields, _ = executor.compile(graph, range=[2, 16], **DYNAMIC)
    assert (message, fields["reason"]) == ("failed", "COMPILE_ERROR")
    assert "node mm (torch.matmul): RuntimeError: a and b must have same reduction dim" in fields["message"]
    assert executor.compile(CONSTANT)[0] == "done"


def test_end_of_input_ends_the_executor_in_the_middle_of_a_compile() -> None:
    with h.Executor() as process:
        process.hello()
        process.send(
            "compile", job=1, graph=LINEAR, range=[2, 16], dispatch_argument=0, hint=None, options={},
            format="inductor", device=h.cpu_device(),
        )  # fmt: skip
        while process.receive()[1].get("phase") != "compile":
            pass
        process.stdin.close()
        assert process.process.wait(timeout=60) == -9


def test_an_interpreter_without_torch_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('no torch here')")
    path = f"{tmp_path}:{h.EXECUTOR_SOURCE}"
    with h.Executor({"PYTHONPATH": path}) as process:
        process.send("hello", protocol=4)
        name, fields, _ = process.receive()
    assert name == "unusable"
    assert "cannot import torch (no torch here)" in fields["reason"] and "--python" in fields["reason"]
