"""The index of a GPU in generated wrappers: rewritten wherever it is known to be written, and found where it is not.

The forms are those of wrappers that Inductor of torch 2.11 generated on a GPU.
"""

from __future__ import annotations

import executor_harness as h
import pytest

devices = h.client_module("runtime.devices")

WRAPPER = """
triton_poi_fused_add_0 = async_compile.triton('triton_poi_fused_add_0', '''
@triton_heuristics.pointwise(
    triton_meta={'device': DeviceProperties(type='cuda', index=0, multi_processor_count=132), 'x': 'cuda:0'},
)
''', device_str='cuda')
class Runner:
    def call(self, args):
        # %arg : Tensor "bf16[s0]cuda:0" = PlaceHolder
        with torch.cuda._DeviceGuard(0):
            torch.cuda.set_device(0)
            buf0 = empty_strided_cuda((s0, 4096), (4096, 1), torch.bfloat16)
            stream0 = get_raw_stream(0)
            triton_poi_fused_add_0.run(arg0_1, buf0, s0, stream=stream0)
            buf1 = torch.ops.aten.full.default([s0], 0, device=device(type='cuda', index=0))
            buf2 = rand_strided((8,), (1,), device='cuda:0', dtype=torch.int64)
"""


def test_the_index_is_another_and_kernels_are_as_they_were() -> None:
    on_3 = devices.on_device(WRAPPER, 3)
    for form in ("_DeviceGuard(3)", "set_device(3)", "get_raw_stream(3)", "device(type='cuda', index=3)", "'cuda:3'"):
        assert form in on_3
    kernel = WRAPPER[: WRAPPER.index("class Runner")]
    assert on_3.startswith(kernel)
    # What is no index of a device stays: names, sizes, other numbers.
    assert "stream0 = " in on_3 and "buf0 = " in on_3 and "default([s0], 0," in on_3


def test_for_the_first_gpu_nothing_changes() -> None:
    assert devices.on_device(WRAPPER, 0) == WRAPPER


def test_every_known_form_is_rewritten() -> None:
    assert devices.leftovers(WRAPPER) == []


@pytest.mark.parametrize(
    "line",
    [
        "x = f(device_index=0)",
        "x = f(type='cuda', index=0)",
        "x = torch.device('cuda', 1)",
        "with torch.cuda._DeviceGuard(1): pass",
        "y = other('on cuda:0')",
    ],
)
def test_an_unknown_form_is_found(line: str) -> None:
    assert devices.leftovers(WRAPPER + line) != []


def test_tensors_of_the_artifact_follow() -> None:
    assert devices.tensor_device("cuda:0", 2) == "cuda:2"
    assert devices.tensor_device("cpu", 2) == "cpu"
