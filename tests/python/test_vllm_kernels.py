"""Triton kernels that a start launches beside its compiled graphs, kept by a real daemon: compiled once, for a GPU that need not be there.

vLLM itself is not needed for it; what it does with them is in tests/vllm.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import piecewised
import pytest
from conftest import Daemon
from piecewised.vllm import beside, node
from ready_daemon import environment

pytest.importorskip("triton", reason="this torch comes without Triton")

SCRIPT = """
import hashlib, json, os, sys
import piecewised, triton, triton.language as tl
from piecewised.vllm import beside
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import CUDABackend

@triton.jit
def NAME(x, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(x + at, tl.load(x + at, mask=at < n) + SALT, mask=at < n)

beside.use_kernel_cache()
compiled = []
make_cubin = CUDABackend.make_cubin
CUDABackend.make_cubin = lambda *args: compiled.append(1) or make_cubin(*args)
signature = {"x": "*fp32", "n": "i32", "BLOCK": "constexpr"}
source = triton.compiler.ASTSource(fn=NAME, signature=signature, constexprs={"BLOCK": 64})
kernel = triton.compile(source, target=GPUTarget("cuda", 90, 32))
# A launcher, as Triton keeps it: the bytes of a library under a key of their own.
launcher = triton.runtime.cache.get_cache_manager(hashlib.sha256(b"SALT").hexdigest())
was_there = launcher.get_file("launcher.so") is not None
path = launcher.get_file("launcher.so") or launcher.put(b"a library", "launcher.so")
print(json.dumps({
    "cubin": hashlib.sha256(kernel.asm["cubin"]).hexdigest(), "name": kernel.metadata.name, "n_compiled": len(compiled),
    "was_there": was_there, "launcher": open(path, "rb").read().decode(),
    "kernels": piecewised.stats()["kernels"], "variable": os.environ.get("TRITON_CACHE_MANAGER"),
}))
"""


def run(folder: Path, endpoint: str, salt: str, name: str = "add_it") -> dict[str, Any]:
    """One worker with Triton's cache in `folder`."""
    folder.mkdir(exist_ok=True)
    # Triton reads the kernel's source from its file; the same text at the same place, since lines count too.
    script = folder.parent / f"{name}.py"
    script.write_text(SCRIPT.replace("NAME", name).replace("SALT", salt))
    variables = environment(
        TRITON_CACHE_DIR=str(folder / "triton"),
        PIECEWISED_CACHE_DIR=str(folder / "client"),
        PIECEWISED_ENDPOINT=endpoint,
    )
    done = subprocess.run([sys.executable, script], env=variables, check=True, capture_output=True, text=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {**result, "log": done.stderr}


def test_a_kernel_is_compiled_once_for_all(daemon: Daemon, tmp_path: Path) -> None:
    first = run(tmp_path / "first", daemon.endpoint, "1.25")
    assert first["n_compiled"] == 1 and not first["was_there"]
    assert first["kernels"] == {"n_fetched": 0, "n_put": 2, "n_failed": 0}
    other = run(tmp_path / "other", daemon.endpoint, "1.25")
    assert other["n_compiled"] == 0 and other["was_there"]
    assert other["kernels"] == {"n_fetched": 2, "n_put": 0, "n_failed": 0}
    assert (other["cubin"], other["launcher"], other["name"]) == (first["cubin"], "a library", "add_it")
    again = run(tmp_path / "other", daemon.endpoint, "1.25")
    assert again["kernels"] == {"n_fetched": 0, "n_put": 0, "n_failed": 0}, "what is here is not asked for"
    assert again["variable"] is None, "a process that is started by this one would use it without knowing"


def test_another_kernel_is_another(daemon: Daemon, tmp_path: Path) -> None:
    first, other = (run(tmp_path / salt, daemon.endpoint, salt) for salt in ("2.25", "2.5"))
    assert first["cubin"] != other["cubin"] and other["n_compiled"] == 1


def test_inductors_kernels_are_not_shared(daemon: Daemon, tmp_path: Path) -> None:
    found = run(tmp_path / "a", daemon.endpoint, "3.25", name="triton_poi_fused_add_0")
    assert found["kernels"]["n_put"] == 1, "the launcher alone"


def test_without_a_daemon_it_compiles(tmp_path: Path) -> None:
    found = run(tmp_path / "a", f"unix:{tmp_path}/nobody.sock", "4.25")
    assert found["n_compiled"] == 1 and found["launcher"] == "a library"
    assert found["kernels"] == {"n_fetched": 0, "n_put": 0, "n_failed": 1}, "it asks once"


def test_what_is_no_kernel_is_compiled_anew(daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(tmp_path / "a", daemon.endpoint, "5.25")
    (key,) = {path.parent.name for path in (tmp_path / "a/triton").glob("*/__grp__*")}
    (folder,) = {path.parent for path in (tmp_path / "a/triton").glob("*/__grp__*")}
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "mine"))
    name = beside.KernelCache(key)._name("__grp__add_it.json")
    client = piecewised.Client(daemon.endpoint)
    assert (
        beside.unpack(client.fetch_snapshot("vllm", name, node.toolchain()))["add_it.cubin"]
        == (folder / "add_it.cubin").read_bytes()
    )
    client.put_snapshot("vllm", name, node.toolchain(), b"no archive")
    other = run(tmp_path / "b", daemon.endpoint, "5.25")
    assert other["n_compiled"] == first["n_compiled"] == 1
    assert "no kernel" in other["log"], other["log"]


@pytest.mark.parametrize("name", ["../evil.cubin", "/etc/evil", "a/b", "", ".hidden", "a\nb"])
def test_names_cannot_leave_the_folder(name: str) -> None:
    with pytest.raises(ValueError, match="no file's name"):
        beside.pack({name: b""})
    good = beside.pack({"X" * max(len(name), 1): b""})
    if name:
        with pytest.raises(ValueError, match="no file's name"):
            beside.unpack(good.replace(b"X" * len(name), os.fsencode(name)))
