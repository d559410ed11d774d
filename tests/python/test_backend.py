"""torch.compile(backend="piecewised") against a real daemon: what is right, shared, refused and survived."""

from __future__ import annotations

import json
import os
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import piecewised
import pytest
import torch
from conftest import Daemon

RANGES = [[1, 16], [17, 64]]


class Block(torch.nn.Module):
    """Some work with a reduction, a matmul and something pointwise."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.norm = torch.nn.LayerNorm(width)
        self.up = torch.nn.Linear(width, 3 * width)
        self.down = torch.nn.Linear(3 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """One residual block."""
        return x + self.down(torch.nn.functional.silu(self.up(self.norm(x))))


def tokens(n: int, width: int = 16) -> torch.Tensor:
    x = torch.randn(n, width)
    torch._dynamo.mark_dynamic(x, 0)
    return x


def compiled(model: Callable[..., Any], daemon: Daemon, **options: Any) -> Callable[..., Any]:
    """Fails where a compile would have been local, unless told otherwise."""
    given = {"compile_ranges": RANGES, "endpoint": daemon.endpoint, "on_error": "raise", **options}
    return torch.compile(model, backend="piecewised", options=given)


def inner(raised: pytest.ExceptionInfo[Any]) -> Any:
    """The backend's own exception, which Dynamo wraps."""
    return raised.value.inner_exception


@pytest.fixture(autouse=True)
def _clean(cache_dir: Path) -> Any:
    torch._dynamo.reset()
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


def records_of(action: Callable[[], Any]) -> list[dict[str, Any]]:
    """What is counted about the ranges that `action` has compiled."""
    before = len(piecewised.stats()["ranges"])
    action()
    return piecewised.stats()["ranges"][before:]


def test_every_size_gives_what_eager_gives(daemon: Daemon) -> None:
    model = Block()
    run = compiled(model, daemon, compile_sizes=[4, 20])
    before = piecewised.stats()
    records = records_of(lambda: run(tokens(5)))
    assert sorted(record["range"] for record in records) == [[1, 16], [4, 4], [17, 64], [20, 20]]
    for n in (2, 3, 4, 5, 16, 17, 20, 33, 64):
        x = tokens(n)
        torch.testing.assert_close(run(x), model(x))
    after = piecewised.stats()
    assert after["n_pieces"] == before["n_pieces"] + 1, "no size was compiled anew"
    assert after["n_local"] == before["n_local"]


def test_a_size_outside_every_range_is_an_error_that_names_it(daemon: Daemon) -> None:
    model = Block()
    run = compiled(model, daemon)
    run(tokens(5))
    with pytest.raises(piecewised.NotCovered, match="size 65 is outside every compiled range") as raised:
        run(tokens(65))
    assert "64]" in str(raised.value)
    torch.testing.assert_close(run(x := tokens(64)), model(x))


def test_a_model_with_static_sizes_has_one_entry(daemon: Daemon) -> None:
    model = Block()
    run = torch.compile(
        model,
        backend="piecewised",
        dynamic=False,
        options={"compile_ranges": RANGES, "compile_sizes": [4], "endpoint": daemon.endpoint, "on_error": "raise"},
    )
    x = torch.randn(100, 16)
    records = records_of(lambda: torch.testing.assert_close(run(x), model(x)))
    assert [record["range"] for record in records] == [None]


