"""No artifact leaves an executor that was not run as a worker runs it: in a fresh process, against eager.

Wrong artifacts are made for real: by a C++ compiler that miscompiles, and by changing what an executor made.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import executor_harness as h
import pytest
from processes import command_line, descendants

N = h.symbol("s0")


def _graph(*nodes: dict[str, Any]) -> dict[str, Any]:
    return {"nodes": list(nodes), "symbols": [{"name": "s0", "hint": 8, "min": 2}]}


def _rows(name: str, width: int, dtype: str = "float32") -> dict[str, Any]:
    return h.tensor_input(name, [N, h.number(width)], [h.number(width), h.number(1)], dtype=dtype)


def _unary(function: str, *more: Any) -> dict[str, Any]:
    return _graph(
        h.int_input("n", N),
        _rows("x", 4),
        h.function_node("y", function, h.ref("x"), *more),
        h.output_node({"tuple": [h.ref("y")]}),
    )


TANH = _unary("torch.tanh")
RANDOM = _unary("torch.rand_like")

# Rows of a table by index: made-up indices have to be in range.
GATHER = _graph(
    h.int_input("n", N),
    h.tensor_input("i", [N], [h.number(1)], dtype="int64"),
    h.tensor_input("t", [h.number(3), h.number(4)], [h.number(4), h.number(1)]),
    h.method_node("rows", "index_select", h.ref("t"), {"int": 0}, h.ref("i")),
    h.output_node({"tuple": [h.ref("rows")]}),
)

# Adds to its input in place.
IN_PLACE = _graph(
    h.int_input("n", N),
    _rows("x", 4),
    h.function_node("sum", "_operator.iadd", h.ref("x"), {"float": "1.5"}),
    h.output_node({"tuple": [h.ref("n")]}),
)

DYNAMIC = {"dispatch_argument": 0, "range": [2, 16], "hint": 8}


@pytest.fixture(scope="module")
def executor() -> Any:
    with h.Executor() as process:
        process.hello()
        yield process


def test_ends_hint_and_errors_are_in_the_handle(executor: h.Executor) -> None:
    message, fields, _ = executor.compile(TANH, **DYNAMIC)
    assert message == "done", fields
    verification = fields["verification"]
    assert verification["outcome"] == "passed"
    assert [checked["size"] for checked in verification["sizes"]] == [8, 2, 16]
    assert all(checked["max_relative_error"] <= checked["tolerance"] == 1e-4 for checked in verification["sizes"])
    assert verification["seconds"] > 0
    assert sorted(latency["size"] for latency in fields["latencies"]) == [2, 8, 16]
    assert all(latency["median_us"] > 0 for latency in fields["latencies"])
    assert executor.phases[-1] == "verify"


def test_every_segment_is_run(executor: h.Executor) -> None:
    transposed = _graph(
        h.int_input("n", N),
        h.tensor_input("x", [h.number(4), N], [h.number(1), h.number(4)]),
        h.method_node("flat", "contiguous", h.ref("x")),
        h.method_node("view", "view", h.ref("flat"), {"int": -1}),
        h.output_node({"tuple": [h.ref("view")]}),
    )
    _, fields, _ = executor.compile(transposed, dispatch_argument=0, range=[1, 16], hint=4)
    ran = {checked["entry"] for checked in fields["verification"]["sizes"]}
    assert len(fields["segments"]) == 2
    assert ran == {segment["entry"] for segment in fields["segments"]}


def test_without_being_asked_nothing_is_run(executor: h.Executor) -> None:
    _, fields, _ = executor.compile(TANH, verify=False, **DYNAMIC)
    assert fields["verification"]["outcome"] == "not_done"
    assert "verify" not in executor.phases


def test_what_draws_random_numbers_cannot_be_compared(executor: h.Executor) -> None:
    message, fields, _ = executor.compile(RANDOM, **DYNAMIC)
    assert message == "done", fields
    assert fields["verification"]["outcome"] == "not_comparable"
    assert "other values each time" in fields["verification"]["note"]


def test_indices_that_are_made_up_are_in_range(executor: h.Executor) -> None:
    _, fields, _ = executor.compile(GATHER, **DYNAMIC)
    assert fields["verification"]["outcome"] == "passed", fields["verification"]


def test_a_size_that_memory_does_not_hold_is_left_out(executor: h.Executor) -> None:
    wide = _graph(
        h.int_input("n", N),
        _rows("x", 1 << 24),
        h.function_node("y", "torch.sum", h.ref("x")),
        h.output_node({"tuple": [h.ref("y")]}),
    )
    message, fields, _ = executor.compile(wide, dispatch_argument=0, range=[2, 1 << 20], hint=2)
    assert message == "done", fields
    assert fields["verification"]["outcome"] == "passed"
    assert f"size {1 << 16}" in fields["verification"]["note"]


def test_a_compiler_that_miscompiles_is_found_out(tmp_path: Path) -> None:
    compiler = tmp_path / "g++"
    real = shutil.which(os.environ.get("CXX", "g++"))
    compiler.write_text(
        "#!/bin/sh\n"
        # The kernel's own source, and not torch's headers, says sinh where it was asked for tanh.
        'for a in "$@"; do case "$a" in *.main.cpp|*.cpp) sed -i "s/tanh/sinh/g" "$a" ;; esac; done\n'
        f'exec {real} "$@"\n'
    )
    compiler.chmod(compiler.stat().st_mode | stat.S_IXUSR)
    with h.Executor({"CXX": str(compiler), "PIECEWISED_PRECOMPILED_HEADERS": str(tmp_path / "headers")}) as process:
        process.hello()
        message, fields, blob = process.compile(TANH, **DYNAMIC)
        assert (message, fields["reason"], blob) == ("failed", "VERIFICATION_FAILED", b"")
        assert "output 0 at [" in fields["message"] and "where eager gives" in fields["message"], fields["message"]
        assert "at size 8" in fields["message"]
        # The executor is well: what it compiles rightly goes out.
        message, fields, _ = process.compile(_unary("torch.relu"), **DYNAMIC)
        assert (message, fields["verification"]["outcome"]) == ("done", "passed")


# Artifacts that were changed after an executor made them, tried in one fresh process.

_TRIALS = """
import json, os, sys, time
sys.path.insert(0, sys.argv[1])
from piecewised_executor.probe import import_torch
import_torch()
from piecewised_executor.trials import Nursery
from piecewised_executor import check
from piecewised_executor.errors import JobError
nursery = Nursery((pipe := os.pipe())[0])
request, cases = json.load(open(sys.argv[2]))
found = {}
for name, (path, segments, deadline_s) in cases.items():
    check._DEADLINE_S = deadline_s
    try:
        verification, _ = check.verify(nursery, request, "s0", open(path, "rb").read(), segments)
        found[name] = verification["outcome"]
    except JobError as error:
        found[name] = f"{error.reason}: {error}"
