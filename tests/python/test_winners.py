"""Names of Triton kernels, which are also names of files."""

from __future__ import annotations

import executor_harness  # noqa: F401  # puts the executor's source on the path
import pytest
from piecewised_executor import winners
from torch._inductor.codegen import triton


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("fused", "fused"),
        ("fused_add_mul", "fused_add_mul"),
        ("fused_" + "a" * 114, "fused_" + "a" * 114),
        ("fused_" + "a" * 115, "fused"),
        ("fused_" + "_".join(["add"] * 40), "fused_" + "_".join(["add"] * 28)),
        ("fused__to_copy_" + "_".join(["mul"] * 40), "fused__to_copy_" + "_".join(["mul"] * 26)),
    ],
)
def test_names_end_with_an_operator(name: str, short: str) -> None:
    assert winners.shortened(name) == short
    assert len(short) <= 120


def test_inductor_is_left_as_it_was() -> None:
    before = triton.get_fused_kernel_name
    with pytest.raises(ZeroDivisionError), winners.short_names():
        assert triton.get_fused_kernel_name([], "original_aten") == "fused"
        assert triton.get_fused_kernel_name is not before
        raise ZeroDivisionError
    assert triton.get_fused_kernel_name is before