def capture(model: Callable[..., Any], *args: Any) -> tuple[torch.fx.GraphModule, list[Any]]:
    """The graph as Dynamo hands it to a backend, and the arguments it is then called with."""
    graphs: list[torch.fx.GraphModule] = []
    calls: list[list[Any]] = []

    def backend(gm: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        graphs.append(gm)

        def run(*given: Any) -> Any:
            calls.append(list(given))
            return gm(*given)

        return run

    torch.compile(model, backend=backend)(*args)
    return graphs[0], calls[0]


def piece_of(daemon: Daemon, model: Callable[..., Any], *args: Any, **plan: Any) -> tuple[piecewised.Piece, list[Any]]:
    from piecewised import settings
    from piecewised.fxgraph import to_graph

    gm, arguments = capture(model, *args)
    piece = piecewised.Piece.compile(
        piecewised.Client(daemon.endpoint),
        to_graph(gm),
        options={"inductor": {}, "torch": settings.torch_settings()},
        toolchain=settings.toolchain(),
        device=settings.device_of(to_graph(gm)),
        **plan,
    )
    return piece, arguments


def test_size_one_is_right_in_a_range_that_begins_with_it(daemon: Daemon) -> None:
    """Dynamo never calls with size 1, which it makes static; vLLM does."""
    model = Block()
    piece, arguments = piece_of(daemon, model, tokens(5), ranges=[(1, 16)])
    sizes = [i for i, value in enumerate(arguments) if isinstance(value, int)]
    [x_at] = [i for i, value in enumerate(arguments) if isinstance(value, torch.Tensor) and value.shape == (5, 16)]
    for n in (1, 2, 16):
        x = torch.randn(n, 16)
        for i in sizes:
            arguments[i] = n
        arguments[x_at] = x
        torch.testing.assert_close(piece(*arguments)[0], model(x))


def test_what_was_fetched_is_used_again_unless_it_is_damaged(daemon: Daemon, cache_dir: Path) -> None:
    piece, _ = piece_of(daemon, Block(), tokens(5), ranges=[(1, 16)])
    handle = json.dumps(piece.handles[0])
    client = piecewised.Client(daemon.endpoint)
    first = client.fetch(handle)
    assert first.was_local
    assert first.folder.is_relative_to(cache_dir)
    manifest = json.loads((first.folder / "manifest.json").read_text())
    (first.folder / manifest["files"][0]["path"]).write_bytes(b"")
    again = client.fetch(handle)
    assert not again.was_local
    assert again.folder == first.folder
    assert (again.folder / manifest["files"][0]["path"]).stat().st_size == manifest["files"][0]["size_bytes"]


@torch.library.custom_op("piecewised_test::twice", mutates_args=())
def twice(x: torch.Tensor) -> torch.Tensor:
    """An operator that this process has and the daemon's executors have not."""
    return x * 2


@twice.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


def test_a_graph_that_the_daemon_refuses_is_compiled_here(daemon: Daemon) -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        return twice(x) + 1

    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed) as raised:
        compiled(model, daemon)(tokens(5))
    assert (type(inner(raised)), inner(raised).reason) == (piecewised.Refused, "TARGET_NOT_ALLOWED")
    assert inner(raised).metadata["node"]

    before = piecewised.stats()["local_reasons"].get("TARGET_NOT_ALLOWED", 0)
    torch._dynamo.reset()
    run = compiled(model, daemon, on_error="local")
    with pytest.warns(piecewised.PiecewisedWarning, match="piecewised_test"):
        torch.testing.assert_close(run(x := tokens(5)), model(x))
    with warnings.catch_warnings():
        warnings.simplefilter("error", piecewised.PiecewisedWarning)
        torch._dynamo.reset()
        torch.testing.assert_close(run(x := tokens(6)), model(x))
    assert piecewised.stats()["local_reasons"]["TARGET_NOT_ALLOWED"] == before + 2


@pytest.mark.parametrize(
    ("option", "reason"),
    [("max_autotoon", "UNKNOWN_OPTION"), ("cpp.cxx", "RESERVED_OPTION")],
)
def test_an_option_that_is_wrong_is_raised_and_never_compiled_around(daemon: Daemon, option: str, reason: str) -> None:
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed) as raised:
        compiled(Block(), daemon, on_error="local", **{option: "x"})(tokens(5))
    assert type(inner(raised)) is piecewised.OptionError
    assert inner(raised).reason == reason
    assert inner(raised).metadata["option"] == option


def test_a_plan_that_is_too_long_is_raised(daemon: Daemon) -> None:
    limit = json.loads(piecewised.Client(daemon.endpoint).capabilities())["limits"]["max_ranges"]
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed) as raised:
        compiled(Block(), daemon, on_error="local", compile_sizes=range(1, limit + 1))(tokens(5))
    assert (type(inner(raised)), inner(raised).reason) == (piecewised.PlanError, "TOO_MANY_RANGES")


def test_the_size_that_a_worker_sees_first_makes_no_difference(daemon: Daemon) -> None:
    keys = set()
    for n in (3, 11):
        torch._dynamo.reset()
        run = compiled(Block(), daemon, compile_ranges=[[2, 16]])
        [record] = records_of(lambda run=run, n=n: run(tokens(n)))
        keys.add(record["key"])
    assert len(keys) == 1


def test_options_of_inductor_are_part_of_what_is_compiled(daemon: Daemon) -> None:
    model = Block()
    keys = []
    for options in ({}, {"epilogue_fusion": False}):
        torch._dynamo.reset()
        run = compiled(model, daemon, compile_ranges=[[2, 16]], **options)
        [record] = records_of(lambda run=run: run(tokens(5)))
        keys.append(record["key"])
    assert keys[0] != keys[1]


WORKER = """
import json, sys
import torch, piecewised

class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a = torch.nn.Linear(24, 48)
        self.b = torch.nn.Linear(48, 24)
    def forward(self, x):
        return x + self.b(torch.nn.functional.gelu(self.a(x)))

torch.manual_seed(0)
model = Block()
run = torch.compile(model, backend="piecewised", options={
    "compile_ranges": [[2, 16], [17, 64]], "compile_sizes": [4], "on_error": "raise"})
with torch.inference_mode():
    for n in (5, 4, 17, 64):
        x = torch.randn(n, 24)
        torch._dynamo.mark_dynamic(x, 0)
        torch.testing.assert_close(run(x), model(x))
print(json.dumps({**piecewised.stats(), "cuda": torch.cuda.is_initialized()}))
"""


