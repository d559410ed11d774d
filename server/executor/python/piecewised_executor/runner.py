"""The project's runner (`piecewised-runner`): a process without Python that loads packages with libtorch and runs them.

`docs/aoti.md` of the project says how it is called. What goes wrong in it is the package's and ends with it; where it cannot start at all, nothing is
said about the package.
"""

from __future__ import annotations

import json
import os
import subprocess
from typing import Any

import torch

from . import lease
from .errors import Interrupted, describe, ending, is_from_outside

REQUEST, RESULT = "request.json", "result.json"
# It imports nothing and compiles nothing; what takes longer than this hangs.
DEADLINE_S = 300.0
_VERSION_DEADLINE_S = 60.0
# Of what it wrote to stderr.
_TAIL = 2000

# By path, time of change and kind of device: why it is of no use; empty: it is.
_reasons: dict[tuple[str, int, str], str] = {}


def why_not(path: str, device_type: str) -> str:
    """Why the runner cannot try what is made here; empty: it can. Asked once of each file."""
    try:
        changed = os.stat(path).st_mtime_ns
    except OSError as error:
        return f"{path} is not there ({error.strerror})"
    asked = path, changed, device_type
    if asked not in _reasons:
        _reasons[asked] = _why_not(path, device_type)
    return _reasons[asked]


def _why_not(path: str, device_type: str) -> str:
    try:
        ended = _start([path, "version"], _VERSION_DEADLINE_S)
    except (OSError, subprocess.SubprocessError) as error:
        return f"{path} does not start: {describe(error)[:300]}"
    try:
        said = json.loads(ended.stdout)
        libtorch, has_cuda = str(said["libtorch"]), bool(said["cuda"])
    except (ValueError, KeyError, TypeError):
        return f"{path} does not start ({ending(ended.returncode)}): {_tail(ended.stderr)}"
    ours = str(torch.__version__).partition("+")[0]
    if libtorch.partition("+")[0] != ours:
        return f"{path} is for libtorch {libtorch}, and torch here is {ours}"
    if device_type == "cuda" and not has_cuda:
        return f"{path} has no CUDA"
    return ""


def run(path: str, folder: str, device_type: str, deadline_s: float = DEADLINE_S) -> dict[str, Any]:
    """Has the runner try what `folder` holds. Its result, or {"failed"} where the package failed in it, or {"unusable"} where it says nothing about that."""
    try:
        # It times calls, and has no way to ask for more than it has.
        with lease.timing(device_type, is_tuning=False):
            ended = _start([path, "try", folder], deadline_s)
    except subprocess.TimeoutExpired:
        return {"failed": f"the runner, which loaded and ran the package, did not end within {deadline_s:.0f} s"}
    except OSError as error:
        return {"unusable": f"{path} does not start: {describe(error)[:300]}"}
    result = _read(folder)
    if ended.returncode == 0 and result is not None and "cases" in result:
        return result
    if is_from_outside(ended.returncode):
        raise Interrupted(f"the runner {ending(ended.returncode)}")
    problem = (result or {}).get("error")
    if problem is None:
        problem = f"it {ending(ended.returncode)}: {_tail(ended.stderr)}"
    elif "out of memory" in problem.lower():
        return {"unusable": f"it ran out of memory: {problem[:300]}"}
    return {"failed": f"the runner could not load and run the package: {problem}"}


def _start(command: list[str], deadline_s: float) -> subprocess.CompletedProcess[bytes]:
    libraries = os.path.join(os.path.dirname(torch.__file__), "lib")
    search = [libraries, *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
    return subprocess.run(
        command,
        check=False,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        timeout=deadline_s,
        env={**os.environ, "LD_LIBRARY_PATH": os.pathsep.join(search)},
    )


def _read(folder: str) -> dict[str, Any] | None:
    try:
        with open(os.path.join(folder, RESULT), encoding="utf-8") as file:
            result: dict[str, Any] = json.load(file)
            return result
    except (OSError, ValueError):
        return None


def _tail(stderr: bytes) -> str:
    text = stderr.decode(errors="replace").strip()
    return text[-_TAIL:] or "nothing on stderr"
