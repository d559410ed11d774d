"""The processes that Triton kernels are compiled with, which executors fork (`forked_compilers`): real kernels, compiled for a GPU that is not here.

Triton's library for the driver is linked against a libcuda whose functions all fail; compiling calls none of them.
"""

from __future__ import annotations

import json
import os
import re
import select
import subprocess
import sys
from pathlib import Path

import executor_harness as h
import pytest
import triton

sys.path.insert(0, str(h.ROOT / "tests/vllm"))
import libcuda

_KERNEL = """
import triton
import triton.language as tl
from torch._inductor.runtime import triton_helpers, triton_heuristics
from torch._inductor.runtime.hints import DeviceProperties
from torch._inductor.runtime.triton_helpers import math as tl_math
triton_helpers.set_driver_to_gpu()

@triton_heuristics.pointwise(
    size_hints={"x": 1024},
    filename=__file__,
    triton_meta={
        "signature": {"in_ptr0": "*fp32", "out_ptr0": "*fp32", "xnumel": "i32", "XBLOCK": "constexpr"},
        "device": DeviceProperties(
            type="cuda", index=0, multi_processor_count=132, cc=90, major=9, regs_per_multiprocessor=65536,
            max_threads_per_multi_processor=2048, warp_size=32,
        ),
        "constants": {},
        "configs": [{(0,): [["tt.divisibility", 16]], (1,): [["tt.divisibility", 16]], (2,): [["tt.divisibility", 16]]}],
    },
    inductor_meta={
        "grid_type": "Grid1D", "autotune_hints": set(), "kernel_name": "exponential", "mutated_arg_names": [],
        "no_x_dim": False, "num_load": 1, "num_reduction": 0, "autotune_local_cache": False, "autotune_remote_cache": None,
        "autotune_pointwise": True, "force_disable_caches": False, "max_autotune": False, "max_autotune_pointwise": False,
        "min_split_scan_rblock": 256, "spill_threshold": 16, "store_cubin": False,
    },
    min_elem_per_thread=0,
)
@triton.jit
def exponential(in_ptr0, out_ptr0, xnumel, XBLOCK: tl.constexpr):
    x = tl.program_id(0) * XBLOCK + tl.arange(0, XBLOCK)[:]
    tl.store(out_ptr0 + x, tl_math.exp(tl.load(in_ptr0 + x, x < xnumel)), x < xnumel)
"""

_PROGRAM = """
import functools, json, os, sys
from piecewised_executor.probe import import_torch
import_torch()
from piecewised_executor import forked_compilers
from torch._inductor.async_compile import AsyncCompile, _load_triton_kernel_from_source
from torch._inductor.runtime.compile_tasks import _worker_compile_triton
import torch._inductor.config as config
config.compile_threads = 2
forked_compilers.make_pool()
forked_compilers.wake()
AsyncCompile.wait_pool_ready()
kernel = functools.partial(_load_triton_kernel_from_source, "exponential", sys.argv[1])
folders = {"TORCHINDUCTOR_CACHE_DIR": sys.argv[2], "TRITON_CACHE_DIR": sys.argv[2] + "/triton"}
pool = AsyncCompile.process_pool()
compiled, _ = pool.submit(_worker_compile_triton, kernel, folders, {"use_static_triton_launcher": True}).result(timeout=100)
workers = {pool.submit(os.getpid).result(timeout=100) for _ in range(8)}
print(json.dumps({"sidecar": pool.process.pid, "workers": sorted(workers), "kinds": [type(one).__name__ for one in compiled.compile_results]}), flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a libcuda that is there and can do nothing."""
    folder = tmp_path_factory.mktemp("libcuda")
    source = Path(triton.__file__).parent / "backends/nvidia/driver.c"
    libcuda.build(folder, folder, set(re.findall(r"\bcu[A-Z]\w+", source.read_text())))
    (folder / "libcuda.so").symlink_to("libcuda.so.1")
    return folder


def test_kernels_are_compiled_by_processes_that_were_forked_and_end_with_the_executor(
    stub: Path, tmp_path: Path
) -> None:
    environment = h._environment(
        {"LD_LIBRARY_PATH": str(stub), "TRITON_LIBCUDA_PATH": str(stub), "TORCHINDUCTOR_COMPILE_THREADS": "2"}
    )
    command = [sys.executable, "-c", _PROGRAM, _KERNEL, str(tmp_path)]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        started = [told["sidecar"], *told["workers"]]
        descriptors = [os.pidfd_open(pid) for pid in started]
        process.kill()
    for descriptor in descriptors:
        ended, _, _ = select.select([descriptor], [], [], 60)
        assert ended, "a process is left behind"
    assert told["kinds"] and set(told["kinds"]) == {"StaticTritonCompileResult"}
    assert process.pid not in told["workers"] and told["sidecar"] not in told["workers"]
    assert list(tmp_path.rglob("*.cubin"))
