"""PiecewiseBackend made from what was compiled: callables, bytes, in this process and in others, without a daemon."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import piecewised
import pytest
import torch
from conftest import Daemon
from piece_harness import arguments, capture, symbols
from piecewised import PiecewiseBackend
from piecewised.entries import Entries

WEIGHT = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))


def block(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.gelu(x @ w) + x


@pytest.fixture(autouse=True)
def _inference(cache_dir: Path, daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # The bytes come from elsewhere: this cache folder has never heard of the daemon.
    monkeypatch.setenv("PIECEWISED_TRUSTED_KEYS", daemon.public_key())
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def gm() -> torch.fx.GraphModule:
    with torch.inference_mode():
        return capture(block, torch.randn(5, 8), WEIGHT)


@pytest.fixture(scope="module")
def compiled(daemon: Daemon, gm: torch.fx.GraphModule, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What to_bytes gives of a piece; its range is split at size 1."""
    with torch.inference_mode():
        backend = PiecewiseBackend(
            gm,
            compile_ranges=[[1, 16]],
            compile_sizes=[4],
            endpoint=daemon.endpoint,
            on_error="raise",
            cache_dir=tmp_path_factory.mktemp("cache"),
        )
        backend.wait()
    return backend.to_bytes()


def check(backend: Callable[..., Any], gm: torch.fx.GraphModule, n: int) -> None:
    x = torch.randn(n, 8)
    torch.testing.assert_close(backend(*arguments(gm, x=x, w=WEIGHT)), (block(x, WEIGHT),))


def answers(*names: str) -> dict[str, Callable[..., Any]]:
    return {name: lambda *args, name=name: (name, args) for name in names}


def test_bytes_load_again(compiled: dict[str, bytes], gm: torch.fx.GraphModule) -> None:
    assert list(compiled) == ["[1, 16]", "[4, 4]"]
    backend = PiecewiseBackend(compiled_runnables=compiled)
    assert [backend.argument] == symbols(gm)
    for n in (1, 2, 4, 16):
        check(backend, gm, n)
    with pytest.raises(piecewised.NotCovered, match=r"size 17 .*\[1, 16\], \[4, 4\]"):
        check(backend, gm, 17)
    assert backend.to_bytes() == compiled, "and give the same again"


WORKER = """
import json, sys
import torch
import piecewised
from piecewised import PiecewiseBackend
from piecewised.entries import Entries

class Never:
    # Nothing may be captured, traced or compiled here.
    def __call__(self, *args, **kwargs):
        raise AssertionError("Dynamo captures")
import torch._dynamo.convert_frame, torch._inductor.compile_fx
torch._dynamo.convert_frame.ConvertFrameAssert.__call__ = Never()
torch._inductor.compile_fx.compile_fx = torch._inductor.compile_fx.compile_fx_inner = Never()

data = torch.load(sys.argv[0] + ".pt")
backend = PiecewiseBackend(compiled_runnables=data["compiled"])
with torch.inference_mode():
    for args, expected in data["calls"]:
        torch.testing.assert_close(backend(*args), expected)
names = [type(value).__name__ for value in vars(backend).values()]
print(json.dumps({"n_graphs": names.count("GraphModule"), "frames": dict(torch._dynamo.utils.counters["frames"]),
    "stats": piecewised.stats()}))
"""


def test_bytes_load_in_a_process_without_daemon_graph_or_capture(
    daemon: Daemon, compiled: dict[str, bytes], gm: torch.fx.GraphModule, worker: Callable[..., Any], tmp_path: Path
) -> None:
    calls = []
    for n in (1, 4, 9):
        x = torch.randn(n, 8)
        calls.append((arguments(gm, x=x, w=WEIGHT), (block(x, WEIGHT),)))
    (tmp_path / "worker0").mkdir()
    torch.save({"compiled": compiled, "calls": calls}, tmp_path / "worker0" / "worker.py.pt")
    trusted = {"PIECEWISED_TRUSTED_KEYS": daemon.public_key()}
    result = worker(WORKER, PIECEWISED_ENDPOINT="unix:/nonexistent/s.sock", **trusted).result()
    assert result["n_graphs"] == 0
    assert result["frames"] == {}
    assert result["stats"]["n_local"] == 0