def test_workers_that_start_together_share_each_compile(daemon: Daemon, worker: Callable[..., Any]) -> None:
    workers = [worker(WORKER, PIECEWISED_ENDPOINT=daemon.endpoint) for _ in range(2)]
    ranges = [record for one in workers for record in one.result()["ranges"]]
    assert len(ranges) == 6
    by_key: dict[str, list[str]] = {}
    for record in ranges:
        by_key.setdefault(record["key"], []).append(record["source"])
    assert len(by_key) == 3
    for sources in by_key.values():
        assert sources.count("compiled") == 1, sources
    third = worker(WORKER, PIECEWISED_ENDPOINT=daemon.endpoint).result()
    assert {record["source"] for record in third["ranges"]} == {"store"}
    assert not third["cuda"]


def test_a_forked_child_connects_by_itself(daemon: Daemon, worker: Callable[..., Any]) -> None:
    script = (
        WORKER
        + """
import os
read, write = os.pipe()
client = piecewised.Client()
client.capabilities()
pid = os.fork()
if pid == 0:
    torch._dynamo.reset()
    with torch.inference_mode():
        x = torch.randn(9, 24)
        torch._dynamo.mark_dynamic(x, 0)
        torch.testing.assert_close(run(x), model(x))
    client.capabilities()
    os.write(write, json.dumps(piecewised.stats()).encode())
    os._exit(0)
os.close(write)
child = json.loads(os.fdopen(read).read())
os.waitpid(pid, 0)
client.capabilities()
print(json.dumps(child))
"""
    )
    # One thread: a child of a process that has run OpenMP's threads hangs in the first kernel that wants them.
    child = worker(script, PIECEWISED_ENDPOINT=daemon.endpoint, OMP_NUM_THREADS="1").result()
    assert child["n_pieces"] == 1
    assert {(record["source"], record["was_local"]) for record in child["ranges"]} == {("store", True)}


def test_a_daemon_that_dies_and_comes_back(own_daemon: Daemon) -> None:
    model = Block(width=12)
    own_daemon.start()
    run = compiled(model, own_daemon, on_error="local", compile_ranges=[[2, 16]])
    x = tokens(5, 12)
    torch.testing.assert_close(run(x), model(x))

    own_daemon.stop(signal.SIGKILL)
    torch.testing.assert_close(run(y := tokens(7, 12)), model(y), msg="what is loaded needs no daemon")
    torch._dynamo.reset()
    n_local = piecewised.stats()["n_local"]
    torch.testing.assert_close(run(x), model(x))
    assert piecewised.stats()["n_local"] == n_local + 1

    own_daemon.start()
    torch._dynamo.reset()
    [record] = records_of(lambda: torch.testing.assert_close(run(x), model(x)))
    assert record["source"] == "store"


def test_a_budget_that_is_spent_leads_to_a_local_compile(own_daemon: Daemon) -> None:
    own_daemon.start()
    run = compiled(Block(width=20), own_daemon, budget_s=0.05)
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed) as raised:
        run(tokens(5, 20))
    assert type(inner(raised)) is piecewised.BudgetSpent


def test_progress_is_shown_when_asked_for(daemon: Daemon, capsys: pytest.CaptureFixture[str]) -> None:
    compiled(Block(), daemon, compile_ranges=[[2, 16]], progress=True)(tokens(5))
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("piecewised [2, 16]")
    assert "loaded" in line
    torch._dynamo.reset()
    compiled(Block(), daemon, compile_ranges=[[2, 16]])(tokens(5))
    assert capsys.readouterr().err == "", "stderr is no terminal here"


def test_settings_of_the_process_are_part_of_what_is_compiled(daemon: Daemon) -> None:
    model = Block()
    keys = set()
    n_threads = torch.get_num_threads()
    try:
        for n in (n_threads, n_threads + 1):
            torch.set_num_threads(n)
            torch._dynamo.reset()
            run = compiled(model, daemon, compile_ranges=[[2, 16]])
            [record] = records_of(lambda run=run: run(tokens(5)))
            keys.add(record["key"])
    finally:
        torch.set_num_threads(n_threads)
    assert len(keys) == 2


def test_the_cache_folder_is_the_users_alone(daemon: Daemon, cache_dir: Path) -> None:
    compiled(Block(), daemon, compile_ranges=[[2, 16]])(tokens(5))
    assert cache_dir.stat().st_mode & 0o777 == 0o700
    os.chmod(cache_dir, 0o777)
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed) as raised:
        compiled(Block(), daemon, compile_ranges=[[2, 16]])(tokens(5))
    assert (type(inner(raised)), inner(raised).reason) == (piecewised.CacheError, "CACHE_NOT_PRIVATE")