print(json.dumps(found))
"""


def _changed(container: bytes, member: str, change: Callable[[bytes], bytes]) -> bytes:
    """The container with another content of one member."""
    out = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(container)) as before, tarfile.open(fileobj=out, mode="w") as after:
        for info in before:
            content = before.extractfile(info).read()
            if info.name == member:
                content = change(content)
                info.size = len(content)
            after.addfile(info, io.BytesIO(content))
    return out.getvalue()


@pytest.fixture(scope="module")
def cases(executor: h.Executor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file: the request, and changed artifacts by what they do."""
    folder = tmp_path_factory.mktemp("trials")
    _, fields, container = executor.compile(IN_PLACE, **DYNAMIC)
    program = "programs/e0.py"

    def line_in_call(line: str) -> Callable[[bytes], bytes]:
        return lambda source: source.replace(
            b"        args.clear()\n", b"        args.clear()\n        " + line.encode() + b"\n"
        )

    changes: dict[str, Callable[[bytes], bytes]] = {
        "as it was": lambda source: source,
        "changes too much in place": line_in_call("arg1_1.add_(1)"),
        "crashes": line_in_call("import os; os.kill(os.getpid(), 11)"),
        "fails": line_in_call("raise ValueError('of the artifact')"),
        "hangs": line_in_call("import time; time.sleep(600)"),
        "starts a process": line_in_call("import subprocess; subprocess.run(['/bin/true'])"),
        "does not load": lambda source: b"import absent_module\n" + source,
        "returns another number of values": lambda source: source.replace(b"return (", b"return (1, "),
    }
    cases = {}
    for name, change in changes.items():
        path = folder / name.replace(" ", "_")
        path.write_bytes(_changed(container, program, change))
        cases[name] = (str(path), fields["segments"], 3.0 if name == "hangs" else 60.0)
    request = {"graph": IN_PLACE, "device": h.cpu_device(), "options": {}, "hint": 8}
    exchange = folder / "cases.json"
    exchange.write_text(json.dumps((request, cases)))
    return exchange


