"""vLLM's own passes and Inductor options, configured from a Setup, with everything that they read noted."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

from .reads import NotPortable, Reads, environment
from .setup import PRUNED, Setup

# Read while a graph is compiled, and not while passes are configured.
_READ_LATER = ("VLLM_BATCH_INVARIANT", "VLLM_ENABLE_PREGRAD_PASSES")


class Configured:
    """The passes of one Setup. For the thread that made it.

    `inductor`: Inductor's options for a range that is no single size, passes included.
    """

    def __init__(self, setup: Setup) -> None:
        """Raises NotPortable where vLLM can't be configured that way in this process."""
        from vllm.compilation.backends import VllmBackend

        self.setup = setup
        self.reads = Reads(PRUNED)
        self.config = self.reads.shadow(setup.config)
        try:
            with self.active():
                backend = VllmBackend(self.config, prefix="piecewised")
                backend.configure_post_pass()
                self._read_ahead()
        except NotPortable:
            raise
        except Exception as error:
            raise NotPortable(f"vLLM's passes can't be configured: {type(error).__name__}: {error}") from error
        self.reads.seal()
        self.inductor: dict[str, Any] = {**setup.inductor, **backend.inductor_config}

    def options(self, size_range: tuple[int, int]) -> dict[str, Any]:
        """Inductor's options for a range, passes included, as vLLM's own compiler has them."""
        from vllm.compilation.compiler_interface import set_inductor_config

        options = dict(self.inductor)
        with self.active():
            set_inductor_config(options, _range(size_range))
        return options

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """While inside, this process is configured as the worker was."""
        import vllm.ir.ops  # noqa: F401
        from vllm.config import set_current_vllm_config
        from vllm.ir.op import IrOp, enable_torch_wrap

        _import_kernels()
        with contextlib.ExitStack() as stack:
            stack.enter_context(environment(self.setup.environment, self.reads))
            stack.enter_context(enable_torch_wrap(self.setup.torch_wrap))
            for name, providers in self.setup.priorities.items():
                if name not in IrOp.registry:
                    raise NotPortable(f"vLLM's operator {name} is not registered here")
                if unknown := [one for one in providers if one not in IrOp.registry[name].impls]:
                    raise NotPortable(f"vLLM's operator {name} has no implementation {unknown[0]!r} here")
                stack.enter_context(_priority(IrOp.registry[name], providers))
            stack.enter_context(set_current_vllm_config(self.config))
            yield

    @contextlib.contextmanager
    def compiling(self, size_range: tuple[int, int]) -> Iterator[None]:
        """While inside, what vLLM puts around a compile for that range is around it."""
        from vllm.compilation.passes.inductor_pass import pass_context

        with self.active(), pass_context(_range(size_range)), _stride_constraints(), self._pre_grad_passes():
            yield

    @contextlib.contextmanager
    def _pre_grad_passes(self) -> Iterator[None]:
        """Inductor's pre-grad passes, or none of them, as the worker has it."""
        from torch._inductor import compile_fx
        from vllm import envs

        if envs.VLLM_ENABLE_PREGRAD_PASSES:
            yield
            return
        original = compile_fx._recursive_pre_grad_passes
        compile_fx._recursive_pre_grad_passes = lambda gm, _: gm
        try:
            yield
        finally:
            compile_fx._recursive_pre_grad_passes = original

    def _read_ahead(self) -> None:
        from vllm import envs

        # Inductor asks for it while it compiles.
        self.config.compilation_config.pass_config.compute_hash()
        for name in _READ_LATER:
            getattr(envs, name, None)
        # Collectives know their group by name, and what it is by this.
        _ = self.config.parallel_config.tensor_parallel_size
        if (model := self.config.model_config) is not None:
            _ = model.dtype


@functools.cache
def _import_kernels() -> None:
    """The platform's implementations of vLLM's operators. Once: it logs what is not there."""
    from vllm.platforms import current_platform

    current_platform.import_ir_kernels()


def _range(size_range: tuple[int, int]) -> Any:
    from vllm.config.utils import Range

    return Range(*size_range)


@contextlib.contextmanager
def _priority(ir_op: Any, providers: list[str]) -> Iterator[None]:
    """As IrOp.set_priority, for a list from which it has already taken what is not supported; empty: none is set."""
    before = ir_op._priority_impls
    ir_op._priority_impls = [ir_op.impls[provider] for provider in providers]
    try:
        yield
    finally:
        ir_op._priority_impls = before


@contextlib.contextmanager
def _stride_constraints() -> Iterator[None]:
    """While inside, arguments of custom operators get the strides that vLLM wants them to have. It changes Inductor for good; here other
    jobs follow."""
    from torch._inductor import lowering
    from vllm import env_override

    before = lowering.constrain_to_fx_strides, env_override._constrain_to_fx_strides_patched
    env_override._apply_constrain_to_fx_strides_patch()
    try:
        yield
    finally:
        lowering.constrain_to_fx_strides, env_override._constrain_to_fx_strides_patched = before
