"""PiecewiseBackend made from graphs, against a real daemon: what is compiled when, waited for, shared and survived."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import piecewised
import pytest
import torch
from conftest import Daemon
from piece_harness import arguments, capture, symbols
from piecewised import PiecewiseBackend, Program, plan

RANGES = [[1, 16], [17, 64]]
WEIGHT = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))


def block(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.silu(x @ w) + x


@pytest.fixture(autouse=True)
def _inference(cache_dir: Path) -> Iterator[None]:
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def gm() -> torch.fx.GraphModule:
    with torch.inference_mode():
        return capture(block, torch.randn(5, 8), WEIGHT)


def make(daemon: Daemon, gm: torch.fx.GraphModule, **given: Any) -> PiecewiseBackend:
    """Fails where a compile would have been local, unless told otherwise."""
    return PiecewiseBackend(gm, **{"endpoint": daemon.endpoint, "on_error": "raise", **given})


def check(backend: Callable[..., Any], gm: torch.fx.GraphModule, n: int) -> None:
    x = torch.randn(n, 8)
    torch.testing.assert_close(backend(*arguments(gm, x=x, w=WEIGHT)), (block(x, WEIGHT),))


def asked(action: Callable[[], Any]) -> list[list[int] | None]:
    """The ranges that `action` had from the daemon."""
    before = len(piecewised.stats()["ranges"])
    action()
    return sorted(record["range"] for record in piecewised.stats()["ranges"][before:])


def test_upfront_every_range_is_submitted_at_once_and_many_threads_get_what_they_need(
    daemon: Daemon, gm: torch.fx.GraphModule
) -> None:
    done: list[piecewised.ProgramSummary] = []
    program = Program("test-upfront", 1, on_complete=done.append)
    backend = make(daemon, gm, compile_ranges=RANGES, compile_sizes=[4, 20], program=program)
    assert backend.entries == [(1, 16), (17, 64), (4, 4), (20, 20)]
    # Nobody has compiled anything yet, most likely: each call waits for its own range.
    with ThreadPoolExecutor(8) as threads:
        for result in [threads.submit(check, backend, gm, n) for n in (64, 1, 2, 4, 20, 16, 17, 5, 33, 64)]:
            result.result()
    summary = program.wait()
    assert done == [summary], "once"
    assert (summary.n_pieces, summary.n_distinct_pieces, summary.is_complete) == (1, 1, True)
    assert summary.n_compiled + summary.n_joined + summary.n_from_store == 4
    assert summary.n_local == 0
    assert summary.phase_seconds["compile"] > 0
    backend.wait()
    assert done == [summary], "and not again"


def test_a_size_outside_is_an_error_with_the_value_and_the_ranges(daemon: Daemon, gm: torch.fx.GraphModule) -> None:
    backend = make(daemon, gm, compile_ranges=RANGES, compile_sizes=[4], mode="lazy")
    for n in (0, 65):
        with pytest.raises(piecewised.NotCovered, match=rf"size {n} .*\[1, 16\], \[17, 64\], \[4, 4\]"):
            backend(*arguments(gm, x=torch.randn(n, 8), w=WEIGHT))


def test_lazy_a_range_is_asked_for_at_its_first_call(
    daemon: Daemon, gm: torch.fx.GraphModule, caplog: pytest.LogCaptureFixture
) -> None:
    program = Program("test-lazy", 1)
    backend = make(daemon, gm, compile_ranges=RANGES, compile_sizes=[4], mode="lazy", program=program)
    assert asked(lambda: None) == []
    assert asked(lambda: check(backend, gm, 5)) == [[1, 16]]
    assert asked(lambda: check(backend, gm, 16)) == []
    with caplog.at_level(logging.DEBUG, "piecewised"):
        assert list(backend.to_bytes()) == ["[1, 16]"]
    left_out = [record for record in caplog.records if "left out" in record.message]
    assert [record.levelname for record in left_out] == ["DEBUG", "DEBUG"]
    assert "[17, 64]" in left_out[0].message and "[4, 4]" in left_out[1].message
    assert program.summary is None
    assert asked(lambda: check(backend, gm, 4)) == [[4, 4]]
    assert asked(lambda: check(backend, gm, 64)) == [[17, 64]]
    # The run hears of the piece when all of it is there, and completes.
    assert program.wait().is_complete


def test_the_same_model_in_another_run_compiles_nothing(daemon: Daemon, gm: torch.fx.GraphModule) -> None:
    """Two pieces that are alike but for names share each artifact; a second rank finds everything."""

    def again(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        renamed = x
        return torch.nn.functional.silu(renamed @ w) + renamed

    alike = capture(again, torch.randn(9, 8), WEIGHT)
    summaries = []
    for _ in range(2):
        program = Program("test-alike", 2)
        pieces = [
            make(daemon, piece, compile_range_endpoints=[64, 16], piece_index=index, program=program)
            for index, piece in enumerate([gm, alike])
        ]
        assert [(p.is_first_graph, p.is_last_graph, p.is_full_graph) for p in pieces] == [
            (True, False, False),
            (False, True, False),
        ]
        for piece in pieces:
            check(piece, gm, 7)
        summaries.append(program.wait())
    first, second = summaries
    assert first.run != second.run
    assert first.manifest_digest == second.manifest_digest
    assert (first.n_pieces, first.n_distinct_pieces) == (2, 1)
    assert first.n_compiled <= 2
    assert (second.n_compiled, second.n_joined, second.n_from_store) == (0, 0, 4)


def test_dimensions_that_are_equal_at_capture_may_differ_later(daemon: Daemon) -> None:
    def product(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.relu(x @ y.t())

    gm = capture(product, torch.randn(8, 8), torch.randn(8, 8), dynamic=(0, 1))
    assert len(symbols(gm)) == 2
    backend = make(daemon, gm, compile_ranges=[[2, 16]], compile_sizes=[4])
    # In a range, and in a single size; 8 is also the static width.
    for n, m in ((8, 8), (8, 3), (3, 8), (5, 12), (4, 9), (4, 4), (16, 2)):
        x, y = torch.randn(n, 8), torch.randn(m, 8)
        torch.testing.assert_close(backend(*arguments(gm, x=x, y=y)), (product(x, y),))


def test_sizes_and_strides_that_are_expressions(daemon: Daemon) -> None:
    """Sizes 2*s0 + 1, strides and an offset with the symbol in them; 5 rows look like s0 at capture."""
    base = torch.randn(5, 8)

    def views(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        n = x.shape[0]
        both = torch.cat([x, x, x[:1]])
        return both, both.t()[2:, n:]

    class Ops(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            both, part = views(x)
            kept = split_here(both)
            moved = split_here(part.t()).t()
            return (kept[x.shape[0] :].sum() + moved * 2 + x.sum()).relu()

    gm = capture(Ops(), base)
    run = piecewised_split(daemon, gm)
    for n in (5, 3, 11, 4):
        x = torch.randn(n, 8)
        torch.testing.assert_close(run(*arguments(gm, x=x)), (Ops()(x),))


def piecewised_split(daemon: Daemon, gm: torch.fx.GraphModule) -> Callable[..., Any]:
    from piecewised.options import parse
    from piecewised.split_backend import compile_split

    given = {"compile_ranges": [[2, 16]], "compile_sizes": [4], "splitting_ops": ["piecewised_test::split_here"]}
    return compile_split(gm, parse({**given, "endpoint": daemon.endpoint, "on_error": "raise"}))


@torch.library.custom_op("piecewised_test::split_here", mutates_args=())
def split_here(x: torch.Tensor) -> torch.Tensor:
    """An operator that only this process has. Keeps strides."""
    return x.clone()


@split_here.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return x.clone()


def test_a_piece_without_a_symbolic_input_has_exactly_one_entry(daemon: Daemon) -> None:
    gm = capture(block, torch.randn(5, 8), WEIGHT, dynamic=())
    with pytest.raises(piecewised.PlanError, match=r"exactly one entry; it has \[1, 16\], \[17, 64\]") as raised:
        make(daemon, gm, compile_ranges=RANGES)
    assert raised.value.reason == "STATIC_GRAPH"
    backend = make(daemon, gm, compile_ranges=[[100, 200]])
    assert backend.argument is None
    check(backend, gm, 5)
    backend.wait()
    [name] = bytes_of = backend.to_bytes()
    assert name == "[100, 200]"
    again = PiecewiseBackend(compiled_runnables=bytes_of)
    assert again.argument is None
    check(again, gm, 5)


def test_what_a_graph_returns_is_what_the_piece_returns(daemon: Daemon, gm: torch.fx.GraphModule) -> None:
    """Dynamo's graphs return tuples; those of pieces may return a bare value."""
    bare = torch.fx.GraphModule(gm, torch.fx.Graph())
    bare.graph.output(bare.graph.graph_copy(gm.graph, {})[0])
    for new, old in zip(bare.graph.find_nodes(op="placeholder"), gm.graph.find_nodes(op="placeholder"), strict=True):
        new.meta = dict(old.meta)
    x = torch.randn(3, 8)
    for returns_tuple in (None, False):
        backend = make(daemon, bare, compile_ranges=[[1, 16]], returns_tuple=returns_tuple)
        torch.testing.assert_close(backend(*arguments(gm, x=x, w=WEIGHT)), block(x, WEIGHT))
    # As the reference: a tuple of one, of a graph whose caller wants the value.
    backend = make(daemon, gm, compile_ranges=[[1, 16]], returns_tuple=False)
    torch.testing.assert_close(backend(*arguments(gm, x=x, w=WEIGHT)), block(x, WEIGHT))


