"""Compiled values against eager ones: what is close enough, by dtype, and what a mismatch says."""

from __future__ import annotations

from typing import Any

import executor_harness  # noqa: F401  # puts the executor's source on the path
import pytest
import torch
from piecewised_executor.compare import compare, flatten, is_as_near, tolerance


def _problem(ours: Any, theirs: Any, precision: str = "highest") -> str | None:
    return compare(["output 0"], [ours], [theirs], precision).problem


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_floats_may_be_off_by_their_tolerance_of_the_largest_magnitude(dtype: torch.dtype) -> None:
    theirs = torch.tensor([0.0, 1.0, -8.0], dtype=dtype)
    allowed = tolerance(dtype, "highest") * 8
    off = theirs.clone()
    off[0] = allowed / 2
    assert _problem(off, theirs) is None
    off[0] = allowed * 4
    assert "output 0 at [0] is" in str(_problem(off, theirs))


def test_both_values_and_the_extent_are_told() -> None:
    theirs = torch.arange(12.0).reshape(3, 4)
    ours = theirs.clone()
    ours[1, 2], ours[2, 3] = 16.5, -1.0
    result = compare(["output 0"], [ours], [theirs], "highest")
    assert result.problem == (
        "output 0 at [2, 3] is -1 where eager gives 11; 2 of 12 elements differ by more than 0.0001 of the largest "
        "magnitude, 11 (largest difference 12)"
    )
    assert (result.max_absolute_error, result.tolerance) == (12.0, 1e-4)


def test_tf32_products_have_room() -> None:
    theirs = torch.ones(4)
    assert _problem(theirs + 1e-3, theirs) is not None
    assert _problem(theirs + 1e-3, theirs, "high") is None


@pytest.mark.parametrize(
    ("ours", "theirs", "words"),
    [
        (torch.tensor([1, 2]), torch.tensor([1, 3]), "is 2 where eager gives 3; 1 of 2 elements differ"),
        (torch.tensor([True]), torch.tensor([False]), "is True where eager gives False"),
        (torch.zeros(2), torch.zeros(3), "has sizes (2,), and (3,) in eager"),
        (torch.zeros(2), torch.zeros(2, dtype=torch.float64), "has dtype torch.float32, and torch.float64 in eager"),
        (torch.tensor([float("nan")]), torch.tensor([1.0]), "is nan where eager gives 1"),
        (torch.tensor([1.0]), torch.tensor([float("inf")]), "is 1 where eager gives inf"),
        (torch.tensor([1 + 1j]), torch.tensor([1 - 1j]), "is (1+1j) where eager gives (1-1j)"),
        (3, 4, "is 3, and 4 in eager"),
        (None, torch.zeros(1), "is None, and tensor"),
    ],
)
def test_what_is_not_equal(ours: Any, theirs: Any, words: str) -> None:
    assert words in str(_problem(ours, theirs))


@pytest.mark.parametrize(
    "value",
    [
        torch.tensor([float("nan"), float("inf"), -float("inf"), 1.0]),
        torch.zeros(0),
        torch.zeros(3),
        torch.tensor([2**62 + 1]),
        "text",
        None,
    ],
)
def test_what_is_equal(value: Any) -> None:
    copy = value.clone() if isinstance(value, torch.Tensor) else value
    assert _problem(copy, value) is None


def test_quantised_values_may_be_off_by_one() -> None:
    theirs = torch.tensor([1, 5], dtype=torch.int8)
    assert _problem(theirs + 1, theirs) is None
    assert _problem(theirs + 2, theirs) is not None


def test_a_missing_value_is_a_problem() -> None:
    assert compare(["a", "b"], [1], [1, 2], "highest").problem == "the compiled code gives 1 values where eager gives 2"


def test_drift_of_half_precision_is_judged_against_a_reference() -> None:
    true = torch.full((64,), 100.0)
    eager = (true + 8).bfloat16()
    found = (true - 8).bfloat16()
    result = compare(["output 0"], [found], [eager], "highest")
    assert result.problem is not None
    # As far from the truth as eager, on the other side: no reason to distrust it.
    assert is_as_near([found], [eager], lambda: [true])
    # Much further than eager: one.
    assert not is_as_near([(true - 40).bfloat16()], [eager], lambda: [true])
    assert not is_as_near([found], [eager], lambda: None)
    # In single precision eager is witness enough.
    assert not is_as_near([found.float()], [eager.float()], lambda: [true])


def test_leaves() -> None:
    assert flatten({"a": (1, [2, None]), "b": 3}) == [1, 2, None, 3]
