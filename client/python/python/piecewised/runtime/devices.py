"""Generated wrappers on another GPU than the one that they were written for.

Inductor writes the index of the GPU into its wrappers. Artifacts are made for index 0 (a canonical graph knows no other),
and keys and handles know kinds of device only; where a worker loads one for another index, the wrapper's source is
rewritten before it is executed. Every form in which the generator of the torch versions that were tried writes an index
is listed here; :func:`leftovers` finds what looks like an index and is none of them, and the executor refuses to make
such an artifact, so that nothing runs on the wrong GPU.

Sources of kernels within the wrapper are left as they are: kernels are found by their digest, and a cubin knows no index.
"""

from __future__ import annotations

import re

# What is written for index 0, with the index as group 2.
_FORMS = re.compile(
    r"(\b_?DeviceGuard\(|\bset_device\(|\bget_raw_stream\(|"
    r"\bdevice\(type='cuda', index=|\bdevice\('cuda', |'cuda:|\"cuda:|"
    r"\bcuda\.synchronize\(|\bcuda\.device\()(0)(?![0-9])"
)
# Anything that names a GPU by index, in those forms or others.
_SUSPECTS = re.compile(
    r"\bcuda:[0-9]+|\bdevice_?index\s*=\s*[0-9]+|\btype='cuda', index=[0-9]+|\b_?DeviceGuard\([0-9]+|\bset_device\([0-9]+"
    r"|\bget_raw_stream\([0-9]+|\bdevice\('cuda', [0-9]+"
)
# A kernel's source: the argument of async_compile.triton, between triple quotes.
_KERNEL_SOURCE = re.compile(r"(async_compile\.triton\('[^']*', ''')(.*?)(''')", re.DOTALL)
_COMMENT = re.compile(r"^\s*#.*$", re.MULTILINE)


def on_device(source: str, index: int) -> str:
    """The wrapper's source for the GPU of that index in this process."""
    if index == 0:
        return source
    return _outside_kernels(source, lambda text: _FORMS.sub(rf"\g<1>{index}", text))


def tensor_device(device: str, index: int) -> str:
    """Where a tensor of the artifact's own lies: `device` as the artifact has it ("cpu", "cuda:0")."""
    return f"cuda:{index}" if device.startswith("cuda") else device


def leftovers(source: str) -> list[str]:
    """What names a GPU by index in a way that :func:`on_device` does not rewrite."""
    probe = 97
    rewritten = _outside_kernels(on_device(source, probe), lambda text: _COMMENT.sub("", text), drop_kernels=True)
    return [found for found in _SUSPECTS.findall(rewritten) if str(probe) not in found]


def _outside_kernels(source: str, change, drop_kernels: bool = False) -> str:  # type: ignore[no-untyped-def]
    parts = []
    end = 0
    for match in _KERNEL_SOURCE.finditer(source):
        parts.append(change(source[end : match.start(2)]))
        if not drop_kernels:
            parts.append(match[2])
        end = match.end(2)
    parts.append(change(source[end:]))
    return "".join(parts)
