"""Real vLLM processes on the CPU, and a real daemon that compiles with the interpreter that runs pytest.

vLLM takes a dozen seconds to import, so workers are forked from a process that has done it (`parts/preloaded.py`).
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import multiprocessing
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import libcuda
import pytest

PARTS = Path(__file__).resolve().parent / "parts"
WORKER_DEADLINE_S = 900

sys.path.insert(0, str(PARTS))
sys.path.append(str(Path(__file__).resolve().parents[1] / "python"))

from ready_daemon import BINARY, Daemon  # noqa: E402 - found by the line above


@pytest.fixture(scope="session", autouse=True)
def _without_gpu(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Has this process, and those that it starts, find a libcuda."""
    spec = importlib.util.find_spec("vllm")
    assert spec is not None and spec.origin is not None, (
        "vLLM is missing: `make test-vllm` sets up an environment that has it"
    )
    folder = libcuda.build(tmp_path_factory.mktemp("libcuda"), Path(spec.origin).parent)
    before = os.environ.get("LD_LIBRARY_PATH")
    os.environ["LD_LIBRARY_PATH"] = str(folder) if not before else f"{folder}:{before}"
    ctypes.CDLL(str(folder / "libcuda.so.1"), mode=ctypes.RTLD_GLOBAL)
    for name in [name for name in os.environ if name.startswith(("PIECEWISED_", "VLLM_", "TORCHINDUCTOR_"))]:
        if not name.startswith("PIECEWISED_TEST_"):
            del os.environ[name]
    # No question about this machine goes out, and no model is looked for.
    os.environ.update(VLLM_NO_USAGE_STATS="1", HF_HUB_OFFLINE="1", VLLM_LOGGING_LEVEL="INFO")
    os.environ["PYTHONPATH"] = str(PARTS)


@pytest.fixture(scope="session")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon for all tests that don't disturb it."""
    assert BINARY.exists(), f"{BINARY} is missing: `make build`"
    daemon = Daemon(tmp_path_factory.mktemp("d")).start()
    yield daemon
    daemon.stop()


@pytest.fixture
def own_daemon(tmp_path: Path) -> Iterator[Any]:
    """Makes daemons for one test, not started: `own_daemon(*flags)`."""
    made: list[Daemon] = []

    def make(*flags: str) -> Daemon:
        folder = tmp_path / f"d{len(made)}"
        folder.mkdir()
        made.append(Daemon(folder, *flags))
        return made[-1]

    yield make
    for daemon in made:
        daemon.stop()


class Worker:
    """A vLLM process: see `parts/worker.py` for what `task` holds."""

    def __init__(self, context: Any, folder: Path, task: dict[str, Any]) -> None:
        import worker

        self.folder = folder
        folder.mkdir(parents=True)
        self.process = context.Process(target=worker.main, args=(task, str(folder)))
        self.process.start()

    def result(self) -> dict[str, Any]:
        """Waits for it: what it saw, with `tensors` and `log`."""
        import torch

        self.process.join(WORKER_DEADLINE_S)
        log = (self.folder / "log").read_text(errors="replace")
        assert self.process.exitcode == 0, f"exit code {self.process.exitcode}:\n{log[-8000:]}"
        result: dict[str, Any] = json.loads((self.folder / "result.json").read_text())
        return {**result, "log": log, "tensors": torch.load(self.folder / "tensors.pt")}

    def kill(self) -> None:
        """Ends it, whatever it does."""
        self.process.kill()
        self.process.join()


class Workers:
    """Starts workers, each with cache folders of its own unless told otherwise."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["preloaded"])
        self._workers: list[Worker] = []

    def start(
        self, *models: dict[str, Any], endpoint: str | None = None, caches: Path | None = None, **environment: str
    ) -> Worker:
        """A worker for models; without an endpoint it is stock vLLM. `caches`: of an earlier worker."""
        folder = self._folder / f"w{len(self._workers)}"
        caches = caches or folder / "caches"
        variables = {
            "VLLM_CACHE_ROOT": str(caches / "vllm"),
            "PIECEWISED_CACHE_DIR": str(caches / "piecewised"),
            **environment,
        }
        if endpoint is not None:
            variables["PIECEWISED_ENDPOINT"] = endpoint
        task = {"models": list(models), "environment": variables, "has_plugin": endpoint is not None}
        self._workers.append(Worker(self._context, folder, task))
        return self._workers[-1]

    def end(self) -> None:
        """Ends those that still run."""
        for worker in self._workers:
            worker.kill()


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[Workers]:
    """For one test."""
    made = Workers(tmp_path)
    yield made
    made.end()


def model(name: str, sizes: list[int], module: str = "toy_model", **arguments: Any) -> dict[str, Any]:
    """A worker's task: a model of `parts`, and the sizes that it is called with, one after the other."""
    return {"name": name, "module": module, "sizes": sizes, "arguments": arguments}


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Two workers' models gave the same values, bit for bit."""
    import torch

    assert len(found["tensors"]) == len(expected["tensors"])
    for ours, theirs in zip(found["tensors"], expected["tensors"], strict=True):
        assert ours.keys() == theirs.keys()
        for size, tensor in ours.items():
            assert torch.equal(tensor, theirs[size]), f"size {size}: off by {(tensor - theirs[size]).abs().max()}"
