"""`warm_up`: what was loaded is called before the worker's first call, and nothing else notices."""

from __future__ import annotations

import logging
from typing import Any

import piecewised
import pytest
import torch
from conftest import Daemon
from piece_harness import capture
from piecewised import fxgraph, warming

PLAN = {"compile_ranges": [[2, 16], [17, 64]], "compile_sizes": [1], "warm_up": True, "on_error": "raise"}


def gated(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    up, gate = (x @ w).chunk(2, -1)
    return torch.nn.functional.silu(gate) * up


def inputs(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    x, w = torch.randn(n, 32), torch.randn(32, 64)
    torch._dynamo.mark_dynamic(x, 0)
    return x, w


def records(daemon: Daemon, of: Any, *given: torch.Tensor, **options: Any) -> tuple[list[dict[str, Any]], torch.Tensor]:
    """What was loaded for a function, and what it gave."""
    torch._dynamo.reset()
    n_before = len(piecewised.stats()["ranges"])
    compiled = torch.compile(of, backend="piecewised", options={**PLAN, "endpoint": daemon.endpoint, **options})
    with torch.no_grad():
        result = compiled(*given)
    return piecewised.stats()["ranges"][n_before:], result


@pytest.mark.parametrize("artifact_format", ["inductor", "aoti"])
def test_each_range_is_called_at_its_hint_its_ends_and_powers_of_two(daemon: Daemon, artifact_format: str) -> None:
    x, w = inputs(5)
    made, result = records(daemon, gated, x, w, artifact_format=artifact_format)
    torch.testing.assert_close(result, gated(x, w))
    # 2, 4, 8, 16 and the hint; 17, 32, 64 and the hint; 1.
    hints = {tuple(record["range"]): record["n_warm_calls"] for record in made}
    assert hints.keys() == {(1, 1), (2, 16), (17, 64)}
    assert hints[1, 1] == 1 and hints[2, 16] in (4, 5) and hints[17, 64] in (3, 4)
    assert all(record["warm_up_s"] > 0 for record in made)
    made, _ = records(daemon, gated, x, w, artifact_format=artifact_format, warm_up=False)
    assert made and all("n_warm_calls" not in record for record in made)


def test_weights_are_as_they_were_and_random_numbers_those_that_follow(daemon: Daemon) -> None:
    def noisy(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        w.add_(1)
        return torch.nn.functional.dropout(x @ w, 0.5, training=True)

    x, w = inputs(5)
    w.zero_()
    torch.manual_seed(3)
    made, _ = records(daemon, noisy, x, w)
    warmed = torch.rand(4)
    assert sum(record["n_warm_calls"] for record in made) >= 8
    assert torch.equal(w, torch.ones_like(w))
    w.zero_()
    torch.manual_seed(3)
    records(daemon, noisy, x, w, warm_up=False)
    assert torch.equal(torch.rand(4), warmed)


def test_what_may_have_other_effects_is_not_called() -> None:
    library = torch.library.Library("test_warming", "DEF")
    library.define("shift(Tensor x) -> Tensor")
    library.impl("shift", lambda x: x + 1, "CompositeExplicitAutograd")
    torch.library.register_fake("test_warming::shift", lambda x: torch.empty_like(x), lib=library)
    gm = capture(lambda x: torch.ops.test_warming.shift(x), torch.zeros(4, 8))
    assert "test_warming.shift" in warming.why_not(fxgraph.to_graph(gm))

    def branching(x: torch.Tensor) -> torch.Tensor:
        return torch.cond(x.sum() > 0, torch.sin, torch.cos, (x,))

    assert "graphs within it" in warming.why_not(fxgraph.to_graph(capture(branching, torch.zeros(4, 8))))
    assert warming.why_not(fxgraph.to_graph(capture(gated, *inputs(5)))) == ""


def fails(*given: Any) -> Any:
    raise RuntimeError("no memory")


@pytest.mark.parametrize(
    ("changed", "words"), [(("MAX_SHARE", 1e-9), "its arguments have"), (("_made", fails), "no memory")]
)
def test_where_arguments_cannot_be_made_the_artifact_is_there_for_the_worker(
    daemon: Daemon,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    changed: tuple[str, Any],
    words: str,
) -> None:
    monkeypatch.setattr(warming, *changed)
    caplog.set_level(logging.INFO, "piecewised.warming")
    x, w = inputs(5)
    made, result = records(daemon, gated, x, w)
    torch.testing.assert_close(result, gated(x, w))
    assert {record["n_warm_calls"] for record in made} == {0}
    assert words in caplog.text


def test_the_option_is_a_flag() -> None:
    with pytest.raises(piecewised.OptionError, match="True or False"):
        piecewised.PiecewiseBackend(capture(gated, *inputs(5)), compile_ranges=[[2, 16]], warm_up=1)
