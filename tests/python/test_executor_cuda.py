"""Executors on a real GPU: forked ones compile for it, lease it, give its memory back, and survive its faults by ending.

All of it is skipped where there is no GPU. On a machine with one: `pytest tests/python/test_executor_cuda.py`.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import executor_harness as h
import pytest
import torch
from ready_daemon import HEADERS

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

N = h.symbol("s0")


def on_gpu(placeholder: dict[str, Any]) -> dict[str, Any]:
    placeholder["op"]["placeholder"]["value"]["tensor"]["device"] = {"type": "cuda"}
    return placeholder


def rows(name: str, width: int) -> dict[str, Any]:
    return on_gpu(h.tensor_input(name, [N, h.number(width)], [h.number(width), h.number(1)]))


def graph(*nodes: dict[str, Any]) -> dict[str, Any]:
    return {"nodes": [h.int_input("n", N), *nodes], "symbols": [{"name": "s0", "hint": 8, "min": 2}]}


def softmax(width: int) -> dict[str, Any]:
    y = h.function_node("y", "torch.softmax", h.ref("x"), {"int": -1})
    return graph(rows("x", width), y, h.output_node({"tuple": [h.ref("y")]}))


WEIGHT = on_gpu(h.tensor_input("w", [h.number(512), h.number(512)], [h.number(512), h.number(1)]))
LINEAR = graph(
    rows("x", 512),
    WEIGHT,
    h.function_node("mm", "torch.matmul", h.ref("x"), h.ref("w")),
    h.function_node("y", "torch.relu", h.ref("mm")),
    h.output_node({"tuple": [h.ref("y")]}),
)

# Rows far outside of the tensor, whatever the indices are: the kernel's own assertion fails on the GPU.
OUTSIDE: dict[str, Any] = {
    "nodes": [
        on_gpu(h.tensor_input("x", [h.number(64), h.number(8)], [h.number(8), h.number(1)])),
        on_gpu(h.tensor_input("i", [h.number(16)], [h.number(1)], dtype="int64")),
        h.function_node("far", "torch.add", h.ref("i"), {"int": 1_000_000}),
        h.function_node("taken", "torch.index_select", h.ref("x"), {"int": 0}, h.ref("far")),
        h.function_node("y", "torch.exp", h.ref("taken")),
        h.output_node({"tuple": [h.ref("y")]}),
    ]
}
JOB: dict[str, Any] = {"range": [2, 64], "dispatch_argument": 0, "hint": 16}


@pytest.fixture(scope="module")
def zygote() -> Iterator[h.Zygote]:
    with h.Zygote() as zygote:
        assert zygote.hello[0] == "ready" and zygote.hello[1]["refusal"] == "", zygote.hello
        zygote.warm()
        yield zygote


@pytest.fixture(scope="module")
def gpu(zygote: h.Zygote) -> dict[str, Any]:
    """The first GPU, as an executor that sees all of them reports it."""
    probe = zygote.fork()
    ready = probe.hello()
    probe.kill()
    assert ready["gpus"][0]["kind"] in ready["devices"]
    assert ready["gpus"][0]["memory_bytes"] == torch.cuda.get_device_properties(0).total_memory
    return ready["gpus"][0]


@pytest.fixture
def forked(zygote: h.Zygote, gpu: dict[str, Any]) -> Iterator[h.Forked]:
    """A forked executor that sees one GPU, by its name."""
    executor = zygote.fork({"CUDA_VISIBLE_DEVICES": gpu["uuid"]})
    executor.hello(is_known=True)
    yield executor
    executor.kill()


def has_gpu_open(pid: int) -> bool:
    links = (os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd"))
    return any(link.startswith("/dev/nvidia") for link in links)


def used_bytes(gpu: dict[str, Any]) -> int:
    """Of the GPU's memory, by anybody: what the driver says."""
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", f"--id={gpu['uuid']}"]
    return int(subprocess.run(query, check=True, capture_output=True, text=True).stdout) << 20


def test_the_zygote_is_warm_without_having_started_cuda(zygote: h.Zygote) -> None:
    assert not has_gpu_open(zygote.process.pid)
    assert zygote.ask("check", {}) == ("well", {"is_warm": True})


