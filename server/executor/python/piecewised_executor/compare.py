"""Compiled values against eager ones: how far apart, and whether that is too far.

A tensor is compared as a whole: an element may be off by the tolerance of its dtype times the largest finite magnitude of
the eager tensor. Fused kernels round less often than eager, in another order, so that single small elements of a sum of
large ones differ by more than their own size; a wrong index, mask or stride is off by the size of the values themselves.
Integers and bools have to be equal, but for 8-bit integers, which are quantised floats and may be off by one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

_TOLERANCES = {
    torch.float64: 1e-7,
    torch.complex128: 1e-7,
    torch.float32: 1e-4,
    torch.complex64: 1e-4,
    torch.float16: 1e-2,
    torch.bfloat16: 3e-2,
}
# For 8-bit floats, which have two or three bits of mantissa.
_NARROW_FLOAT = 0.25
# Where products of float32 may be computed in TF32 or bfloat16.
_COARSE_FLOAT32 = 1e-2
# What a tensor of zeros is taken to be the rounding of.
_NOISE_OF_ZERO = 1e-3
# With a reference in float32 at hand: how much further than eager the compiled values may be from it.
_AS_NEAR = 2.0


@dataclass(frozen=True)
class Comparison:
    """Over all tensors that were compared. `problem`: None, or what differs, with both values."""

    max_absolute_error: float
    max_relative_error: float
    tolerance: float
    problem: str | None


def flatten(value: Any) -> list[Any]:
    """The leaves of nested tuples, lists and dicts, in order."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (tuple, list)):
        return [leaf for child in value for leaf in flatten(child)]
    return [value]


def tolerance(dtype: torch.dtype, float32_matmul_precision: str) -> float:
    """What may be off, relative to the largest magnitude of the tensor."""
    if dtype in (torch.float32, torch.complex64) and float32_matmul_precision != "highest":
        return _COARSE_FLOAT32
    if dtype.is_floating_point and dtype.itemsize == 1:
        return _NARROW_FLOAT
    return _TOLERANCES.get(dtype, 0.0)


def compare(
    names: Sequence[str], found: Sequence[Any], expected: Sequence[Any], float32_matmul_precision: str
) -> Comparison:
    """Compares values one by one; `found` and `expected` are flat."""
    absolute = relative = allowed = 0.0
    problem = None
    if len(found) != len(expected):
        problem = f"the compiled code gives {len(found)} values where eager gives {len(expected)}"
    for name, ours, theirs in zip(names, found, expected, strict=False):
        one = _compare_one(name, ours, theirs, float32_matmul_precision)
        absolute, relative = max(absolute, one.max_absolute_error), max(relative, one.max_relative_error)
        allowed = max(allowed, one.tolerance)
        problem = problem or one.problem
    return Comparison(absolute, relative, allowed, problem)


def is_as_near(found: Sequence[Any], expected: Sequence[Any], precise: Callable[[], list[Any] | None]) -> bool:
    """Whether the compiled values, though off, are about as near as eager's to a reference in float32.

    Long chains in half precision drift; then eager is no better a witness than what was compiled.
    """
    halves = (torch.float16, torch.bfloat16)
    if not any(isinstance(value, torch.Tensor) and value.dtype in halves for value in expected):
        return False
    reference = precise()
    if reference is None or len(reference) != len(expected) or len(found) != len(expected):
        return False
    for ours, theirs, true in zip(found, expected, reference, strict=True):
        if not isinstance(theirs, torch.Tensor):
            if ours != theirs:
                return False
            continue
        if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
            return False
        if theirs.dtype not in halves:
            if _compare_one("", ours, theirs, "highest").problem is not None:
                return False
            continue
        scale = _largest(true.float())
        ours_off, theirs_off = _rms(ours.float() - true.float()), _rms(theirs.float() - true.float())
        if not ours_off <= _AS_NEAR * theirs_off + 1e-3 * scale:
            return False
    return True


def _compare_one(name: str, ours: Any, theirs: Any, precision: str) -> Comparison:
    if not isinstance(theirs, torch.Tensor) or not isinstance(ours, torch.Tensor):
        same = type(ours) is type(theirs) and ours == theirs
        return Comparison(0.0, 0.0, 0.0, None if same else f"{name} is {ours!r}, and {theirs!r} in eager")
    what = [("sizes", tuple(ours.shape), tuple(theirs.shape)), ("dtype", ours.dtype, theirs.dtype)]
    what.append(("device", ours.device, theirs.device))
    for attribute, mine, other in what:
        if mine != other:
            return Comparison(0.0, 0.0, 0.0, f"{name} has {attribute} {mine}, and {other} in eager")
    if theirs.numel() == 0:
        return Comparison(0.0, 0.0, 0.0, None)
    allowed = tolerance(theirs.dtype, precision)
    if not (theirs.dtype.is_floating_point or theirs.dtype.is_complex):
        return _compare_integers(name, ours, theirs)
    wide = torch.complex128 if theirs.dtype.is_complex else torch.float64
    if theirs.dtype.itemsize <= 4 and not theirs.dtype.is_complex:
        wide = torch.float32
    a, b = ours.to(wide), theirs.to(wide)
    # Equal infinities and NaNs in the same places are no difference.
    same = (a == b) | (a.isnan() & b.isnan())
    difference = torch.where(same, torch.zeros_like(a), a - b).abs()
    largest = float(difference.max())
    # All zeros in eager may be rounding noise where sums are fused (a * b - a * b): noise of values around one.
    scale = _largest(b) or _NOISE_OF_ZERO
    is_close = largest <= allowed * scale if math.isfinite(largest) else False
    relative = largest / scale
    if is_close or largest == 0:
        return Comparison(largest, relative, allowed, None)
    difference = torch.nan_to_num(difference, nan=math.inf, posinf=math.inf)
    where = tuple(int(i) for i in torch.unravel_index(difference.argmax(), difference.shape))
    n_off = int((difference > allowed * scale).sum())
    return Comparison(
        *(largest if math.isfinite(largest) else 0.0, relative if math.isfinite(relative) else 0.0, allowed),
        f"{name} at {list(where)} is {_value(ours[where])} where eager gives {_value(theirs[where])}; {n_off} of {theirs.numel()} "
        f"elements differ by more than {allowed:g} of the largest magnitude, {scale:g} (largest difference {largest:g})",
    )


def _compare_integers(name: str, ours: torch.Tensor, theirs: torch.Tensor) -> Comparison:
    difference = (ours.to(torch.int64) - theirs.to(torch.int64)).abs()
    largest = int(difference.max())
    allowed = 1 if theirs.dtype in (torch.int8, torch.uint8) else 0
    if largest <= allowed:
        return Comparison(float(largest), 0.0, 0.0, None)
    where = tuple(int(i) for i in torch.unravel_index(difference.argmax(), difference.shape))
    n_off = int((difference > allowed).sum())
    return Comparison(
        float(largest),
        0.0,
        0.0,
        f"{name} at {list(where)} is {_value(ours[where])} where eager gives {_value(theirs[where])}; {n_off} of "
        f"{theirs.numel()} elements differ",
    )


def _largest(values: torch.Tensor) -> float:
    """The largest finite magnitude."""
    magnitudes = values.abs()
    return float(torch.where(magnitudes.isfinite(), magnitudes, torch.zeros_like(magnitudes)).max())


def _rms(values: torch.Tensor) -> float:
    return float(values.pow(2).mean().sqrt())


def _value(element: torch.Tensor) -> str:
    value = element.item()
    return f"{value:.6g}" if isinstance(value, float) else str(value)
