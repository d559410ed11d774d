"""A worker's configuration in a form that travels."""

from __future__ import annotations

import copy
import pickle
from collections import Counter
from dataclasses import astuple, dataclass, field, fields
from typing import Any

from .modules import Module, extensions, namespaces
from .reads import NotPortable

PAYLOAD_VERSION = 1

# What of a VllmConfig stays in the worker: it is filled while a model is built, and holds the model.
_PRUNED: dict[str, Any] = {
    "static_forward_context": dict,
    "static_all_moe_layers": list,
    "traced_files": set,
    "enabled_custom_ops": Counter,
    "disabled_custom_ops": Counter,
}
PRUNED = frozenset(f"compilation_config.{name}" for name in _PRUNED)


@dataclass(frozen=True)
class Setup:
    """What is the same for all pieces of a model part.

    `namespaces`: of all operators that the worker has. `environment`: vLLM's environment variables, as it reads them. `priorities`: of vLLM's IR operators, their implementations in order.
    `inductor`: Inductor's process-wide options that differ from their defaults. `extensions`: the compiled modules of vLLM that
    the worker has imported, whose operators passes put into graphs.
    """

    config: Any
    environment: dict[str, Any]
    priorities: dict[str, list[str]]
    torch_wrap: bool
    inductor: dict[str, Any]
    extensions: list[str]
    namespaces: list[str]

    def to_bytes(self) -> bytes:
        """Pickled. Raises NotPortable, which names what does not pickle."""
        try:
            # The fields alone: this class has another name in an executor.
            return pickle.dumps({each.name: getattr(self, each.name) for each in fields(self)})
        except Exception as error:
            raise NotPortable(f"{_unpicklable(self.config)} can't be pickled: {error}") from error

    @staticmethod
    def from_bytes(data: bytes) -> Setup:
        """What :meth:`to_bytes` gave. Raises NotPortable."""
        try:
            return Setup(**pickle.loads(data))
        except Exception as error:
            raise NotPortable(f"the configuration can't be made again: {type(error).__name__}: {error}") from error

    @staticmethod
    def of_worker(vllm_config: Any) -> Setup:
        """This process's, as it is now."""
        from vllm.ir import op
        from vllm.ir.op import IrOp

        return Setup(
            config=_pruned(vllm_config),
            environment=_environment(),
            priorities={name: ir_op.get_priority() for name, ir_op in sorted(IrOp.registry.items())},
            torch_wrap=op._ENABLE_TORCH_WRAP,
            inductor=_changed_inductor_options(),
            extensions=extensions(),
            namespaces=namespaces(),
        )


@dataclass(frozen=True)
class Payload:
    """What travels with one request: `setup` is Setup.to_bytes(), which many have in common; `range` what vLLM compiles for, both ends
    inclusive; `modules` those that registered the graph's operators."""

    setup: bytes
    range: tuple[int, int]
    modules: list[Module] = field(default_factory=list)
    version: int = PAYLOAD_VERSION

    def to_bytes(self) -> bytes:
        """Pickled."""
        sent = {each.name: getattr(self, each.name) for each in fields(self)}
        # As for Setup.
        return pickle.dumps({**sent, "modules": [astuple(module) for module in self.modules]})

    @staticmethod
    def from_bytes(data: bytes) -> Payload:
        """What :meth:`to_bytes` gave. Raises NotPortable for another version's."""
        sent = pickle.loads(data)
        if sent.get("version") != PAYLOAD_VERSION:
            raise NotPortable(
                f"the payload has version {sent.get('version')}, and this side reads {PAYLOAD_VERSION}: worker and daemon are "
                "of different versions of piecewised"
            )
        return Payload(**{**sent, "modules": [Module(*module) for module in sent["modules"]]})


def _pruned(vllm_config: Any) -> Any:
    config = copy.copy(vllm_config)
    compilation = copy.copy(config.compilation_config)
    # Not by setattr: pydantic would look at the values, and copy them.
    vars(config)["compilation_config"] = compilation
    vars(compilation).update({name: empty() for name, empty in _PRUNED.items()})
    return config


def _unpicklable(config: Any) -> str:
    for name, value in vars(config).items():
        for path, part in [*((f"{name}.{inner}", item) for inner, item in _fields(value)), (name, value)]:
            try:
                pickle.dumps(part)
            except Exception:
                return f"VllmConfig.{path}"
    return "the VllmConfig"


def _fields(value: Any) -> list[tuple[str, Any]]:
    return list(vars(value).items()) if hasattr(value, "__dict__") else []


def _environment() -> dict[str, Any]:
    """vLLM's variables, without those that vLLM itself holds to be of no influence on compiled code."""
    from vllm import envs

    values = {}
    for name in envs.compile_factors():
        if name in envs.environment_variables:
            value = getattr(envs, name)
            if value is None or isinstance(value, (bool, int, float, str, list, tuple, set)):
                values[name] = value
    return values


def _changed_inductor_options() -> dict[str, Any]:
    from torch._inductor import config

    changed = {}
    for name, entry in config._config.items():
        value = getattr(config, name) if "." not in name else _nested(config, name)
        if _is_plain(value) and _is_plain(entry.default) and value != entry.default and not _is_of_process(name):
            changed[name] = value
    return changed


def _nested(config: Any, name: str) -> Any:
    for part in name.split("."):
        config = getattr(config, part)
    return config


def _is_plain(value: Any) -> bool:
    return (
        value is None
        or isinstance(value, (bool, int, float, str))
        or (isinstance(value, list) and all(map(_is_plain, value)))
    )


# How a process compiles, and not what comes out.
_OF_PROCESS = ("compile_threads", "debug", "verbose_progress", "force_disable_caches", "worker_start_method")
_OF_PROCESS_PREFIXES = (
    "_",
    "trace.",
    "aot_inductor.",
    "autotune_",
    "fx_graph_",
    "bundle",
    "cuda.",
    "rocm.",
    "test_configs.",
)
_OF_PROCESS_SUFFIXES = ("_dir", "_path", "_cache", "TESTING_ONLY")


def _is_of_process(name: str) -> bool:
    return (
        name in _OF_PROCESS
        or name.startswith(_OF_PROCESS_PREFIXES)
        or name.endswith(_OF_PROCESS_SUFFIXES)
        or name.rsplit(".", maxsplit=1)[-1] in _OF_PROCESS
    )


def vllm_version() -> str:
    """Of this process's vLLM."""
    import vllm

    return str(vllm.__version__)
