"""A daemon that is killed leaves no process behind, and the next one removes what it left on disk."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from pathlib import Path

import conftest
import pytest
import torch
from processes import descendants, started_at, until

piecewised = pytest.importorskip("piecewised")


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
        until(lambda: len(descendants(daemon.process.pid)) >= 4, "a compiler runs")
        living = {pid: started_at(pid) for pid in descendants(daemon.process.pid)}
        assert living
        daemon.stop(signal.SIGKILL)
        until(
            lambda: not any(began is not None and started_at(pid) == began for pid, began in living.items()),
            "every process is gone",
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
