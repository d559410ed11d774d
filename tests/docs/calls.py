"""Writes docs/grpcurl.md: every call that an operator makes by hand, with what a real daemon answered. `make docs-calls`; needs grpcurl on PATH."""

from __future__ import annotations

import argparse
import base64
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/python"))

from service_harness import Client, Daemon, failing_request, json_values, results, small_request  # noqa: E402

PAGE = ROOT / "docs/grpcurl.md"
ADMIN = "piecewised.v1.AdminService"
COMPILE = "piecewised.v1.CompileService"
# Where the page says that the daemon listens, and that its interpreter is.
SHOWN = "/run/piecewised/piecewised.sock"
PYTHON = "/opt/venv/bin/python"

INTRO = """# Calls by hand

What the daemon can be asked with [grpcurl](https://github.com/fullstorydev/grpcurl), call by call, with what a daemon answered. Messages and methods are found through reflection: no
`.proto` file is needed. The page is made by `make docs-calls`, and a test holds each request and answer on it against the messages of
[proto/](../proto/piecewised/v1).

`-plaintext` belongs to the Unix socket; over TCP it is `-cacert`, with `-cert` and `-key` or `-H 'authorization: Bearer ...'` ([security.md](security.md)). `-authority localhost` is for
grpcurl before 1.9: it names the socket's path as the HTTP/2 authority, which is none, and gets `PROTOCOL_ERROR` (so does grpcio, whose option is `grpc.default_authority`).

Keys and digests are 32 bytes, which JSON shows in Base64. `GetArtifact` and `ExplainMiss` take hexadecimal digits, as `piecewised ls` shows them:

```
$ echo MmC2O2DhOtrO3QpdxGQ4jOP8kp/Wk91YrufVPNRdoRs= | base64 -d | xxd -p -c 32
3260b63b60e13adacedd0a5dc464388ce3fc929fd693dd58aee7d53cd45da11b
```

64-bit integers are strings in protobuf's JSON, and what is zero, false or empty is left out. `...` stands for lines that are left out here.
"""


