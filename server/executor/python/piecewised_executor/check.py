"""What the executor has tried in fresh processes: a finished artifact before it is released, and candidates for tuning."""

from __future__ import annotations

import io
import os
import tarfile
import tempfile
import time
from typing import Any

from . import inputs
from .trials import Nursery

Interval = tuple[int, int]

# A trial imports nothing and compiles nothing; what takes longer than this hangs.
_DEADLINE_S = 600.0
# What measuring one size of one artifact may take.
_MEASURE_S = 0.15
# Sizes beyond this are not run: what an encoder's last range allows is no size that any model sees.
_LARGEST_SIZE = 1 << 16


def sizes_to_check(segments: list[dict[str, Any]], hint: int | None) -> list[int | None]:
    """The range's ends and its hint, and for each segment at least one size; most important first."""
    spans: list[Interval] = [tuple(segment["range"]) for segment in segments if segment["range"] is not None]
    if not spans:
        return [None]
    low, high = min(span[0] for span in spans), min(max(span[1] for span in spans), _LARGEST_SIZE)
    wanted = [hint, low, max(high, low)] if hint is not None else [low, max(high, low)]
    sizes = [size for size in wanted if any(span[0] <= size <= span[1] for span in spans)]
    for span in spans:
        if not any(span[0] <= size <= span[1] for size in sizes):
            sizes.append(span[0])
    return list(dict.fromkeys(sizes))


def verify(
    nursery: Nursery,
    request: dict[str, Any],
    dispatched: str | None,
    artifact: bytes,
    segments: list[dict[str, Any]],
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The Verification of a finished container, and its latencies.

    Raises VerificationFailed where it does not load, crashes, or differs from eager.
    """
    started = time.monotonic()
    with materialised(artifact) as folder:
        result = _run(
            nursery,
            request,
            dispatched,
            [{"folder": folder, "segments": segments}],
            sizes_to_check(segments, request.get("hint")),
            compare=True,
            measure=True,
        )
    outcome = "passed" if result["is_comparable"] and result["checks"] else "not_comparable"
    verification = {
        "outcome": outcome,
        "sizes": result["checks"],
        "note": "; ".join(result["notes"]),
        "seconds": time.monotonic() - started,
    }
    return verification, result["latencies"][0]


def measure(
    nursery: Nursery,
    request: dict[str, Any],
    dispatched: str | None,
    candidates: list[tuple[bytes, list[dict[str, Any]]]],
    sizes: list[int | None],
) -> tuple[list[list[dict[str, Any]]], list[str]]:
    """The latencies of each candidate (container, segments) at those of `sizes` that it has and that fit; and notes."""
    with tempfile.TemporaryDirectory(prefix="piecewised-candidates-") as root:
        artifacts = []
        for i, (container, segments) in enumerate(candidates):
            folder = os.path.join(root, str(i))
            _unpack(container, folder)
            artifacts.append({"folder": folder, "segments": segments})
        result = _run(nursery, request, dispatched, artifacts, sizes, compare=False, measure=True)
    return result["latencies"], result["notes"]


class materialised(tempfile.TemporaryDirectory):  # type: ignore[type-arg]
    """A container laid out as a client does; the folder goes at the end."""

    def __init__(self, artifact: bytes) -> None:
        super().__init__(prefix="piecewised-artifact-")
        _unpack(artifact, self.name)


def _unpack(artifact: bytes, folder: str) -> None:
    # The container was made by this process a moment ago: no path in it is anybody else's.
    with tarfile.open(fileobj=io.BytesIO(artifact)) as tar:
        for member in tar:
            path = os.path.join(folder, member.name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            content = tar.extractfile(member)
            assert content is not None
            with open(path, "wb") as file:
                file.write(content.read())


def _run(
    nursery: Nursery,
    request: dict[str, Any],
    dispatched: str | None,
    artifacts: list[dict[str, Any]],
    sizes: list[int | None],
    *,
    compare: bool,
    measure: bool,
) -> dict[str, Any]:
    message = {
        "graph": request["graph"],
        "dispatched": dispatched,
        "device_type": request["device"]["type"],
        "torch": request.get("options", {}).get("torch", {}),
        "artifacts": artifacts,
        "sizes": sizes,
        "compare": compare,
        "measure": measure,
        "measure_s": _MEASURE_S,
    }
    bounds = list(inputs.INTEGER_BOUNDS)
    while True:
        result = nursery.run({**message, "integer_bounds": bounds}, _DEADLINE_S)
        if (refused := result.get("unusable_inputs")) is None:
            return result
        # What was made up broke the GPU's context there: a new process, with smaller integers.
        bounds.pop(0)
        if not bounds:
            return {
                "checks": [],
                "latencies": [[] for _ in artifacts],
                "notes": [refused],
                "is_comparable": False,
            }
