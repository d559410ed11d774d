"""Tuned code that comes later: what a call runs before, during and after the swap, and what stops it.

The parts by themselves, with every interleaving made on purpose; then all of it against a real daemon.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import piecewised
import pytest
import torch
from conftest import Daemon
from piece_harness import arguments, capture
from piecewised import PiecewiseBackend, Program
from piecewised.entries import Entries
from piecewised.errors import CompileFailed
from piecewised.loading import Compiled
from piecewised.remembered import Remembered
from piecewised.tiered import Captures, Tier
from test_dispatch import guarded
from tier_harness import settled, tiered_since

# Remembering and forgetting.


def test_what_was_found_before_a_swap_is_not_remembered_after_it() -> None:
    code = ["old"]
    swaps = []

    def find(size: int) -> Any:
        found = code[0]
        if swaps:
            # Another thread swaps after this one has looked, and before it remembers.
            swaps.pop()()
        return lambda: (found, size)

    runs = Remembered(find, int)

    def swap() -> None:
        code[0] = "new"
        runs.forget()

    assert runs[1]() == ("old", 1)
    swaps.append(swap)
    assert runs[2]() == ("old", 2), "a call that has begun finishes on what it found"
    assert runs[1]() == ("new", 1)
    assert runs[2]() == ("new", 2)
    assert sorted(runs) == [1, 2]


class Slots:
    """Entries that a tier replaces, without a piece around them."""

    def __init__(self, *, swap: str = "auto", device: str = "cuda", n: int = 2) -> None:
        self.captures = Captures()
        self.code = ["old"] * n
        self.runs = Remembered(self._find, int)
        self.tier = Tier(swap, self.captures, replace=self._replace, forget=self.runs.forget)
        for position in range(n):
            self.tier.expect(position, self.compiled("fast", device))

    @staticmethod
    def compiled(mode: str, device: str = "cuda") -> Compiled:
        return Compiled({"tuning": {"mode": mode}, "device": {"type": device}}, {})

    def _find(self, position: int) -> Callable[[], str]:
        code = self.code[position]
        return self.tier.watched(position, lambda: code)

    def _replace(self, position: int, compiled: Compiled) -> object:
        was, self.code[position] = self.code[position], "new"
        return was

    def call(self, position: int) -> str:
        return self.runs[position]()

    def is_watched(self, position: int) -> bool:
        return self.runs[position].__name__ == "watching"


@pytest.fixture
def capturing(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Says whether a capture is under way, where there is no GPU to capture on."""
    now = [False]
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: now[0])
    return now


@pytest.fixture
def before() -> dict[str, Any]:
    return piecewised.stats()["tiered"]


def test_calls_are_watched_until_their_entry_is_swapped_and_no_longer(
    capturing: list[bool], before: dict[str, Any]
) -> None:
    slots = Slots()
    assert tiered_since(before) == {"n_waiting": 2}
    assert [slots.call(0), slots.call(1)] == ["old", "old"]
    assert slots.is_watched(0) and slots.is_watched(1)
    assert slots.tier.wants(0, "it")
    slots.tier.ready(0, slots.compiled("full"), "it")
    assert [slots.call(0), slots.call(1)] == ["new", "old"]
    assert not slots.is_watched(0) and slots.is_watched(1)
    assert tiered_since(before) == {"n_waiting": 1, "n_swapped": 1}


def test_nothing_is_swapped_once_a_capture_was_seen(capturing: list[bool], before: dict[str, Any]) -> None:
    slots = Slots()
    capturing[0] = True
    assert slots.call(0) == "old"
    capturing[0] = False
    assert slots.captures.seen
    # Also not what was being loaded meanwhile, nor another entry, whose calls nobody captured.
    slots.tier.ready(0, slots.compiled("full"), "it")
    assert not slots.tier.wants(1, "it")
    assert [slots.call(0), slots.call(1)] == ["old", "old"]
    assert not slots.is_watched(0) and not slots.is_watched(1), "calls are direct again"
    assert tiered_since(before) == {"n_kept": 2}


def test_what_runs_on_a_cpu_is_never_watched() -> None:
    slots = Slots(device="cpu")
    assert slots.call(0) == "old" and not slots.is_watched(0)
    slots.tier.ready(0, slots.compiled("full"), "it")
    assert slots.call(0) == "new"


def test_never_is_never_and_costs_no_call_anything(before: dict[str, Any]) -> None:
    slots = Slots(swap="never")
    assert slots.call(0) == "old" and not slots.is_watched(0)
    assert not slots.tier.wants(0, "it") and not slots.tier.wants(1, "it")
    assert tiered_since(before) == {"n_kept": 2}


