"""AOTInductor packages on a real GPU: made, leased, run by the runner, loaded for a GPU, captured in a CUDA graph.

All of it is skipped where there is no GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import executor_harness as h
import pytest
import torch
from test_aoti_runner import RUNNER
from test_executor_cuda import JOB, LINEAR, graph, rows, softmax

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

IN_PLACE = graph(
    rows("x", 256),
    h.function_node("shifted", "_operator.iadd", h.ref("x"), {"float": "1.5"}),
    h.function_node("y", "torch.exp", h.ref("shifted")),
    h.output_node({"tuple": [h.ref("y")]}),
)


@pytest.fixture(scope="module")
def executor() -> Iterator[h.Executor]:
    with h.Executor() as process:
        process.ready = process.hello()
        yield process


def compiled(executor: h.Executor, of: dict[str, Any], **request: Any) -> tuple[dict[str, Any], bytes]:
    kind = executor.ready["gpus"][0]["kind"]
    message, fields, blob = executor.compile(of, format="aoti", device=kind, **{**JOB, **request})
    assert message == "done", fields
    assert fields["verification"]["outcome"] == "passed", fields["verification"]
    return fields, blob


def loaded(folder: Path, blob: bytes, fields: dict[str, Any], size: int, device_index: int = 0) -> Any:
    load_entry = h.client_module("runtime.load").load_entry
    return load_entry(h.materialise(blob, folder), h.entry_for(fields, size), device_index)


def test_packages_give_what_eager_gives(executor: h.Executor, tmp_path: Path) -> None:
    fields, blob = compiled(executor, LINEAR)
    assert {"shared", "exclusive"} == set(executor.leases)
    run = loaded(tmp_path, blob, fields, 16)
    w = torch.randn(512, 512, device="cuda")
    for n in (2, 16, 64):
        x = torch.randn(n, 512, device="cuda")
        torch.testing.assert_close(run(n, x, w), (torch.relu(x @ w),), rtol=1e-4, atol=1e-3)


def test_inputs_are_changed_in_place(executor: h.Executor, tmp_path: Path) -> None:
    fields, blob = compiled(executor, IN_PLACE)
    x = torch.randn(8, 256, device="cuda")
    want = x + 1.5
    (y,) = loaded(tmp_path, blob, fields, 8)(8, x)
    torch.testing.assert_close((x, y), (want, want.exp()))


def test_single_sizes_and_tuning(executor: h.Executor, tmp_path: Path) -> None:
    fields, blob = compiled(executor, softmax(1024), range=[16, 16], options={"tuning": "full"})
    x = torch.randn(16, 1024, device="cuda")
    torch.testing.assert_close(loaded(tmp_path, blob, fields, 16)(16, x), (x.softmax(-1),))


def test_calls_are_captured_in_a_cuda_graph(executor: h.Executor, tmp_path: Path) -> None:
    fields, blob = compiled(executor, LINEAR)
    run = loaded(tmp_path, blob, fields, 16)
    x, w = torch.randn(16, 512, device="cuda"), torch.randn(512, 512, device="cuda")
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        run(16, x, w)
    side.synchronize()
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        (y,) = run(16, x, w)
    x.copy_(torch.randn_like(x))
    captured.replay()
    torch.testing.assert_close(y, torch.relu(x @ w), rtol=1e-4, atol=1e-3)


def test_calls_run_on_the_current_stream(executor: h.Executor, tmp_path: Path) -> None:
    fields, blob = compiled(executor, IN_PLACE)
    run = loaded(tmp_path, blob, fields, 8)
    side = torch.cuda.Stream()
    x = torch.zeros(8, 256, device="cuda")
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        # What comes first on the stream has to have ended when the package runs.
        torch.cuda._sleep(100_000_000)
        x.fill_(1.0)
        (y,) = run(8, x)
    side.synchronize()
    torch.testing.assert_close(y, torch.full_like(y, 2.5).exp())


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_package_is_loaded_for_the_gpu_that_is_named(executor: h.Executor, tmp_path: Path) -> None:
    fields, blob = compiled(executor, LINEAR)
    run = loaded(tmp_path, blob, fields, 16, 1)
    x, w = torch.randn(16, 512, device="cuda:1"), torch.randn(512, 512, device="cuda:1")
    (y,) = run(16, x, w)
    assert y.device == torch.device("cuda:1")
    torch.testing.assert_close(y, torch.relu(x @ w), rtol=1e-4, atol=1e-3)


@pytest.mark.skipif(not RUNNER.exists(), reason=f"{RUNNER} is not built: make build-tch")
def test_the_runner_tries_packages_on_the_gpu(executor: h.Executor) -> None:
    fields, _ = compiled(executor, LINEAR, runner=str(RUNNER))
    verification = fields["verification"]
    assert (verification["checker"], verification["note"]) == ("runner", "")
    assert fields["latencies"] and "exclusive" in executor.leases
