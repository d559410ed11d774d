"""A daemon that is killed leaves no process behind, and the next one removes what it left on disk."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import conftest
import pytest
import torch

piecewised = pytest.importorskip("piecewised")


def descendants(root: int) -> set[int]:
    """Every living process below `root`, however deep."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if fields[0] != "Z":
                parents[int(entry.name)] = int(fields[1])
    found: set[int] = set()
    while more := {pid for pid, parent in parents.items() if parent in found | {root}} - found:
        found |= more
    return found


def started_at(pid: int) -> str | None:
    """When a living process was started: with its number, what tells it from a later one. None: it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]


def eventually(what: str, so: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not so():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.02)


def test_a_killed_daemon_leaves_no_process_and_its_folder_only_until_the_next_start(
    tmp_path: Path, cache_dir: Path
) -> None:
    temp = tmp_path / "temp"
    temp.mkdir()
    daemon = conftest.Daemon(tmp_path, "--temp-dir", str(temp))
    try:
        daemon.start()
        assert daemon.process is not None
        (folder,) = temp.iterdir()
        assert any(path.name.startswith("zygote-") for path in (folder / "executors").iterdir())
        compiling = threading.Thread(target=_compile, args=(daemon.endpoint,), daemon=True)
        compiling.start()
        # Something that compiles, beside the zygote and an executor with what its trials are forked from.
        eventually("a compiler runs", lambda: len(descendants(daemon.process.pid)) >= 4)
        living = {pid: started_at(pid) for pid in descendants(daemon.process.pid)}
        assert living
        daemon.stop(signal.SIGKILL)
        eventually(
            "every process is gone",
            lambda: not any(began is not None and started_at(pid) == began for pid, began in living.items()),
        )
        assert folder.exists()
        daemon.start()
        assert not folder.exists()
        assert len(list(temp.iterdir())) == 1
        daemon.stop()
        assert os.listdir(temp) == []
    finally:
        daemon.stop(signal.SIGKILL)
    compiling.join(timeout=60)


def _compile(endpoint: str) -> None:
    options = {"endpoint": endpoint, "on_error": "raise", "compile_ranges": [[2, 64]]}
    with contextlib.suppress(Exception):  # Its daemon is killed in the middle of it.
        torch.compile(lambda x: torch.exp(x) * 2, backend="piecewised", dynamic=True, options=options)(
            torch.randn(8, 4)
        )