def test_what_fails_is_counted_and_its_calls_are_direct_again(capturing: list[bool], before: dict[str, Any]) -> None:
    slots = Slots()
    slots.call(0)
    slots.tier.failed(0, CompileFailed("no", reason="COMPILE_ERROR_OF_A_TEST"), "it")
    assert slots.call(0) == "old" and not slots.is_watched(0)
    assert tiered_since(before) == {"n_waiting": 1, "n_failed": 1}
    assert piecewised.stats()["tiered"]["failed_reasons"]["COMPILE_ERROR_OF_A_TEST"] == 1
    slots.tier.withdraw(1)
    assert tiered_since(before) == {"n_failed": 1}


def test_what_was_tuned_from_the_start_waits_for_nothing(before: dict[str, Any]) -> None:
    slots = Slots(n=0)
    slots.tier.expect(0, slots.compiled("full"))
    assert not slots.tier.wants(0, "it")
    assert tiered_since(before) == {}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: a CUDA graph is captured")
def test_a_real_capture_is_seen() -> None:
    captures = Captures()
    tier = Tier("auto", captures, replace=lambda *_: None, forget=lambda: None)
    tier.expect(0, Slots.compiled("fast"))
    x = torch.ones(4, device="cuda")
    run = tier.watched(0, lambda x: x + 1)
    run(x)
    torch.cuda.synchronize()
    assert not captures.seen
    with torch.cuda.graph(torch.cuda.CUDAGraph()):
        run(x)
    assert captures.seen


# Against a real daemon.


@pytest.fixture
def _inference(cache_dir: Path) -> Any:
    torch._dynamo.reset()
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


