"""`piecewised doctor` on this machine: what is well, and what is not, with what to do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from conftest import environment
from service_harness import DAEMON


def doctor(folder: Path, *flags: str, code: int = 0, **variables: str) -> dict[str, dict[str, Any]]:
    """Its findings by what they are about."""
    places = ["--socket", str(folder / "s.sock"), "--store-dir", str(folder / "store"), "--temp-dir", str(folder)]
    command = [DAEMON, "doctor", "--json", *places, *flags]
    ended = subprocess.run(
        command, capture_output=True, text=True, env=environment(**variables), check=False, timeout=300
    )
    assert ended.returncode == code, ended.stdout + ended.stderr
    return {finding["what"]: finding for finding in json.loads(ended.stdout)}


def compiler(folder: Path, name: str, flags: str) -> str:
    """A compiler that is g++ with `flags`."""
    path = folder / name
    path.write_text(f'#!/bin/sh\nexec /usr/bin/env g++ {flags} "$@"\n')
    path.chmod(0o755)
    return str(path)


def test_a_machine_that_is_well(tmp_path: Path) -> None:
    found = doctor(tmp_path, "--python", sys.executable)
    assert found["interpreter"]["outcome"] == "ok" and "torch 2.11" in found["interpreter"]["found"]
    for what in ("socket", "store", "temporary folder", "C++ compiler", "compiler for AOTInductor packages", "vLLM"):
        assert found[what]["outcome"] == "ok", found[what]
    assert [path.name for path in tmp_path.iterdir()] == [], "it leaves nothing behind"


def test_what_is_not_well_is_told_with_what_to_do(tmp_path: Path) -> None:
    # Only here: what links libstdc++ statically builds packages that crash where they are loaded.
    bad = compiler(tmp_path, "static", "-static-libstdc++")
    found = doctor(tmp_path, "--python", sys.executable, "--runner", "/nonexistent/runner", CXX=bad)
    assert found["compiler for AOTInductor packages"]["found"] != bad, "another one is taken"
    assert found["runner"]["outcome"] == "warning" and "/nonexistent/runner is not there" in found["runner"]["found"]
    assert "--runner" in found["runner"]["remedy"]


def test_without_an_interpreter_it_fails(tmp_path: Path) -> None:
    found = doctor(tmp_path, "--python", "/usr/bin/false", code=1)
    assert found["interpreter"]["outcome"] == "failure" and "--python" in found["interpreter"]["remedy"]
    assert found["socket"]["outcome"] == "ok"
    text = subprocess.run(
        [DAEMON, "doctor", "--python", "/usr/bin/false"], capture_output=True, text=True, env=environment(), check=False
    )
    assert text.returncode == 1 and "FAIL  interpreter: /usr/bin/false cannot be used to compile" in text.stdout


def test_a_wrong_configuration_is_no_finding(tmp_path: Path) -> None:
    command = [DAEMON, "doctor", "--n-executors", "0"]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
    assert ended.returncode == 2 and "--n-executors: 0 will not do" in ended.stderr
