"""What a person sees while ranges compile."""

from __future__ import annotations

import io
import re
import shutil
from os import terminal_size
from typing import Any

import pytest
from piecewised.progress import Progress

ENTRIES = [(1, 16), (17, 128), (4, 4)]


class Terminal(io.StringIO):
    """A terminal that keeps what was written, and can say what stands on it."""

    def isatty(self) -> bool:
        return True

    def screen(self) -> list[str]:
        """What is left after every line was written and overwritten."""
        lines: list[str] = []
        at = 0
        for part in self.getvalue().splitlines():
            up = re.match(r"\x1b\[(\d+)A", part)
            at -= int(up[1]) if up else 0
            text = part[up.end() if up else 0 :].removesuffix("\x1b[K")
            lines[at : at + 1] = [text]
            at += 1
        return lines


def event(index: int, kind: str, **more: Any) -> dict[str, Any]:
    return {"index": index, "event": kind, **more}


def story(display: Progress) -> None:
    display.update(event(0, "queued", position=2))
    display.update(event(1, "joined", phase="compile"))
    display.update(event(0, "started", attempt=1))
    display.update(event(0, "progress", phase="prove"))
    display.update(event(0, "ready"))
    display.loaded(0, "compiled (1.0 s), was here, loaded in 0.01 s")
    display.update(event(2, "failed", reason="COMPILE_ERROR"))
    display.update({"index": 0, "event": "completed"})


def test_a_terminal_has_one_line_per_range() -> None:
    terminal = Terminal()
    story(Progress(ENTRIES, None, terminal))
    first, second, third = terminal.screen()
    assert re.fullmatch(r"piecewised \[1, 16\]    #{10}  loaded +0\.\d s  compiled .*", first)
    assert re.fullmatch(r"piecewised \[17, 128\]  ##\.{8}  compile +0\.\d s  compiled for another .*", second)
    assert re.fullmatch(r"piecewised \[4\]        \.{10}  failed +0\.\d s  COMPILE_ERROR", third)


def test_lines_do_not_wrap_and_do_not_run_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "get_terminal_size", lambda: terminal_size((40, 24)))
    terminal = Terminal()
    story(Progress(ENTRIES, None, terminal))
    assert [len(line) <= 39 for line in terminal.screen()] == [True] * 3

    monkeypatch.setattr(shutil, "get_terminal_size", lambda: terminal_size((80, 3)))
    terminal = Terminal()
    story(Progress(ENTRIES, None, terminal))
    [line] = terminal.screen()
    assert re.fullmatch(r"piecewised 2 of 3 ranges in 0\.\d s", line)


@pytest.mark.parametrize(("wanted", "n_lines"), [(None, 0), (False, 0), (True, 2)])
def test_a_file_gets_what_was_asked_for(wanted: bool | None, n_lines: int) -> None:
    out = io.StringIO()
    story(Progress(ENTRIES, wanted, out))
    assert len(out.getvalue().splitlines()) == n_lines
    assert "\x1b" not in out.getvalue()


def test_no_terminal_is_written_to_when_it_is_not_wanted() -> None:
    terminal = Terminal()
    Progress(None, False, terminal).loaded(0, "x")
    assert terminal.getvalue() == ""
