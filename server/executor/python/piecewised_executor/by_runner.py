"""The part of a trial that has the project's runner load and run a package, and compares what it gives with eager.

The inputs of all cases are written to files, what eager gives for them too; the runner is asked once; then its results are compared case by case, so
that one case is in memory at a time. Inputs that are the same in several cases (weights) are one file.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from typing import Any

import torch

from . import compare, inputs, runner
from .errors import VerificationFailed
from .points import Point
from .rebuild import Rebuilt
from .runtime import direct, outputs
from .runtime.load import tensor_of
from .trial import SEED, AskRunner, Trial, eager, judged

# Of the room that is left on the disk, what the files of one trial may take, and the most in bytes.
_SHARE_OF_DISK = 0.25
_MAX_BYTES = 8 << 30


def run(trial: Trial, points: list[Point], measure_s: float, ask_runner: AskRunner) -> dict[str, Any] | None:
    """`checks`, `compared` and `latencies` as `trial.run` gives them. None: the runner was of no use, which a note says, or there is nothing
    to compare with. Raises VerificationFailed."""
    (artifact,) = trial.artifacts
    with open(os.path.join(artifact.folder, "manifest.json"), encoding="utf-8") as file:
        records = {entry["name"]: entry for entry in json.load(file)["entries"]}
    with tempfile.TemporaryDirectory(prefix="piecewised-runner-") as folder:
        files = Files(folder)
        tried: list[tuple[Point, str, Callable[[], inputs.Case]]] = []
        request: list[dict[str, Any]] = []
        for fake, actual in trial.cases(points):
            if inputs.n_peak_bytes(fake) > files.n_left():
                trial.note(f"{_named(actual)} was left out: there is no room on the disk for its inputs")
                continue
            made = eager(trial, fake, actual)
            entry = artifact.entry(actual)
            if made is None or entry is None:
                return None
            case, expected = made
            request.append(
                {
                    "entry": entry,
                    "inputs": [files.write(i, case.flat[i], trial.integer_bounds[0]) for i in range(len(fake.kept))],
                    # Latencies are told by size: those at unusual values of other symbols would pass for the usual ones.
                    "measure": not actual.others,
                }
            )
            torch.save(expected, os.path.join(folder, f"expected{len(tried)}"))
            tried.append((actual, entry, _maker(fake, actual, trial.integer_bounds[0])))
            del case, expected, made
        if not tried:
            return None
        # A worker loads everything that a handle names, also what no size asks for.
        for segment in artifact.segments:
            if segment["entry"] not in {entry for _, entry, _ in tried}:
                artifact.load(segment["entry"])
        if trial.device_type == "cuda":
            torch.cuda.empty_cache()
        with open(os.path.join(folder, runner.REQUEST), "w", encoding="utf-8") as file:
            json.dump({"artifact": artifact.folder, "device_index": 0, "measure_s": measure_s, "cases": request}, file)
        answer = ask_runner(folder)
        if (why := answer.get("unusable")) is not None:
            trial.note(f"checked without the runner: {why}")
            return None
        if (problem := answer.get("failed")) is not None:
            raise VerificationFailed(problem)
        return _compared(trial, tried, records, answer["cases"], folder)


def _compared(
    trial: Trial,
    tried: list[tuple[Point, str, Callable[[], inputs.Case]]],
    records: dict[str, dict[str, Any]],
    results: list[dict[str, Any]],
    folder: str,
) -> dict[str, Any] | None:
    checks: list[dict[str, Any]] = []
    compared: list[int | None] = []
    latencies: list[dict[str, Any]] = []
    if len(results) != len(tried):
        raise VerificationFailed(f"the runner gave {len(results)} results for {len(tried)} cases")
    for i, ((point, entry, make_case), result) in enumerate(zip(tried, results, strict=True)):
        expected = torch.load(os.path.join(folder, f"expected{i}"), weights_only=False)
        case = make_case()
        n_kept = len(case.rebuilt.kept)
        # The runner gives back arguments; a constant that the graph changes is a copy of its own.
        n_told = len(expected) - sum(i >= n_kept for i in case.changed)
        checked = judged(
            *(trial, lambda case=case: case, point, entry),
            returned=_returned(records[entry], result["outputs"], folder),
            changed=[read(folder, result["inputs"][i]) for i in case.changed if i < n_kept],
            expected=expected[:n_told],
        )
        if checked is None:
            return None
        checks.append(checked)
        compared.append(trial.artifacts[0].picker.pick(point))
        if result.get("median_us") is not None:
            latencies.append({"size": point.size, "median_us": result["median_us"]})
    return {"checks": checks, "compared": compared, "latencies": [latencies]}


def _returned(record: dict[str, Any], described: list[dict[str, Any]], folder: str) -> list[Any]:
    """What the graph returns, from what the package gives; flat, as eager's is."""
    flat: list[Any] = [read(folder, tensor) for tensor in described]
    if len(flat) != record["n_outputs"]:
        raise VerificationFailed(f"the package gives {len(flat)} outputs where the graph has {record['n_outputs']}")
    for i in record["numbers"]:
        flat[i] = flat[i].item()
    return compare.flatten(outputs.restorer(record["output"])(tuple(flat)))


def _maker(fake: Rebuilt, point: Point, bound: int) -> Callable[[], inputs.Case]:
    """What makes the same case again."""
    return lambda: inputs.make_case(fake, point.size, SEED, bound)


class Files:
    """Tensors written below a folder, each once."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._written: dict[Any, dict[str, Any]] = {}
        self._n_bytes = 0

    def n_left(self) -> int:
        """How many bytes may still be written."""
        free = shutil.disk_usage(self._folder).free
        return int(min(free * _SHARE_OF_DISK, _MAX_BYTES - self._n_bytes))

    def write(self, i: int, tensor: torch.Tensor, integer_bound: int) -> dict[str, Any]:
        """Writes the input `i` of a case, made with that bound for integers, as the runner reads it: all of its storage between its first and its
        last element."""
        sizes, strides = list(tensor.shape), list(tensor.stride())
        # All that its values depend on (`inputs.make_case`).
        identity = i, tuple(sizes), tuple(strides), tensor.dtype, tensor.storage_offset(), integer_bound
        if identity not in self._written:
            n_elements = direct.extent(sizes, strides)
            flat = torch.as_strided(tensor.detach(), (n_elements,), (1,)).cpu().contiguous()
            name = f"in{len(self._written)}.bin"
            n_bytes = n_elements * tensor.element_size()
            with open(os.path.join(self._folder, name), "wb") as file:
                if n_bytes:
                    file.write(memoryview((ctypes.c_ubyte * n_bytes).from_address(flat.data_ptr())))
            self._n_bytes += n_bytes
            self._written[identity] = {
                "file": name,
                "dtype": str(tensor.dtype).removeprefix("torch."),
                "sizes": sizes,
                "strides": strides,
                "device": tensor.device.type,
            }
        return self._written[identity]


def read(folder: str, described: dict[str, Any]) -> torch.Tensor:
    """A tensor that the runner wrote."""
    device = "cuda:0" if described["device"] == "cuda" else "cpu"
    with open(os.path.join(folder, described["file"]), "rb") as file:
        return tensor_of(file.read(), described["dtype"], described["sizes"], device)


def _named(point: Point) -> str:
    return "the case" if point.size is None else str(point)
