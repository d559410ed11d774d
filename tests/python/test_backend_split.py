"""torch.compile with splitting_ops: pieces as one program, splitting operators as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import piecewised
import pytest
import torch
from conftest import Daemon

OP = "piecewised_split_test::attention"


@torch.library.custom_op(OP, mutates_args=())
def attention(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """An operator that only this process has."""
    called.append(q.shape[0])
    return q + k


@attention.register_fake
def _(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(q)


called: list[int] = []


class Layers(torch.nn.Module):
    """Layers that are alike."""

    def __init__(self, n: int, width: int = 8) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(width, 2 * width) for _ in range(n))
        for layer in self.layers:
            torch.nn.init.orthogonal_(layer.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """All of them."""
        for layer in self.layers:
            q, k = torch.relu(layer(x)).chunk(2, dim=-1)
            x = x + attention(q, k)
        return x


@pytest.fixture(autouse=True)
def _clean(cache_dir: Path) -> Iterator[None]:
    torch._dynamo.reset()
    torch.manual_seed(0)
    called.clear()
    with torch.inference_mode():
        yield


def test_options_of_a_range_are_those_of_each_pieces_ranges(daemon: Daemon) -> None:
    n_before = len(piecewised.stats()["ranges"])
    x = torch.randn(5, 8)
    model = Layers(2)
    torch.testing.assert_close(compiled(model, daemon, warm_up=True, priority="prefetch")(x), model(x))
    made = piecewised.stats()["ranges"][n_before:]
    assert made and all(record["n_warm_calls"] for record in made)


def compiled(model: Callable[..., Any], daemon: Daemon, **options: Any) -> Callable[..., Any]:
    given = {
        "compile_ranges": [[2, 16], [17, 64]],
        "splitting_ops": [OP],
        "endpoint": daemon.endpoint,
        "on_error": "raise",
        **options,
    }
    return torch.compile(model, backend="piecewised", fullgraph=True, options=given)


def tokens(n: int) -> torch.Tensor:
    x = torch.randn(n, 8)
    torch._dynamo.mark_dynamic(x, 0)
    return x


def program_of(action: Callable[[], Any]) -> piecewised.Program:
    """The program that `action` begins."""
    before = len(piecewised.programs())
    action()
    [program] = piecewised.programs()[before:]
    return program


def test_pieces_are_one_program_and_layers_share_their_compiles(daemon: Daemon) -> None:
    model = Layers(4)
    done: list[piecewised.ProgramSummary] = []
    run = compiled(model, daemon, program="test-split", on_complete=done.append)
    program = program_of(lambda: run(tokens(5)))
    for n in (2, 16, 17, 64, 5):
        called.clear()
        x = tokens(n)
        actual = run(x)
        assert called == [n] * 4, "the operator ran as it is, once a layer"
        torch.testing.assert_close(actual, model(x))
    summary = program.wait()
    # The first piece, the layers between, and what follows the last operator.
    assert (summary.n_pieces, summary.n_distinct_pieces) == (5, 3)
    assert summary.is_complete and done == [summary]
    assert summary.n_compiled <= 6 < summary.n_compiled + summary.n_joined + summary.n_from_store == 10
    assert len(piecewised.load("test-split", endpoint=daemon.endpoint)) == 5
    with pytest.raises(piecewised.NotCovered, match="size 65"):
        run(tokens(65))


def test_every_piece_is_submitted_before_anything_runs(daemon: Daemon) -> None:
    """Size 65 is in no range, so that no piece can ever be called: all of them are compiled all the same."""
    model = Layers(2, width=8)
    run = compiled(model, daemon, compile_ranges=[[2, 12]])

    def call() -> None:
        with pytest.raises(piecewised.NotCovered):
            run(tokens(65))

    program = program_of(call)
    assert called == []
    assert program.wait().is_complete
    assert program.name.startswith("graph-"), "a name of its own, from what is compiled"


def test_lazy_pieces_compile_at_their_first_call(daemon: Daemon) -> None:
    model = Layers(2)
    run = compiled(model, daemon, compile_mode="lazy", program="test-split-lazy")
    before = len(piecewised.stats()["ranges"])
    program = program_of(lambda: run(tokens(5)))
    assert {tuple(record["range"]) for record in piecewised.stats()["ranges"][before:]} == {(2, 16)}
    assert program.summary is None
    x = tokens(20)
    torch.testing.assert_close(run(x), model(x))
    assert program.wait().is_complete


def test_another_graph_under_the_same_name_has_a_number(daemon: Daemon) -> None:
    names = []
    for n_layers in (1, 2, 1):
        torch._dynamo.reset()
        run = compiled(Layers(n_layers), daemon, program="test-numbered", compile_ranges=[[2, 16]])
        names.append(program_of(lambda run=run: run(tokens(5))).name)
    assert names == ["test-numbered", "test-numbered.1", "test-numbered"]


def test_an_encoder(daemon: Daemon) -> None:
    model = Layers(1)
    limits = {"is_encoder": True, "compile_ranges": None, "compile_range_endpoints": [16]}
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed) as raised:
        compiled(model, daemon, **limits, max_num_batched_tokens=32)(tokens(5))
    assert raised.value.inner_exception.reason == "BAD_ENCODER_PLAN"
    torch._dynamo.reset()
    run = compiled(model, daemon, **limits, max_num_batched_tokens=16)
    x = tokens(300)
    torch.testing.assert_close(run(x), model(x))


def test_what_is_no_operator_is_an_error(daemon: Daemon) -> None:
    for given, reason in ((["nothing::here"], "BAD_OPTION"), ("aten::relu", "BAD_OPTION")):
        torch._dynamo.reset()
        with pytest.raises(torch._dynamo.exc.BackendCompilerFailed) as raised:
            compiled(Layers(1), daemon, splitting_ops=given, on_error="local")(tokens(5))
        assert raised.value.inner_exception.reason == reason


def test_a_program_of_one_piece_needs_no_splitting(daemon: Daemon) -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x) * 3

    run = compiled(model, daemon, splitting_ops=None, program="test-whole", compile_ranges=[[2, 16]])
    program = program_of(lambda: run(tokens(5)))
    assert program.wait().n_pieces == 1
    torch.testing.assert_close(run(x := tokens(7)), model(x))


LOCAL = """
import json
import torch, piecewised
import warnings
warnings.simplefilter("ignore")

