"""Compile options: from the request to Inductor's configuration and torch's process-wide settings."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from typing import Any

import torch
import torch._inductor
import torch._inductor.config as inductor_config

from .errors import Unsupported
from .words import words

# The executor decides these itself: where files are, which programs run, what is kept or sent, and what is packed.
_RESERVED_PREFIXES = (
    "_", "aot_inductor", "autoheuristic", "cuda.", "cutlass.", "halide.", "lookup_table.", "profile_bandwidth", "rocm.",
    "test_configs.", "trace.", "triton.debug", "triton.proton", "xpu.",
)  # fmt: skip
_RESERVED_SUFFIXES = ("TESTING_ONLY", "_dir", "_path", "_pass", "_hook", "_class", "logpath")
_RESERVED = frozenset(
    words(
        """
    TYPE_CHECKING aten_distributed_optimizations.custom_runtime_estimation autotune_in_subproc
    autotune_local_cache autotune_lookup_table autotune_remote_cache benchmark_harness
    bundle_triton_into_fx_graph_cache bundled_autotune_remote_cache compile_threads cpp.cxx
    cpp_cache_precompile_headers cpp_wrapper cpu_backend cuda_backend custom_partitioner_fn
    custom_should_partition_ops debug disable_progress enable_autograd_for_aot enabled_metric_tables
    external_matmul file_lock_timeout freezing freezing_discard_parameters fx_graph_cache fx_graph_remote_cache
    fx_wrapper generate_intermediate_hooks is_nightly_or_source log_tlparse precompilation_timeout_seconds
    quiesce_async_compile_pool quiesce_async_compile_time remote_gemm_autotune_cache save_args
    search_autotune_cache sleep_sec_TESTING_ONLY strict_static_cuda_launcher tpu_backend
    triton.autotune_at_compile_time triton.store_cubin unsafe_marked_cacheable_functions
    unsafe_skip_cache_dynamic_shape_guards use_static_cuda_launcher verbose_progress worker_log_path
    worker_start_method worker_suppress_logging wrap_inductor_compiled_regions xpu_backend
    """
    )
)


def inductor_options() -> list[dict[str, Any]]:
    """Every option of this torch's Inductor, and whether it is refused from a client."""
    return [{"name": name, "reserved": _reserved(name)} for name in sorted(_defaults())]


def inductor_patches(options: dict[str, Any]) -> dict[str, Any]:
    """The options of a request (name to OptionValue) as patches. Raises Unsupported for one that can't be set."""
    defaults = _defaults()
    patches: dict[str, Any] = {}
    for name, tagged in options.items():
        if name not in defaults:
            raise Unsupported(f"Inductor of torch {torch.__version__} has no option {name!r}")
        if _reserved(name):
            raise Unsupported(f"the option {name!r} is the executor's own and cannot be set by a request")
        value = _option_value(tagged)
        expected = defaults[name]
        if expected is not None and value is not None and not _fits(value, expected):
            kinds = f"a {type(expected).__name__} ({expected!r}), not {type(value).__name__} ({value!r})"
            raise Unsupported(f"the option {name!r} is {kinds}")
        patches[name] = value
    return patches


@contextlib.contextmanager
def torch_settings(settings: dict[str, Any]) -> Iterator[None]:
    """The worker's process-wide settings (TorchSettings), for the duration of a compile."""
    before = (
        torch.get_default_dtype(),
        torch.get_float32_matmul_precision(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.get_num_threads(),
    )
    try:
        torch.set_default_dtype(dtype(settings.get("default_dtype", "float32")))
        torch.set_float32_matmul_precision(settings.get("float32_matmul_precision", "highest"))
        torch.use_deterministic_algorithms(settings.get("deterministic_algorithms", False))
        if n_threads := settings.get("num_threads", 0):
            torch.set_num_threads(n_threads)
        with contextlib.ExitStack() as stack:
            for device_type, name in settings.get("autocast", []):
                stack.enter_context(torch.autocast(device_type, dtype=dtype(name)))
            yield
    finally:
        torch.set_default_dtype(before[0])
        torch.set_float32_matmul_precision(before[1])
        torch.use_deterministic_algorithms(before[2], warn_only=before[3])
        torch.set_num_threads(before[4])


def compile_threads() -> int:
    """How many compilers to run at once: as many as the daemon says, else as many as this process may use CPUs, within reason."""
    if (n := os.environ.get("TORCHINDUCTOR_COMPILE_THREADS", "")).isdecimal():
        return max(1, int(n))
    return max(1, min(len(os.sched_getaffinity(0)), 32))


def dtype(name: str) -> torch.dtype:
    """`torch.<name>`. Raises Unsupported."""
    return _named(name, torch.dtype, "dtype")


def layout(name: str) -> torch.layout:
    """As `dtype`."""
    return _named(name, torch.layout, "layout")


def memory_format(name: str) -> torch.memory_format:
    """As `dtype`."""
    return _named(name, torch.memory_format, "memory format")


def _named(name: str, kind: type, what: str) -> Any:
    found = getattr(torch, name, None)
    if not isinstance(found, kind):
        raise Unsupported(f"torch {torch.__version__} has no {what} {name!r}")
    return found


@functools.cache
def _defaults() -> dict[str, Any]:
    return inductor_config.get_config_copy()


def _reserved(name: str) -> bool:
    return (
        name in _RESERVED
        or name.startswith(_RESERVED_PREFIXES)
        or name.endswith(_RESERVED_SUFFIXES)
        or callable(_defaults()[name])
    )


def _option_value(tagged: Any) -> Any:
    if tagged == "none":
        return None
    ((kind, value),) = tagged.items()
    return float(value) if kind == "float" else value


def _fits(value: Any, expected: Any) -> bool:
    if isinstance(expected, bool) or isinstance(value, bool):
        # Several of Inductor's options are a bool, or a word for more than that.
        return type(value) is type(expected) or isinstance(value, str)
    if isinstance(expected, float):
        return isinstance(value, (int, float))
    return isinstance(value, type(expected))
