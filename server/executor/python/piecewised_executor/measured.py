"""How long the candidates for an operation take, as `max_autotune` measures them: kept beside the precompiled headers, and measured by one executor at a time.

The same matrix products are in several pieces of a model (the first layer's, the middle ones', the last's), and each compile has caches of its own. So whoever comes
first compiles the candidates and times them. Who comes while that goes on waits, compiles none of them, and takes the times; the winner is compiled by everybody.

A time follows from the device, the driver, the toolchain, the operation with its inputs' sizes, strides and types, and the candidate's code: that is what it is kept by. It is
taken for an hour, long enough for the pieces of a model and its replicas: what was measured badly is not what all later compiles are built on.

Who measures has a lock on the entry, which goes with its process, however that ends. Who waits owes nobody anything: it measures first what it has locks on itself.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import io
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch._inductor import codecache
from torch._inductor.select_algorithm import AlgorithmSelectorCache

from .runtime import fingerprint

_FOLDER = "candidates"
_VALID_S = 3600.0
# Longer than compiling some twenty candidates takes on a machine that is busy; then one measures beside the other.
_MAX_WAIT_S = 120.0
_PAUSE_S = 0.05
_MAX_FILES = 4096
_DRIVER = "/proc/driver/nvidia/version"

# Milliseconds by candidate; infinite: it cannot be run.
Times = dict[Any, float]


class Entry:
    """The candidates' times for one operation."""

    def __init__(self, operation: str, inputs: str) -> None:
        premises = [operation, inputs, torch.get_float32_matmul_precision(), *_machine("'cuda'" in inputs)]
        name = hashlib.blake2b(json.dumps(premises).encode(), digest_size=16).hexdigest()
        self.path = Path(codecache._HEADER_DIR, _FOLDER, name)

    def times(self, choices: Sequence[Any]) -> Times | None:
        """None: they are not known of all of the candidates."""
        try:
            record = json.loads(self.path.read_text(encoding="utf-8"))
            found = {name: math.inf if one is None else float(one) for name, one in record["times"].items()}
            is_valid = abs(time.time() - float(record["at"])) < _VALID_S
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        names = {choice: choice.hash_key() for choice in choices}
        if not is_valid or not found.keys() >= set(names.values()):
            return None
        return {choice: found[name] for choice, name in names.items()}

    def keep(self, times: Times, failed: Sequence[str]) -> None:
        """Puts them there, whole or not at all. `failed`: the hash keys of candidates that could not be compiled."""
        finite = {choice.hash_key(): one if math.isfinite(one) else None for choice, one in times.items()}
        record = {"at": time.time(), "times": {**dict.fromkeys(failed), **finite}}
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=self.path.parent, delete=False, encoding="utf-8") as file:
                json.dump(record, file)
            os.replace(file.name, self.path)
            _drop_oldest(self.path.parent)
        except OSError as error:
            print(f"piecewised_executor: {self.path} cannot be kept: {error}", file=sys.stderr)

    def open_lock(self) -> io.TextIOWrapper:
        """The file that the lock is on."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return open(f"{self.path}.lock", "a", encoding="ascii")


def _takes(lock: io.TextIOWrapper) -> bool:
    """Whether the lock is this process's now, until the file is closed."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@dataclass
class _Claim:
    """What this process measures. `finish` does it now."""

    lock: io.TextIOWrapper
    choices: Sequence[Any]
    finish: Callable[[], Any]


_claims: dict[Path, _Claim] = {}
# Of the operation that is being lowered: what a later measurement of it takes beside its candidates.
_lowered: list[tuple[Any, ...]] = []

_original_call = AlgorithmSelectorCache.__call__
_original_precompile = AlgorithmSelectorCache.make_precompile_fn
_original_lookup = AlgorithmSelectorCache.lookup


def install() -> None:
    """Has Inductor's search for the fastest candidate look here first."""
    AlgorithmSelectorCache.__call__ = _call  # type: ignore[method-assign]
    AlgorithmSelectorCache.make_precompile_fn = _make_precompile_fn  # type: ignore[method-assign]
    AlgorithmSelectorCache.lookup = _lookup  # type: ignore[method-assign]


