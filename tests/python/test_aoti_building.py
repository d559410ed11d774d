"""What packages share: compiled once, linked to each, and left alone where it cannot be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import executor_harness  # noqa: F401  finds the executor
import pytest
from piecewised_executor import building
from torch._inductor import codecache, cpp_builder
from torch._inductor.exc import CppCompileError


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The commands that are run, instead of running them; each makes its target."""
    ran: list[str] = []

    def run(command: str, cwd: str) -> None:
        ran.append(command)
        words = command.split()
        Path(words[words.index("-o") + 1]).write_text(f"object {len(ran)}")

    monkeypatch.setattr(cpp_builder, "run_compile_cmd", run)
    monkeypatch.setattr(codecache, "_HEADER_DIR", str(tmp_path / "shared"))
    monkeypatch.setattr(codecache, "_HEADER_LOCK_DIR", str(tmp_path / "shared/locks"))
    return ran


def build(folder: Path, text: str) -> str:
    """Builds a package of this source; what is left of the source."""
    folder.mkdir()
    stem = folder / "model"
    Path(f"{stem}.wrapper.cpp").write_text(text)
    with building.building(str(folder)):
        cpp_builder.run_compile_cmd(f"g++ {stem}.wrapper.cpp -O1 -c -o {stem}.wrapper.o", str(folder))
        cpp_builder.run_compile_cmd(f"g++ {stem}.wrapper.o -shared -o {stem}.wrapper.so", str(folder))
    return Path(f"{stem}.wrapper.cpp").read_text()


def source(before: str = "#include <cpu.h>\n", after: str = "\nint own;\n") -> str:
    text = building._interface()
    assert text is not None, "this torch has no interface where it is looked for"
    return f"{before}{text}{after}"


def test_the_interface_is_compiled_once_and_linked_to_each(commands: list[str], tmp_path: Path) -> None:
    left = build(tmp_path / "one", source())
    build(tmp_path / "two", source(after="\nint other;\n"))
    assert "int own;" in left and "AOTInductorModelContainerCreate" not in left
    kinds = ["interface" if "interface.cpp" in command else "own" for command in commands]
    assert kinds == ["interface", "own", "own", "own", "own"]
    [shared] = (tmp_path / "shared").glob("interface-*.o")
    assert [str(shared) in command for command in commands] == [False, False, True, False, True]
    assert all("-ffile-prefix-map=" in command for command in commands)


def test_what_it_depends_on_tells_interfaces_apart(commands: list[str], tmp_path: Path) -> None:
    build(tmp_path / "one", source())
    build(tmp_path / "two", source(before="#include <cuda.h>\n"))
    assert len(list((tmp_path / "shared").glob("interface-*.o"))) == 2


def test_a_source_without_it_is_compiled_as_it_is(commands: list[str], tmp_path: Path) -> None:
    text = "int another_torch;\n"
    assert build(tmp_path / "one", text) == text
    assert len(commands) == 2 and not any("interface" in command for command in commands)


def test_where_it_does_not_compile_alone_the_whole_is_compiled(
    commands: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run: Callable[[str, str], None] = cpp_builder.run_compile_cmd

    def refusing(command: str, cwd: str) -> None:
        if "interface.cpp" in command:
            raise CppCompileError(["g++"], "no")
        run(command, cwd)

    monkeypatch.setattr(cpp_builder, "run_compile_cmd", refusing)
    assert build(tmp_path / "one", source()) == source()
    assert len(commands) == 2


def test_the_hook_ends(commands: list[str], tmp_path: Path) -> None:
    before = cpp_builder.run_compile_cmd
    build(tmp_path / "one", source())
    assert cpp_builder.run_compile_cmd is before
