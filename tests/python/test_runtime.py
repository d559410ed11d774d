"""The part that worker and executor share: fingerprints, structures, and what the loader refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import executor_harness as h
import pytest

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
