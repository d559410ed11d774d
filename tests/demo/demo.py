"""The main job on a real model: three workers at once ask one daemon for the same ranges, then everything is restarted.

Ends non-zero if a result differs from eager by more than the tolerance, if a key was compiled more than once, or if the second
run compiled anything.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
from typing import Any

HERE = pathlib.Path(__file__).resolve().parent
N_WORKERS = 3
# float32, four layers: sums in another order.
TOLERANCE = 1e-4


def main() -> int:
    """Runs the demo twice over one store and prints what happened."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--daemon", type=pathlib.Path, required=True, help="the piecewised binary")
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path(".demo"), help="made anew; default: .demo")
    parser.add_argument("--device", default="cpu", help="where the workers run: cpu or cuda")
    args = parser.parse_args()
    folder = args.folder.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)

    problems = []
    for title, run in [("From nothing", "cold"), ("Daemon and workers restarted, empty worker caches", "warm")]:
        print(f"\n{title}: {N_WORKERS} workers at once", flush=True)
        with Daemon(args.daemon.resolve(), folder, run) as daemon:
            reports = run_workers(daemon.endpoint, folder, run, args.device)
        show(reports)
        problems += check(reports, is_warm=run == "warm")
    print()
    for problem in problems:
        print(f"WRONG: {problem}")
    if not problems:
        print(
            "Every key was compiled once for all workers, nothing was compiled after the restart, and every result equals eager's."
        )
    print(f"Logs and the store are in {folder}.")
    return 1 if problems else 0


class Daemon:
    """The daemon on a private socket; ended by SIGTERM, and by SIGKILL if it doesn't end."""

    def __init__(self, binary: pathlib.Path, folder: pathlib.Path, run: str) -> None:
        self.endpoint = f"unix://{folder}/piecewised.sock"
        self._log = open(folder / f"daemon-{run}.log", "w")
        self._process = subprocess.Popen(
            [
                binary,
                "serve",
                "--socket",
                folder / "piecewised.sock",
                "--store-dir",
                folder / "store",
                "--python",
                sys.executable,
            ],
            stderr=self._log,
        )

    def __enter__(self) -> Daemon:
        socket = pathlib.Path(self.endpoint.removeprefix("unix://"))
        deadline = time.monotonic() + 60
        while not socket.exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.__exit__()
                sys.exit(f"the daemon did not start; its log is {self._log.name}")
            time.sleep(0.02)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()


def run_workers(endpoint: str, folder: pathlib.Path, run: str, device: str) -> list[dict[str, Any]]:
    """Starts the workers together, each with an empty cache folder of its own as a pod would have; their reports."""
    workers = []
    for number in range(N_WORKERS):
        out = folder / f"worker-{run}-{number}.json"
        env = os.environ | {
            "PIECEWISED_CACHE_DIR": str(folder / f"cache-{run}-{number}"),
            "TORCHINDUCTOR_CACHE_DIR": str(folder / f"inductor-{run}-{number}"),
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
        }
        command = [sys.executable, HERE / "worker.py", "--out", out, "--endpoint", endpoint, "--device", device]
        # The first one shows its progress; of three at once nobody could read anything.
        stderr = None if number == 0 else subprocess.PIPE
        workers.append((out, subprocess.Popen(command, env=env, stderr=stderr, text=True)))
    reports = []
    failed = False
    for out, process in workers:
        _, stderr = process.communicate()
        if process.returncode != 0:
            print(stderr or "", file=sys.stderr)
            failed = True
        else:
            reports.append(json.loads(out.read_text()))
    if failed:
        sys.exit("a worker failed")
    return reports


def show(reports: list[dict[str, Any]]) -> None:
    """One row for each key."""
    header = ["key", "sizes", "compile s", "compiled by", "joined by", "from store", "KB", "fetch ms", "load ms"]
    header.append("largest difference from eager (size: difference)")
    by_key: dict[str, list[tuple[int, dict[str, Any]]]] = collections.defaultdict(list)
    for number, report in enumerate(reports):
        for record in report["stats"]["ranges"]:
            by_key[record["key"]].append((number, record))
    rows = []
    for key, records in by_key.items():
        who = collections.defaultdict(list)
        for number, record in records:
            who[record["source"]].append(f"w{number}")
        first = records[0][1]
        rows.append(
            [
                key[:10],
                str(first["range"] or "any"),
                f"{first['compile_s']:.1f}",
                " ".join(who["compiled"]) or "-",
                " ".join(who["joined"]) or "-",
                " ".join(who["store"]) or "-",
                f"{first['size_bytes'] / 1e3:.0f}",
                spread([record["fetch_s"] for _, record in records]),
                spread([record["load_s"] for _, record in records]),
                differences_in(reports, first["range"]),
            ]
        )
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    for row in [header, ["-" * width for width in widths], *rows]:
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    ready = ", ".join(f"w{number} {report['ready_s']:.1f} s" for number, report in enumerate(reports))
    print(f"  first call answered (capture, compile or wait, fetch, load, run): {ready}")


def spread(seconds: list[float]) -> str:
    """Smallest and largest, in milliseconds."""
    low, high = min(seconds) * 1e3, max(seconds) * 1e3
    return f"{low:.0f}" if round(low) == round(high) else f"{low:.0f}-{high:.0f}"


def differences_in(reports: list[dict[str, Any]], bounds: list[int] | None) -> str:
    """The largest difference of any worker for each size that this entry of the plan runs."""
    singles = {
        size
        for report in reports
        for r in report["stats"]["ranges"]
        if r["range"]
        for size in r["range"]
        if r["range"][0] == r["range"][1]
    }
    cells = []
    for size in map(int, reports[0]["differences"]):
        inside = bounds is None or bounds[0] <= size <= bounds[1]
        if inside and (bounds is None or bounds[0] == bounds[1] or size not in singles):
            worst = max(report["differences"][str(size)] for report in reports)
            cells.append(f"{size}: {worst:.0e}")
    return "  ".join(cells)


def check(reports: list[dict[str, Any]], is_warm: bool) -> list[str]:
    """What is not as it should be."""
    problems = []
    compiled = collections.Counter(
        record["key"] for report in reports for record in report["stats"]["ranges"] if record["source"] == "compiled"
    )
    problems += [f"key {key[:10]} was compiled {n} times" for key, n in compiled.items() if n > 1]
    keys = {record["key"] for report in reports for record in report["stats"]["ranges"]}
    if is_warm and compiled:
        problems.append(f"{len(compiled)} keys were compiled again after the restart")
    if not is_warm and set(compiled) != keys:
        problems.append(f"{len(keys - set(compiled))} keys were never reported as compiled")
    for number, report in enumerate(reports):
        if report["stats"]["n_local"]:
            problems.append(f"worker {number} compiled by itself: {report['stats']['local_reasons']}")
        if report["n_captures"] != 1:
            problems.append(f"worker {number} captured {report['n_captures']} graphs instead of one")
        problems += [
            f"worker {number}, size {size}: differs from eager by {difference:.2e}"
            for size, difference in report["differences"].items()
            if not difference <= TOLERANCE
        ]
    return problems


if __name__ == "__main__":
    sys.exit(main())