@torch.library.custom_op("t::op", mutates_args=())
def op(x: torch.Tensor) -> torch.Tensor:
    return x + 1
op.register_fake(torch.empty_like)

def model(x):
    return torch.relu(op(torch.relu(x) * 2)) - 1

run = torch.compile(model, backend="piecewised", options={"compile_ranges": [[2, 16]], "splitting_ops": ["t::op"]})
with torch.inference_mode():
    for n in (5, 16):
        x = torch.randn(n, 8)
        torch._dynamo.mark_dynamic(x, 0)
        torch.testing.assert_close(run(x), model(x))
[program] = piecewised.programs()
summary = program.wait(60)
print(json.dumps({"stats": piecewised.stats(), "complete": summary.is_complete, "n_local": summary.n_local}))
"""


def test_without_a_daemon_the_pieces_are_compiled_here(worker: Callable[..., Any]) -> None:
    result = worker(LOCAL, PIECEWISED_ENDPOINT="unix:/nonexistent/s.sock").result()
    assert result["stats"]["local_reasons"] == {"UNREACHABLE": 2}
    assert (result["complete"], result["n_local"]) == (False, 2)


PENDING = """
import json, os, socket, sys, tempfile, warnings
import torch, piecewised
path = os.path.join(tempfile.mkdtemp(), "s.sock")
silent = socket.socket(socket.AF_UNIX)
silent.bind(path)
silent.listen()
graphs = []
x = torch.randn(5, 8)
torch._dynamo.mark_dynamic(x, 0)
with torch.inference_mode():
    torch.compile(lambda x: torch.relu(x) + 1, backend=lambda gm, _: graphs.append(gm) or gm)(x)
backend = piecewised.PiecewiseBackend(graphs[0], compile_ranges=[[2, 16]], endpoint=f"unix:{path}")
"""


def test_a_process_ends_while_compiles_are_under_way(worker: Callable[..., Any]) -> None:
    """A daemon that accepts and never answers: the process's end does not wait for it, and is a clean one."""
    assert worker(PENDING + "print(json.dumps('ended'))").result() == "ended"


def test_a_forked_child_asks_for_itself(daemon: Daemon, worker: Callable[..., Any]) -> None:
    script = (
        PENDING.replace('endpoint=f"unix:{path}"', "mode='lazy', on_error='raise'")
        + """
with torch.inference_mode():
    position = backend.argument
    def call():
        x = torch.randn(6, 8)
        args = [x, x]
        args[position] = 6
        torch.testing.assert_close(backend(*args)[0], torch.relu(x) + 1)
    # Asked for, with nobody left in the child to see to it.
    backend._entries.ask([0])
    pid = os.fork()
    if pid == 0:
        call()
        os._exit(0)
print(json.dumps(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])))
"""
    )
    assert worker(script, PIECEWISED_ENDPOINT=daemon.endpoint, OMP_NUM_THREADS="1").result() == 0
