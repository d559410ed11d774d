"""What can be seen on a GPU only: the executor's artifacts called in a worker without a compiler, and tuned code that comes around a capture.

Skipped where there is no GPU. The CPU's tests of the same rules are in test_executor, test_executor_guards and test_tiered.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import executor_harness as h
import piecewised
import pytest
import torch
from conftest import Daemon
from ready_daemon import BINARY, environment
from test_executor_guards import BY_EIGHT
from test_tiered import settled, tiered_since

DEVICE = "cuda"

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(scope="module")
def executor() -> Iterator[h.Executor]:
    with h.Executor() as process:
        process.ready = process.hello()
        yield process


def compiled(executor: h.Executor, graph: dict[str, Any], **request: Any) -> tuple[dict[str, Any], bytes]:
    """The fields of `done`, and the artifact."""
    device = next(kind for kind in executor.ready["devices"] if kind["type"] == DEVICE)
    message, fields, blob = executor.compile(graph, device=device, **request)
    assert message == "done", fields
    assert fields["verification"]["outcome"] == "passed" and not fields["verification"]["note"], fields["verification"]
    return fields, blob


def graph_of(function: Callable[..., Any], x: torch.Tensor, *others: torch.Tensor) -> tuple[dict[str, Any], list[str]]:
    """A function's graph, in which the first dimension of `x` is symbolic, and the names of its inputs in their order."""
    torch._dynamo.mark_dynamic(x, 0)
    gm, inputs = h.capture(function, x, *others)
    names = [node.target for node in gm.graph.find_nodes(op="placeholder")]
    return h.client_module("fxgraph").to_graph(gm, inputs), names


def arguments(names: list[str], x: torch.Tensor, **others: torch.Tensor) -> list[Any]:
    """What to call it with."""
    given = {"x": x, **others}
    return [given[name[2:-1]] if name.startswith(("l_", "L_")) else x.shape[0] for name in names]


