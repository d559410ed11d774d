"""Programs and their manifests: what a second process starts from, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import piecewised
import pytest
import torch
from conftest import Daemon
from piece_harness import arguments, capture
from piecewised import PiecewiseBackend, Program
from ready_daemon import ROOT

WEIGHT = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
NAME = "test-program.v1"


def first(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return torch.relu(x @ w) * 2


def second(w: torch.Tensor) -> torch.Tensor:
    return torch.tanh(w).sum(0)


@pytest.fixture(autouse=True)
def _inference(cache_dir: Path) -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def graphs() -> list[torch.fx.GraphModule]:
    """A piece with a size and one without."""
    with torch.inference_mode():
        return [capture(first, torch.randn(5, 8), WEIGHT), capture(second, WEIGHT, dynamic=())]


@pytest.fixture(scope="module")
def program(
    daemon: Daemon, graphs: list[torch.fx.GraphModule], tmp_path_factory: pytest.TempPathFactory
) -> piecewised.ProgramSummary:
    """A program at the daemon."""
    run = Program(NAME, 2)
    plans = [{"compile_ranges": [[1, 16]], "compile_sizes": [4]}, {"compile_sizes": [1]}]
    cache = tmp_path_factory.mktemp("cache")
    with torch.inference_mode():
        for index, (graph, plan) in enumerate(zip(graphs, plans, strict=True)):
            PiecewiseBackend(
                graph,
                **plan,
                piece_index=index,
                program=run,
                endpoint=daemon.endpoint,
                on_error="raise",
                cache_dir=cache,
            )
        return run.wait()


def check(pieces: list[PiecewiseBackend], graphs: list[torch.fx.GraphModule]) -> None:
    for n in (1, 4, 16):
        x = torch.randn(n, 8)
        torch.testing.assert_close(pieces[0](*arguments(graphs[0], x=x, w=WEIGHT)), (first(x, WEIGHT),))
    torch.testing.assert_close(pieces[1](*arguments(graphs[1], w=WEIGHT)), (second(WEIGHT),))


def test_a_manifest_by_name_from_a_file_as_bytes_and_as_a_dict(
    daemon: Daemon, program: piecewised.ProgramSummary, graphs: list[torch.fx.GraphModule], tmp_path: Path
) -> None:
    assert (program.is_complete, program.n_pieces, program.n_distinct_pieces) == (True, 2, 2)
    pieces = piecewised.load(NAME, endpoint=daemon.endpoint)
    check(pieces, graphs)
    assert [(p.piece_index, p.n_pieces, p.is_first_graph, p.is_last_graph) for p in pieces] == [
        (0, 2, True, False),
        (1, 2, False, True),
    ]
    assert [piece.argument is None for piece in pieces] == [False, True]
    file = tmp_path / "manifest"
    piecewised.save_manifest(NAME, file, endpoint=daemon.endpoint)
    manifest = piecewised.get_manifest(file)
    assert manifest == piecewised.get_manifest(NAME, endpoint=daemon.endpoint)
    # What was loaded is in the cache folder: now nobody needs the daemon.
    nowhere = "unix:/nonexistent/s.sock"
    for source in (file, file.read_bytes(), manifest):
        check(piecewised.load(source, endpoint=nowhere), graphs)
    # In another folder its daemon is not known, and where it is, somebody has to have the artifacts.
    with pytest.raises(piecewised.Untrusted):
        piecewised.load(file, endpoint=nowhere, cache_dir=tmp_path / "empty")
    piecewised.configure(trusted_keys=daemon.public_key())
    try:
        with pytest.raises(piecewised.Unreachable):
            piecewised.load(file, endpoint=nowhere, cache_dir=tmp_path / "empty")
    finally:
        piecewised.configure()


def test_what_was_loaded_gives_bytes_too(
    daemon: Daemon, program: piecewised.ProgramSummary, graphs: list[torch.fx.GraphModule]
) -> None:
    pieces = piecewised.load(NAME, endpoint=daemon.endpoint)
    again = [PiecewiseBackend(compiled_runnables=piece.to_bytes()) for piece in pieces]
    check(again, graphs)


def test_a_range_that_is_missing_is_an_error_that_lists_what_there_is(
    daemon: Daemon, program: piecewised.ProgramSummary
) -> None:
    [piece, _] = piecewised.load(NAME, endpoint=daemon.endpoint, compile_ranges=[[1, 16]])
    assert piece.entries == [(1, 16)]
    with pytest.raises(piecewised.ArtifactError, match=r"for \[17, 32\]; there is \[1, 16\], \[4, 4\]"):
        piecewised.load(NAME, endpoint=daemon.endpoint, compile_range_endpoints=[16, 32])


def test_a_manifest_of_another_toolchain_or_device_is_refused_with_both_named(
    daemon: Daemon, program: piecewised.ProgramSummary
) -> None:
    from piecewised.loading import check_fits
    from piecewised.runtime import fingerprint

    manifest = piecewised.get_manifest(NAME, endpoint=daemon.endpoint)
    foreign = {**manifest, "toolchain": {**manifest["toolchain"], "fingerprint": "f" * 64, "torch_version": "2.12.0"}}
    with pytest.raises(piecewised.ArtifactError, match=rf"program {NAME} .* torch 2\.12\.0") as raised:
        check_fits(f"program {NAME}", foreign["toolchain"], foreign["devices"])
    assert fingerprint.toolchain()["fingerprint"][:16] in str(raised.value)
    foreign = {**manifest, "devices": [{"type": "cuda", "name": "NVIDIA Z", "capability": "99.0"}]}
    with pytest.raises(piecewised.ArtifactError, match=r"NVIDIA Z.*this process has") as raised:
        check_fits(f"program {NAME}", foreign["toolchain"], foreign["devices"])
    assert raised.value.reason == "NO_DEVICE"
    # Nobody gets that far with a manifest that was altered.
    with pytest.raises(piecewised.Untrusted) as untrusted:
        piecewised.load(foreign)
    assert untrusted.value.reason == "BAD_SIGNATURE"


def test_a_manifest_that_is_damaged_is_refused(
    daemon: Daemon, program: piecewised.ProgramSummary, tmp_path: Path
) -> None:
    file = tmp_path / "manifest"
    piecewised.save_manifest(NAME, file, endpoint=daemon.endpoint)
    whole = file.read_bytes()
    for content in (whole[:-1], whole[:100], b"", whole.replace(b'"index": 1', b'"index": 0'), b"{}"):
        with pytest.raises(piecewised.FormatError) as raised:
            piecewised.load(content)
        assert raised.value.reason == "BAD_MANIFEST"
    manifest = piecewised.get_manifest(file)
    pieces = manifest["pieces"]
    for changed in ({"pieces": pieces[::-1]}, {"pieces": [{**pieces[0], "handles": []}, pieces[1]]}):
        with pytest.raises(piecewised.PiecewisedError):
            piecewised.load({**manifest, **changed})
    with pytest.raises(piecewised.FormatError):
        piecewised.load({"program": NAME})


@pytest.mark.parametrize("name", ["", ".hidden", "../../etc/passwd", "a/b", "a b", "x" * 129, "ü"])
def test_a_name_with_a_path_in_it_is_refused_before_anybody_is_asked(name: str) -> None:
    for use in (
        lambda: piecewised.load(name, endpoint="unix:/nonexistent/s.sock"),
        lambda: Program(name, 1),
        lambda: Program("right", 1, run=name),
    ):
        with pytest.raises(piecewised.ProgramError) as raised:
            use()
        assert raised.value.reason == "BAD_PROGRAM_NAME"


def test_a_program_that_was_never_compiled_is_not_found(daemon: Daemon) -> None:
    with pytest.raises(piecewised.Refused, match="never-compiled") as raised:
        piecewised.load("never-compiled", endpoint=daemon.endpoint)
    assert raised.value.reason == "NO_SUCH_MANIFEST"


def test_places_that_are_not_possible(daemon: Daemon, graphs: list[torch.fx.GraphModule]) -> None:
    def piece(**given: Any) -> PiecewiseBackend:
        return PiecewiseBackend(graphs[0], compile_ranges=[[1, 16]], mode="lazy", **given)

    for index, total in ((1, 1), (5, 2), (-1, 2), (0, 0), (True, 2)):
        with pytest.raises(piecewised.ProgramError) as raised:
            piece(piece_index=index, n_pieces=total)
        assert raised.value.reason == "BAD_PIECE_INDEX"
    for total in (0, -1, True, 2**32):
        with pytest.raises(piecewised.ProgramError):
            Program("right", total)
    with pytest.raises(piecewised.OptionError, match="n_pieces is 3, but the program has 2"):
        piece(program=Program("right", 2), n_pieces=3)
    only = piece()
    assert (only.is_first_graph, only.is_last_graph, only.is_full_graph) == (True, True, True)
    # Two totals in one run, from two processes say: the daemon knows.
    one, other = (Program("two-totals", total, run="same") for total in (2, 3))
    given: dict[str, Any] = {"compile_sizes": [4], "endpoint": daemon.endpoint}
    PiecewiseBackend(graphs[0], **given, program=one).wait()
    with pytest.raises(piecewised.ProgramError) as raised:
        PiecewiseBackend(graphs[0], **given, program=other).wait()
    assert raised.value.reason == "DIFFERENT_TOTALS"


def test_a_callback_that_raises_disturbs_nobody(
    daemon: Daemon, graphs: list[torch.fx.GraphModule], caplog: pytest.LogCaptureFixture
) -> None:
    def fails(_: Any) -> None:
        raise ValueError("mine")

    backend = PiecewiseBackend(
        graphs[0],
        compile_sizes=[4],
        program="callback",
        on_complete=fails,
        endpoint=daemon.endpoint,
        on_error="raise",
    )
    assert backend.program is not None and backend.program.wait().is_complete
    backend.wait()


EXAMPLE = ROOT / "client/python/examples/two_processes.py"


def test_the_example_of_two_processes(daemon: Daemon, worker: Callable[..., Any]) -> None:
    """The second process is told apart from the first by what it must not do: capture or compile."""
    script = f"""
