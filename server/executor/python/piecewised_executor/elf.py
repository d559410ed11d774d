"""What a shared object asks the dynamic linker for: read from the file, without running anything of it.

Knows 64-bit ELF in either byte order, which is all that torch is built for on Linux.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

_MAGIC = b"\x7fELF"
_PT_LOAD, _PT_DYNAMIC = 1, 2
_DT_NULL, _DT_NEEDED, _DT_STRTAB = 0, 1, 5


class NotElf(ValueError):
    """The bytes are no shared object of this kind, or end early."""


def needed(content: bytes) -> list[str]:
    """The NEEDED entries of a shared object's dynamic section, in order. Raises NotElf."""
    try:
        return _needed(content)
    except (struct.error, IndexError, UnicodeDecodeError) as error:
        raise NotElf(f"the shared object ends early or is damaged: {error}") from error


def _needed(content: bytes) -> list[str]:
    if content[:4] != _MAGIC or content[4] != 2 or content[5] not in (1, 2):
        raise NotElf("not a 64-bit ELF file")
    order = "<" if content[5] == 1 else ">"
    (table,) = struct.unpack_from(f"{order}Q", content, 32)
    size, count = struct.unpack_from(f"{order}HH", content, 54)
    loads: list[tuple[int, int, int]] = []
    dynamic: tuple[int, int] | None = None
    for i in range(count):
        # type, flags, offset, virtual address, physical address, size in the file
        kind, _, offset, address, _, n_bytes = struct.unpack_from(f"{order}IIQQQQ", content, table + i * size)
        if kind == _PT_LOAD:
            loads.append((address, offset, n_bytes))
        elif kind == _PT_DYNAMIC:
            dynamic = offset, n_bytes
    if dynamic is None:
        return []
    entries = list(_entries(content, order, *dynamic))
    strings = next((value for tag, value in entries if tag == _DT_STRTAB), None)
    if strings is None:
        return []
    start = _in_file(strings, loads)
    return [_text(content, start + value) for tag, value in entries if tag == _DT_NEEDED]


def _entries(content: bytes, order: str, offset: int, n_bytes: int) -> Iterator[tuple[int, int]]:
    for at in range(offset, offset + n_bytes, 16):
        tag, value = struct.unpack_from(f"{order}qQ", content, at)
        if tag == _DT_NULL:
            return
        yield tag, value


def _in_file(address: int, loads: list[tuple[int, int, int]]) -> int:
    for start, offset, n_bytes in loads:
        if start <= address < start + n_bytes:
            return offset + address - start
    raise NotElf("its strings lie outside of what is loaded")


def _text(content: bytes, at: int) -> str:
    return content[at : content.index(b"\0", at)].decode()
