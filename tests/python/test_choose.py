"""Which candidate runs which sizes: the rules of `choose`, on times written by hand."""

from __future__ import annotations

import executor_harness  # noqa: F401  # puts the executor's source on the path
import pytest
from piecewised_executor.choose import CPU, GPU, Measured, choose

SIZES = (17, 32, 64, 128, 256)
WHOLE = (17, 256)


def _measured(*times: float, intervals: list[tuple[int, int]] | None = None) -> Measured:
    return Measured([WHOLE] if intervals is None else intervals, dict(zip(SIZES, times, strict=True)))


GENERIC = _measured(100, 100, 100, 100, 100)


@pytest.mark.parametrize(
    ("others", "parts"),
    [
        pytest.param([], [(WHOLE, 0)], id="nothing to choose from"),
        pytest.param([_measured(90, 90, 90, 90, 90)], [(WHOLE, 1)], id="better everywhere"),
        pytest.param([_measured(100.4, 100.4, 100, 99, 90)], [(WHOLE, 1)], id="within noise, and better"),
        pytest.param([_measured(50, 50, 50, 50, 102)], [((17, 128), 1), ((129, 256), 0)], id="slower at one end"),
        pytest.param(
            [_measured(120, 120, 96, 120, 120)], [((17, 63), 0), ((64, 64), 1), ((65, 256), 0)], id="hint only"
        ),
        # 1.5 % at one size is no reason for a program more.
        pytest.param([_measured(102, 102, 98.5, 102, 102)], [(WHOLE, 0)], id="a gain too small"),
        pytest.param(
            [_measured(80, 80, 90, 101.5, 130), _measured(130, 120, 90, 80, 80)],
            [((17, 63), 1), ((64, 256), 2)],
            id="the winner changes",
        ),
        # Either could run both sizes: the change is half way between them, by ratio.
        pytest.param(
            [_measured(50, 50, 100, 100, 100), _measured(100, 100, 50, 50, 50)],
            [((17, 45), 1), ((46, 256), 2)],
            id="the winner changes, and both may",
        ),
        # Neither may run both: what is between is left to the generic code.
        pytest.param(
            [_measured(50, 50, 140, 140, 140), _measured(140, 140, 50, 50, 50)],
            [((17, 32), 1), ((33, 63), 0), ((64, 256), 2)],
            id="the winner changes, and neither may",
        ),
        # As on an H200, of a piece with matrix products: code for tiles of 64 rows.
        pytest.param(
            [_measured(150.8, 100.1, 94.5, 134.0, 174.1)],
            [((17, 45), 0), ((46, 64), 1), ((65, 256), 0)],
            id="up to the last size that it may run",
        ),
        # Proven for a part only: it can't run the rest, however fast it is.
        pytest.param(
            [_measured(50, 50, 50, 50, 50, intervals=[(17, 100)])],
            [((17, 100), 1), ((101, 256), 0)],
            id="proven in part",
        ),
    ],
)
def test_parts(others: list[Measured], parts: list[tuple[tuple[int, int], int]]) -> None:
    assert choose([GENERIC, *others], WHOLE, GPU) == parts


def test_no_measured_size_gets_slower_than_generic() -> None:
    candidates = [GENERIC, _measured(60, 140, 60, 140, 60), _measured(140, 60, 140, 60, 140)]
    for part, chosen in choose(candidates, WHOLE, GPU):
        for size in SIZES:
            if part[0] <= size <= part[1]:
                assert candidates[chosen].times_us[size] <= 101


def test_what_the_generic_code_is_not_proven_for() -> None:
    generic = _measured(100, 100, 100, 100, 100, intervals=[(32, 256)])
    assert choose([generic, _measured(300, 110, 110, 110, 110)], WHOLE, GPU) == [((17, 31), 1), ((32, 256), 0)]
    assert choose([generic], WHOLE, GPU) == [((32, 256), 0)]
    assert choose([Measured([], {})], WHOLE, GPU) == []


def test_without_measurements_the_narrowed_code_is_taken() -> None:
    unmeasured = [Measured([WHOLE], {}), Measured([WHOLE], {}), Measured([WHOLE], {})]
    assert choose(unmeasured, WHOLE, GPU) == [(WHOLE, 1)]
    assert choose(unmeasured[:1], WHOLE, GPU) == [(WHOLE, 0)]


def test_on_a_cpu_less_is_believed() -> None:
    faster_by_chance = _measured(104, 96, 104, 96, 104)
    assert choose([GENERIC, faster_by_chance], WHOLE, CPU) == [(WHOLE, 0)]
    assert len(choose([GENERIC, faster_by_chance], WHOLE, GPU)) > 1
    assert choose([GENERIC, _measured(100, 100, 50, 50, 50)], WHOLE, CPU) == [(WHOLE, 1)]
