"""A real headless Chromium, as `make browser` unpacked it, driven through Playwright; and the checker of accessibility that comes with it.

Where there is none, what asks for it is skipped with the reason.
"""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[2] / ".browser"
FONTS = """<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig><dir>{folder}/chromium/fonts/fonts</dir><cachedir>{folder}/fonts-cache</cachedir></fontconfig>
"""


def missing() -> str | None:
    """Why there is no browser; None: there is one."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return f"npm's Chromium is for Linux on x86_64, not {platform.system()} on {platform.machine()}"
    if not (FOLDER / ".ready").exists():
        log = FOLDER / "log"
        return (
            f"`make browser` failed: {log.read_text()[-500:]}" if log.exists() else "it was not set up: `make browser`"
        )
    return None


@contextlib.contextmanager
def chromium(*arguments: str) -> Iterator[Any]:
    """A browser with its own fonts, so that pictures are the same everywhere."""
    if (reason := missing()) is not None:
        pytest.skip(f"no browser: {reason}")
    from playwright.sync_api import sync_playwright

    # The one that comes with the browser names a folder that is not here, and without any font it crashes.
    fonts = FOLDER / "fontconfig"
    fonts.mkdir(exist_ok=True)
    (fonts / "fonts.conf").write_text(FONTS.format(folder=FOLDER))
    variables = {"LD_LIBRARY_PATH": str(FOLDER / "chromium/al2023/lib"), "FONTCONFIG_PATH": str(fonts)}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=FOLDER / "chromium/chromium",
            args=list(arguments),
            # It does not work for root, nor in most containers; all that is visited is ours.
            chromium_sandbox=False,
            env={**os.environ, **variables},
        )
        try:
            yield browser
        finally:
            browser.close()


def accessibility_problems(page: Any) -> list[str]:
    """What axe finds wrong with a page, in words."""
    page.evaluate((FOLDER / "node_modules/axe-core/axe.min.js").read_text())
    violations = page.evaluate("axe.run()")["violations"]
    return [f"{it['id']}: {[node['target'] for node in it['nodes']]}, {it['help']}" for it in violations]
