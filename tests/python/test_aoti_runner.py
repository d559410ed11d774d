"""Packages that the project's runner tries before they are released, and what follows where it fails, hangs or is not there.

Runners that misbehave are small programs of the test's own; the one that behaves is the real one (PIECEWISED_TEST_RUNNER, else
target/debug/piecewised-runner).
"""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import executor_harness as h
import pytest
import test_aoti_executor as aoti
import test_executor as pieces
import torch
from piecewised_executor import by_runner, runner

RUNNER = Path(os.environ.get("PIECEWISED_TEST_RUNNER", h.ROOT / "target/debug/piecewised-runner"))
VERSION = json.dumps({"libtorch": str(torch.__version__).partition("+")[0], "cuda": False})

real = pytest.mark.skipif(not RUNNER.exists(), reason=f"{RUNNER} is not built: make build-tch")


def program(folder: Path, trying: str, version: str = VERSION) -> Path:
    """A runner that says that it is of this version, and does this when it is to try something ($2: the folder)."""
    folder.mkdir(exist_ok=True)
    path = folder / "runner"
    path.write_text(f"#!/bin/sh\nif [ \"$1\" = version ]; then echo '{version}'; exit 0; fi\n{trying}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def compiled(process: h.Executor, path: Path, name: str = "static") -> tuple[str, dict[str, Any], bytes]:
    graph, request = aoti.REQUESTS[name]
    return process.compile(graph, format="aoti", runner=str(path), **request)


@real
@pytest.mark.parametrize("name", ["from 1", "mutation", "numbers", "static"])
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


# One package, checked with one runner after the other, in one process that does for it what an executor does.

_CHECKS = """
import json, os, sys
sys.path.insert(0, sys.argv[1])
from piecewised_executor.probe import import_torch
import_torch()
from piecewised_executor.trials import Nursery
from piecewised_executor import check
from piecewised_executor.errors import JobError
nursery = Nursery((pipe := os.pipe())[0])
request, path, segments, runners = json.load(open(sys.argv[2]))
found = {}
for name, runner in runners.items():
    try:
        verification, _ = check.verify(nursery, {**request, "runner": runner}, None, open(path, "rb").read(), segments)
        found[name] = {"outcome": verification["outcome"], "checker": verification["checker"], "text": verification["note"]}
    except JobError as error:
        found[name] = {"outcome": error.reason, "checker": "", "text": str(error)}
print(json.dumps(found))
"""

# A runner that gives zeros, four of them, as the piece returns.
_ZEROS = {"file": "zeros.bin", "dtype": "float32", "sizes": [4], "strides": [1], "device": "cpu"}
_WRONG = json.dumps(
    {"cases": [{"outputs": [_ZEROS], "inputs": [_ZEROS], "median_us": 1.0}], "libtorch": "", "load_s": 0}
)

# By name: what is done when it is to try something, and what its failure says.
FAILING: dict[str, tuple[str, list[str]]] = {
    "crash": ("echo 'in the middle of it' >&2; kill -SEGV $$", ["killed by SIGSEGV", "in the middle of it"]),
    "code": ("echo 'not mine' >&2; exit 3", ["exit code 3", "not mine"]),
    "error": (
        """echo '{"error": "there is no such kernel"}' > "$2/result.json"; exit 1""",
        ["there is no such kernel"],
    ),
    "nothing": ("""echo '{"cases": []}' > "$2/result.json" """, ["0 results for 1 cases"]),
    "silent": ("exit 0", ["exit code 0"]),
    "wrong": (
        f'head -c 16 /dev/zero > "$2/zeros.bin"; echo \'{_WRONG}\' > "$2/result.json"',
        ["is 0 where eager gives"],
    ),
}
# By name: the version that it says, what it does, and why it is of no use.
USELESS: dict[str, tuple[str, str, str]] = {
    "version": ('{"libtorch": "1.0.0", "cuda": false}', "", "is for libtorch 1.0.0"),
    "linking": ("error while loading shared libraries: libtorch.so", "", "does not start"),
    "memory": (VERSION, """echo '{"error": "CUDA out of memory"}' > "$2/result.json"; exit 1""", "ran out of memory"),
}


@pytest.fixture(scope="module")
def checked(executor: h.Executor, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """What came of the check with each runner, in this order."""
    folder = tmp_path_factory.mktemp("runners")
    _, fields, blob = executor.compile(pieces.CONSTANT, format="aoti")
    (folder / "artifact").write_bytes(blob)
    runners = {"absent": str(folder / "absent")}
    for name, (trying, _) in FAILING.items():
        runners[name] = str(program(folder / name, trying))
    for name, (version, trying, _) in USELESS.items():
        runners[name] = str(program(folder / name, trying, version))
    runners["killed"] = str(program(folder / "killed", "kill -KILL $$"))
    # The check goes on as if nothing had been.
    runners["afterwards"] = str(folder / "absent")
    request = {"graph": pieces.CONSTANT, "device": h.cpu_device(), "format": "aoti"}
    cases = folder / "cases.json"
    cases.write_text(json.dumps([request, str(folder / "artifact"), fields["segments"], runners]))
    command = [sys.executable, "-c", _CHECKS, str(h.EXECUTOR_SOURCE), str(cases)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found: dict[str, dict[str, str]] = json.loads(said.splitlines()[-1])
    return found


@pytest.mark.parametrize("name", FAILING)
def test_a_runner_that_fails_fails_that_artifact(checked: dict[str, dict[str, str]], name: str) -> None:
    assert checked[name]["outcome"] == "VERIFICATION_FAILED"
    assert all(word in checked[name]["text"] for word in FAILING[name][1]), checked[name]


@pytest.mark.parametrize(
    ("name", "words"), [("absent", "is not there"), *((name, found[2]) for name, found in USELESS.items())]
)
def test_where_the_runner_cannot_the_executor_checks_and_says_so(
    checked: dict[str, dict[str, str]], name: str, words: str
) -> None:
    assert (checked[name]["outcome"], checked[name]["checker"]) == ("passed", "executor")
    assert "without the runner" in checked[name]["text"] and words in checked[name]["text"]


def test_a_runner_that_somebody_killed_says_nothing_about_the_package(checked: dict[str, dict[str, str]]) -> None:
    assert checked["killed"]["outcome"] == "INTERRUPTED" and "SIGKILL" in checked["killed"]["text"]


def test_nothing_but_the_artifact_is_touched(checked: dict[str, dict[str, str]]) -> None:
    assert checked["afterwards"]["outcome"] == "passed"


def test_a_job_whose_runner_crashes_fails_and_the_next_does_not(executor: h.Executor, tmp_path: Path) -> None:
    message, fields, blob = compiled(executor, program(tmp_path, "kill -SEGV $$"))
    assert (message, fields["reason"], blob) == ("failed", "VERIFICATION_FAILED", b"")
    graph, request = aoti.REQUESTS["static"]
    assert executor.compile(graph, format="aoti", **request)[0] == "done"


def test_a_runner_is_for_packages_only(executor: h.Executor, tmp_path: Path) -> None:
    message, fields, _ = executor.compile(pieces.CONSTANT, runner=str(program(tmp_path, "exit 3")))
    assert (message, fields["verification"]["checker"], fields["verification"]["note"]) == ("done", "executor", "")


def test_a_runner_that_hangs_is_ended(tmp_path: Path) -> None:
    marker = tmp_path / "pid"
    path = program(tmp_path, f"echo $$ > {marker}; exec sleep 600")
    found = runner.run(str(path), str(tmp_path), "cpu", deadline_s=1.0)
    assert "did not end within 1 s" in found["failed"]
    assert not Path(f"/proc/{marker.read_text().strip()}").exists()


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
        described = files.write(i, tensor, 64)
        data = (tmp_path / described["file"]).read_bytes()
        flat = torch.frombuffer(bytearray(data), dtype=tensor.dtype) if data else torch.empty(0, dtype=tensor.dtype)
        assert torch.equal(flat.as_strided(described["sizes"], described["strides"]), tensor)
        contiguous = tmp_path / f"out{i}.bin"
        contiguous.write_bytes(
            bytes(tensor.contiguous().view(torch.uint8).untyped_storage()) if tensor.numel() else b""
        )
        assert torch.equal(by_runner.read(str(tmp_path), {**described, "file": contiguous.name}), tensor)
    first = files.write(0, tensors[0], 64)
    assert files.write(0, base.as_strided((3, 4), (5, 1), 2), 64) is first, "the same input is one file"
    assert files.write(0, tensors[0], 2)["file"] != first["file"], "and another's values are another's"