@contextlib.contextmanager
def compiling() -> Iterator[None]:
    """One compile: what it has not measured by its end others may."""
    try:
        yield
    finally:
        for path in list(_claims):
            _release(path)


def _call(self: Any, name: str, choices: Any, input_nodes: Any, layout: Any, *args: Any, **kwargs: Any) -> Any:
    input_gen_fns = args[0] if args else kwargs.get("input_gen_fns")
    _lowered.append((input_nodes, layout, input_gen_fns))
    try:
        return _original_call(self, name, choices, input_nodes, layout, *args, **kwargs)
    finally:
        _lowered.pop()


def _make_precompile_fn(
    self: Any, choices: Sequence[Any], name: str, inputs_key: str, *args: Any, **kwargs: Any
) -> Any:
    """AlgorithmSelectorCache.make_precompile_fn: what it gives has compiled the candidates when it returns, unless their times are known."""
    entry = Entry(name, inputs_key)

    def begin() -> Any:
        return _original_precompile(self, choices, name, inputs_key, *args, **kwargs)

    if not _lowered or entry.path in _claims or entry.times(choices) is not None:
        return begin()
    what = _lowered[-1]

    def claim(lock: io.TextIOWrapper) -> Any:
        precompile = begin()

        def finish() -> Any:
            return self.do_autotuning(name, *what, inputs_key, choices, precompile)

        _claims[entry.path] = _Claim(lock, choices, finish)
        return precompile

    lock = entry.open_lock()
    if _takes(lock):
        return claim(lock)

    @functools.cache
    def wait() -> Any:
        _finish_claims()
        is_ours = _wait(lock, lambda: entry.times(choices) is not None)
        if entry.times(choices) is not None:
            lock.close()
            return {}
        return (claim(lock) if is_ours else begin())()

    return wait


def _lookup(self: Any, choices: Sequence[Any], op: str, inputs: str, benchmark: Any, **others: Any) -> Times:
    """PersistentCache.lookup, whose cache is this compile's own; what it measures is kept for others."""
    # It is measured once more at other sizes, which the entry does not say.
    if others.get("hint_override") is not None:
        return _original_lookup(self, choices, op, inputs, benchmark, **others)
    entry = Entry(op, inputs)
    times = entry.times(choices)
    if times is None:
        times = _original_lookup(self, choices, op, inputs, benchmark, **others)
        if benchmark is not None and times:
            claimed = _claims[entry.path].choices if entry.path in _claims else ()
            measured = {choice.hash_key() for choice in times}
            entry.keep(times, [name for choice in claimed if (name := choice.hash_key()) not in measured])
    if benchmark is not None:
        _release(entry.path)
    return times


def _finish_claims() -> None:
    """Measures what others may wait for: two that wait for each other would wait for long."""
    for path, claim in list(_claims.items()):
        with contextlib.suppress(Exception):
            # What is wrong with it shows where it is measured for the compile's own sake.
            claim.finish()
        _release(path)


def _release(path: Path) -> None:
    if (claim := _claims.pop(path, None)) is not None:
        claim.lock.close()


def _wait(lock: io.TextIOWrapper, is_done: Callable[[], bool]) -> bool:
    """Until who measures is done or gone; whether the lock is this process's then. It is not where it takes too long."""
    until = time.monotonic() + _MAX_WAIT_S
    while not (is_ours := _takes(lock)) and not is_done() and time.monotonic() < until:
        time.sleep(_PAUSE_S)
    return is_ours


@functools.cache
def _machine(is_gpu: bool) -> tuple[str, ...]:
    """What a time depends on beside the operation. Starts CUDA where that is asked about."""
    device = fingerprint.cuda_device(torch.cuda.current_device()) if is_gpu else fingerprint.cpu_device()
    driver = ""
    with contextlib.suppress(OSError):
        driver = Path(_DRIVER).read_text(encoding="utf-8") if is_gpu else str(torch.get_num_threads())
    return fingerprint.toolchain()["fingerprint"], json.dumps(device), driver


def _drop_oldest(folder: Path) -> None:
    files = [Path(one.path) for one in os.scandir(folder)]
    if len(files) < _MAX_FILES:
        return
    for path in sorted(files, key=lambda path: path.stat().st_mtime)[: _MAX_FILES // 2]:
        path.unlink(missing_ok=True)