class Page:
    """The page as it is written, call by call."""

    def __init__(self, daemon: Daemon, grpcurl: str) -> None:
        self._daemon = daemon
        self._grpcurl = grpcurl
        self.text = INTRO

    def write(self, text: str) -> None:
        """A paragraph."""
        self.text += f"\n{text.strip()}\n"

    def ask(self, method: str) -> str:
        """What a call answers, without showing it."""
        command = [self._grpcurl, "-plaintext", "-authority", "localhost", "-unix", str(self._daemon.socket), method]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stdout

    def call(
        self, method: str, request: dict[str, Any] | None = None, *flags: str, file: str = ""
    ) -> list[dict[str, Any]]:
        """Makes a call, shows it with its output, and gives the answers. `file`: the name of a block of the page that has the request."""
        data = "" if request is None else json.dumps(request)
        command = [self._grpcurl, "-plaintext", "-authority", "localhost", *flags, "-unix"]
        command += [*(["-d", data] if request is not None else []), str(self._daemon.socket), *method.split()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        shown = "$ grpcurl -plaintext -authority localhost " + "".join(f"{flag} " for flag in flags)
        if file:
            shown += f"-d @ -unix {SHOWN} {method} < {file}"
        elif request is not None:
            shown += f"-d '{data}' \\\n    -unix {SHOWN} {method}"
        else:
            shown += f"-unix {SHOWN} {method}"
        output = (done.stdout.rstrip() + "\n" + done.stderr.rstrip()).strip()
        for here, shown_as in ((str(self._daemon.socket), SHOWN), (sys.executable, PYTHON)):
            output = output.replace(here, shown_as)
        self.text += f"\n```\n{shown}\n{shortened(output)}\n```\n"
        return json_values(done.stdout)[0]


def shortened(output: str) -> str:
    """Without the middle of what nobody would read to its end."""
    lines = output.splitlines()
    return output if len(lines) <= 150 else "\n".join([*lines[:50], "...", *lines[-15:]])


def hexadecimal(key: str) -> str:
    """The digits of a key that JSON shows in Base64."""
    return base64.b64decode(key).hex()


def write(page: Page, daemon: Daemon) -> None:
    """All of the page."""
    page.write("## What there is")
    page.call("list")
    page.call(f"list {ADMIN}")
    page.call(f"describe {ADMIN}.GetArtifact")
    page.call("grpc.health.v1.Health/Check", {"service": COMPILE})

    page.write(
        "## Compile\n\nWhat a worker does; see [protocol.md](protocol.md). The request, in `request.json`: `(x + 1).relu()` over `x: f32[s0, 8]`, for one range and one size of it, as"
        " the only piece of a program."
    )
    request = small_request(1, sizes=(4,)) | {
        "label": "example",
        "program": {"program": "example", "run": "by-hand", "index": 0, "nPieces": 1},
    }
    page.text += f"\n```json\n{json.dumps(request, indent=1)}\n```\n"
    page.write(
        "The answer is a stream of events. A handle is what a worker dispatches on and loads with; `signature` is over it ([signatures.md](signatures.md))."
    )
    events = page.call(f"{COMPILE}/Compile", request, file="request.json")
    handle = next(event["ready"]["handle"] for event in events if "ready" in event)

    page.write(
        "The bytes of an artifact, from an offset; here its last 16. Without an offset it is all of them, in chunks."
    )
    page.call(
        f"{COMPILE}/FetchArtifact",
        {"digest": handle["digest"], "offset": str(int(handle["sizeBytes"]) - 16)},
    )

    page.write("## What is in the store")
    page.write("A page of it, by key; `pageToken` of the next call is the `nextPageToken` of this one.")
    (first,) = page.call(f"{ADMIN}/ListArtifacts", {"pageSize": 1})
    page.call(f"{ADMIN}/ListArtifacts", {"pageSize": 1, "pageToken": first["nextPageToken"]})
    page.write("One of them with all that its handle says, by the first digits of its key.")
    key = first["artifacts"][0]["key"]
    page.call(f"{ADMIN}/GetArtifact", {"key": hexadecimal(key)[:12]})
    page.write("Programs that were completed, and what one of them is made of:")
    page.call(f"{ADMIN}/ListManifests")
    page.call(f"{COMPILE}/GetManifest", {"program": "example"})

    page.write("## Why something was compiled")
    page.write("By a request, which is not made, or by a key: what of it differs from the nearest key in the store.")
    page.call(f"{ADMIN}/ExplainMiss", {"key": hexadecimal(key)[:12]})

    page.write("## Jobs")
    page.write("What waits and runs, while a worker has something compiled:")
    with Client(daemon.endpoint) as client:
        other = small_request(7, sizes=(2, 3)) | {"label": "llama/backbone/0"}
        thread = threading.Thread(target=lambda: results(client.compile(other)))
        thread.start()
        while '"phase": "compile"' not in page.ask(f"{ADMIN}/ListJobs"):
            time.sleep(0.05)
        page.call(f"{ADMIN}/ListJobs")
        page.write("The same whenever it changes; it goes on until the daemon ends, or until `-max-time`:")
        page.call(f"{ADMIN}/WatchJobs", {}, "-max-time", "1")
        thread.join()

        page.write("## Failures")
        page.write("A failure of the graph's own is remembered, and told at once to whoever asks next.")
        _, failed, _ = results(client.compile(failing_request("sampler")))
    assert failed
    (failures,) = page.call(f"{ADMIN}/ListFailures", {"pageSize": 10})
    page.write("After it was mended: forget one, or with `{}` all.")
    page.call(f"{COMPILE}/ForgetFailures", {"key": failures["failures"][0]["key"]})

    page.write("## Statistics")
    page.call(f"{COMPILE}/GetStatus")

    page.write(
        "## Changing something\n\nFor admins; each leaves a line in the log with the target `audit`. A pinned key stays until it is unpinned or evicted:"
    )
    page.call(f"{ADMIN}/Pin", {"keys": [key]})
    page.call(f"{ADMIN}/Unpin", {"keys": [key]})
    page.write(
        "Evicting takes what is stored under keys out of the store; what a manifest names stays on the disk for it."
    )
    page.call(f"{ADMIN}/Evict", {"keys": [key]})
    page.call(f"{ADMIN}/RemoveManifest", {"program": "example"})
    page.write("An error names what is wrong, with the reason and its particulars in `ErrorInfo`:")
    page.call(f"{ADMIN}/RemoveManifest", {"program": "example"})
    page.write("And the end: no new compiles, running ones get their time, then the daemon ends.")
    page.call(f"{ADMIN}/Drain")


def main() -> None:
    """Starts a daemon, makes the calls, writes the page."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    grpcurl = shutil.which("grpcurl")
    if grpcurl is None:
        sys.exit("no grpcurl on PATH")
    with tempfile.TemporaryDirectory() as folder:
        daemon = Daemon(Path(folder), "--n-executors", "1")
        with daemon:
            page = Page(daemon, grpcurl)
            write(page, daemon)
            assert daemon.process is not None
            assert daemon.process.wait(60) == 0
    PAGE.write_text(page.text)


if __name__ == "__main__":
    main()
