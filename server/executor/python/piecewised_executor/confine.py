"""What an executor that was forked binds itself to: writing below its own folder.

Its zygote is bound by the daemon from its start (`server/executor/src/confine`), which holds for whatever it forks. But a zygote may write into the folders
of all executors, so each of them takes a second, tighter bond, of the same kind: Landlock, which the standard library has no functions for. The daemon says to
what (`PIECEWISED_CONFINE`), since it knows what the kernel has; what it says has to succeed.
"""

from __future__ import annotations

import ctypes
import json
import os
import stat
import struct

_VARIABLE = "PIECEWISED_CONFINE"

# The same numbers on every architecture.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_RULE_PATH_BENEATH = 1
# Rights that a file has; the others are a folder's. LANDLOCK_ACCESS_FS_WRITE_FILE and _TRUNCATE.
_OF_FILES = 1 << 1 | 1 << 14


def apply() -> None:
    """Binds this process, which has one thread, and what it starts, where the daemon says so. Raises OSError."""
    text = os.environ.pop(_VARIABLE, None)
    if text is None:
        return
    bonds = json.loads(text)
    # handled_access_fs, handled_access_net, scoped.
    attributes = struct.pack("=QQQ", bonds["handled"], 0, bonds["scoped"])
    ruleset = _call(_CREATE_RULESET, attributes, len(attributes), 0)
    try:
        for path in bonds["writable"]:
            _allow(ruleset, path, bonds["handled"])
        _call(_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: str, rights: int) -> None:
    try:
        file = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        if not stat.S_ISDIR(os.fstat(file).st_mode):
            rights &= _OF_FILES
        # Packed, as the kernel has it: allowed_access, parent_fd.
        _call(_ADD_RULE, ruleset, _RULE_PATH_BENEATH, struct.pack("=Qi", rights, file), 0)
    finally:
        os.close(file)


def _call(number: int, *arguments: int | bytes) -> int:
    words = [ctypes.c_long(one) if isinstance(one, int) else ctypes.c_char_p(one) for one in arguments]
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    syscall.restype = ctypes.c_long
    result = int(syscall(ctypes.c_long(number), *words))
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"Landlock: {os.strerror(error)}")
    return result
