"""AOTInductor packages from a real executor: what is in them, that they give what eager gives, and that loading them needs torch alone.

One executor makes everything once, and one fresh worker, which may start no process and has no compiler, calls all of it.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import executor_harness as h
import pytest
import test_executor as pieces
import test_executor_guards as guarded
import torch

N, M = h.symbol("s0"), h.symbol("s1")

# What is returned is a tensor, a size that is computed, one that is known, and the dispatched size itself; one integer input is no plain symbol.
NUMBERS: dict[str, Any] = {
    "nodes": [
        h.int_input("n", N),
        h.int_input("twice", h.call("mul", h.number(2), N)),
        h.tensor_input("x", [N, h.number(4)], [h.number(4), h.number(1)]),
        h.function_node("more", "_operator.add", h.ref("n"), {"int": 3}),
        h.function_node("y", "_operator.mul", h.ref("x"), h.ref("twice")),
        h.output_node({"tuple": [h.ref("y"), {"list": [h.ref("more"), {"int": 7}]}, h.ref("n")]}),
    ],
    "symbols": [{"name": "s0", "hint": 8, "min": 2}],
}

REQUESTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "from 2": (pieces.LINEAR, {"range": [2, 16], "dispatch_argument": 0}),
    "single": (pieces.LINEAR, {"range": [4, 4], "dispatch_argument": 0}),
    "from 1": (pieces.TRANSPOSED, {"range": [1, 16], "dispatch_argument": 0}),
    "offset single": (pieces.OFFSET, {"range": [5, 5], "dispatch_argument": 0}),
    "mutation": (pieces.MUTATION, {"range": [2, 16], "dispatch_argument": 0}),
    "alias": (pieces.ALIAS, {"range": [2, 16], "dispatch_argument": 0}),
    "autocast": (pieces.LINEAR, pieces.REQUESTS["autocast"][1]),
    "cond": (pieces.COND, {"range": [2, 16], "dispatch_argument": 0}),
    "static": (pieces.CONSTANT, {}),
    "numbers": (NUMBERS, {"range": [2, 16], "dispatch_argument": 0}),
    "guards": (guarded.FLAT, {"range": [2, 16], "hint": 8, "dispatch_argument": 0}),
    "generic": (
        pieces.LINEAR,
        {"range": [1, 64], "hint": 64, "dispatch_argument": 0, "options": {"specialisation": "generic"}},
    ),
}


def _numbers(n: int) -> tuple[list[Any], Any]:
    x = torch.randn(n, 4)
    return [n, 2 * n, x], (x * (2 * n), [n + 3, 7], n)


CALLS = [
    *(("from 2", pieces._linear, n) for n in (2, 3, 16)),
    ("single", pieces._linear, 4),
    *(("from 1", pieces._transposed, n) for n in (1, 2, 7, 16)),
    ("offset single", pieces._offset, 5),
    *(("mutation", pieces._mutation, n) for n in (2, 9)),
    *(("alias", pieces._alias, n) for n in (2, 16)),
    ("autocast", pieces._autocast, 3),
    *(("cond", pieces._cond, n) for n in (2, 5)),
    ("static", pieces._constant, 0),
    *(("numbers", _numbers, n) for n in (2, 11)),
    *(("generic", pieces._linear, n) for n in (1, 2, 64)),
]

Made = dict[str, tuple[dict[str, Any], bytes]]


@pytest.fixture(scope="module")
def made(executor: h.Executor) -> Made:
    """What came of each of REQUESTS: the fields of `done`, and the artifact."""
    artifacts = {}
    for name, (graph, request) in REQUESTS.items():
        message, fields, blob = executor.compile(graph, format="aoti", **request)
        assert message == "done", f"{name}: {fields}"
        artifacts[name] = fields, blob
    return artifacts


@pytest.fixture(scope="module")
def results(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Each of CALLS in a fresh worker: (name, size, expected, returned, arguments afterwards), and its traces."""
    folder: Path = tmp_path_factory.mktemp("packages")
    torch.manual_seed(0)
    folders = {name: h.materialise(blob, folder / name.replace(" ", "-")) for name, (_, blob) in made.items()}
    calls, expected = [], []
    for name, make, size in CALLS:
        args, want = make(size)
        calls.append((folders[name], h.entry_for(made[name][0], size), args))
        expected.append(want)
    returned, changed, written = h.call_in_worker(calls, folder / "worker")
    rows = [(name, n, want, *got) for (name, _, n), want, got in zip(CALLS, expected, returned, strict=True)]
    return rows, changed, written


def test_results_are_those_of_eager(results: Any) -> None:
    for name, size, want, got, _ in results[0]:
        torch.testing.assert_close(got, want, msg=lambda text, at=f"{name} at {size}": f"{at}: {text}")


def test_numbers_are_numbers(results: Any) -> None:
    returned = [got for name, _, _, got, _ in results[0] if name == "numbers"]
    assert [(type(got[1][0]), type(got[2])) for got in returned] == [(int, int)] * 2


def test_inputs_are_changed_in_place(results: Any) -> None:
    after = [args for name, _, _, _, args in results[0] if name == "mutation"]
    assert after and all(x[0, 0] == 7.0 for _, x in after)


def test_a_load_leaves_no_trace(results: Any) -> None:
    _, changed, written = results
    assert changed == [] and written == []


def test_everything_was_verified(made: Made) -> None:
    for name, (fields, _) in made.items():
        verification = fields["verification"]
        assert (verification["outcome"], verification["checker"]) == ("passed", "executor"), (name, verification)
        assert fields["latencies"], name


