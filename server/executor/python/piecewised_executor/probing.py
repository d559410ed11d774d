"""Which vector instructions C++ kernels may use, found out beside the process that wants to know.

Inductor builds a small library for each set of instructions, and has a fresh interpreter import torch and load it: tens of seconds in which a
zygote could fork nothing. So a forked process builds and loads them, where torch is imported already, and tells what came of each; the zygote
then asks Inductor, whose questions are answered by that. What an earlier process found out is not built again (`instruction_sets`).
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from torch._inductor import cpu_vec_isa

from . import instruction_sets

Answers = dict[str, bool]


class Probe:
    """A process that finds out. `fd` can be read from when it is done."""

    def __init__(self) -> None:
        self.fd, tell = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            try:
                os.close(self.fd)
                with os.fdopen(tell, "w", encoding="utf-8") as file:
                    json.dump(_find_out(), file)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(0)
        os.close(tell)

    def finish(self) -> bool:
        """Has this process know what was found out, once `fd` can be read from; whether anything was."""
        with os.fdopen(self.fd, encoding="utf-8") as file:
            text = file.read()
        os.waitpid(self._pid, 0)
        if not text:
            return False
        answers: Answers = json.loads(text)
        with _asked(lambda isa, code: answers.get(_name(isa, code), False)):
            cpu_vec_isa.pick_vec_isa()
        return True


def _find_out() -> Answers:
    answers: Answers = {}
    # The library is loaded in a process of its own for the same reason as in Inductor: it may hold instructions that end it.
    check_call = subprocess.check_call
    cpu_vec_isa.subprocess.check_call = lambda command, **_: _load_in_a_child(command[-1])  # type: ignore[attr-defined]

    def check_build(isa: Any, code: str) -> bool:
        answers[_name(isa, code)] = works = instruction_sets.check_build(isa, code)
        return works

    try:
        with _asked(check_build):
            cpu_vec_isa.pick_vec_isa()
    finally:
        cpu_vec_isa.subprocess.check_call = check_call  # type: ignore[attr-defined]
    return answers


def _load_in_a_child(script: str) -> None:
    """What Inductor's script does, which imports torch and loads the library that it names."""
    (path,) = [part for part in script.split('"') if part.endswith(".so")]
    child = os.fork()
    if child == 0:
        status = 1
        try:
            ctypes.CDLL(path)
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    if status != 0:
        raise subprocess.CalledProcessError(os.waitstatus_to_exitcode(status), path)


@contextlib.contextmanager
def _asked(check_build: Callable[[Any, str], bool]) -> Iterator[None]:
    """While inside, `check_build` answers Inductor's questions."""
    original = cpu_vec_isa.VecISA.check_build
    cpu_vec_isa.VecISA.check_build = check_build  # type: ignore[method-assign]
    try:
        yield
    finally:
        cpu_vec_isa.VecISA.check_build = original  # type: ignore[method-assign]


def _name(isa: Any, code: str) -> str:
    """Of one question: the flags change while an instruction set is asked for."""
    return hashlib.blake2b(f"{isa._arch_flags}\0{code}".encode(), digest_size=16).hexdigest()
