"""A GPU that has no room for a package's autotuning at its hint: a smaller size stands for it, and the note says so."""

from __future__ import annotations

from typing import Any

import executor_harness as h
import pytest
from piecewised_executor import parts
from piecewised_executor.errors import OutOfMemory
from piecewised_executor.guards import Guards
from piecewised_executor.phases import Phases

GRAPH = h.one_kernel()


class Quiet:
    def send(self, name: str, fields: dict[str, Any], blob: bytes = b"") -> None:
        """Nobody is told."""


@pytest.fixture
def hints(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The hints that were compiled for on a device that has room for sizes up to 20. Only that is made up: this machine need not have a GPU."""
    tried: list[int] = []

    def compile_package(rebuilt: Any, symbols: Any, *rest: Any, **more: Any) -> Any:
        (hint,) = symbols.hints.values()
        tried.append(hint)
        if hint > 20:
            raise OutOfMemory("CUDA out of memory")
        return "package"

    monkeypatch.setattr(parts, "compile_package", compile_package)
    return tried


def job(kind: str) -> parts.Job:
    request = {"graph": GRAPH, "options": {}, "device": {"type": kind}, "format": "aoti"}
    return parts.Job(request, "s0", Phases(Quiet(), None), Guards(GRAPH))  # type: ignore[arg-type]


def test_the_hint_is_halved_until_there_is_room(hints: list[int]) -> None:
    part = parts.compile_interval(job("cuda"), (2, 512), parts.Recipe("range", 128))
    assert hints == [128, 64, 32, 16]
    assert part.program == "package" and "settled at size 16, since 32 does not fit" in part.note


@pytest.mark.parametrize(("kind", "interval", "tried"), [("cpu", (2, 512), [128]), ("cuda", (100, 512), [128])])
def test_where_no_smaller_size_is_left_it_fails(
    hints: list[int], kind: str, interval: tuple[int, int], tried: list[int]
) -> None:
    with pytest.raises(OutOfMemory):
        parts.compile_interval(job(kind), interval, parts.Recipe("range", 128))
    assert hints == tried
