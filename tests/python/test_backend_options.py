"""What the user may write in ``options``, and what is said about what they may not."""

from __future__ import annotations

import pickle
from typing import Any

import piecewised
import pytest
from piecewised.options import parse


def test_everything_that_can_be_written() -> None:
    parsed = parse(
        {
            "compile_ranges": [[17, 128], (1, 16)],
            "compile_sizes": (4, 1),
            "endpoint": "unix:/x",
            "on_error": "raise",
            "progress": True,
            "budget_s": 5,
            "cache_dir": "/c",
            "max_autotune": True,
            "triton.cudagraphs": False,
            "a": None,
            "b": 3,
            "c": 0.5,
            "d": "x",
            "e": ["x", "y"],
        },
        {"max_autotune": False, "coordinate_descent_tuning": True},
    )
    assert parsed.ranges == [(17, 128), (1, 16)]
    assert parsed.sizes == [4, 1]
    assert (parsed.endpoint, parsed.on_error, parsed.progress, parsed.budget_s) == ("unix:/x", "raise", True, 5.0)
    assert parsed.cache_dir == "/c"
    assert parsed.inductor_values() == {
        "a": "none",
        "b": {"int": 3},
        "c": {"float": "0.5"},
        "coordinate_descent_tuning": {"bool": True},
        "d": {"str": "x"},
        "e": {"strs": ["x", "y"]},
        "max_autotune": {"bool": True},
        "triton.cudagraphs": {"bool": False},
    }


def test_defaults() -> None:
    parsed = parse({"compile_range_endpoints": [128, 16]})
    assert parsed.ranges == [(1, 16), (17, 128)]
    assert (parsed.endpoint, parsed.on_error, parsed.progress, parsed.budget_s) == (None, "local", None, None)
    assert parse({"compile_sizes": [1], "progress": "auto"}).progress is None


@pytest.mark.parametrize(
    ("options", "reason", "words"),
    [
        (None, "EMPTY_PLAN", "the plan is empty"),
        ({"compile_ranges": [], "compile_sizes": []}, "EMPTY_PLAN", "the plan is empty"),
        ({"compile_sizes": "cudagraph_capture_sizes"}, "BAD_SIZE", "only the caller knows"),
        ({"compile_sizes": ["cudagraph_capture_sizes"]}, "BAD_SIZE", "only the caller knows"),
        ({"compile_sizes": "8"}, "BAD_SIZE", "is a string"),
        ({"compile_sizes": ["8"]}, "BAD_SIZE", "is a string"),
        ({"compile_sizes": [True]}, "BAD_SIZE", "is a bool"),
        ({"compile_sizes": [1.0]}, "BAD_SIZE", "is a float"),
        ({"compile_sizes": [None]}, "BAD_SIZE", "is a NoneType"),
        ({"compile_sizes": 8}, "BAD_SIZE", "takes a list"),
        ({"compile_sizes": [0]}, "BAD_SIZE", "sizes start at 1"),
        ({"compile_sizes": [-1]}, "BAD_SIZE", "sizes start at 1"),
        ({"compile_sizes": [2**63]}, "BAD_SIZE", "does not fit"),
        ({"compile_ranges": [[1, 16], [16, 20]]}, "OVERLAPPING_RANGES", r"\[1, 16\] and \[16, 20\]"),
        ({"compile_ranges": [[16, 1]]}, "BAD_RANGE", r"\[16, 1\] is not a range"),
        ({"compile_ranges": [[0, 1]]}, "BAD_RANGE", r"\[0, 1\] is not a range"),
        ({"compile_ranges": [1, 16]}, "BAD_RANGE", "holds pairs"),
        ({"compile_ranges": [[1, 2, 3]]}, "BAD_RANGE", "holds pairs"),
        ({"compile_ranges": [[True, 3]]}, "BAD_RANGE", "is a bool"),
        ({"compile_ranges": "1-16"}, "BAD_RANGE", "is a string"),
        ({"compile_ranges": ["1-16"]}, "BAD_RANGE", "is a string"),
        ({"compile_range_endpoints": [0]}, "BAD_ENDPOINT", "start at 1"),
        ({"compile_range_endpoints": [8], "compile_ranges": [[1, 8]]}, "BAD_RANGE", "not both"),
    ],
)
def test_what_is_no_plan_is_refused_by_name(options: Any, reason: str, words: str) -> None:
    with pytest.raises(piecewised.PlanError, match=words) as raised:
        parse(options)
    assert raised.value.reason == reason


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("endpoint", 5, "takes a string"),
        ("on_error", "ignore", "'local', 'raise'"),
        ("progress", "yes", "True or False"),
        ("progress", 1, "True or False"),
        ("budget_s", 0, "above 0"),
        ("budget_s", float("nan"), "above 0"),
        ("budget_s", True, "above 0"),
        ("tuning", "best", "'fast', 'full', 'tiered'"),
        ("tuning", ["fast"], "'fast', 'full', 'tiered'"),
        ("specialisation", "none", "'range', 'generic'"),
        ("specialization", "range", "did you mean 'specialisation'"),
        ("swap", True, "'auto', 'never'"),
        ("compile_hints", [4], "takes a dict"),
        ("compile_hints", {"1-16": 4}, "is not the name of a range"),
        ("compile_hints", {7: 4}, "is no range"),
        ("compile_hints", {"[1, 16]": 4}, r"none of the plan's entries, \[1, 1\]"),
        ("compile_hints", {"[1, 1]": 2}, "one of its sizes"),
        ("compile_hints", {(1, 1): True}, "one of its sizes"),
        ("max_autotune", object(), "can't be sent"),
        ("max_autotune", [1], "can't be sent"),
        ("max_autotune", 2**63, "can't be sent"),
        ("compile_range", [[1, 2]], "did you mean 'compile_ranges'"),
        ("compile_ranges_endpoints", [2], "did you mean 'compile_range_endpoints'"),
        ("compile_size", [2], "did you mean 'compile_sizes'"),
    ],
)
def test_options_that_are_not_possible(option: str, value: Any, words: str) -> None:
    with pytest.raises(piecewised.OptionError, match=words) as raised:
        parse({"compile_sizes": [1], option: value})
    assert raised.value.metadata["option"] == option


def test_how_ranges_are_compiled() -> None:
    plan = {"compile_range_endpoints": [16, 64], "compile_sizes": [4]}
    chosen = parse(
        {**plan, "tuning": "tiered", "specialisation": "generic", "compile_hints": {"[1, 16]": 2, (17, 64): 60}}
    ).choices
    assert (chosen.tuning, chosen.specialisation, chosen.swap) == ("tiered", "generic", "auto")
    assert chosen.hints_for([(17, 64), (4, 4), (1, 16)]) == [60, 0, 2]
    # Tiered is how a request is answered; what it compiles is fast.
    assert chosen.in_options({"inductor": {}}) == {"inductor": {}, "specialisation": "generic", "tuning": "fast"}
    default = parse(plan).choices
    assert (default.tuning, default.specialisation, default.swap) == ("fast", "range", "auto")
    assert default.hints_for([(1, 16)]) == []


def test_errors_survive_pickling() -> None:
    with pytest.raises(piecewised.OptionError) as raised:
        parse({"compile_sizes": [1], "progress": "yes"})
    again = pickle.loads(pickle.dumps(raised.value))
    assert type(again) is piecewised.OptionError
    assert (str(again), again.reason, again.metadata) == (
        str(raised.value),
        raised.value.reason,
        raised.value.metadata,
    )
