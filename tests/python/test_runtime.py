"""The part that worker and executor share: fingerprints, structures, and what the loader refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import executor_harness as h
import pytest
import torch

fingerprint = h.client_module("runtime.fingerprint")
outputs = h.client_module("runtime.outputs")
load = h.client_module("runtime.load")


def test_the_toolchain_has_the_declared_fields() -> None:
    toolchain = fingerprint.toolchain()
    assert list(toolchain) == [
        *("fingerprint", "python_version", "torch_version", "torch_git_version"),
        *("triton_version", "cuda_version", "executable"),
    ]
    assert all(isinstance(value, str) for value in toolchain.values())
    assert re.fullmatch("[0-9a-f]{64}", toolchain["fingerprint"])


def test_a_digest_tells_its_parts_apart() -> None:
    assert fingerprint._digest(["ab", "c"]) != fingerprint._digest(["a", "bc"]) != fingerprint._digest(["abc"])


def test_the_cpu_is_named_by_its_instruction_set() -> None:
    device = fingerprint.cpu_device()
    assert device["type"] == "cpu" and re.fullmatch("[0-9a-f]{64}", device["capability"])
    assert fingerprint.devices("cpu") == [device]


@pytest.mark.parametrize(
    ("structure", "expected"),
    [
        ({"leaf": 1}, "b"),
        ({"tuple": [{"leaf": 0}, {"leaf": 1}]}, ("a", "b")),
        ({"list": [{"leaf": 1}, {"constant": None}]}, ["b", None]),
        ({"dict": [["x", {"tuple": [{"leaf": 0}]}], ["y", {"constant": 3}]]}, {"x": ("a",), "y": 3}),
    ],
)
def test_a_structure_is_restored(structure: dict[str, Any], expected: Any) -> None:
    assert outputs.restorer(structure)(("a", "b")) == expected


def test_only_the_flat_tuple_needs_no_restoring() -> None:
    assert outputs.is_flat_tuple({"tuple": [{"leaf": 0}, {"leaf": 1}]}, 2)
    assert not outputs.is_flat_tuple({"tuple": [{"leaf": 1}, {"leaf": 0}]}, 2)
    assert not outputs.is_flat_tuple({"list": [{"leaf": 0}]}, 1)
    assert outputs.returns_sequence({"list": []}) and not outputs.returns_sequence({"leaf": 0})


def _manifest(folder: Path, **changed: Any) -> Path:
    manifest = {
        "container_version": 2,
        "format": "inductor",
        "toolchain": fingerprint.toolchain(),
        "device": fingerprint.cpu_device(),
        "entries": [],
        "files": [],
        **changed,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_an_artifact_of_another_toolchain_is_refused_with_both_named(tmp_path: Path) -> None:
    foreign = {**fingerprint.toolchain(), "fingerprint": "f" * 64, "torch_version": "2.12.0"}
    with pytest.raises(load.LoadError) as refused:
        load.load_entry(_manifest(tmp_path, toolchain=foreign), "e0")
    ours = fingerprint.toolchain()
    assert "torch 2.12.0" in str(refused.value) and f"torch {ours['torch_version']}" in str(refused.value)
    assert "f" * 16 in str(refused.value) and ours["fingerprint"][:16] in str(refused.value)


def test_an_artifact_of_another_device_is_refused_with_both_named(tmp_path: Path) -> None:
    foreign = {**fingerprint.cpu_device(), "capability": "another"}
    with pytest.raises(load.LoadError) as refused:
        load.load_entry(_manifest(tmp_path, device=foreign), "e0")
    assert "another" in str(refused.value) and fingerprint.cpu_device()["capability"] in str(refused.value)


def test_another_container_version_or_a_missing_entry_is_refused(tmp_path: Path) -> None:
    with pytest.raises(load.LoadError, match="version 2"):
        load.load_entry(_manifest(tmp_path, container_version=3), "e0")
    with pytest.raises(load.LoadError, match="no entry 'e7'"):
        load.load_entry(_manifest(tmp_path), "e7")


def _entry(folder: Path, source: str, **changed: Any) -> Path:
    record = {
        **{"name": "e0", "kind": "direct", "program": "programs/e0.py", "n_arguments": 1, "arguments": [0]},
        **{"constants": [], "n_outputs": 1, "output": {"tuple": [{"leaf": 0}]}},
        **{"realigned": [], "written_back": [], "bumped": [], "views": []},
        **changed,
    }
    (folder / "programs").mkdir()
    (folder / "cache").mkdir()
    (folder / "programs/e0.py").write_text(source)
    return _manifest(folder, entries=[record])


def test_a_kernel_that_an_index_puts_elsewhere_is_not_loaded(tmp_path: Path) -> None:
    for name in ("../../outside.so", "/etc/passwd", "kernels/../x.so", "kernels/" + "A" * 64 + ".so", 7):
        folder = tmp_path / str(abs(hash(str(name))))
        folder.mkdir()
        _entry(folder, "k = _cpu_kernel('d')\ndef call(args):\n    return tuple(args)\n")
        (folder / "cache/kernels.json").write_text(json.dumps({"d": name}))
        with pytest.raises(load.LoadError, match="damaged or forged"):
            load.load_entry(folder, "e0")


def test_a_kernel_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(load.LoadError, match="no kernel for a request of its own program"):
        load.load_entry(_entry(tmp_path, "k = _cpu_kernel('d')\n"), "e0")


def test_an_unknown_kind_of_program_is_refused(tmp_path: Path) -> None:
    with pytest.raises(load.LoadError, match="kind 'other'"):
        load.load_entry(_entry(tmp_path, "", kind="other"), "e0")


def test_tensors_that_are_not_aligned_are_copied_and_written_back(tmp_path: Path) -> None:
    program = "def call(args):\n    x, = args\n    args.clear()\n    assert x.data_ptr() % 16 == 0\n    x.add_(1)\n    return (x * 2,)\n"
    run = load.load_entry(_entry(tmp_path, program, realigned=[0], written_back=[0], bumped=[0]), "e0")
    base = torch.zeros(9)
    for given in (base[:8], base[1:]):
        base.zero_()
        version = given._version
        assert run(given)[0].tolist() == [2.0] * 8
        assert given.tolist() == [1.0] * 8
        assert given._version > version


def test_views_of_tensors_that_are_not_aligned_look_into_what_was_given(tmp_path: Path) -> None:
    program = "def call(args):\n    x, = args\n    args.clear()\n    return (x[1:3], x, x * 2)\n"
    run = load.load_entry(_entry(tmp_path, program, realigned=[0], views=[[0, 0], [1, 0]]), "e0")
    base = torch.arange(9.0)
    for given in (base[:8], base[1:]):
        view, same, other = run(given)
        assert view.data_ptr() == given[1:3].data_ptr() and view.tolist() == given[1:3].tolist()
        assert same.data_ptr() == given.data_ptr() and same.shape == given.shape
        assert other.tolist() == (given * 2).tolist()


def test_no_gradients_are_recorded(tmp_path: Path) -> None:
    run = load.load_entry(_entry(tmp_path, "def call(args):\n    return (args[0] * 2,)\n"), "e0")
    x = torch.ones(2, requires_grad=True)
    assert not run(x)[0].requires_grad and torch.is_grad_enabled()
