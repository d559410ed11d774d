"""AOTInductor packages, loaded by libtorch itself: no compiler, no process, and nothing of torch.compile.

Where torch's own ``aoti_load_package`` compares the CPU's vector instructions with those that a package was made for, which it finds out with a
C++ compiler, an artifact's device says the same and is compared before anything is loaded.

A call gives the package the graph's tensors and its constants; what the graph takes beside tensors a package reads off them. Nothing of a call is
checked but that there is a tensor where one has to be: whoever dispatches has looked at the sizes, and what captured the graph at the rest.
``AOTI_RUNTIME_CHECK_INPUTS=1`` in the environment has packages check dtypes, sizes and strides themselves.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch

from . import direct, outputs
from .errors import LoadError

# The name of the one model in a package.
_MODEL = "model"
# libtorch's "the current one", which is what a package for a CPU has.
_NO_DEVICE_INDEX = -1


def load(
    path: str, record: dict[str, Any], constants: tuple[torch.Tensor, ...], device_index: int | None
) -> Callable[..., Any]:
    """The package in the file `path` as the artifact's entry `record` describes it, for the GPU of that index (None: it is for a CPU).

    It takes the graph's arguments and gives what the graph returns. Raises LoadError.
    """
    _check_operators(record["operators"])
    index = _NO_DEVICE_INDEX if device_index is None else device_index
    try:
        # With run_single_threaded: libtorch's own order of calls would wait for a call that has given up Python's lock in one of Python's operators,
        # and keep that from getting it back; and it asks for events, which ends the capture of a CUDA graph. Calls share nothing but code and constants.
        loader = torch._C._aoti.AOTIModelPackageLoader(path, _MODEL, True, 1, index)
    except RuntimeError as error:
        hint = ""
        if "temporary directory" in str(error):
            # Its path is written in libtorch's code.
            hint = "; libtorch unpacks packages in /tmp, which this process has to be able to write to (an executor: executor_writable_dirs)"
        raise LoadError(f"the package {path} can't be loaded: {error}{hint}") from error
    run = _flat(loader.boxed_run, record["arguments"], constants, record["numbers"], record)
    if device_index is not None and record["mutated"]:
        run = _realigning(run, record["mutated"])
    return _without_autocast(run) if record["is_autocast"] else run


def _check_operators(operators: Sequence[str]) -> None:
    missing = [name for name in operators if not _is_registered(name)]
    if missing:
        raise LoadError(
            f"the package calls {', '.join(missing)}, which this process has not registered; import what defines it before the package is loaded"
        )


def _is_registered(name: str) -> bool:
    qualified, _, overload = name.partition(".")
    return torch._C._dispatch_has_kernel(name) or bool(
        [schema for schema in torch._C._jit_get_schemas_for_operator(qualified) if schema.overload_name == overload]
    )


def _flat(
    run: Callable[[list[Any]], list[Any]],
    arguments: Sequence[int],
    constants: tuple[torch.Tensor, ...],
    numbers: Sequence[int],
    record: dict[str, Any],
) -> Callable[..., Any]:
    """What selects a call's tensors, and builds what the graph returns. Each step that has nothing to do is left out."""
    restore = outputs.restorer(record["output"])
    is_plain = outputs.is_flat_tuple(record["output"], record["n_outputs"])
    build: Callable[[list[Any]], Any] = tuple if is_plain else restore
    if numbers:
        finish = build

        def build(flat: list[Any]) -> Any:
            for i in numbers:
                flat[i] = flat[i].item()
            return finish(flat)

    if len(arguments) > 1:
        select = operator.itemgetter(*arguments)
        if constants:
            return lambda *args: build(run([*select(args), *constants]))
        return lambda *args: build(run(list(select(args))))
    return lambda *args: build(run([*(args[i] for i in arguments), *constants]))


def _realigning(run: Callable[..., Any], mutated: Sequence[int]) -> Callable[..., Any]:
    """For code that takes tensors to begin where GPUs read whole words. A package copies those that do not by itself, and what it changes in the copy
    nobody would see."""

    def run_aligned(*args: Any) -> Any:
        for i in mutated:
            if args[i].data_ptr() % direct.ALIGNMENT:
                return realigned(list(args))
        return run(*args)

    def realigned(arguments: list[Any]) -> Any:
        copied = []
        for i in mutated:
            if (given := arguments[i]).data_ptr() % direct.ALIGNMENT:
                arguments[i] = direct.aligned(given)
                copied.append((given, arguments[i]))
        result = run(*arguments)
        with torch.no_grad():
            for given, copy in copied:
                given.copy_(copy)
        return result

    return run_aligned


def _without_autocast(run: Callable[..., Any]) -> Callable[..., Any]:
    """For a graph that was captured under autocast: its casts are in the code already, and a caller is under it."""

    def run_as_it_is(*args: Any) -> Any:
        with torch._C._DisableAutocast():
            return run(*args)

    return run_as_it_is
