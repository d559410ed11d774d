"""One call of AOTInductor: from a rebuilt graph to a package (.pt2) that loads in any process with the same libtorch and device.

The package holds what a load needs and nothing else: the shared object with the kernels in it, what its code asks libtorch to call (a JSON text), and
what it was made for. Sources, which name this machine's folders, stay behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch._inductor.config as inductor_config
from torch._inductor import compile_fx
from torch._inductor.codegen.cpp_wrapper_cpu import CppWrapperCpu
from torch._inductor.codegen.wrapper import PythonWrapperCodegen
from torch._inductor.ir import FallbackKernel
from torch._inductor.utils import fresh_cache
from torch.export.pt2_archive._package import PT2ArchiveWriter
from torch.export.pt2_archive.constants import AOTINDUCTOR_DIR

from . import candidates, compilers, frontends, lease, program, settings, winners
from .building import building
from .errors import Unsupported, describe
from .frontends import Frontend
from .rebuild import Rebuilt
from .symbols import Symbols
from .tensors import TensorsOnly, tensors_only

# The name of the model in its package, and of the files there: by content, as Inductor has it, they would differ with its folder.
MODEL = "model"
# Whose operators every libtorch has.
_TORCH_NAMESPACES = frozenset(
    ("aten", "prim", "prims", "quantized", "quantized_decomposed", "mkldnn", "mkl", "onednn", "_c10d_functional", "c10d", "inductor", "symm_mem", "profiler")
)  # fmt: skip

_PATCHES: dict[str, Any] = {
    "aot_inductor.package": True,
    "aot_inductor.model_name_for_generated_files": MODEL,
    # Kernels are in the shared object, and no path of theirs is.
    "aot_inductor.embed_kernel_binary": True,
    # C++ launches kernels with the configuration that won here.
    "triton.autotune_at_compile_time": True,
}


@dataclass(frozen=True)
class Package:
    """`content` is the .pt2. The rest is what the container says of it (docs/artifact.md)."""

    content: bytes
    arguments: list[int]
    inputs: list[dict[str, Any]]
    symbols: list[dict[str, Any]]
    numbers: list[int]
    operators: list[str]
    mutated: list[int]
    is_autocast: bool


def compile_package(
    rebuilt: Rebuilt,
    symbols: Symbols,
    options: dict[str, Any],
    extra_patches: dict[str, Any] | None = None,
    *,
    frontend: Frontend = frontends.NONE,
) -> Package:
    """As `program.compile_program`, in the other format. Raises also Unsupported, for what a package cannot hold."""
    taken = tensors_only(rebuilt, symbols)
    compiler = compilers.for_packages()
    context = torch._guards.TracingContext(rebuilt.fake_mode)
    with tempfile.TemporaryDirectory(prefix="piecewised-") as folder:
        output = os.path.join(folder, "package")
        patches = {
            **settings.inductor_patches(options.get("inductor", {})),
            **frontend.patches(),
            **(extra_patches or {}),
            **program.PATCHES,
            **_PATCHES,
            "aot_inductor.output_path": output,
            # What the code is for is written into it.
            "aot_inductor.metadata": {},
            "compile_threads": settings.compile_threads(),
            "cpp.cxx": (compiler,),
        }
        with (
            fresh_cache(dir=folder),
            settings.torch_settings(options.get("torch", {})),
            torch.no_grad(),
            torch._guards.tracing(context),
            winners.short_names(),
            building(folder),
            _autotuning_leased(),
            _refusals_named(),
            _arrays_declared_anew(),
            frontend.compiling(),
            warnings.catch_warnings(),
        ):
            # Of torch about torch, once for each compile.
            warnings.simplefilter("ignore", FutureWarning)
            # Not as its argument, which it copies: a frontend's passes are the frontend's own objects.
            with program.compile_errors(_refusal), candidates.compiling(), inductor_config.patch(patches):
                files = compile_fx.compile_fx_aot(taken.module, list(taken.inputs))
        return _packed(files, taken, folder, is_autocast=bool(options.get("torch", {}).get("autocast")))


def _packed(files: list[Any], taken: TensorsOnly, folder: str, *, is_autocast: bool) -> Package:
    contents = {os.path.basename(path): Path(path).read_bytes() for path in files if not path.endswith((".cpp", ".h"))}
    shared_object = contents[f"{MODEL}.wrapper.so"]
    compilers.check(shared_object)
    # The loader looks for the metadata beside a source; what is in that it does not read.
    contents[f"{MODEL}.wrapper.cpp"] = f"// Compiled, as {MODEL}.wrapper.so.\n".encode()
    nodes = json.loads(contents.get(f"{MODEL}.wrapper.json", b"{}")).get("nodes", [])
    path = os.path.join(folder, f"{MODEL}.pt2")
    with PT2ArchiveWriter(path) as archive:
        for name, content in sorted(contents.items()):
            if not name.startswith(f"{MODEL}.kernel"):
                archive.write_bytes(os.path.join(AOTINDUCTOR_DIR, MODEL, name), content)
    return Package(
        content=Path(path).read_bytes(),
        arguments=taken.arguments,
        inputs=taken.described,
        symbols=taken.symbols,
        numbers=taken.numbers,
        operators=sorted({name for node in nodes if not _is_torchs(name := node["node"]["target"])}),
        mutated=taken.mutated,
        is_autocast=is_autocast,
    )


def _is_torchs(operator: str) -> bool:
    return operator.partition("::")[0] in _TORCH_NAMESPACES


@contextlib.contextmanager
def _replaced(*places: tuple[Any, str, Callable[[Any], Callable[..., Any]]]) -> Iterator[None]:
    """While inside, each (owner, name of a function, what makes another of it) is replaced."""
    originals = [getattr(owner, name) for owner, name, _ in places]
    for (owner, name, other), original in zip(places, originals, strict=True):
        setattr(owner, name, other(original))
    try:
        yield
    finally:
        for (owner, name, _), original in zip(places, originals, strict=True):
            setattr(owner, name, original)


def _autotuning_leased() -> contextlib.AbstractContextManager[None]:
    """While inside, the code that AOTInductor runs to have kernels measured holds a lease of the device."""

    def leased(original: Callable[[Any], None]) -> Callable[[Any], None]:
        def generate_and_run_autotune_block(wrapper: Any) -> None:
            with lease.running("cuda"):
                original(wrapper)

        return generate_and_run_autotune_block

    return _replaced((PythonWrapperCodegen, "generate_and_run_autotune_block", leased))


def _refusals_named() -> contextlib.AbstractContextManager[None]:
    """While inside, an operator that a package cannot call is refused by its name."""
    return _replaced(
        (FallbackKernel, "export_extern_kernel_node", _named(lambda kernel: kernel.op_overload)),
        (
            *(CppWrapperCpu, "generate_fallback_kernel_with_runtime_lookup_aot"),
            _named(lambda wrapper, overload, *rest: overload),
        ),
    )


def _named(overload_of: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def named(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            try:
                return original(*args)
            except Exception as error:
                raise Unsupported(
                    f"the operator {overload_of(*args).name()} cannot be called from an AOTInductor package ({describe(error)[:300]}); ask "
                    "for the format 'inductor'"
                ) from error

        return call

    return named


def _arrays_declared_anew() -> contextlib.AbstractContextManager[None]:
    """While inside, each array of sizes in the generated C++ is declared where it is used.

    AOTInductor looks for one that it has declared before, by the address of an object that lives no longer than the look: whether it finds one is
    chance, and the same graph would give one source this time and another the next.
    """

    def codegen_int_array_var(
        wrapper: Any, int_array: str, writeline: Any, known_statically: bool = False, graph: Any = None
    ) -> str:
        return wrapper._codegen_int_array_var_impl(int_array, writeline, known_statically)  # type: ignore[no-any-return]

    return _replaced((CppWrapperCpu, "codegen_int_array_var", lambda original: codegen_int_array_var))


def _refusal(error: BaseException) -> Unsupported | None:
    """The refusal that a compiler's error comes down to, if it does."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        if isinstance(cause, Unsupported):
            return cause
        cause = cause.__cause__ or cause.__context__
    return None
