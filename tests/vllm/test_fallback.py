"""Never worse than without: what the daemon can't do, vLLM does as it always did, and says why."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

from conftest import Daemon, Workers, assert_same, model

# Two pieces, a range and a size.
N_COMPILES = 4


def small(**arguments: Any) -> dict[str, Any]:
    """A worker's task of that many compiles."""
    return {**model("Model", [20, 1, 4], n_layers=1, **arguments), "compilation": {"compile_ranges_endpoints": []}}


TASK = small()


def why(result: dict[str, Any]) -> list[str]:
    """The lines that say why something was compiled here."""
    return [line for line in result["log"].splitlines() if "compiles are vLLM's own" in line]


def test_a_daemon_that_is_away_costs_nothing(workers: Workers, tmp_path: Path) -> None:
    nobody = f"unix:{tmp_path}/nobody.sock"
    stock = workers.start(TASK)
    caches = tmp_path / "caches"
    found = workers.start(TASK, endpoint=nobody, caches=caches).result()
    assert_same(found, stock.result())
    (record,) = found["stats"]["parts"]
    assert (record["n_local"], record["local_reasons"]) == (N_COMPILES, {"UNREACHABLE": N_COMPILES})
    assert found["counters"]["num_inductor_compiles"] == N_COMPILES
    (line,) = why(found)
    assert f"{N_COMPILES} of {N_COMPILES} compiles" in line and "piecewised serve" in line
    # What was compiled here is in vLLM's own cache, so that a restart finds it.
    again = workers.start(TASK, endpoint=nobody, caches=caches).result()
    assert again["counters"]["num_inductor_compiles"] == 0
    assert_same(again, found)


def test_a_start_with_warm_folders_needs_no_daemon(daemon: Daemon, workers: Workers, tmp_path: Path) -> None:
    task, caches, nobody = small(hidden=44), tmp_path / "caches", f"unix:{tmp_path}/nobody.sock"
    first = workers.start(task, endpoint=daemon.endpoint, caches=caches).result()
    assert first["stats"]["parts"][0]["n_local"] == 0
    again = workers.start(task, endpoint=nobody, caches=caches).result()
    assert_same(again, first)
    (record,) = again["stats"]["parts"]
    assert (record["n_kept"], record["n_local"]) == (N_COMPILES, 0)
    assert again["counters"]["num_inductor_compiles"] == 0 and not why(again)
    # Without the artifacts what vLLM has noted of them is worth nothing, and no harm.
    third = workers.start(task, endpoint=nobody, caches=caches, PIECEWISED_CACHE_DIR=str(tmp_path / "empty")).result()
    assert_same(third, first)
    assert third["stats"]["parts"][0]["n_local"] == N_COMPILES
    # Nor for vLLM without the plugin.
    stock = workers.start(task, caches=caches).result()
    assert_same(stock, first)


def test_a_daemon_that_dies_in_the_middle_costs_seconds(workers: Workers, own_daemon: Any) -> None:
    daemon: Daemon = own_daemon("--n-executors", "1").start()
    task = small(hidden=40)
    worker = workers.start(task, endpoint=daemon.endpoint)
    deadline = time.monotonic() + 240
    # The first artifact is there, and others are under way or wait.
    while not list((daemon.folder / "store").rglob("artifacts/*/*")):
        assert time.monotonic() < deadline, daemon.words()
        assert worker.process.is_alive(), (worker.folder / "log").read_text()
        time.sleep(0.05)
    daemon.stop(signal.SIGKILL)
    found = worker.result()
    assert_same(found, workers.start(task).result())
    (record,) = found["stats"]["parts"]
    assert 0 < record["n_local"] <= N_COMPILES
    assert set(record["local_reasons"]) <= {"CONNECTION_BROKEN", "UNREACHABLE"}
    assert found["counters"]["num_inductor_compiles"] == record["n_local"]


def test_a_daemon_that_does_not_trust_the_worker_says_what_to_do(workers: Workers, own_daemon: Any) -> None:
    daemon: Daemon = own_daemon("--trusted-frontend-peers", "none").start()
    found = workers.start(TASK, endpoint=daemon.endpoint).result()
    (record,) = found["stats"]["parts"]
    assert record["local_reasons"] == {"FRONTEND_NOT_TRUSTED": N_COMPILES}
    (line,) = why(found)
    assert "trusted-frontend-peers" in line or "trusted_frontend_peers" in line


def test_a_daemon_that_is_too_slow_is_not_waited_for(workers: Workers, daemon: Daemon) -> None:
    task = small(hidden=56)
    found = workers.start(task, endpoint=daemon.endpoint, PIECEWISED_VLLM_BUDGET_S="0.001").result()
    (record,) = found["stats"]["parts"]
    assert record["local_reasons"] == {"BUDGET_SPENT": N_COMPILES}
    (line,) = why(found)
    assert "PIECEWISED_VLLM_BUDGET_S" in line


def test_a_worker_whose_compile_cache_is_off_does_not_ask(workers: Workers, daemon: Daemon) -> None:
    found = workers.start(TASK, endpoint=daemon.endpoint, VLLM_DISABLE_COMPILE_CACHE="1").result()
    (record,) = found["stats"]["parts"]
    assert record["local_reasons"] == {"NOT_WANTED": N_COMPILES}
    assert found["stats"]["snapshots"] == {"n_fetched": 0, "n_put": 0, "n_failed": 0}