def model(constant: float) -> Callable[[torch.Tensor], torch.Tensor]:
    """A model of its own for each test, so that nothing is in the store yet."""

    def run(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.silu(x * constant) + x

    return run


def under_guards(entry_mode: str, entries: tuple[str, str], order: tuple[str, str]) -> Compiled:
    """An entry for [1, 16] on a GPU whose parts run where the dispatched size is below that of another dimension, and where it is above."""
    guards = [((1, 16), function, "n", "m") for function in order]
    handle = json.loads(guarded((1, 16), *guards, places={"n": [0, None], "m": [1, 1]}))
    for segment, name in zip(handle["segments"], entries, strict=True):
        segment["entry"] = name
    handle["tuning"] = {"mode": entry_mode, "candidates": [], "seconds": 0.0, "note": ""}
    handle["device"]["type"] = "cuda"
    return Compiled(handle, {name: lambda *args, name=name: name for name in entries})


def _piece(compiled: Compiled) -> Any:
    runnables = {(0, entry): run for entry, run in compiled.runnables.items()}
    piece = piecewised.Piece([json.dumps(compiled.handle)], runnables, swap="auto")
    return piece, piece._table.tier


def _entries(compiled: Compiled) -> Any:
    entries = Entries([(1, 16)], 0, True)
    runs = Remembered(lambda size: tier.watched(0, entries.states[0].find(size)), int)
    tier = Tier("auto", Captures(), replace=entries.replace, forget=runs.forget)
    tier.expect(0, compiled)
    entries.put(0, compiled)
    return (lambda *args: runs[args[0]](*args)), tier


@pytest.mark.parametrize("make", [_piece, _entries])
def test_code_under_guards_is_swapped_whatever_calls_have_remembered(
    make: Callable[[Compiled], Any], capturing: list[bool], before: dict[str, Any]
) -> None:
    call, tier = make(under_guards("fast", ("below", "above"), ("lt", "gt")))
    wide, narrow = torch.empty(1, 9), torch.empty(1, 3)
    for _ in range(2):
        assert [call(5, wide), call(5, narrow)] == ["below", "above"]
    # The tuned code has its parts in another order, and under other names.
    tier.ready(0, under_guards("full", ("tuned above", "tuned below"), ("gt", "lt")), "[1, 16]")
    for _ in range(2):
        assert [call(5, wide), call(5, narrow)] == ["tuned below", "tuned above"]
        with pytest.raises(piecewised.NotCovered, match="n = 5, m = 5"):
            call(5, torch.empty(1, 5))
    assert tiered_since(before) == {"n_swapped": 1}


@pytest.mark.parametrize("make", [_piece, _entries])
def test_a_capture_of_code_under_guards_is_seen(
    make: Callable[[Compiled], Any], capturing: list[bool], before: dict[str, Any]
) -> None:
    call, tier = make(under_guards("fast", ("below", "above"), ("lt", "gt")))
    wide = torch.empty(1, 9)
    assert call(5, wide) == "below"
    capturing[0] = True
    assert call(5, wide) == "below"
    tier.ready(0, under_guards("full", ("tuned below", "tuned above"), ("lt", "gt")), "[1, 16]")
    assert call(5, wide) == "below"
    assert tiered_since(before) == {"n_kept": 1}


def tokens(n: int) -> torch.Tensor:
    x = torch.randn(n, 8)
    torch._dynamo.mark_dynamic(x, 0)
    return x


def sources(daemon: Daemon, fn: Callable[..., Any], **options: Any) -> list[str]:
    """Where the ranges of `fn` come from when it is compiled anew."""
    torch._dynamo.reset()
    n_before = len(piecewised.stats()["ranges"])
    given = {"endpoint": daemon.endpoint, "on_error": "raise", **options}
    torch.compile(fn, backend="piecewised", options=given)(tokens(3))
    return [record["source"] for record in piecewised.stats()["ranges"][n_before:]]


PLAN = {"compile_ranges": [[1, 16]], "compile_sizes": [4]}


@pytest.mark.usefixtures("_inference")
@pytest.mark.parametrize(("swap", "outcome"), [("auto", "n_swapped"), ("never", "n_kept")])
def test_torch_compile_starts_with_what_is_there_and_goes_on_with_what_is_tuned(
    daemon: Daemon, before: dict[str, Any], swap: str, outcome: str
) -> None:
    fn = model(1.5 if swap == "auto" else 2.5)
    options = {**PLAN, "endpoint": daemon.endpoint, "on_error": "raise", "tuning": "tiered", "swap": swap}
    compiled = torch.compile(fn, backend="piecewised", options=options)
    for n in (3, 4, 16):
        x = tokens(n)
        torch.testing.assert_close(compiled(x), fn(x))
    assert settled(before) == {outcome: 2}
    for n in (3, 4, 16, 1):
        x = tokens(n)
        torch.testing.assert_close(compiled(x), fn(x))
    # The daemon has the tuned code now, whether or not this process took it.
    assert sources(daemon, fn, **PLAN, tuning="full") == ["store", "store"]
    assert set(sources(daemon, fn, **PLAN, tuning="tiered")) == {"store"}
    settled(before)


@pytest.mark.usefixtures("_inference")
def test_a_program_whose_pieces_are_tuned_later(daemon: Daemon, before: dict[str, Any]) -> None:
    fn = model(3.5)
    gm = capture(fn, torch.randn(5, 8))
    static = capture(model(4.5), torch.randn(5, 8), dynamic=())
    program = Program("test-tiered", 2)
    given = {"endpoint": daemon.endpoint, "on_error": "raise", "tuning": "tiered", "program": program}
    backend = PiecewiseBackend(gm, compile_ranges=[[1, 16]], piece_index=0, **given)
    other = PiecewiseBackend(static, compile_sizes=[1], piece_index=1, **given)
    x = torch.randn(5, 8)
    for _ in range(2):
        torch.testing.assert_close(backend(*arguments(gm, x=x))[0], fn(x))
        torch.testing.assert_close(other(x)[0], model(4.5)(x))
        # The manifest is committed from what there was at first, and waits for nothing.
        assert program.wait().is_complete
        assert settled(before) == {"n_swapped": 2}
    assert set(backend.to_bytes()) == {"[1, 16]"}


@pytest.mark.usefixtures("_inference")
def test_lazy_only_what_is_called_is_tuned(daemon: Daemon, before: dict[str, Any]) -> None:
    fn = model(5.5)
    gm = capture(fn, torch.randn(5, 8))
    backend = PiecewiseBackend(
        gm, compile_ranges=[[2, 8], [9, 16]], mode="lazy", endpoint=daemon.endpoint, on_error="raise", tuning="tiered"
    )
    x = torch.randn(12, 8)
    torch.testing.assert_close(backend(*arguments(gm, x=x))[0], fn(x))
    assert settled(before) == {"n_swapped": 1}
    torch.testing.assert_close(backend(*arguments(gm, x=x))[0], fn(x))


@pytest.mark.usefixtures("_inference")
def test_a_daemon_that_goes_away_costs_nothing_but_the_tuned_code(
    own_daemon: Daemon, before: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    own_daemon.flags = ("--n-executors", "1")
    own_daemon.start()
    fn = model(6.5)
    options = {"compile_ranges": [[2, 16]], "endpoint": own_daemon.endpoint, "on_error": "raise", "tuning": "tiered"}
    assert own_daemon.process is not None
    compiled = torch.compile(fn, backend="piecewised", options=options)
    stopped = own_daemon.process.pid
    x = tokens(5)
    torch.testing.assert_close(compiled(x), fn(x))
    os.kill(stopped, signal.SIGKILL)
    own_daemon.process.wait()
    # It may have been quick.
    assert sum(settled(before).values()) == 1
    torch.testing.assert_close(compiled(x), fn(x))
    if "n_failed" in tiered_since(before):
        assert any("can't be had" in record.message for record in caplog.records)


SCRIPT = """
import json, os, sys, threading, torch, piecewised

def fn(x):
    return torch.relu(x * CONSTANT) + x

options = {"compile_ranges": [[2, 16]], "on_error": "raise", "tuning": "tiered"}
compiled = torch.compile(fn, backend="piecewised", options=options)
x = torch.randn(5, 8)
torch._dynamo.mark_dynamic(x, 0)
with torch.inference_mode():
    torch.testing.assert_close(compiled(x), fn(x))
"""


def test_a_process_ends_cleanly_while_tuned_code_is_awaited(daemon: Daemon, worker: Callable[..., Any]) -> None:
    one = worker(SCRIPT.replace("CONSTANT", "7.5") + "print(json.dumps('ended'))", PIECEWISED_ENDPOINT=daemon.endpoint)
    assert one.result() == "ended"
    assert "can't be had" not in one.stderr and "Exception" not in one.stderr, one.stderr


def test_a_forked_child_waits_for_nothing(daemon: Daemon, worker: Callable[..., Any]) -> None:
    script = SCRIPT.replace("CONSTANT", "8.5") + (
        """
pid = os.fork()
if pid == 0:
    with torch.inference_mode():
        torch.testing.assert_close(compiled(x), fn(x))
    tiered = piecewised.stats()["tiered"]
    os._exit(0 if tiered["n_waiting"] == 0 and threading.active_count() == 1 else 1)
print(json.dumps(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])))
"""
    )
    assert worker(script, PIECEWISED_ENDPOINT=daemon.endpoint, OMP_NUM_THREADS="1").result() == 0


# One compile for all ranges, and hints.


@pytest.mark.usefixtures("_inference")
@pytest.mark.parametrize("mode", ["upfront", "lazy"])
def test_generic_ranges_are_asked_for_together(daemon: Daemon, mode: str) -> None:
    fn = model(9.5)
    gm = capture(fn, torch.randn(5, 8))
    plan = {"compile_ranges": [[1, 8], [9, 16], [17, 64]], "compile_sizes": [4]}
    n_before = len(piecewised.stats()["ranges"])
    program = Program(f"test-generic-{mode}", 1)
    backend = PiecewiseBackend(
        gm,
        **plan,
        specialisation="generic",
        program=program,
        mode=mode,
        endpoint=daemon.endpoint,
        on_error="raise",
    )
    for n in (1, 2, 8, 9, 12, 16, 17, 64):
        x = torch.randn(n, 8)
        torch.testing.assert_close(backend(*arguments(gm, x=x))[0], fn(x))
    records = piecewised.stats()["ranges"][n_before:]
    keys = {tuple(record["range"]): record["key"] for record in records}
    assert len({keys[1, 8], keys[9, 16], keys[17, 64]}) == 1
    with pytest.raises(piecewised.NotCovered):
        backend(*arguments(gm, x=torch.randn(65, 8)))
    x = torch.randn(4, 8)
    torch.testing.assert_close(backend(*arguments(gm, x=x))[0], fn(x))
    assert program.wait().is_complete
    # What is left of it is enough to start from, and so are its bytes.
    (loaded,) = piecewised.load(program.name, endpoint=daemon.endpoint)
    again = PiecewiseBackend(compiled_runnables=backend.to_bytes())
    for piece in (loaded, again):
        assert piece.entries == backend.entries
        for n in (1, 8, 9, 64):
            x = torch.randn(n, 8)
            torch.testing.assert_close(piece(*arguments(gm, x=x))[0], fn(x))


@pytest.mark.usefixtures("_inference")
def test_torch_compile_with_one_compile_for_all_ranges_and_hints(daemon: Daemon) -> None:
    fn = model(10.5)
    options = {"compile_range_endpoints": [8, 16], "specialisation": "generic", "compile_hints": {"[9, 16]": 12}}
    assert sorted(sources(daemon, fn, **options)) == ["compiled", "joined"]
    x = tokens(9)
    given = {**options, "endpoint": daemon.endpoint}
    torch.testing.assert_close(torch.compile(fn, backend="piecewised", options=given)(x), fn(x))
    # Another hint is another code.
    assert sorted(sources(daemon, fn, **{**options, "compile_hints": {(9, 16): 16}})) == ["compiled", "joined"]
    assert sources(daemon, fn, **{**options, "compile_hints": None}) == ["store", "store"]
    assert json.loads(piecewised.Client(daemon.endpoint).capabilities())["tunings"] == ["fast", "full", "tiered"]
