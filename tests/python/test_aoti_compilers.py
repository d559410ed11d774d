"""Which C++ compilers packages are built with: those whose shared objects use the process's libstdc++."""

from __future__ import annotations

import shutil
import stat
import struct
import subprocess
from pathlib import Path

import executor_harness as h
import pytest
import test_executor as pieces
from piecewised_executor import compilers, elf
from piecewised_executor.errors import Unsupported

GXX = shutil.which("g++") or "/usr/bin/g++"


def _static(folder: Path) -> Path:
    """A compiler that puts a libstdc++ of its own into what it links, as some are configured to."""
    return _script(folder / "static-g++", f'#!/bin/sh\nexec {GXX} "$@" -static-libstdc++\n')


def _script(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def _shared_object(folder: Path, *flags: str) -> bytes:
    source = folder / "s.cpp"
    source.write_text('#include <iostream>\nextern "C" void f() { std::cout << 1; }\n')
    subprocess.run([GXX, "-shared", "-fPIC", "-o", folder / "s.so", source, *flags], check=True)
    return (folder / "s.so").read_bytes()


@pytest.fixture(autouse=True)
def _nothing_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilers, "_found", {})


def test_what_a_shared_object_needs(tmp_path: Path) -> None:
    needed = elf.needed(_shared_object(tmp_path, "-lm", "-Wl,--no-as-needed"))
    assert "libstdc++.so.6" in needed and "libm.so.6" in needed
    assert "libstdc++.so.6" not in elf.needed(_shared_object(tmp_path, "-static-libstdc++"))


@pytest.mark.parametrize(
    "content", [b"", b"\x7fELF", b"MZ" + bytes(100), b"#!/bin/sh\n"], ids=["empty", "cut", "other", "text"]
)
def test_what_is_no_shared_object_is_said_to_be_none(content: bytes) -> None:
    with pytest.raises(elf.NotElf):
        elf.needed(content)


def test_a_damaged_shared_object_is_an_error_wherever_it_is_cut(tmp_path: Path) -> None:
    content = _shared_object(tmp_path)
    (at,) = struct.unpack_from("<Q", content, 32)
    for n in (40, at + 10, at + 100, 600):
        with pytest.raises(elf.NotElf):
            elf.needed(content[:n])


def test_a_compiler_that_links_statically_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    static = _static(tmp_path)
    monkeypatch.setenv("CXX", str(static))
    found = compilers.for_packages()
    assert found != str(static)
    assert shutil.which(found) is not None


def test_without_any_other_it_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    static = _static(tmp_path)
    broken = _script(tmp_path / "broken", "#!/bin/sh\necho 'no such option' >&2\nexit 1\n")
    monkeypatch.setattr(compilers, "_candidates", lambda: (str(static), str(broken), str(tmp_path / "absent")))
    with pytest.raises(Unsupported) as raised:
        compilers.for_packages()
    text = str(raised.value)
    assert f"{static} links libstdc++ statically" in text
    assert "no such option" in text and "absent" in text
    assert "CXX=" in text


def test_it_is_found_out_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = tmp_path / "count"
    counting = _script(tmp_path / "counting", f'#!/bin/sh\necho once >> {count}\nexec {GXX} "$@"\n')
    monkeypatch.setattr(compilers, "_candidates", lambda: (str(counting),))
    assert [compilers.for_packages() for _ in range(3)] == [str(counting)] * 3
    assert count.read_text().splitlines() == ["once"]


def test_a_package_that_was_linked_statically_is_never_released(tmp_path: Path) -> None:
    compilers.check(_shared_object(tmp_path))
    with pytest.raises(Unsupported, match="would crash where it is loaded"):
        compilers.check(_shared_object(tmp_path, "-static-libstdc++"))


def test_an_executor_whose_cxx_links_statically_makes_packages_that_load(tmp_path: Path) -> None:
    with h.Executor({"CXX": str(_static(tmp_path))}) as process:
        process.hello()
        message, fields, blob = process.compile(pieces.CONSTANT, format="aoti")
    assert message == "done", fields
    assert fields["verification"]["outcome"] == "passed"
    folder = h.materialise(blob, tmp_path / "artifact")
    content = (folder / h.manifest(blob)["entries"][0]["program"]).read_bytes()
    assert b"GLIBCXX_" in content and b"libstdc++.so.6" in content
