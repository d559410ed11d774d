"""What the executor has tried in fresh processes: a finished artifact before it is released, and candidates for tuning."""

from __future__ import annotations

import io
import json
import os
import tarfile
import tempfile
import time
from typing import Any

from . import inputs, runner
from .points import Point, describe, points_to_check
from .trials import Nursery

# A trial imports nothing and compiles nothing; what takes longer than this hangs.
_DEADLINE_S = 600.0
# What measuring one size of one artifact may take, where it decides what is handed out, and where it is for people. On a GPU all wait for each other's.
_MEASURE_S = 0.15
_MEASURE_FOR_PEOPLE_S = {"cpu": 0.15, "cuda": 0.05}
# How many segments a note names.
_MAX_NAMED = 4


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
    with tempfile.TemporaryDirectory(prefix="piecewised-artifact-") as folder:
        _unpack(artifact, folder)
        path, why_not = _runner(request, folder)
        result = _run(
            nursery,
            request,
            dispatched,
            [{"folder": folder, "segments": segments}],
            points_to_check(request["graph"], dispatched, segments, request.get("hint")),
            compare=True,
            measure=True,
            runner_path=path,
        )
    notes = [*([why_not] if why_not else []), *result["notes"]]
    if result["is_comparable"] and (missed := [s for i, s in enumerate(segments) if i not in result["compared"]]):
        named = [describe(segment) for segment in missed[:_MAX_NAMED]]
        more = f" and {len(missed) - len(named)} more" if len(missed) > len(named) else ""
        notes.append(f"not compared, since no size that was run is one of its calls: {'; '.join(named)}{more}")
    outcome = "passed" if result["is_comparable"] and result["checks"] else "not_comparable"
    verification = {
        "outcome": outcome,
        "sizes": result["checks"],
        "note": "; ".join(notes),
        "seconds": time.monotonic() - started,
        "checker": result["checker"],
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
        points = [Point(size) for size in sizes]
        result = _run(nursery, request, dispatched, artifacts, points, compare=False, measure=True)
    return result["latencies"], result["notes"]


def _runner(request: dict[str, Any], folder: str) -> tuple[str | None, str]:
    """The runner that is to try the artifact in a folder, or None; and why one that is there is not used, as a note."""
    path = request.get("runner")
    if request.get("format") != "aoti" or not path:
        return None, ""
    with open(os.path.join(folder, "manifest.json"), encoding="utf-8") as file:
        operators = sorted({name for entry in json.load(file)["entries"] for name in entry["operators"]})
    if operators:
        return None, f"checked without the runner, which does not have the operators {', '.join(operators)}"
    if reason := runner.why_not(path, request["device"]["type"]):
        return None, f"checked without the runner: {reason}"
    return path, ""


def _unpack(artifact: bytes, folder: str) -> None:
    """Lays a container out as a client does."""
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
    points: list[Point],
    *,
    compare: bool,
    measure: bool,
    runner_path: str | None = None,
) -> dict[str, Any]:
    message = {
        "graph": request["graph"],
        "dispatched": dispatched,
        "device_type": request["device"]["type"],
        "torch": request.get("options", {}).get("torch", {}),
        "frontend": request.get("frontend"),
        "payload": request.get("payload", ""),
        "artifacts": artifacts,
        "points": [[point.size, dict(point.others)] for point in points],
        "compare": compare,
        "measure": measure,
        "measure_s": _MEASURE_FOR_PEOPLE_S[request["device"]["type"]] if compare else _MEASURE_S,
        "runner": runner_path,
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
                "compared": [],
                "latencies": [[] for _ in artifacts],
                "notes": [refused],
                "is_comparable": False,
                "checker": "executor",
            }
