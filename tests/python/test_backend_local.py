"""Without a daemon that can help, the model still runs, and what is said about it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

# Counts and warnings are per process, so each story is told by a process of its own.
PREAMBLE = """
import json, sys, warnings
import torch

caught = []
warnings.showwarning = lambda message, category, *rest: caught.append((category.__name__, str(message)))
warnings.simplefilter("always")

def model(x, w):
    return torch.nn.functional.silu(x @ w) + 1

def run(n, width=8, **options):
    x, w = torch.randn(n, width), torch.randn(width, width)
    torch._dynamo.mark_dynamic(x, 0)
    compiled = torch.compile(model, backend="piecewised", options={"compile_ranges": [[2, 64]], **options})
    with torch.inference_mode():
        torch.testing.assert_close(compiled(x, w), model(x, w))

def answer(**more):
    import piecewised
    ours = [text for name, text in caught if name == "PiecewisedWarning"]
    print(json.dumps({"warnings": ours, "stats": piecewised.stats(), **more}))
"""


def test_an_unreachable_daemon_costs_a_warning_and_not_the_model(worker: Callable[..., Any]) -> None:
    script = PREAMBLE + "run(5); torch._dynamo.reset(); run(7, width=16); answer()"
    for endpoint in ("unix:/nonexistent/s.sock", "127.0.0.1:1"):
        result = worker(script, PIECEWISED_ENDPOINT=endpoint).result()
        [warning] = result["warnings"]
        assert endpoint.removeprefix("unix:") in warning
        assert "piecewised serve" in warning
        assert result["stats"]["n_local"] == 2
        assert result["stats"]["local_reasons"] == {"UNREACHABLE": 2}
        assert result["stats"]["n_pieces"] == 0


def test_a_policy_makes_it_an_error(worker: Callable[..., Any]) -> None:
    script = (
        PREAMBLE
        + """
try:
    run(5, on_error="raise")
except torch._dynamo.exc.BackendCompilerFailed as error:
    inner = error.inner_exception
    answer(name=type(inner).__name__, reason=inner.reason)
"""
    )
    result = worker(script, PIECEWISED_ENDPOINT="unix:/nonexistent/s.sock").result()
    assert (result["name"], result["reason"]) == ("Unreachable", "UNREACHABLE")
    assert result["warnings"] == []


def test_what_the_user_wrote_wrongly_is_raised_without_a_daemon_too(worker: Callable[..., Any]) -> None:
    script = (
        PREAMBLE
        + """
found = []
for options in ({"compile_sizes": [0]}, {"compile_sizes": "8"}, {"max_autotoon": True}, {"endpoint": "x://y"}):
    torch._dynamo.reset()
    try:
        run(5, **options)
    except torch._dynamo.exc.BackendCompilerFailed as error:
        found.append((type(error.inner_exception).__name__, str(error.inner_exception)))
answer(found=found)
"""
    )
    found = worker(script, PIECEWISED_ENDPOINT="unix:/nonexistent/s.sock").result()["found"]
    assert [name for name, _ in found] == ["PlanError", "PlanError", "OptionError", "EndpointError"]
    assert "max_autotoon" in found[2][1]


def test_a_call_that_records_gradients_is_compiled_here(worker: Callable[..., Any]) -> None:
    script = (
        PREAMBLE
        + """
w = torch.randn(8, 8, requires_grad=True)
compiled = torch.compile(model, backend="piecewised", options={"compile_ranges": [[2, 64]]})
compiled(torch.randn(4, 8), w).sum().backward()
answer(has_gradient=w.grad is not None)
"""
    )
    # Before anything is asked of a daemon: there is none here, and the reason is the gradient all the same.
    result = worker(script, PIECEWISED_ENDPOINT="unix:/nonexistent/s.sock").result()
    assert result["has_gradient"]
    assert result["stats"]["local_reasons"] == {"NEEDS_GRADIENT": 1}
    [warning] = result["warnings"]
    assert "inference_mode" in warning


def test_importing_the_package_imports_no_torch(worker: Callable[..., Any]) -> None:
    script = """
import json, sys
import piecewised
from piecewised import Client, DispatchTable, PlanError, plan_entries
piecewised.stats(), piecewised.__version__, plan_entries([(1, 2)])
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules} & {"torch", "grpc", "google", "numpy"})))
"""
    assert worker(script).result() == []


def test_the_backend_is_found_by_its_name_and_starts_no_cuda(worker: Callable[..., Any]) -> None:
    script = (
        PREAMBLE
        + """
run(5)
answer(listed="piecewised" in torch._dynamo.list_backends(), cuda=torch.cuda.is_initialized())
"""
    )
    result = worker(script, PIECEWISED_ENDPOINT="unix:/nonexistent/s.sock").result()
    assert result["listed"]
    assert not result["cuda"]


def test_ctrl_c_ends_a_wait(worker: Callable[..., Any]) -> None:
    """A daemon that accepts and never answers; a timer stands for the person at the keyboard."""
    script = """
import json, os, signal, socket, tempfile, threading
import piecewised

# As at a terminal, also where these tests run in the background of a shell, which has it ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
path = os.path.join(tempfile.mkdtemp(), "s.sock")
silent = socket.socket(socket.AF_UNIX)
silent.bind(path)
silent.listen()
client = piecewised.Client(f"unix:{path}")
threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
try:
    client.capabilities()
except KeyboardInterrupt:
    print(json.dumps("interrupted"))
"""
    assert worker(script).result() == "interrupted"
