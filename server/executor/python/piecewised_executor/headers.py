"""g++'s precompiled headers of torch: in a folder that executors share, since making them takes seconds, and that outlives the daemon.

Inductor names each by what its preprocessor gave, the flags and the compiler, so that one of another torch or compiler is never taken; it builds them where they
are looked for, so that a compiler that is killed leaves half of one, which would be taken for whole from then on. Here a header counts once a mark beside it says
that it is whole, and one at a time is made: who has the folder's lock knows that what has no mark is nobody's any more.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torch._inductor import codecache
from torch._inductor.runtime import cache_dir_utils

_VARIABLE = "PIECEWISED_PRECOMPILED_HEADERS"
_HEADER, _WHOLE = ".gch", ".whole"
# Of another torch or compiler, probably; some 100 MB each.
_UNUSED_S = 30 * 24 * 3600.0

_original: Callable[..., str] = codecache._precompile_header


def place() -> None:
    """Says where they lie: where the daemon names a folder there, else where this process's own caches are. Inductor's choice, which it makes when it is imported, is below TMPDIR,
    which is each executor's."""
    own = os.path.join(cache_dir_utils.default_cache_dir(), "precompiled_headers")
    codecache._HEADER_DIR = os.environ.get(_VARIABLE) or own
    codecache._HEADER_LOCK_DIR = os.path.join(codecache._HEADER_DIR, "locks")
    codecache._precompile_header = _precompile_header


def _precompile_header(header: str, hashable_cmd_line: str, **compile_command: Any) -> str:
    """codecache._precompile_header, and its result is whole."""
    folder = Path(codecache._HEADER_DIR)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _alone(folder):
        _drop_halves(folder)
        path = _original(header, hashable_cmd_line, **compile_command)
        # Also where it was there: the mark's time says when it was used last.
        Path(f"{path}{_HEADER}{_WHOLE}").touch()
    return path


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """While inside, nobody else makes headers in the folder. The lock goes with the process that has it, however that ends."""
    with open(folder / "lock", "a", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _drop_halves(folder: Path) -> None:
    """Removes what a compiler left that was killed, and what nobody has used for long."""
    now = time.time()
    for header in folder.rglob(f"*{_HEADER}"):
        mark = header.with_name(header.name + _WHOLE)
        try:
            is_kept = mark.exists() and now - mark.stat().st_mtime < _UNUSED_S
            if not is_kept:
                header.unlink()
                mark.unlink(missing_ok=True)
        except OSError as error:
            print(f"piecewised_executor: cannot remove {header}: {error}", file=sys.stderr)
