"""Precompiled headers that are kept: real ones, of a small header, made by the real compiler."""

from __future__ import annotations

import os
import time
from pathlib import Path

import executor_harness  # noqa: F401 - makes the executor importable
import pytest
from piecewised_executor import headers
from torch._inductor import codecache

UNUSED_S = 40 * 24 * 3600


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(codecache, "_HEADER_DIR", str(tmp_path / "headers"))
    monkeypatch.setattr(codecache, "_HEADER_LOCK_DIR", str(tmp_path / "headers/locks"))
    return tmp_path / "headers"


def make() -> Path:
    """As another process would: this one remembers what it has made."""
    headers._original.cache_clear()
    return Path(headers._precompile_header("cstdint", "some flags", device_type="cpu", aot_mode=False) + ".gch")


def test_a_whole_header_is_made_once(folder: Path) -> None:
    header = make()
    made = header.stat()
    assert header.is_relative_to(folder) and made.st_size > 0
    assert make() == header and header.stat().st_mtime_ns == made.st_mtime_ns


def test_half_a_header_is_made_anew(folder: Path) -> None:
    header = make()
    # As a compiler leaves it that is killed: something of it, and nobody to say that it is whole.
    os.truncate(header, 100)
    header.with_name(header.name + ".whole").unlink()
    assert make() == header and header.stat().st_size > 100_000


def test_what_nobody_used_for_long_goes(folder: Path) -> None:
    header = make()
    other = header.with_name("another.h.gch")
    for path in (other, other.with_name(other.name + ".whole")):
        path.touch()
    make()
    assert other.exists()
    long_ago = time.time() - UNUSED_S
    os.utime(other.with_name(other.name + ".whole"), (long_ago, long_ago))
    make()
    assert not other.exists() and header.exists()
