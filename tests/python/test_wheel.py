"""The one wheel that people install: `make wheel`, in an environment of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from ready_daemon import BINARY, ROOT

UV = ROOT / ".venv/bin/uv"


def test_one_wheel_brings_client_plugin_and_daemon(tmp_path: Path) -> None:
    # The profile that the tests' own daemon was built with: nothing is built twice.
    command = ["make", "wheel", "WHEEL_PROFILE=dev", f"WHEELS={tmp_path}/wheels"]
    made = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    (wheel,) = (tmp_path / "wheels").iterdir()
    assert wheel.name.startswith("piecewised-") and "abi3" in wheel.name
    environment = tmp_path / "venv"
    subprocess.run([UV, "venv", "-q", "--python", sys.executable, environment], check=True)
    subprocess.run([UV, "pip", "install", "-q", "--no-deps", "--python", environment / "bin/python", wheel], check=True)
    daemon = environment / "bin/piecewised"
    version = subprocess.run([daemon, "--version"], check=True, capture_output=True, text=True).stdout
    assert version == subprocess.run([BINARY, "--version"], check=True, capture_output=True, text=True).stdout
    script = """
import json
from importlib.metadata import entry_points, files
groups = ("torch_dynamo_backends", "vllm.general_plugins")
points = sorted(point.value for group in groups for point in entry_points(group=group))
print(json.dumps([points, sorted(file.name for file in files("piecewised") if file.suffix == ".so")]))
"""
    # Without importing it, which needs torch: that is the environment's to have.
    found = subprocess.run([environment / "bin/python", "-I", "-c", script], check=True, capture_output=True, text=True)
    assert json.loads(found.stdout) == [
        ["piecewised.backend:piecewised", "piecewised.vllm:register"],
        ["_core.abi3.so"],
    ]
    assert not (ROOT / "client/python/piecewised._core.data").exists()