def test_a_forked_executor_starts_cuda_with_its_job_and_leases_the_gpu(
    forked: h.Forked, zygote: h.Zygote, gpu: dict[str, Any]
) -> None:
    assert not has_gpu_open(forked.pid)
    message, fields, blob = forked.compile(softmax(1024), **JOB, device=gpu["kind"])
    assert message == "done", fields
    assert fields["verification"]["outcome"] == "passed" and blob
    assert has_gpu_open(forked.pid) and not has_gpu_open(zygote.process.pid)
    # Settling and checking run kernels, latencies time them.
    assert {"shared", "exclusive"} == set(forked.leases)


def test_forked_and_started_executors_make_the_same_code(forked: h.Forked, gpu: dict[str, Any]) -> None:
    made = []
    with h.Executor({"CUDA_VISIBLE_DEVICES": gpu["uuid"]}) as fresh:
        fresh.hello()
        for process in (fresh, forked):
            message, fields, blob = process.compile(softmax(768), **JOB, device=gpu["kind"])
            assert message == "done", fields
            made.append(blob)
    # Which configuration of a kernel won is measured; everything else is the same.
    assert h.manifest(made[0]).keys() == h.manifest(made[1]).keys()


def test_autotuning_leases_what_is_timed_and_what_it_found_is_known_to_the_next_job(
    forked: h.Forked, gpu: dict[str, Any]
) -> None:
    h.forget_what_was_measured()
    options = {"inductor": {"max_autotune": {"bool": True}, "coordinate_descent_tuning": {"bool": True}}}

    def written() -> dict[Path, int]:
        """When each of what was measured was."""
        compiled = [forked.compile(of, **JOB, device=gpu["kind"], options=options) for of in (LINEAR, softmax(1024))]
        assert all(message == "done" for message, _, _ in compiled), compiled
        assert "exclusive" in forked.leases
        folders = ("candidates", "searches")
        paths = [path for folder in folders for path in (HEADERS / folder).glob("*") if not path.suffix]
        assert {path.parent.name for path in paths} == set(folders)
        return {path: path.stat().st_mtime_ns for path in paths}

    assert written() == written()
    message, fields, _ = forked.compile(LINEAR, **JOB, device=gpu["kind"], options={"tuning": "full"})
    assert message == "done" and len(fields["tuning"]["candidates"]) > 2, fields


def test_memory_goes_back_to_the_gpu_after_each_job_and_the_rest_with_the_executor(
    zygote: h.Zygote, gpu: dict[str, Any]
) -> None:
    before = used_bytes(gpu)
    executor = zygote.fork({"CUDA_VISIBLE_DEVICES": gpu["uuid"]})
    executor.hello(is_known=True)
    seen: list[int] = []
    executor.on_phase = lambda phase: seen.append(used_bytes(gpu))
    # One call at the hint takes 4 GiB: the tensor and its softmax.
    job = {"range": [2, 8192], "dispatch_argument": 0, "hint": 8192, "verify": False}
    message, fields, _ = executor.compile(softmax(65536), **job, device=gpu["kind"])
    assert message == "done", fields
    context = used_bytes(gpu) - before
    # The context and the code that was loaded into it, and nothing of 4 GiB.
    assert 0 < context < 2 << 30, context
    executor.kill()
    assert used_bytes(gpu) - before < 128 << 20


def test_a_fault_on_the_gpu_ends_the_executor_and_the_next_one_is_well(
    forked: h.Forked, zygote: h.Zygote, gpu: dict[str, Any]
) -> None:
    message, fields, _ = forked.compile(OUTSIDE, device=gpu["kind"])
    assert (message, fields["reason"]) == ("failed", "DEVICE_FAULT"), fields
    assert "device-side assert" in fields["message"], fields
    assert forked.ended() == 1
    other = zygote.fork({"CUDA_VISIBLE_DEVICES": gpu["uuid"]})
    other.hello(is_known=True)
    message, fields, _ = other.compile(softmax(1024), **JOB, device=gpu["kind"])
    assert message == "done", fields
    other.kill()
