"""Ranks share what is equal; what is not is compiled for each, and the node that differs is named."""

from __future__ import annotations

import re

from conftest import Daemon, Workers, assert_same, model

SIZES = [64, 4, 1]


def rank(number: int) -> dict[str, object]:
    """The task of a rank."""
    return model("Model", SIZES, module="rank_model", rank=number)


def test_the_part_of_the_vocabulary_is_compiled_for_each_rank_and_nothing_else(
    daemon: Daemon, workers: Workers
) -> None:
    stock = [workers.start(rank(number)) for number in range(2)]
    ranks = [workers.start(rank(number), endpoint=daemon.endpoint) for number in range(2)]
    expected = [worker.result() for worker in stock]
    found = [worker.result() for worker in ranks]
    for ours, theirs in zip(found, expected, strict=True):
        assert_same(ours, theirs)
    records = [result["stats"]["parts"][0] for result in found]
    # Three pieces, for two ranges and one size; the first is the rank's own.
    assert [record["n_distinct"] for record in records] == [3, 3]
    assert all(record["n_local"] == 0 for record in records)
    assert sum(record["n_compiled"] for record in records) == 2 * 3 + 2 * 3
    assert sum(record["n_joined"] + record["n_from_store"] for record in records) == 2 * 3
    lines = [line for result in found for line in result["log"].splitlines()]
    said = [line for line in lines if "backbone/0 is not the same as that of" in line]
    assert any(re.search(r"node ge\b.*\b_operator\.ge\b.*\b100\b", line) for line in said), said
