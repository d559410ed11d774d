"""Makes the pictures of docs/live-page.md: of a real daemon that compiles, over a store of ten thousand artifacts, in a real browser. `make screenshots`."""

from __future__ import annotations

import argparse
import contextlib
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/python"))

from browser_harness import chromium, missing  # noqa: E402
from service_harness import Client, Daemon, failing_request, results, small_request  # noqa: E402

IMAGES = ROOT / "docs/images"
N_LAYERS = 6


def compile_some(endpoint: str) -> None:
    """What a worker that starts would ask for, one piece after the other."""
    with Client(endpoint) as client:
        results(client.compile(failing_request("llama/sampler/0")))
        for layer in range(N_LAYERS):
            request = small_request(layer % 4 + 1, sizes=(8,), endpoints=(64, 512))
            results(client.compile({**request, "label": f"llama/backbone/{layer}"}))
        for layer in range(N_LAYERS):
            request = small_request(layer + 20, sizes=(8, 16, 32), endpoints=(64, 512))
            try:
                results(client.compile({**request, "label": f"qwen/backbone/{layer}"}))
            except Exception:
                return  # The daemon was told to end: there are pictures enough.


def main() -> None:
    """Starts a daemon, has it compile, and takes the pictures meanwhile."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.parse_args()
    if (reason := missing()) is not None:
        sys.exit(f"no browser: {reason}")
    IMAGES.mkdir(exist_ok=True)
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=memory) as name, interpreter() as python, chromium() as browser:
        folder = Path(name)
        subprocess.run([ROOT / "target/debug/examples/fill", folder / "store", "10000"], check=True)
        flags = ["--listen-http", "127.0.0.1:7411", "--n-executors", "1", "--drain-deadline-s", "0"]
        with Daemon(folder, *flags, "--store-max-bytes", "200000000", python=python) as daemon:
            asking = threading.Thread(target=compile_some, args=[daemon.endpoint])
            asking.start()
            found = re.search(r"listening on (http://\S+)/$", daemon.log_text(), re.MULTILINE)
            assert found is not None
            pictures(browser, found[1])
        asking.join()


@contextlib.contextmanager
def interpreter() -> Iterator[str]:
    """This interpreter by a path that is the same wherever the pictures are made: the page shows it."""
    link = Path("/tmp/piecewised-venv")
    link.unlink(missing_ok=True)
    link.symlink_to(sys.prefix)
    yield str(link / "bin/python")
    link.unlink()


def pictures(browser: Any, address: str) -> None:
    """Of a daemon that is at work."""

    def opened(width: int, height: int, scheme: str) -> Any:
        page = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme).new_page()
        page.goto(address)
        page.wait_for_selector("#artifacts tr")
        return page

    page = opened(1200, 1350, "light")
    page.locator("#queue tr").first.wait_for(timeout=300_000)
    page.locator("#timeline").get_by_text("qwen/backbone/1").first.wait_for(timeout=300_000)
    page.wait_for_timeout(2500)
    page.screenshot(path=IMAGES / "live-page.png")
    page = opened(1200, 1000, "dark")
    page.check("input[value=clock]")
    page.screenshot(path=IMAGES / "live-page-dark.png")
    opened(390, 1400, "light").screenshot(path=IMAGES / "live-page-phone.png")
    page = opened(1200, 700, "light")
    page.click("#next")
    page.fill("#prefix", "7b")
    page.press("#prefix", "Enter")
    page.get_by_text("keys that begin with 7b").wait_for()
    page.evaluate("document.querySelector('#h-store').parentElement.scrollIntoView()")
    page.screenshot(path=IMAGES / "live-page-store.png")


if __name__ == "__main__":
    main()
