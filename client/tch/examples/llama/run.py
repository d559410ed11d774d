"""All of the example: a daemon of its own, the capture, the worker. Ends non-zero where the worker's results are not eager's.

make example-tch
"""

from __future__ import annotations

import argparse
import os
import pathlib
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[3]


def main() -> int:
    """Runs it and passes the worker's exit code on."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--daemon", type=pathlib.Path, required=True, help="the piecewised binary")
    parser.add_argument("--worker", type=pathlib.Path, required=True, help="the example, built")
    parser.add_argument("--folder", type=pathlib.Path, default=ROOT / ".demo/llama", help="what stays from run to run")
    parser.add_argument("--layers", default="2")
    parser.add_argument("--hidden", default="256")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    captured = args.folder / "captured"
    sizes = ["--layers", args.layers, "--hidden", args.hidden]
    subprocess.run([sys.executable, HERE / "capture.py", captured, *sizes], check=True)
    # Short: a socket's path has to fit 108 bytes.
    with tempfile.TemporaryDirectory() as short, open(args.folder / "daemon.log", "w") as log:
        socket = pathlib.Path(short) / "socket"
        command = [
            args.daemon,
            "serve",
            "--socket",
            socket,
            "--store-dir",
            args.folder / "store",
            "--python",
            sys.executable,
        ]
        daemon = subprocess.Popen(command, stderr=log)
        try:
            wait_for(socket, daemon)
            launcher = args.daemon.resolve().parent / "piecewised-with-torch"
            worker = [
                args.worker.resolve(),
                captured,
                "--endpoint",
                f"unix://{socket}",
                "--cache-dir",
                args.folder / "cache",
            ]
            # With the torch that this runs with, whether its environment is active or not.
            environment = {**os.environ, "VIRTUAL_ENV": sys.prefix}
            return subprocess.run([launcher, *worker], check=False, env=environment).returncode
        finally:
            daemon.terminate()
            daemon.wait()
            print(f"what the daemon logged is in {args.folder}/daemon.log")


def wait_for(socket: pathlib.Path, daemon: subprocess.Popen[bytes]) -> None:
    """Until it listens."""
    while not socket.exists():
        if daemon.poll() is not None:
            sys.exit("the daemon ended before it listened; its log says why")
        time.sleep(0.05)


if __name__ == "__main__":
    sys.exit(main())
