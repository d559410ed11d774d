"""`artifact_format="aoti"` through the Python package and a real daemon: what is right, shared, kept, and started from; and graph files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import piecewised
import pytest
import service_harness
import torch
from conftest import Daemon
from piece_harness import arguments, capture
from piecewised import PiecewiseBackend, Program
from split_harness import ATTENTION, attention

WEIGHT = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
RANGES = [[1, 16], [17, 64]]


def block(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return torch.relu(x @ w) * 2 + x.sum(0)


def tokens(n: int) -> torch.Tensor:
    x = torch.randn(n, 8)
    torch._dynamo.mark_dynamic(x, 0)
    return x


@pytest.fixture(autouse=True)
def _clean(cache_dir: Path) -> Iterator[None]:
    torch._dynamo.reset()
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


def compiled(model: Callable[..., Any], daemon: Daemon, **options: Any) -> Callable[..., Any]:
    given = {"compile_ranges": RANGES, "artifact_format": "aoti", "endpoint": daemon.endpoint, "on_error": "raise"}
    return torch.compile(model, backend="piecewised", fullgraph=True, options={**given, **options})


def records_of(action: Callable[[], Any]) -> list[dict[str, Any]]:
    """What is counted about the ranges that `action` has compiled."""
    before = len(piecewised.stats()["ranges"])
    action()
    return piecewised.stats()["ranges"][before:]


def test_packages_give_what_eager_gives_and_are_compiled_once(daemon: Daemon) -> None:
    run = compiled(block, daemon, compile_sizes=[4])
    records = records_of(lambda: run(tokens(5), WEIGHT))
    assert sorted((record["range"], record["source"]) for record in records) == [
        ([1, 16], "compiled"),
        ([4, 4], "compiled"),
        ([17, 64], "compiled"),
    ]
    for n in (1, 2, 4, 16, 17, 64):
        x = tokens(n)
        torch.testing.assert_close(run(x, WEIGHT), block(x, WEIGHT))
    torch._dynamo.reset()
    again = records_of(lambda: compiled(block, daemon, compile_sizes=[4])(tokens(5), WEIGHT))
    assert {record["source"] for record in again} == {"store"}
    assert {record["key"] for record in again} == {record["key"] for record in records}


def test_the_formats_have_keys_of_their_own(daemon: Daemon) -> None:
    keys = []
    for artifact_format in ("aoti", "inductor"):
        torch._dynamo.reset()
        options = {"artifact_format": artifact_format, "compile_ranges": [[2, 16]]}
        [record] = records_of(lambda options=options: compiled(block, daemon, **options)(tokens(5), WEIGHT))
        keys.append(record["key"])
    assert keys[0] != keys[1]


def test_a_format_that_there_is_not_is_an_error(daemon: Daemon) -> None:
    with pytest.raises(Exception, match="'inductor', 'aoti'") as raised:
        compiled(block, daemon, artifact_format="onnx")(tokens(5), WEIGHT)
    assert isinstance(raised.value.inner_exception, piecewised.OptionError)


def test_a_program_of_packages_starts_from_its_manifest_and_from_bytes(daemon: Daemon) -> None:
    graph = capture(block, torch.randn(5, 8), WEIGHT)
    program = Program("aoti.v1", 1)
    backend = PiecewiseBackend(
        graph,
        compile_ranges=[[1, 16]],
        program=program,
        artifact_format="aoti",
        endpoint=daemon.endpoint,
        on_error="raise",
    )
    assert program.wait().is_complete
    for piece in (
        backend,
        *piecewised.load("aoti.v1", endpoint=daemon.endpoint),
        PiecewiseBackend(compiled_runnables=backend.to_bytes()),
    ):
        for n in (1, 2, 16):
            x = torch.randn(n, 8)
            torch.testing.assert_close(piece(*arguments(graph, x=x, w=WEIGHT)), (block(x, WEIGHT),))


# Graph files.


@pytest.fixture(scope="module")
def service(daemon: Daemon) -> Iterator[service_harness.Client]:
    """The daemon, by gRPC; it also says what its messages are."""
    with service_harness.Client(daemon.endpoint) as client:
        yield client


@pytest.fixture(scope="module")
def read(service: service_harness.Client) -> Callable[[Path], Any]:
    """Reads the request in a graph file."""

    def read(path: Path) -> Any:
        content = path.read_bytes()
        assert content[:8] == b"pwgraph1"
        return type(service.message("CompileRequest")).FromString(content[8:])

    return read


def test_a_graph_file_holds_the_request(read: Callable[[Path], Any], tmp_path: Path) -> None:
    graph = capture(block, torch.randn(5, 8), WEIGHT)
    options = {
        "compile_ranges": RANGES,
        "compile_sizes": [4],
        "compile_hints": {"[1, 16]": 8},
        "artifact_format": "aoti",
        "tuning": "full",
        "max_autotune": True,
    }
    path = tmp_path / "block.pwgraph"
    piecewised.save_graph(path, graph, options, label="model/0")
    request = read(path)
    assert [(r.start, r.end) for r in request.plan.compile_ranges.ranges] == [(1, 16), (17, 64)] and list(
        request.plan.compile_sizes
    ) == [4]
    assert request.label == "model/0"
    assert len(request.graph.nodes) == len(graph.graph.nodes)
    assert not request.HasField("toolchain") and not request.HasField("device")
    text = str(request.options)
    assert "ARTIFACT_FORMAT_AOTI" in text and "TUNING_FULL" in text and "max_autotune" in text
    assert path.stat().st_mode & 0o777 == 0o644


def test_what_cannot_be_saved_says_so_and_leaves_what_was_there(tmp_path: Path) -> None:
    graph = capture(block, torch.randn(5, 8), WEIGHT)
    path = tmp_path / "block.pwgraph"
    path.write_bytes(b"before")
    with pytest.raises(piecewised.PlanError):
        piecewised.save_graph(path, graph)
    with pytest.raises(piecewised.OptionError):
        piecewised.save_graph(path, graph, {"compile_sizes": [4], "artifact_format": "onnx"})
    assert path.read_bytes() == b"before"
    with pytest.raises(FileNotFoundError):
        piecewised.save_graph(tmp_path / "absent" / "x.pwgraph", graph, {"compile_sizes": [4]})


def test_graphs_are_recorded_as_they_are_compiled_with_and_without_a_daemon(
    daemon: Daemon, service: service_harness.Client, read: Callable[[Path], Any], tmp_path: Path
) -> None:
    with piecewised.record_graphs(tmp_path / "one") as recording:
        compiled(block, daemon)(tokens(5), WEIGHT)
    [path] = recording.files
    assert path.parent == tmp_path / "one" and path.suffix == ".pwgraph"
    assert [(r.start, r.end) for r in read(path).plan.compile_ranges.ranges] == [(1, 16), (17, 64)]
    # The same request as it stands in the file is the same compile.
    ready = [event.ready for event in service.compile(read(path)) if event.HasField("ready")]
    assert len(ready) == 2 and all(event.source for event in ready)
    torch._dynamo.reset()
    with piecewised.record_graphs(tmp_path / "two") as recording, pytest.raises(Exception, match="nonexistent"):
        compiled(block, daemon, endpoint="unix:/nonexistent/s.sock")(tokens(5), WEIGHT)
    [other] = recording.files
    assert read(other) == read(path)
    torch._dynamo.reset()
    compiled(block, daemon)(tokens(5), WEIGHT)
    assert len(recording.files) == 1, "nothing is recorded afterwards"


def test_the_pieces_of_a_split_graph_are_recorded_in_their_order(
    daemon: Daemon, read: Callable[[Path], Any], tmp_path: Path
) -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        q, k, v = x @ WEIGHT, x + 1, x * 2
        out = torch.zeros_like(q)
        attention(q, k, v, out)
        return torch.tanh(out)

    options = {"splitting_ops": [ATTENTION], "program": "recorded.v1", "compile_ranges": [[2, 16]]}
    with piecewised.record_graphs(tmp_path) as recording:
        x = tokens(5)
        run = compiled(model, daemon, **options)
        torch.testing.assert_close(run(x), model(x))
    assert [path.name for path in recording.files] == ["0000-recorded.v1-0.pwgraph", "0001-recorded.v1-1.pwgraph"]
    assert [read(path).label for path in recording.files] == ["recorded.v1/0", "recorded.v1/1"]
    for path in recording.files:
        request = read(path)
        assert not request.HasField("program"), "a run is this process's"
        assert "ARTIFACT_FORMAT_AOTI" in str(request.options)
        assert any(node.HasField("placeholder") for node in request.graph.nodes)
