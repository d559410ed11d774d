"""vLLM's whole pipeline with its pieces compiled by the daemon, against the same pipeline with vLLM's own compiler."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import Daemon, Workers, assert_same, model

# Three pieces, of which two are a layer's and alike; two ranges and a size.
BACKBONE = model("Model", [64, 2, 1, 4, 16, 17], n_layers=3)
ENCODER = model("Encoder", [40, 3, 3000], hidden=48)


@pytest.fixture(scope="module")
def first(daemon: Daemon, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What stock vLLM gives, and what the first worker of a daemon."""
    workers = Workers(tmp_path_factory.mktemp("first"))
    stock = workers.start(BACKBONE, ENCODER)
    ours = workers.start(BACKBONE, ENCODER, endpoint=daemon.endpoint)
    yield stock.result(), ours.result()
    workers.end()


def test_results_equal_those_of_vllms_own_compiler(first: Any) -> None:
    stock, ours = first
    assert stock["stats"]["parts"] == []
    assert_same(ours, stock)


def test_every_piece_and_range_is_the_daemons(first: Any) -> None:
    _, ours = first
    backbone, encoder = ours["stats"]["parts"]
    expected = {
        "n_pieces": 4,
        "n_distinct": 3,
        "n_ranges": 3,
        "n_compiled": 9,
        "n_joined": 0,
        "n_from_store": 0,
        "n_local": 0,
    }
    assert {name: backbone[name] for name in expected} == expected
    assert (encoder["n_pieces"], encoder["n_distinct"], encoder["n_compiled"], encoder["n_local"]) == (2, 2, 6, 0)
    assert ours["stats"]["n_pieces"] == 4 * 3 + 2 * 3


def test_vllms_counters_tell_what_was_compiled_here(first: Any) -> None:
    stock, ours = first
    names = (
        "num_graphs_seen",
        "num_piecewise_capturable_graphs_seen",
        "num_backend_compilations",
        "num_aot_artifacts_saved",
    )
    assert [ours["counters"][name] for name in names] == [stock["counters"][name] for name in names]
    assert stock["counters"]["num_inductor_compiles"] == 4 * 3 + 2 * 3
    assert ours["counters"]["num_inductor_compiles"] == 0


def test_one_line_sums_a_part_up(first: Any) -> None:
    _, ours = first
    lines = [
        line for line in ours["log"].splitlines() if "piecewised: backbone: 4 pieces, 3 distinct, 3 ranges" in line
    ]
    assert len(lines) == 1
    assert "9 compiled for this process, 0 joined, 0 from the store, 0 already here, 0 local" in lines[0]


def test_a_start_with_empty_folders_needs_neither_dynamo_nor_a_compile(
    first: Any, daemon: Daemon, workers: Workers
) -> None:
    stock, ours = first
    assert ours["stats"]["snapshots"] == {"n_fetched": 0, "n_put": 2, "n_failed": 0}
    found = workers.start(BACKBONE, ENCODER, endpoint=daemon.endpoint).result()
    assert_same(found, stock)
    assert found["stats"]["snapshots"] == {"n_fetched": 2, "n_put": 0, "n_failed": 0}
    assert (found["counters"]["num_aot_compiles"], found["counters"]["num_aot_artifacts_loaded"]) == (0, 2)
    assert found["counters"]["num_inductor_compiles"] == 0
    backbone, encoder = found["stats"]["parts"]
    assert (backbone["n_from_store"], backbone["n_compiled"], backbone["n_joined"], backbone["n_local"]) == (9, 0, 0, 0)
    assert (encoder["n_from_store"], encoder["n_local"]) == (6, 0)
    assert backbone["saved_s"] > 0


def test_two_processes_at_once_cost_one_compile_of_each(first: Any, daemon: Daemon, workers: Workers) -> None:
    task = model("Model", [64, 1, 4], n_layers=2, hidden=24)
    both = [workers.start(task, endpoint=daemon.endpoint) for _ in range(2)]
    one, other = (worker.result() for worker in both)
    assert_same(one, other)
    records = [result["stats"]["parts"][0] for result in (one, other) if result["stats"]["parts"]]
    assert sum(record["n_compiled"] for record in records) == 9
    assert all(record["n_local"] == 0 for record in records)
    # The other one joined what was under way, or found it, or even vLLM's whole compile.
    assert all(record["n_compiled"] + record["n_joined"] + record["n_from_store"] == 9 for record in records)
    # The pieces of the first worker have the same labels, and other tensors.
    assert any("model/backbone/0 is not the same as that of" in result["log"] for result in (one, other))


def test_vllms_mega_artifact_holds_the_daemons_code(
    first: Any, daemon: Daemon, workers: Workers, tmp_path: Path
) -> None:
    stock, _ = first
    mega = {"VLLM_USE_MEGA_AOT_ARTIFACT": "1"}
    caches = tmp_path / "caches"
    saved = workers.start(BACKBONE, endpoint=daemon.endpoint, caches=caches, **mega).result()
    # The same code, under the same keys.
    assert saved["stats"]["parts"][0]["n_from_store"] == 9
    assert saved["counters"]["num_aot_artifacts_saved"] == 1
    assert saved["counters"]["num_compiled_artifacts_saved"] > 0
    loaded = workers.start(
        BACKBONE,
        endpoint=f"unix:{tmp_path}/nobody.sock",
        caches=caches,
        PIECEWISED_CACHE_DIR=str(tmp_path / "empty"),
        # An empty cache folder knows no daemon's key.
        PIECEWISED_TRUSTED_KEYS=daemon.public_key(),
        **mega,
    ).result()
    assert loaded["counters"]["num_aot_artifacts_loaded"] == 1
    assert loaded["counters"]["num_inductor_compiles"] == loaded["counters"]["num_backend_compilations"] == 0
    first_model = {**stock, "tensors": stock["tensors"][:1]}
    assert_same(saved, first_model)
    assert_same(loaded, first_model)


def test_layers_that_differ_in_their_names_alone_share_code(daemon: Daemon, workers: Workers) -> None:
    task = model("Model", [20, 1, 4], module="layer_model")
    stock = workers.start(task)
    found = workers.start(task, endpoint=daemon.endpoint).result()
    assert_same(found, stock.result())
    (record,) = found["stats"]["parts"]
    # A layer's piece, thrice, and the last.
    assert (record["n_pieces"], record["n_distinct"], record["n_local"]) == (4, 2, 0)
