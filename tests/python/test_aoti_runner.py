"""Packages that the project's runner tries before they are released, and what follows where it fails, hangs or is not there.

Runners that misbehave are small programs of the test's own; the one that behaves is the real one (PIECEWISED_TEST_RUNNER, else
target/debug/piecewised-runner).
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import executor_harness as h
import pytest
import test_aoti_executor as aoti
import test_executor as pieces
import torch
from piecewised_executor import by_runner, runner
from piecewised_executor.errors import Interrupted

RUNNER = Path(os.environ.get("PIECEWISED_TEST_RUNNER", h.ROOT / "target/debug/piecewised-runner"))
VERSION = json.dumps({"libtorch": str(torch.__version__).partition("+")[0], "cuda": False})

real = pytest.mark.skipif(not RUNNER.exists(), reason=f"{RUNNER} is not built: cargo build -p piecewised-runner")


def program(folder: Path, trying: str, version: str = VERSION) -> Path:
    """A runner that says that it is of this version, and does this when it is to try something ($2: the folder)."""
    path = folder / "runner"
    path.write_text(f"#!/bin/sh\nif [ \"$1\" = version ]; then echo '{version}'; exit 0; fi\n{trying}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def compiled(process: h.Executor, path: Path, name: str = "static") -> tuple[str, dict[str, Any], bytes]:
    graph, request = aoti.REQUESTS[name]
    return process.compile(graph, format="aoti", runner=str(path), **request)


@real
@pytest.mark.parametrize("name", ["from 1", "mutation", "alias", "numbers", "static", "guards"])
def test_the_runner_loads_runs_and_times_what_is_released(executor: h.Executor, name: str) -> None:
    message, fields, _ = compiled(executor, RUNNER, name)
    assert message == "done", fields
    verification = fields["verification"]
    assert (verification["outcome"], verification["checker"], verification["note"]) == ("passed", "runner", "")
    sizes = [checked["size"] for checked in verification["sizes"]]
    assert {latency["size"] for latency in fields["latencies"]} <= set(sizes)
    assert all(latency["median_us"] > 0 for latency in fields["latencies"]) and fields["latencies"]


@real
def test_both_checkers_release_the_same_bytes(executor: h.Executor) -> None:
    graph, request = aoti.REQUESTS["static"]
    assert compiled(executor, RUNNER)[2] == executor.compile(graph, format="aoti", **request)[2]


@pytest.mark.parametrize(
    ("trying", "words"),
    [
        ("echo 'in the middle of it' >&2; kill -SEGV $$", ["killed by SIGSEGV", "in the middle of it"]),
        ("echo 'not mine' >&2; exit 3", ["exit code 3", "not mine"]),
        ("""echo '{"error": "there is no such kernel"}' > "$2/result.json"; exit 1""", ["there is no such kernel"]),
        ("""echo '{"cases": []}' > "$2/result.json" """, ["0 results for 1 cases"]),
        ("exit 0", ["exit code 0"]),
    ],
    ids=["crash", "code", "error", "nothing", "silent"],
)
def test_a_runner_that_fails_fails_that_artifact_and_nothing_else(
    executor: h.Executor, tmp_path: Path, trying: str, words: list[str]
) -> None:
    message, fields, _ = compiled(executor, program(tmp_path, trying))
    assert (message, fields["reason"]) == ("failed", "VERIFICATION_FAILED")
    assert all(word in fields["message"] for word in words), fields["message"]


def test_after_a_runner_crashed_the_executor_goes_on(executor: h.Executor, tmp_path: Path) -> None:
    assert compiled(executor, program(tmp_path, "kill -SEGV $$"))[0] == "failed"
    graph, request = aoti.REQUESTS["static"]
    assert executor.compile(graph, format="aoti", **request)[0] == "done"


def test_wrong_values_are_found_with_both_of_them(executor: h.Executor, tmp_path: Path) -> None:
    # A runner that gives zeros, four of them, as this piece returns.
    tensor = {"file": "zeros.bin", "dtype": "float32", "sizes": [4], "strides": [1], "device": "cpu"}
    result = json.dumps(
        {"cases": [{"outputs": [tensor], "inputs": [tensor], "median_us": 1.0}], "libtorch": "", "load_s": 0}
    )
    path = program(tmp_path, f'head -c 16 /dev/zero > "$2/zeros.bin"; echo \'{result}\' > "$2/result.json"')
    message, fields, _ = compiled(executor, path)
    assert (message, fields["reason"]) == ("failed", "VERIFICATION_FAILED")
    assert "is 0 where eager gives" in fields["message"]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: folder / "absent", "is not there"),
        (lambda folder: program(folder, "", version='{"libtorch": "1.0.0", "cuda": false}'), "is for libtorch 1.0.0"),
        (
            lambda folder: program(folder, "", version="error while loading shared libraries: libtorch.so"),
            "does not start",
        ),
        (
            lambda folder: program(folder, """echo '{"error": "CUDA out of memory"}' > "$2/result.json"; exit 1"""),
            "ran out of memory",
        ),
    ],
    ids=["absent", "version", "linking", "memory"],
)
def test_where_the_runner_cannot_the_executor_checks_and_says_so(
    executor: h.Executor, tmp_path: Path, make: Any, words: str
) -> None:
    message, fields, _ = compiled(executor, make(tmp_path))
    assert message == "done", fields
    verification = fields["verification"]
    assert (verification["outcome"], verification["checker"]) == ("passed", "executor")
    assert "without the runner" in verification["note"] and words in verification["note"]


def test_a_runner_is_for_packages_only(executor: h.Executor, tmp_path: Path) -> None:
    message, fields, _ = executor.compile(pieces.CONSTANT, runner=str(program(tmp_path, "exit 3")))
    assert (message, fields["verification"]["checker"], fields["verification"]["note"]) == ("done", "executor", "")


def test_a_runner_that_hangs_is_ended(tmp_path: Path) -> None:
    marker = tmp_path / "pid"
    path = program(tmp_path, f"echo $$ > {marker}; exec sleep 600")
    found = runner.run(str(path), str(tmp_path), "cpu", deadline_s=1.0)
    assert "did not end within 1 s" in found["failed"]
    assert not Path(f"/proc/{marker.read_text().strip()}").exists()


def test_a_runner_that_somebody_killed_says_nothing_about_the_package(tmp_path: Path) -> None:
    with pytest.raises(Interrupted, match="SIGKILL"):
        runner.run(str(program(tmp_path, "kill -KILL $$")), str(tmp_path), "cpu")


def test_tensors_come_back_as_they_were_written(tmp_path: Path) -> None:
    files = by_runner.Files(str(tmp_path))
    base = torch.randn(60)
    tensors = [
        base.as_strided((3, 4), (5, 1), 2),
        torch.randn(3, 4).t(),
        torch.randn(2, 1, 3).to(torch.bfloat16).expand(2, 5, 3),
        torch.arange(5),
        torch.tensor(True),
        torch.empty(0, 4),
    ]
    for i, tensor in enumerate(tensors):
        described = files.write(i, tensor)
        data = (tmp_path / described["file"]).read_bytes()
        flat = torch.frombuffer(bytearray(data), dtype=tensor.dtype) if data else torch.empty(0, dtype=tensor.dtype)
        assert torch.equal(flat.as_strided(described["sizes"], described["strides"]), tensor)
        contiguous = tmp_path / f"out{i}.bin"
        contiguous.write_bytes(
            bytes(tensor.contiguous().view(torch.uint8).untyped_storage()) if tensor.numel() else b""
        )
        assert torch.equal(by_runner.read(str(tmp_path), {**described, "file": contiguous.name}), tensor)
    assert files.write(0, tensors[0]) is files.write(0, base.as_strided((3, 4), (5, 1), 2)), (
        "the same input is one file"
    )