def halves(x: torch.Tensor) -> torch.Tensor:
    """Right for even sizes only, so that no range is proven as a whole; the strict policy fails it."""
    return (x.view(x.shape[0] // 2, 2, 8) + 1).relu().sum(1)


def test_a_range_that_fails_costs_no_other(daemon: Daemon) -> None:
    gm = capture(halves, torch.randn(6, 8))
    backend = make(daemon, gm, compile_ranges=[[2, 200]], compile_sizes=[3, 4], guards="strict")
    x = torch.randn(4, 8)
    torch.testing.assert_close(backend(*arguments(gm, x=x)), (halves(x),))
    for n, reason in ((6, "UNPROVEN_RANGE"), (3, "COMPILE_ERROR"), (3, "COMPILE_ERROR")):
        with pytest.raises(piecewised.CompileFailed, match=reason):
            backend(*arguments(gm, x=torch.randn(n, 8)))
    with pytest.raises(piecewised.CompileFailed):
        backend.wait()
    assert list(backend.to_bytes()) == ["[4, 4]"]


def test_a_range_that_fails_is_compiled_here_and_no_other(daemon: Daemon) -> None:
    gm = capture(halves, torch.randn(6, 8))
    program = Program("test-half-local", 1)
    given = {"compile_ranges": [[2, 200]], "compile_sizes": [4], "on_error": "local", "guards": "strict"}
    backend = make(daemon, gm, **given, program=program)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    before = piecewised.stats()
    x = torch.randn(4, 8)
    torch.testing.assert_close(backend(*arguments(gm, x=x)), (halves(x),))
    assert piecewised.stats()["n_local"] == before["n_local"]
    for n in (6, 2, 8, 200):
        x = torch.randn(n, 8)
        torch.testing.assert_close(backend(*arguments(gm, x=x)), (halves(x),))
    # Compiled, and not run as it is: once for the even sizes, and 2 // 2 is a size of 1, which Dynamo takes apart.
    assert 1 <= torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2
    assert piecewised.stats()["n_local"] == before["n_local"] + 1
    assert list(backend.to_bytes()) == ["[4, 4]"]
    summary = program.wait()
    assert (summary.is_complete, summary.n_local) == (False, 1)
    with pytest.raises(piecewised.Refused) as raised:
        piecewised.load("test-half-local", endpoint=daemon.endpoint)
    assert raised.value.reason == "NO_SUCH_MANIFEST"


def test_the_callers_mistakes_are_raised_and_never_compiled_around(daemon: Daemon, gm: torch.fx.GraphModule) -> None:
    backend = make(daemon, gm, compile_ranges=[[1, 16]], options={"max_autotoon": True}, on_error="local")
    with pytest.raises(piecewised.OptionError, match="max_autotoon"):
        check(backend, gm, 5)
    program = Program("test-twice", 2)
    make(daemon, gm, compile_ranges=[[1, 16]], program=program, piece_index=0).wait()
    other = make(daemon, gm, compile_ranges=[[1, 17]], program=program, piece_index=0, on_error="local")
    with pytest.raises(piecewised.ProgramError) as raised:
        other.wait()
    assert raised.value.reason == "DIFFERENT_PIECE"


def test_a_program_that_is_abandoned_leaves_no_manifest(daemon: Daemon, gm: torch.fx.GraphModule) -> None:
    done: list[Any] = []
    program = Program("test-abandoned", 2, on_complete=done.append)
    make(daemon, gm, compile_ranges=[[1, 16]], program=program, piece_index=1).wait()
    with pytest.raises(TimeoutError, match="1 of 2 pieces"):
        program.wait(0.2)
    with pytest.raises(piecewised.Refused) as raised:
        piecewised.load("test-abandoned", endpoint=daemon.endpoint)
    assert raised.value.reason == "NO_SUCH_MANIFEST"
    assert done == []


def test_a_daemon_that_dies_takes_no_call_with_it(own_daemon: Daemon, gm: torch.fx.GraphModule) -> None:
    """Threads wait for their ranges when it is killed; each is answered by a compile of this process."""
    own_daemon.start()
    backend = make(own_daemon, gm, compile_ranges=RANGES, on_error="local")
    n_local = piecewised.stats()["n_local"]
    with ThreadPoolExecutor(2) as threads:
        results = [threads.submit(in_inference, check, backend, gm, n) for n in (5, 50)]
        threading.Event().wait(0.3)
        own_daemon.stop(signal.SIGKILL)
        for result in results:
            result.result()
    assert piecewised.stats()["n_local"] == n_local + 2
    assert torch._dynamo.config.assume_static_by_default, "no thread has changed the process's settings"


def in_inference(action: Callable[..., Any], *args: Any) -> None:
    with torch.inference_mode():
        action(*args)


def test_names_of_ranges_are_read_strictly() -> None:
    assert plan.parse_name("[1, 16]") == (1, 16)
    for name in (
        "(1, 16)",
        "[1,16]",
        "[01, 16]",
        "[16, 1]",
        "[0, 1]",
        "[1, 9223372036854775808]",
        " [1, 2]",
        5,
        "[1, 2]\n",
    ):
        with pytest.raises(piecewised.FormatError):
            plan.parse_name(name)