def test_bytes_of_an_unknown_daemon_are_refused_unless_it_is_trusted(
    daemon: Daemon, compiled: dict[str, bytes], cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PIECEWISED_TRUSTED_KEYS")
    with pytest.raises(piecewised.Untrusted) as raised:
        PiecewiseBackend(compiled_runnables=compiled)
    assert raised.value.reason == "KEY_NOT_TRUSTED"
    assert not any((cache_dir / "artifacts").iterdir()), "it was refused before it was unpacked"
    piecewised.configure(trusted_keys=daemon.public_key())
    try:
        PiecewiseBackend(compiled_runnables=compiled)
    finally:
        piecewised.configure()


def test_bytes_that_were_cut_off_or_altered_are_refused(compiled: dict[str, bytes]) -> None:
    whole = compiled["[4, 4]"]
    middle = len(whole) // 2
    altered = [
        (whole[:10], "10 bytes"),
        (whole[:-1], "cut off"),
        (whole[:middle], "cut off"),
        (whole + b"x", "more was added"),
        (b"", "0 bytes"),
        (whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :], "checksum"),
        (whole[:60] + b"z" + whole[61:], "checksum"),
        (b"X" + whole[1:], "does not begin"),
        (whole[:16] + b"\x09" + whole[17:], "version is 9"),
    ]
    for value, words in altered:
        with pytest.raises(piecewised.ArtifactError, match=words) as raised:
            PiecewiseBackend(compiled_runnables={"[4, 4]": value})
        assert raised.value.reason == "BAD_BUNDLE"
    PiecewiseBackend(compiled_runnables={"[4, 4]": whole})


def test_bytes_under_another_name_are_refused(compiled: dict[str, bytes]) -> None:
    with pytest.raises(piecewised.ArtifactError, match=r"\[5, 5\] was compiled for \[4, 4\]"):
        PiecewiseBackend(compiled_runnables={"[5, 5]": compiled["[4, 4]"]})
    with pytest.raises(piecewised.FormatError, match=r"'\(4, 4\)' is not the name of a range"):
        PiecewiseBackend(compiled_runnables={"(4, 4)": compiled["[4, 4]"]})


def test_what_can_not_run_is_refused() -> None:
    with pytest.raises(piecewised.FormatError, match="not a str"):
        PiecewiseBackend(compiled_runnables={"[4, 4]": "x"}, sym_shape_indices=[0])  # type: ignore[dict-item]


def test_a_call_waits_for_its_own_entry_and_for_no_other() -> None:
    entries = Entries([(1, 16), (17, 64)], 0, None)
    assert entries.ask([0, 1]) == [0, 1] and entries.ask([0, 1]) == []
    entries.put_callable(0, lambda n: n)
    state = entries.wait(entries.position(5))
    assert state.find is not None and state.find(5)(5) == 5
    assert not entries.states[1].has_end
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(entries.wait, entries.position(17))
        entries.fail(1, piecewised.CompileFailed("so"))
        assert isinstance(waiting.result().error, piecewised.CompileFailed)
    assert entries.states[0].error is None


def test_what_the_cache_folder_lost_is_fetched_again(daemon: Daemon, gm: torch.fx.GraphModule, cache_dir: Path) -> None:
    backend = PiecewiseBackend(gm, compile_sizes=[4], endpoint=daemon.endpoint, on_error="raise")
    backend.wait()
    first = backend.to_bytes()
    for file in (cache_dir / "artifacts").rglob("*.so"):
        file.write_bytes(bytes(file.stat().st_size))
    assert backend.to_bytes() == first, "an altered file is never given out"


def test_a_range_that_is_missing_is_an_error_that_lists_what_there_is(compiled: dict[str, bytes]) -> None:
    with pytest.raises(
        piecewised.ArtifactError, match=r"for \[17, 64\], \[5, 5\]; there is \[1, 16\], \[4, 4\]"
    ) as raised:
        PiecewiseBackend(compiled_runnables=compiled, compile_range_endpoints=[64, 16], compile_sizes=[4, 5])
    assert raised.value.reason == "MISSING_RANGE"
    # What the plan doesn't ask for is left.
    assert PiecewiseBackend(compiled_runnables=compiled, compile_ranges=[[1, 16]]).entries == [(1, 16)]


def test_exactly_one_mode(gm: torch.fx.GraphModule, compiled: dict[str, bytes]) -> None:
    for given in ({}, {"graph": gm, "compiled_runnables": compiled}):
        with pytest.raises(piecewised.OptionError, match="exactly one of graph"):
            PiecewiseBackend(**given, compile_ranges=[[1, 16]])


def test_callables_say_what_they_are_dispatched_on() -> None:
    with pytest.raises(piecewised.OptionError, match="sym_shape_indices"):
        PiecewiseBackend(compiled_runnables=answers("[1, 16]"))
    backend = PiecewiseBackend(compiled_runnables=answers("[1, 16]", "[17, 64]", "[4, 4]"), sym_shape_indices=[1, 0])
    assert backend.argument == 1
    for size, name in ((3, "[1, 16]"), (4, "[4, 4]"), (17, "[17, 64]")):
        assert backend(99, size) == (name, (99, size))
    assert backend.to_bytes() == {}
    with pytest.raises(piecewised.PlanError, match="exactly one entry"):
        PiecewiseBackend(compiled_runnables=answers("[1, 16]", "[4, 4]"), sym_shape_indices=[])
    assert PiecewiseBackend(compiled_runnables=answers("[1, 16]"), sym_shape_indices=[])("x") == ("[1, 16]", ("x",))


