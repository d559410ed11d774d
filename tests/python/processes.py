"""Other processes as /proc shows them, and waiting for what they do."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path


def stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from the state on; None: the process is gone."""
    try:
        # pid (comm) state ppid ...; the name may hold anything, so look behind its last parenthesis.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


def living() -> dict[int, list[str]]:
    """Every process that runs, with its :func:`stat`; zombies don't."""
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    found = {pid: fields for pid in pids if (fields := stat(pid))}
    return {pid: fields for pid, fields in found.items() if fields[0] != "Z"}


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie doesn't."""
    fields = stat(pid)
    return fields is not None and fields[0] != "Z"


def started_at(pid: int) -> str | None:
    """When a living process was started: with its number, what tells it from a later one. None: it is gone."""
    fields = stat(pid)
    return None if fields is None or fields[0] == "Z" else fields[19]


def members(group: int) -> list[int]:
    """The living processes of a group."""
    return [pid for pid, fields in living().items() if int(fields[2]) == group]


def descendants(root: int) -> set[int]:
    """Every living process below `root`, however deep."""
    parents = {pid: int(fields[1]) for pid, fields in living().items()}
    found: set[int] = set()
    while more := {pid for pid, parent in parents.items() if parent in found | {root}} - found:
        found |= more
    return found


def command_line(pid: int) -> str:
    """The command line of a process; empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def until(condition: Callable[[], object], what: str, seconds: float = 60) -> None:
    """Waits for something that another process does."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"never happened: {what}"
        time.sleep(0.02)