def test_a_range_is_split_guarded_and_proven_as_in_the_other_format(executor: h.Executor, made: Made) -> None:
    assert [segment["range"] for segment in made["from 1"][0]["segments"]] == [[1, 1], [2, 16]]
    assert [segment["range"] for segment in made["static"][0]["segments"]] == [None]
    graph, request = REQUESTS["guards"]
    _, other, _ = executor.compile(graph, **request)
    fields = made["guards"][0]
    assert any(segment["guards"] for segment in fields["segments"])
    assert (fields["segments"], fields["guard_symbols"]) == (other["segments"], other["guard_symbols"])


def test_the_manifest_says_how_to_call_a_package(made: Made) -> None:
    manifest = h.manifest(made["from 2"][1])
    (entry,) = manifest["entries"]
    assert manifest["format"] == "aoti"
    assert (entry["kind"], entry["program"], entry["n_arguments"]) == ("package", "packages/e0.pt2", 3)
    assert (entry["arguments"], entry["operators"], entry["numbers"]) == ([1, 2], [], [])
    assert entry["symbols"] == [{"name": "s0", "argument": 1, "dimension": 0}]
    x, w = entry["inputs"]
    assert (x["argument"], x["dtype"], x["device"]) == (1, "float32", "cpu")
    assert (x["sizes"], x["strides"]) == ([N, h.number(4)], [h.number(4), h.number(1)])
    assert (w["argument"], w["sizes"]) == (2, [h.number(4), h.number(3)])
    # In a single size nothing is left open.
    (single,) = h.manifest(made["single"][1])["entries"]
    assert single["inputs"][0]["sizes"] == [h.number(4), h.number(4)] and single["symbols"] == []
    (numbers,) = h.manifest(made["numbers"][1])["entries"]
    assert (numbers["arguments"], numbers["numbers"]) == ([2], [1, 2])


def test_a_package_holds_no_path_of_this_machine(made: Made, executor: h.Executor) -> None:
    for name, (_, blob) in made.items():
        assert str(Path(torch.__file__).parent).encode() not in blob, name
        assert b"/tmp/" not in blob, name


def test_the_same_job_gives_the_same_bytes(executor: h.Executor, made: Made) -> None:
    graph, request = REQUESTS["mutation"]
    assert executor.compile(graph, format="aoti", **request)[2] == made["mutation"][1]


def test_another_process_gives_the_same_bytes(made: Made, tmp_path: Path) -> None:
    graph, request = REQUESTS["from 1"]
    # With precompiled headers, and whatever packages share, of its own.
    headers = tmp_path / "headers"
    with h.Executor(
        {"TMPDIR": str(tmp_path), "PYTHONHASHSEED": "7", "PIECEWISED_PRECOMPILED_HEADERS": str(headers)}
    ) as other:
        other.hello()
        blob = other.compile(graph, format="aoti", **request)[2]
    assert blob == made["from 1"][1]


def test_a_package_runs_with_torch_alone(made: Made, tmp_path: Path) -> None:
    folder = h.materialise(made["from 2"][1], tmp_path / "artifact")
    h.call_with_torch_alone(folder)


def test_threads_call_one_package_at_once(made: Made, tmp_path: Path) -> None:
    run = h.client_module("runtime.load").load_entry(h.materialise(made["from 2"][1], tmp_path), "e0")
    problems: list[BaseException] = []

    def work(seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        try:
            for n in range(2, 17):
                x, w = torch.randn(n, 4, generator=generator), torch.randn(4, 3, generator=generator)
                torch.testing.assert_close(run(n, x, w), (torch.relu(x) @ w + 1,))
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems, problems[0]


def test_what_is_no_tensor_is_an_error_and_no_crash(made: Made, tmp_path: Path) -> None:
    run = h.client_module("runtime.load").load_entry(h.materialise(made["from 2"][1], tmp_path), "e0")
    with pytest.raises((TypeError, RuntimeError, ValueError)):
        run(3, 5, torch.randn(4, 3))
    with pytest.raises(IndexError):
        run(3, torch.randn(3, 4))


def test_a_size_that_no_tensor_has_is_refused_by_its_name(executor: h.Executor) -> None:
    message, fields, _ = executor.compile(pieces.OFFSET, format="aoti", range=[1, 16], dispatch_argument=0)
    assert (message, fields["reason"]) == ("failed", "UNSUPPORTED")
    assert "the symbol s0" in fields["message"] and "'inductor'" in fields["message"]


def test_what_is_changed_in_place_is_named_and_written_back_where_it_is_not_aligned(made: Made) -> None:
    assert [h.manifest(made[name][1])["entries"][0]["mutated"] for name in ("mutation", "from 2")] == [[1], []]
    package = h.client_module("runtime.package")
    seen: list[int] = []

    def changes(n: int, x: torch.Tensor) -> torch.Tensor:
        seen.append(x.data_ptr() % 16)
        return x.add_(1)

    # Only GPUs need it: what stands around their calls is called here.
    run = package._realigning(changes, [1])
    for start in (0, 1):
        x = torch.zeros(4, 5)[:, start : start + 4]
        run(4, x)
        assert torch.equal(x, torch.ones(4, 4))
    assert seen == [0, 0]


def test_tuning_measures_packages(executor: h.Executor, tmp_path: Path) -> None:
    message, fields, blob = executor.compile(
        h.one_kernel(), format="aoti", range=[16, 16], hint=16, dispatch_argument=0, options={"tuning": "full"}
    )
    assert message == "done", fields
    candidates = fields["tuning"]["candidates"]
    assert len(candidates) > 1 and all(candidate["latencies"] for candidate in candidates if not candidate["failure"])
    run = h.client_module("runtime.load").load_entry(h.materialise(blob, tmp_path), h.entry_for(fields, 16))
    x = torch.randn(16, 64)
    torch.testing.assert_close(run(16, x), (x.exp(),))
