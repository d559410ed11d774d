"""Instruction sets that were found to work are not found out again: with the real compiler, behind a name that writes down what it is asked."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import executor_harness
from ready_daemon import environment

SCRIPT = """
import json, os, select
from piecewised_executor import program
from piecewised_executor.probing import Probe
from torch._inductor import cpu_vec_isa
probe = Probe()
select.select([probe.fd], [], [])
assert probe.finish()
print(json.dumps(str(cpu_vec_isa.pick_vec_isa())))
"""


class Machine:
    """A folder for headers, and a compiler."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "log"
        self._programs = folder / "bin"
        self._programs.mkdir()

    def has(self, *, works: bool) -> None:
        """What becomes of what the compiler is asked; it says its version in any case."""
        real = shutil.which("g++")
        assert real
        compiler = self._programs / "g++"
        refusal = "" if works else 'case "$*" in *-shared*) exit 1;; esac\n'
        compiler.write_text(f'#!/bin/sh\necho "$*" >> {self.log}\n{refusal}exec {shlex.quote(real)} "$@"\n')
        compiler.chmod(0o700)

    def found(self, **variables: str) -> tuple[str, int]:
        """What a new process finds, and how many libraries it built for that."""
        self.log.write_text("")
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT],
            capture_output=True,
            text=True,
            check=False,
            cwd=self.folder,
            timeout=600,
            env=environment(
                PATH=f"{self._programs}:/usr/bin:/bin",
                PYTHONPATH=str(executor_harness.EXECUTOR_SOURCE),
                PIECEWISED_PRECOMPILED_HEADERS=str(self.folder / "headers"),
                # Where Inductor keeps what it has built: each process its own, as executors have.
                TORCHINDUCTOR_CACHE_DIR=str(self.folder / "cache"),
                **variables,
            ),
        )
        assert done.returncode == 0, done.stderr[-4000:]
        n_built = sum("-shared" in line for line in self.log.read_text().splitlines())
        shutil.rmtree(self.folder / "cache")
        return json.loads(done.stdout), n_built


def test_what_works_is_built_once(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.has(works=False)
    best, _ = machine.found()
    marks = tmp_path / "headers/instruction_sets"
    assert not marks.exists(), "a no is no answer for ever"

    machine.has(works=True)
    good, n_built = machine.found()
    assert n_built == len(list(marks.iterdir())) > 0
    assert good != best
    assert machine.found() == (good, 0)
    # Other headers may be found there.
    assert machine.found(CPATH=str(tmp_path)) == (good, n_built)
    assert machine.found(CPATH=str(tmp_path)) == (good, 0)
