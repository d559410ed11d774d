"""The process that executors are forked from, once it has imported vLLM: on a machine with a GPU too, it can be forked from."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

EXECUTOR_SOURCE = Path(__file__).resolve().parents[2] / "server/executor/python"

# What NVML says is all that tells a machine with a GPU from this one, as far as an import goes: CUDA itself is not started.
SCRIPT = """
import sys
from piecewised_executor import probe, zygote
zygote.hold_threads_back()
probe.import_torch()
from piecewised_executor import frontends
from piecewised_executor.frontends import vllm as frontend
if sys.argv[1] == "gpu":
    frontend._nvml_devices = lambda: [{"name": "NVIDIA H100 80GB HBM3", "capability": [9, 0]}] * 2
frontends.preload("vllm")
assert zygote.why_not() == "", zygote.why_not()
import vllm.compilation.backends
import vllm.third_party.pynvml as pynvml
from vllm.platforms import current_platform
assert current_platform.is_cuda() == (sys.argv[1] == "gpu"), current_platform
assert pynvml.nvmlLib is None, "NVML was loaded"
try:
    pynvml.nvmlInit()
except pynvml.NVMLError_LibraryNotFound:
    print("asked NVML itself")
"""


def test_importing_vllm_leaves_a_process_that_can_be_forked() -> None:
    for machine in ("gpu", "cpu"):
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, machine],
            cwd=EXECUTOR_SOURCE,
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode == 0 and done.stdout.endswith("asked NVML itself\n"), done.stdout