def test_outputs_that_look_into_an_input_are_direct(executor: h.Executor, tmp_path: Path) -> None:
    def piece(x: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.relu(x) * w, x.view(-1, 2, 4), x[1:]

    w = torch.randn(8, device=DEVICE)
    graph, names = graph_of(piece, torch.randn(5, 8, device=DEVICE), w)
    at = next(i for i, name in enumerate(names) if not name.startswith(("l_", "L_")))
    fields, blob = compiled(executor, graph, range=[2, 64], hint=8, dispatch_argument=at)
    for entry in h.manifest(blob)["entries"]:
        assert entry["kind"] == "direct" and [output for output, _ in entry["views"]] == [1, 2]
    folder = h.materialise(blob, tmp_path)
    base = torch.randn(64 * 8 + 1, device=DEVICE)
    for n in (2, 5, 64):
        run = h.client_module("runtime.load").load_entry(folder, h.entry_for(fields, n))
        # The second one does not begin at a multiple of 16 bytes.
        for x in (base[: n * 8].view(n, 8), base[1 : n * 8 + 1].view(n, 8)):
            found, wanted = run(*arguments(names, x, w=w)), piece(x, w)
            torch.testing.assert_close(found, wanted)
            assert [view.data_ptr() for view in found[1:]] == [view.data_ptr() for view in wanted[1:]]


def test_a_whole_program_loads_without_a_compiler(executor: h.Executor, tmp_path: Path) -> None:
    def piece(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return torch.relu(x @ w) + 1

    w = torch.randn(16, 32, device=DEVICE)
    graph, names = graph_of(piece, torch.randn(5, 16, device=DEVICE), w)
    at = next(i for i, name in enumerate(names) if not name.startswith(("l_", "L_")))
    autocast = {"torch": {"autocast": [[DEVICE, "bfloat16"]]}}
    fields, blob = compiled(executor, graph, range=[2, 64], hint=8, dispatch_argument=at, options=autocast)
    assert {entry["kind"] for entry in h.manifest(blob)["entries"]} == {"whole"}
    folder = h.materialise(blob, tmp_path / "artifact")
    given = [torch.randn(n, 16, device=DEVICE) for n in (2, 5, 64)]
    calls = [(folder, h.entry_for(fields, x.shape[0]), arguments(names, x, w=w)) for x in given]
    results, _, _ = h.call_in_worker(calls, tmp_path)
    for x, ((returned,), _) in zip(given, results, strict=True):
        with torch.autocast(DEVICE, dtype=torch.bfloat16):
            expected = piece(x, w)
        assert returned.dtype == expected.dtype == torch.bfloat16
        torch.testing.assert_close(returned, expected)


def test_what_is_right_under_guards_is_verified_where_they_hold(executor: h.Executor, tmp_path: Path) -> None:
    graph = json.loads(json.dumps(BY_EIGHT).replace('{"type": "cpu"}', f'{{"type": "{DEVICE}", "index": 0}}'))
    fields, blob = compiled(executor, graph, range=[1, 4096], hint=64, dispatch_argument=0)
    guarded = [segment for segment in fields["segments"] if segment["guards"]]
    assert guarded and guarded[0]["range"][1] == 4096
    assert {checked["size"] % 8 for checked in fields["verification"]["sizes"]} == {0}
    folder = h.materialise(blob, tmp_path / "artifact")
    given = [torch.randn(n, device=DEVICE) for n in (8, 64, 4096)]
    calls = [(folder, h.entry_for(fields, x.shape[0]), [x.shape[0], x]) for x in given]
    results, _, _ = h.call_in_worker(calls, tmp_path)
    for x, ((returned,), _) in zip(given, results, strict=True):
        torch.testing.assert_close(returned, x.view(-1, 8).sum(1))


def test_a_kernel_of_many_operators_is_launched_by_torch(executor: h.Executor, tmp_path: Path) -> None:
    names = ["sin", "cos", "tanh", "sigmoid", "erf", "exp", "atan", "sinh", "cosh", "asinh", "expm1", "log1p", "rsqrt"]
    names += ["reciprocal", "square", "floor", "trunc", "ceil", "round", "frac", "sign", "neg", "relu", "sqrt", "log2"]
    names += ["log10", "exp2", "erfc", "acosh"]

    def piece(x: torch.Tensor) -> torch.Tensor:
        total = x
        for name in names:
            total = total + getattr(torch, name)(x)
        return total

    assert len("_".join(names)) > 150, "or Triton would not cut the name of the kernel's file"
    graph, inputs = graph_of(piece, torch.rand(5, 8, device=DEVICE) + 1)
    at = next(i for i, name in enumerate(inputs) if not name.startswith(("l_", "L_")))
    fields, blob = compiled(executor, graph, range=[2, 64], hint=8, dispatch_argument=at)
    folder = h.materialise(blob, tmp_path / "artifact")
    given = [torch.rand(n, 8, device=DEVICE) + 1 for n in (2, 5, 64)]
    calls = [(folder, h.entry_for(fields, x.shape[0]), arguments(inputs, x)) for x in given]
    for x, ((returned,), _) in zip(given, h.call_in_worker(calls, tmp_path)[0], strict=True):
        torch.testing.assert_close(returned, piece(x))


needs_two = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")


@needs_two
@pytest.mark.parametrize("kind", ["direct", "whole"])
def test_code_that_was_made_on_one_gpu_runs_on_both(tmp_path: Path, kind: str) -> None:
    def piece(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return torch.softmax(x @ w, -1) + 1

    w = torch.randn(16, 1024, device=DEVICE)
    graph, names = graph_of(piece, torch.randn(5, 16, device=DEVICE), w)
    at = next(i for i, name in enumerate(names) if not name.startswith(("l_", "L_")))
    options = {"torch": {"autocast": [[DEVICE, "bfloat16"]]}} if kind == "whole" else {}
    # The executor sees the first GPU alone.
    with h.Executor({"CUDA_VISIBLE_DEVICES": "0"}) as executor:
        executor.ready = executor.hello()
        fields, blob = compiled(executor, graph, range=[2, 64], hint=8, dispatch_argument=at, options=options)
    assert {entry["kind"] for entry in h.manifest(blob)["entries"]} == {kind}
    folder = h.materialise(blob, tmp_path)
    load_entry = h.client_module("runtime.load").load_entry
    # Both in turn, and back: neither may take the other's code, stream or device for its own.
    for index in (1, 0, 1):
        device = torch.device(DEVICE, index)
        x, its_w = torch.zeros(8, 16, device=device), w.to(device)
        run = load_entry(folder, h.entry_for(fields, 8), index)
        side = torch.cuda.Stream(device)
        with torch.inference_mode(), torch.cuda.device(device):
            # Once, so that what a first call waits for is behind it.
            run(*arguments(names, x, w=its_w))
        torch.cuda.synchronize(device)
        with torch.inference_mode(), torch.cuda.device(device), torch.cuda.stream(side):
            # What is before it on the stream has to have ended when the code runs.
            torch.cuda._sleep(1_000_000_000)
            x.fill_(index + 0.5)
            (found,) = run(*arguments(names, x, w=its_w))
            assert found.device == device
            assert not side.query(), "the call waited for the GPU, or ran on another stream than what it waits for"
        side.synchronize()
        with torch.inference_mode(), torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=kind == "whole"):
            torch.testing.assert_close(found, piece(x, its_w))
    assert torch.cuda.current_device() == 0


@needs_two
def test_a_worker_of_the_second_gpu_gets_what_was_compiled_for_the_first(daemon: Daemon, cache_dir: Path) -> None:
    def fn(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.silu(x * 13.25) + x

    options = {"compile_ranges": [[1, 16]], "endpoint": daemon.endpoint, "on_error": "raise"}
    before = keys(daemon)
    for index in (0, 1):
        torch._dynamo.reset()
        x = torch.randn(4, 8, device=f"{DEVICE}:{index}")
        torch._dynamo.mark_dynamic(x, 0)
        with torch.inference_mode():
            found = torch.compile(fn, backend="piecewised", options=options)(x)
        assert found.device == x.device
        torch.testing.assert_close(found, fn(x))
    assert len(keys(daemon) - before) == 1


def keys(daemon: Daemon) -> set[str]:
    """Of what the daemon has in its store."""
    command = [BINARY, "ls", "--json", "--endpoint", daemon.endpoint]
    listed = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, env=environment()).stdout)
    return {artifact["key"] for artifact in listed}


@pytest.mark.parametrize("is_captured", [False, True])
def test_a_capture_keeps_what_it_was_made_of(daemon: Daemon, cache_dir: Path, is_captured: bool) -> None:
    constant = 11.5 if is_captured else 12.5

    def fn(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.silu(x * constant) + x

    before = piecewised.stats()["tiered"]
    options = {"compile_ranges": [[1, 16]], "endpoint": daemon.endpoint, "on_error": "raise", "tuning": "tiered"}
    torch._dynamo.reset()
    x = torch.randn(4, 8, device=DEVICE)
    torch._dynamo.mark_dynamic(x, 0)
    graph = torch.cuda.CUDAGraph()

    def capture() -> torch.Tensor:
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            return run(x)

    with torch.inference_mode():
        run = torch.compile(fn, backend="piecewised", options=options)
        torch.testing.assert_close(run(x), fn(x))
        if is_captured:
            output = capture()
            # What was swapped by now was swapped before the capture; afterwards nothing is.
            n_swapped = tiered_since(before).get("n_swapped", 0)
            assert settled(before, 120) == ({"n_swapped": 1} if n_swapped else {"n_kept": 1})
        else:
            assert settled(before, 120) == {"n_swapped": 1}
            output = capture()
        for _ in range(2):
            x.normal_()
            graph.replay()
            torch.cuda.synchronize()
            torch.testing.assert_close(output, fn(x))
            torch.testing.assert_close(run(x), fn(x))