@pytest.fixture(scope="module")
def tried(cases: Path) -> dict[str, str]:
    """What came of each changed artifact."""
    done = subprocess.run(
        [sys.executable, "-c", _TRIALS, str(h.EXECUTOR_SOURCE), str(cases)],
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("as it was", ["passed"]),
        (
            "changes too much in place",
            ["VERIFICATION_FAILED", "the input 1, which is changed in place", "where eager gives"],
        ),
        ("crashes", ["VERIFICATION_FAILED", "was killed by SIGSEGV"]),
        ("fails", ["VERIFICATION_FAILED", "ValueError: of the artifact", "where eager does not"]),
        ("hangs", ["VERIFICATION_FAILED", "did not end within 3 s"]),
        ("starts a process", ["VERIFICATION_FAILED", "must not start a process"]),
        ("does not load", ["VERIFICATION_FAILED", "absent_module"]),
        ("returns another number of values", ["VERIFICATION_FAILED", "the compiled code gives"]),
    ],
)
def test_a_changed_artifact(tried: dict[str, str], name: str, words: list[str]) -> None:
    for word in words:
        assert word in tried[name], tried[name]


@pytest.mark.parametrize("phase", ["compile", "verify"])
def test_the_end_of_the_process_that_tries_artifacts_says_nothing_about_the_graph(phase: str) -> None:
    """Killed before it is asked, or while it is: the daemon is told to try elsewhere, not that the graph does not compile."""
    with h.Executor() as process:
        process.hello()
        (nursery,) = [pid for pid in descendants(process.process.pid) if "piecewised_executor" in command_line(pid)]

        def kill(entered: str) -> None:
            if entered == phase:
                os.kill(nursery, signal.SIGKILL)

        process.on_phase = kill
        message, fields, _ = process.compile(TANH, **DYNAMIC)
        assert (message, fields["reason"]) == ("failed", "INTERRUPTED"), fields
        assert process.ended() == 1


_PREPARED = """
import json, os, signal, sys
sys.path.insert(0, sys.argv[1])
from piecewised_executor.probe import import_torch
import_torch()
from piecewised_executor.trials import Nursery
from piecewised_executor import check
from piecewised_executor.errors import JobError
nursery = Nursery((pipe := os.pipe())[0])
children = f"/proc/{nursery.pid}/task/{nursery.pid}/children"
request, cases = json.load(open(sys.argv[2]))
found = []
def verify(name):
    path, segments, check._DEADLINE_S = cases[name]
    try:
        found.append(check.verify(nursery, request, "s0", open(path, "rb").read(), segments)[0]["outcome"])
    except JobError as error:
        found.append(f"{error.reason}: {error}")
def prepared():
    nursery.prepare("cpu")
    while not (pids := open(children).read().split()):
        pass
    return int(pids[0])
for name in ("as it was", "crashes", "hangs"):
    prepared()
    verify(name)
prepared()
nursery.drop()
assert open(children).read() == "", "what was dropped is there"
nursery.drop()
verify("as it was")
before = prepared()
assert prepared() == before, "two are prepared"
os.kill(before, signal.SIGKILL)
verify("as it was")
print(json.dumps(found))
"""


def test_a_trial_that_was_prepared_ends_as_others_do(cases: Path) -> None:
    command = [sys.executable, "-c", _PREPARED, str(h.EXECUTOR_SOURCE), str(cases)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    passed, crashed, hung, unprepared, killed = json.loads(done.stdout.splitlines()[-1])
    assert (passed, unprepared) == ("passed", "passed")
    assert "VERIFICATION_FAILED" in crashed and "was killed by SIGSEGV" in crashed
    assert "VERIFICATION_FAILED" in hung and "did not end within 3 s" in hung
    assert "INTERRUPTED" in killed, killed


def test_where_a_fork_cannot_use_the_gpu_each_trial_is_an_interpreter(executor: h.Executor, tmp_path: Path) -> None:
    """The way that is taken then, on the CPU: the nursery is told that it cannot fork."""
    _, fields, container = executor.compile(TANH, **DYNAMIC)
    artifact = tmp_path / "artifact"
    artifact.write_bytes(container)
    request = {"graph": TANH, "device": h.cpu_device(), "options": {}, "hint": 8}
    cases = {"fresh": (str(artifact), fields["segments"], 120.0)}
    exchange = tmp_path / "cases.json"
    exchange.write_text(json.dumps((request, cases)))
    script = _TRIALS.replace(
        "nursery = Nursery((pipe := os.pipe())[0])",
        "nursery = Nursery((pipe := os.pipe())[0]); nursery._can_fork = False",
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(h.EXECUTOR_SOURCE), str(exchange)],
        stdout=subprocess.PIPE,
        check=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(h.EXECUTOR_SOURCE)},
    )
    assert json.loads(done.stdout.splitlines()[-1]) == {"fresh": "passed"}
