"""What became of ranges that started with code that is not tuned.

The counters are the process's, and other tests ran in it: a test looks at what changed since it began.
"""

from __future__ import annotations

import time
from typing import Any

import piecewised


def tiered_since(before: dict[str, Any]) -> dict[str, int]:
    """What changed since ``before``, which is ``piecewised.stats()["tiered"]``."""
    after = piecewised.stats()["tiered"]
    names = ("n_waiting", "n_swapped", "n_kept", "n_failed")
    return {name: after[name] - before[name] for name in names if after[name] != before[name]}


def settled(before: dict[str, Any], seconds: float = 300) -> dict[str, int]:
    """What became of the ranges, once nothing is waited for any more."""
    deadline = time.monotonic() + seconds
    while "n_waiting" in (found := tiered_since(before)):
        assert time.monotonic() < deadline, piecewised.stats()["tiered"]
        time.sleep(0.05)
    return found
