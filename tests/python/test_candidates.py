"""What `max_autotune` has measured, told from one executor to the next (`candidates`): matrix products on the CPU, where there are two candidates, torch's own and Inductor's."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import executor_harness as h
import pytest
from piecewised_executor import measured
from ready_daemon import HEADERS
from torch._inductor import codecache

FOLDER = HEADERS / "candidates"
OPTIONS = {"inductor": {"max_autotune": {"bool": True}}}


def graph(rows: int, then: str) -> dict[str, Any]:
    """A batch of products of (rows, 64) and (64, 32), and what is done with it."""
    sizes = [h.number(one) for one in (4, rows, 64)], [h.number(one) for one in (rows * 64, 64, 1)]
    weights = [h.number(one) for one in (4, 64, 32)], [h.number(one) for one in (64 * 32, 32, 1)]
    nodes = [
        h.tensor_input("x", *sizes),
        h.tensor_input("w", *weights),
        h.function_node("y", "torch.bmm", h.ref("x"), h.ref("w")),
        h.function_node("z", f"torch.{then}", h.ref("y")),
        h.output_node({"tuple": [h.ref("z")]}),
    ]
    return {"nodes": nodes, "symbols": []}


def is_torchs_own(executor: h.Executor, of: dict[str, Any]) -> bool:
    """Whether the product is torch's in what is compiled."""
    message, fields, blob = executor.compile(of, options=OPTIONS)
    assert message == "done", fields
    return b"extern_kernels.bmm" in blob


def entries() -> set[Path]:
    """Of all operations that were measured."""
    return {path for path in FOLDER.glob("*") if not path.suffix} if FOLDER.exists() else set()


def favour(entry: Path, name: str) -> None:
    """Has candidates whose name begins so be the fastest by far."""
    times = json.loads(entry.read_text())["found"]
    times = {candidate: 0.001 if candidate.startswith(name) else 1000.0 for candidate in times}
    beside = entry.with_suffix(".new")
    beside.write_text(json.dumps({"at": time.time(), "found": times}))
    beside.replace(entry)


@pytest.fixture(scope="module")
def executor() -> Iterator[h.Executor]:
    """One for all of these tests: starting one takes seconds."""
    with h.Executor() as started:
        started.hello()
        yield started


@pytest.fixture(scope="module")
def entry(executor: h.Executor) -> Path:
    """Of a product of 24 rows, which was measured once for all tests."""
    h.forget_what_was_measured()
    is_torchs_own(executor, graph(24, "exp"))
    (found,) = entries()
    assert len(json.loads(found.read_text())["found"]) == 2
    return found


def test_what_one_measured_decides_for_the_next(entry: Path) -> None:
    with h.Executor() as another:
        another.hello()
        for name, is_own in (("bmm", True), ("Cpp", False)):
            favour(entry, name)
            before = entry.read_bytes()
            assert is_torchs_own(another, graph(24, "sin")) == is_own
            assert entry.read_bytes() == before


def test_who_comes_second_waits_and_takes_what_was_measured(executor: h.Executor, entry: Path) -> None:
    favour(entry, "Cpp")
    measured = entry.read_bytes()
    entry.unlink()
    result: list[bool] = []
    with open(f"{entry}.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        thread = threading.Thread(target=lambda: result.append(is_torchs_own(executor, graph(24, "cos"))))
        thread.start()
        wait_until_it_waits(executor.process.pid, entry)
        assert thread.is_alive() and entries() == set()
        entry.with_suffix(".new").write_bytes(measured)
        entry.with_suffix(".new").replace(entry)
        thread.join()
    assert result == [False]


def test_where_who_measures_is_gone_the_next_measures(executor: h.Executor, entry: Path) -> None:
    entry.unlink(missing_ok=True)
    with open(f"{entry}.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        thread = threading.Thread(target=lambda: is_torchs_own(executor, graph(24, "tanh")))
        thread.start()
        wait_until_it_waits(executor.process.pid, entry)
        fcntl.flock(lock, fcntl.LOCK_UN)
        thread.join()
    assert len(json.loads(entry.read_text())["found"]) == 2


@pytest.mark.parametrize(
    "content",
    ["", "[]", "null", '{"found": 1}', '{"at": null, "found": 1}', '{"at": 0, "found": 1}', '{"at": 9e99, "found": 1}'],
)
def test_what_is_damaged_too_old_or_of_the_future_is_not_found(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(codecache, "_HEADER_DIR", str(tmp_path))
    entry = measured.Entry("tests", [content], on_gpu=False)
    entry.write([1])
    assert entry.found() == [1]
    entry.path.write_text(content)
    assert entry.found() is None


def test_where_nothing_can_be_kept_it_is_measured_all_the_same(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    # All else is known, or it would take g++ half a minute.
    for path in HEADERS.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / FOLDER.name).unlink(missing_ok=True)
    (tmp_path / FOLDER.name).touch()
    with h.Executor({"PIECEWISED_PRECOMPILED_HEADERS": str(tmp_path)}) as alone:
        alone.hello()
        is_torchs_own(alone, graph(24, "neg"))
    assert f"{tmp_path}/candidates" in capfd.readouterr().err


def wait_until_it_waits(pid: int, entry: Path) -> None:
    """Until the process has the file of the lock open."""
    wanted = f"{entry}.lock"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        for descriptor in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{pid}/fd/{descriptor}") == wanted:
                    return
        time.sleep(0.01)
    pytest.fail("it does not wait")