def test_the_argument_to_dispatch_on_has_to_be_the_one_that_was_compiled_for(
    compiled: dict[str, bytes], gm: torch.fx.GraphModule
) -> None:
    right = PiecewiseBackend(compiled_runnables=compiled).argument
    assert right is not None
    PiecewiseBackend(compiled_runnables=compiled, sym_shape_indices=[right])
    for wrong in ([right + 1], []):
        with pytest.raises(piecewised.OptionError, match="dispatched on"):
            PiecewiseBackend(compiled_runnables=compiled, sym_shape_indices=wrong)
        with pytest.raises(piecewised.OptionError, match="to dispatch on is argument"):
            PiecewiseBackend(gm, compile_ranges=[[1, 16]], mode="lazy", sym_shape_indices=wrong)
    assert PiecewiseBackend(gm, compile_ranges=[[1, 16]], mode="lazy", sym_shape_indices=[right]).argument == right


@pytest.mark.parametrize("sequence", [tuple, list])
def test_bare_values_stay_bare_and_sequences_pass_through(sequence: Any) -> None:
    def made(result: Any, **given: Any) -> Any:
        return PiecewiseBackend(compiled_runnables={"[1, 16]": lambda n: result}, sym_shape_indices=[0], **given)(3)

    assert made("bare") == "bare"
    assert made("bare", returns_tuple=False) == "bare"
    assert made(sequence(["a", "b"])) == sequence(["a", "b"])
    assert made(sequence(["a"]), returns_tuple=True) == sequence(["a"])
    assert made(sequence(["a"]), returns_tuple=False) == "a"


def test_an_encoders_last_range_is_open() -> None:
    given = {"is_encoder": True, "max_num_batched_tokens": 64, "compile_range_endpoints": [8, 64]}
    backend = PiecewiseBackend(compiled_runnables=answers("[1, 8]", "[9, 2147483647]"), sym_shape_indices=[0], **given)
    assert backend(2**31 - 1)[0] == "[9, 2147483647]"
    with pytest.raises(piecewised.NotCovered):
        backend(2**31)
    for limit in (128, None):
        with pytest.raises(piecewised.PlanError, match="64") as raised:
            PiecewiseBackend(
                compiled_runnables=answers("[1, 8]"),
                sym_shape_indices=[0],
                **{**given, "max_num_batched_tokens": limit},
            )
        assert raised.value.reason == "BAD_ENCODER_PLAN"
        assert (str(limit) if limit else "not given") in str(raised.value)


def test_no_plan_is_an_error_and_no_sizes_are_none(gm: torch.fx.GraphModule) -> None:
    for given in ({}, {"compile_sizes": None}, {"compile_sizes": []}, {"compile_ranges": []}):
        with pytest.raises(piecewised.PlanError) as raised:
            PiecewiseBackend(gm, mode="lazy", **given)
        assert raised.value.reason == "EMPTY_PLAN"
    for sizes in (None, []):
        backend = PiecewiseBackend(gm, mode="lazy", compile_ranges=[[1, 16]], compile_sizes=sizes)
        assert backend.entries == [(1, 16)]
    for sizes, words in (("cudagraph_capture_sizes", "expand it first"), (["8"], "is a string")):
        with pytest.raises(piecewised.PlanError, match=words):
            PiecewiseBackend(gm, mode="lazy", compile_ranges=[[1, 16]], compile_sizes=sizes)  # type: ignore[arg-type]


def test_an_artifact_of_another_toolchain_or_device_is_refused_with_both_named(
    compiled: dict[str, bytes], cache_dir: Path
) -> None:
    from piecewised.loading import load_folder
    from piecewised.runtime import fingerprint

    handle, folder = piecewised._core.Cache().take_bundle(compiled["[4, 4]"])
    foreign = json.loads(handle)
    foreign["toolchain"] = {**foreign["toolchain"], "fingerprint": "f" * 64, "torch_version": "2.12.0"}
    with pytest.raises(piecewised.ArtifactError, match=r"torch 2\.12\.0") as raised:
        load_folder(foreign, folder)
    assert raised.value.reason == "TOOLCHAIN_MISMATCH"
    assert fingerprint.toolchain()["fingerprint"][:16] in str(raised.value)
    foreign = {**json.loads(handle), "device": {"type": "cpu", "name": "z80", "capability": "none"}}
    with pytest.raises(piecewised.ArtifactError, match="z80") as raised:
        load_folder(foreign, folder)
    assert raised.value.reason == "NO_DEVICE"
    assert fingerprint.cpu_device()["name"] in str(raised.value)