import json, runpy, subprocess, sys, tempfile
from pathlib import Path
example = {str(EXAMPLE)!r}
with tempfile.TemporaryDirectory() as folder:
    subprocess.run([sys.executable, example, "compile", folder], check=True, stdout=sys.stderr)
    import torch._dynamo.convert_frame, torch._inductor.compile_fx
    def never(*args, **kwargs):
        raise AssertionError("captured or compiled")
    torch._dynamo.convert_frame.ConvertFrameAssert.__call__ = never
    torch._inductor.compile_fx.compile_fx = torch._inductor.compile_fx.compile_fx_inner = never
    torch.fx.GraphModule.__new__ = never
    runpy.run_path(example)["run_program"](Path(folder))
import piecewised
print(json.dumps({{"n_local": piecewised.stats()["n_local"], "frames": dict(torch._dynamo.utils.counters["frames"])}}))
"""
    assert worker(script, PIECEWISED_ENDPOINT=daemon.endpoint).result() == {"n_local": 0, "frames": {}}


def test_manifests_hold_nothing_but_what_the_protocol_says(daemon: Daemon, program: piecewised.ProgramSummary) -> None:
    manifest = piecewised.get_manifest(NAME, endpoint=daemon.endpoint)
    assert (manifest["program"], manifest["n_distinct_pieces"]) == (NAME, 2)
    assert [piece["entries"] for piece in manifest["pieces"]] == [[[1, 16], [4, 4]], []]
    assert [len(piece["handles"]) for piece in manifest["pieces"]] == [2, 1]
    json.dumps(manifest)
