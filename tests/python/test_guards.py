"""Guards end to end, through a real daemon: a call for which the compiled code is not valid never runs it.

The graphs are Dynamo's, called as a serving engine calls them: without Dynamo's own guards in front.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import piecewised
import pytest
import torch
from conftest import Daemon
from piece_harness import arguments, capture
from piecewised import PiecewiseBackend, Program
from service_harness import Client, int_arg, integer, node, results, symbol, tensor_input
from tier_harness import settled

RANGES = [[1, 64], [65, 4096]]


def rows(x: torch.Tensor) -> torch.Tensor:
    return x.view(-1, 8).sum(1)


def groups(x: torch.Tensor) -> torch.Tensor:
    return x.view(x.shape[0], -1, 8).sum(2)


@pytest.fixture(autouse=True)
def _inference(cache_dir: Path) -> Iterator[None]:
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def by_eight() -> torch.fx.GraphModule:
    """A graph that takes multiples of 8 only."""
    x = torch.randn(16)
    # Not mark_dynamic: Dynamo has to take it that not every size is possible.
    torch._dynamo.maybe_mark_dynamic(x, 0)
    with torch.inference_mode():
        return capture(rows, x, dynamic=())


@pytest.fixture(scope="module")
def wide() -> torch.fx.GraphModule:
    """A graph that takes multiples of 8 columns only, whatever the number of rows, by which it is dispatched."""
    x = torch.randn(5, 16)
    for dimension in (0, 1):
        torch._dynamo.maybe_mark_dynamic(x, dimension)
    with torch.inference_mode():
        return capture(groups, x, dynamic=())


def check(backend: Callable[..., Any], gm: torch.fx.GraphModule, model: Callable[..., Any], *sizes: int) -> None:
    x = torch.randn(*sizes)
    torch.testing.assert_close(backend(*arguments(gm, x=x)), (model(x),))


def refuses(backend: Callable[..., Any], gm: torch.fx.GraphModule, reason: str, text: str, *sizes: int) -> None:
    # Twice: what was refused once is not remembered as anything else.
    for _ in range(2):
        with pytest.raises(piecewised.NotCovered, match=text) as raised:
            backend(*arguments(gm, x=torch.randn(*sizes)))
        assert raised.value.reason == reason
        assert f"size {sizes[0]} " in str(raised.value)


def check_rows(backend: Callable[..., Any], gm: torch.fx.GraphModule) -> None:
    """All that there is to know of `by_eight`."""
    for n in (8, 16, 64, 72, 4096):
        check(backend, gm, rows, n)
    for n in (1, 7, 9, 63):
        refuses(backend, gm, "SIZE_NOT_COVERED", r"\[8, 8\]", n)
    for n in (65, 71, 4095):
        refuses(backend, gm, "GUARD_FAILED", r"\[65, 4096\].* % 8 == 0 is false", n)
    refuses(backend, gm, "SIZE_NOT_COVERED", "outside", 4097)


def test_a_wrong_size_never_runs_code_that_is_not_valid_for_it(daemon: Daemon, by_eight: torch.fx.GraphModule) -> None:
    backend = PiecewiseBackend(by_eight, compile_ranges=RANGES, endpoint=daemon.endpoint, on_error="raise")
    check_rows(backend, by_eight)
    check_rows(PiecewiseBackend(compiled_runnables=backend.to_bytes()), by_eight)


def test_a_manifest_has_the_guards_too(daemon: Daemon, by_eight: torch.fx.GraphModule, tmp_path: Path) -> None:
    program = Program("test-guards", 1)
    PiecewiseBackend(by_eight, compile_ranges=RANGES, endpoint=daemon.endpoint, on_error="raise", program=program)
    assert program.wait().is_complete
    (piece,) = piecewised.load("test-guards", endpoint=daemon.endpoint)
    check_rows(piece, by_eight)
    piecewised.save_manifest("test-guards", tmp_path / "manifest", endpoint=daemon.endpoint)
    (piece,) = piecewised.load(tmp_path / "manifest", endpoint=daemon.endpoint)
    check_rows(piece, by_eight)


def test_guards_on_other_sizes_are_decided_for_each_call(daemon: Daemon, wide: torch.fx.GraphModule) -> None:
    backend = PiecewiseBackend(
        wide, compile_ranges=[[2, 16]], compile_sizes=[5], endpoint=daemon.endpoint, on_error="raise"
    )
    for n in (2, 5, 16):
        # The same size with other columns, in turns. With 8 there is one group, which is code of its own.
        for m in (16, 24, 8, 80, 16):
            check(backend, wide, groups, n, m)
        refuses(backend, wide, "GUARD_FAILED", "is false", n, 12)
        check(backend, wide, groups, n, 32)


@pytest.mark.parametrize("mode", ["upfront", "lazy"])
def test_guards_with_tuned_code_later_and_with_one_compile_for_all(
    daemon: Daemon, wide: torch.fx.GraphModule, by_eight: torch.fx.GraphModule, mode: str
) -> None:
    given: dict[str, Any] = {"endpoint": daemon.endpoint, "on_error": "raise", "mode": mode}
    before = piecewised.stats()["tiered"]
    # Another hint is another key: nothing of the other mode's is in the store.
    hints = {"[2, 16]": 8 if mode == "lazy" else 4}
    tiered = PiecewiseBackend(wide, compile_ranges=[[2, 16]], tuning="tiered", compile_hints=hints, **given)
    generic = PiecewiseBackend(by_eight, compile_ranges=RANGES, specialisation="generic", **given)
    for _ in range(2):
        for m in (16, 24, 8):
            check(tiered, wide, groups, 5, m)
        refuses(tiered, wide, "GUARD_FAILED", "is false", 5, 12)
        assert settled(before) == {"n_swapped": 1}
    for n in (8, 16, 64, 72, 4096):
        check(generic, by_eight, rows, n)
    for n in (1, 9, 65, 4095):
        with pytest.raises(piecewised.NotCovered):
            generic(*arguments(by_eight, x=torch.randn(n)))


def test_torch_compile_without_dynamos_guards(daemon: Daemon) -> None:
    x = torch.randn(16)
    torch._dynamo.reset()
    torch._dynamo.maybe_mark_dynamic(x, 0)
    options = {
        "compile_ranges": RANGES,
        "endpoint": daemon.endpoint,
        "on_error": "raise",
        "guard_filter_fn": lambda guards: [False for _ in guards],
    }
    model = torch.compile(rows, backend="piecewised", fullgraph=True, options=options)
    for n in (16, 8, 72, 4096):
        x = torch.randn(n)
        if n == 16:
            torch._dynamo.maybe_mark_dynamic(x, 0)
        torch.testing.assert_close(model(x), rows(x))
    for n, reason in ((9, "SIZE_NOT_COVERED"), (71, "GUARD_FAILED")):
        with pytest.raises(piecewised.NotCovered) as raised:
            model(torch.randn(n))
        assert raised.value.reason == reason


def test_the_strict_policy_fails_with_the_guards_text(daemon: Daemon, by_eight: torch.fx.GraphModule) -> None:
    given: dict[str, Any] = {"compile_ranges": RANGES, "endpoint": daemon.endpoint, "on_error": "raise"}
    PiecewiseBackend(by_eight, **given).wait()
    # From the store by now: what a caller takes is decided when it is delivered.
    strict = PiecewiseBackend(by_eight, **given, guards="strict")
    for n, text in ((16, r"\[9, 15\] not at all"), (128, r"\[65, 4096\] where \w+ % 8 == 0")):
        with pytest.raises(piecewised.CompileFailed, match=text) as raised:
            strict(*arguments(by_eight, x=torch.randn(n)))
        assert raised.value.reason == "UNPROVEN_RANGE"


def test_the_strict_policy_compiles_locally_where_it_may(daemon: Daemon, by_eight: torch.fx.GraphModule) -> None:
    n_before = piecewised.stats()["local_reasons"].get("UNPROVEN_RANGE", 0)
    backend = PiecewiseBackend(by_eight, compile_ranges=[[65, 4096]], endpoint=daemon.endpoint, guards="strict")
    check(backend, by_eight, rows, 128)
    assert piecewised.stats()["local_reasons"]["UNPROVEN_RANGE"] == n_before + 1


def test_the_policy_is_one_of_two(by_eight: torch.fx.GraphModule) -> None:
    with pytest.raises(piecewised.OptionError, match="'guards' is one of 'dispatch', 'strict'"):
        PiecewiseBackend(by_eight, compile_ranges=RANGES, mode="lazy", guards="never")
    with pytest.raises(piecewised.OptionError, match="'guards'"):
        piecewised.options.parse({"compile_ranges": RANGES, "guards": True})


def _request(constant: int, policy: str) -> dict[str, Any]:
    """`x.view(-1, 8) + constant` over `x: f32[s0]`."""
    view = {"tuple": {"items": [int_arg(-1), int_arg(8)]}}
    graph = {
        "symbols": [{"name": "s0"}],
        "nodes": [
            {"name": "size", "placeholder": {"value": {"symInt": symbol()}}},
            tensor_input("x", [symbol()], [integer(1)]),
            {"name": "y", "callMethod": {"method": "view", "args": [node("x"), view]}},
            {"name": "z", "callFunction": {"target": "_operator.add", "args": [node("y"), int_arg(constant)]}},
            {"name": "out", "output": {"value": {"tuple": {"items": [node("z")]}}}},
        ],
    }
    plan = {"compileRanges": {"ranges": [{"start": "65", "end": "4096"}]}}
    return {"graph": graph, "plan": plan, "options": {"torch": {"numThreads": 1}, "guards": policy}}


def test_the_policy_holds_for_a_job_of_somebody_elses(service_daemon: Any) -> None:
    with Client(service_daemon.endpoint) as first, Client(service_daemon.endpoint) as second:
        easy = first.compile(_request(1, "GUARD_POLICY_DISPATCH"))
        assert next(easy).WhichOneof("event") == "queued"
        strict = second.compile(_request(1, "GUARD_POLICY_STRICT"))
        assert next(strict).WhichOneof("event") == "joined"
        ready, failed, summary = results(strict)
        assert not ready and summary.n_failed == 1
        assert (failed[0].reason, failed[0].retryable) == ("UNPROVEN_RANGE", False)
        assert "[65, 4096] where s0 % 8 == 0" in failed[0].message
        ready, failed, _ = results(easy)
        assert not failed
        (handle,) = [event.handle for event in ready]
        assert handle.segments[0].guards and handle.guard_symbols[0].name == "s0"
        assert handle.guard_symbols[0].argument == 0 and not handle.guard_symbols[0].HasField("dimension")
        # And from the store.
        ready, failed, _ = results(second.compile(_request(1, "GUARD_POLICY_STRICT")))
        assert not ready and failed[0].reason == "UNPROVEN_RANGE"
