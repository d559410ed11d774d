"""What is in the key of a piece that vLLM sent: all that its passes read, and nothing else."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_hidden_layers": 1,
    "num_key_value_heads": 4,
    "vocab_size": 128,
    "max_position_embeddings": 128,
}


def a_config(**compilation: Any) -> Any:
    import worker

    return worker.config(**compilation)


def identity_of(vllm_config: Any, size_range: tuple[int, int] = (1, 16), graph: Any = None) -> dict[str, Any]:
    """As the executor would compute it: from the bytes that travel."""
    from piecewised.runtime.vllm import modules
    from piecewised.runtime.vllm.identity import identity
    from piecewised.runtime.vllm.passes import Configured
    from piecewised.runtime.vllm.setup import Payload, Setup

    setup = Setup.of_worker(vllm_config).to_bytes()
    of_graph = modules.modules_of(graph) if graph is not None else []
    payload = Payload.from_bytes(Payload(setup, size_range, of_graph).to_bytes())
    return json.loads(identity(Configured(Setup.from_bytes(payload.setup)), payload))


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """Nested dicts as one, with dotted paths."""
    if isinstance(value, dict) and value:
        return {k: v for name, item in value.items() for k, v in flat(item, f"{path}.{name}" if path else name).items()}
    return {path: value}


def differing(one: dict[str, Any], other: dict[str, Any]) -> set[str]:
    left, right = flat(one), flat(other)
    return {name for name in {*left, *right} if left.get(name) != right.get(name)}


@pytest.fixture(scope="module")
def usual(_without_gpu: None) -> dict[str, Any]:
    import preloaded  # noqa: F401

    return identity_of(a_config())


def test_the_same_configuration_has_the_same_identity(usual: dict[str, Any]) -> None:
    assert identity_of(a_config()) == usual
    assert usual["reads"]["compilation_config.pass_config.enable_sp"] is False
    assert usual["reads"]["device_config.device"] == "cpu"


def test_a_pass_that_is_off_is_another_identity(usual: dict[str, Any]) -> None:
    names = differing(usual, identity_of(a_config(pass_config={"eliminate_noops": False})))
    assert "reads.compilation_config.pass_config.eliminate_noops" in names
    assert "options.post_grad_custom_post_pass" in names


def test_the_range_is_part_of_it(usual: dict[str, Any]) -> None:
    assert "range" in differing(usual, identity_of(a_config(), (17, 2048)))


def test_a_single_size_has_settings_of_its_own(usual: dict[str, Any]) -> None:
    single = identity_of(a_config(), (4, 4))
    assert {"options.max_autotune", "options.coordinate_descent_tuning"} <= differing(usual, single)


def test_inductor_options_are_part_of_it(usual: dict[str, Any]) -> None:
    names = differing(usual, identity_of(a_config(inductor_compile_config={"epilogue_fusion": False})))
    assert "options.epilogue_fusion" in names


def test_inductor_settings_of_the_whole_process_are_part_of_it(usual: dict[str, Any]) -> None:
    with torch._inductor.config.patch(epilogue_fusion=False):
        assert differing(usual, identity_of(a_config())) == {"options.epilogue_fusion"}


def test_splitting_ops_are_part_of_it(usual: dict[str, Any]) -> None:
    names = differing(usual, identity_of(a_config(splitting_ops=["toy::attention", "toy::scale"])))
    assert "reads.compilation_config.splitting_ops" in names


def test_the_order_of_implementations_is_part_of_it(usual: dict[str, Any]) -> None:
    from vllm.ir.op import IrOp

    with IrOp.registry["rms_norm"].set_priority(["native"]):
        names = differing(usual, identity_of(a_config()))
    assert "priorities.rms_norm" in names


def test_a_variable_that_passes_read_is_part_of_it(usual: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_ENABLE_PREGRAD_PASSES", "0")
    assert differing(usual, identity_of(a_config())) == {"reads.environment.VLLM_ENABLE_PREGRAD_PASSES"}


def test_the_size_of_the_tensor_parallel_group_is_part_of_it(usual: dict[str, Any]) -> None:
    config = a_config()
    config.parallel_config.tensor_parallel_size = 2
    assert differing(usual, identity_of(config)) == {"reads.parallel_config.tensor_parallel_size"}


def test_the_dtype_of_the_model_is_part_of_it(usual: dict[str, Any], tmp_path: Path) -> None:
    from vllm.config import ModelConfig

    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    identities = []
    for dtype in ("bfloat16", "float32"):
        config = a_config()
        # As it is after a model was configured; VllmConfig itself would look at the platform, of which there is none.
        config.model_config = ModelConfig(model=str(tmp_path), dtype=dtype, skip_tokenizer_init=True)
        identities.append(identity_of(config))
    assert differing(*identities) == {"reads.model_config.dtype"}
    assert str(tmp_path) not in json.dumps(identities)


@pytest.mark.parametrize(
    "name, value",
    [
        ("VLLM_PORT", "12345"),
        ("VLLM_HOST_IP", "10.0.0.7"),
        ("VLLM_CACHE_ROOT", "/somewhere/else"),
        ("VLLM_LOGGING_PREFIX", "another"),
        ("VLLM_USE_MEGA_AOT_ARTIFACT", "1"),
        ("VLLM_USE_TRITON_AWQ", "1"),
        ("HOME", "/nobody"),
        ("TORCHINDUCTOR_CACHE_DIR", "/somewhere"),
    ],
)
def test_variables_that_do_not_matter_are_not(
    usual: dict[str, Any], monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    assert identity_of(a_config()) == usual


def test_fields_that_do_not_matter_are_not(usual: dict[str, Any], tmp_path: Path) -> None:
    config = a_config(debug_dump_path=tmp_path, cache_dir=str(tmp_path))
    config.scheduler_config.max_num_seqs = 7
    config.parallel_config.rank = 3
    config.parallel_config.data_parallel_master_port = 4242
    config.instance_id = "another"
    config.compilation_config.traced_files.add("/a/file.py")
    config.compilation_config.static_forward_context["layer"] = torch.nn.Linear(2, 2)
    config.compilation_config.enabled_custom_ops.update(["rms_norm"])
    assert identity_of(config) == usual


def test_what_stays_in_the_worker_can_not_be_read_unnoticed(usual: dict[str, Any]) -> None:
    from piecewised.runtime.vllm.reads import NotPortable, Reads
    from piecewised.runtime.vllm.setup import PRUNED

    reads = Reads(PRUNED)
    assert reads.shadow(a_config()).compilation_config.static_forward_context == {}
    with pytest.raises(NotPortable, match="static_forward_context, which stays in the worker"):
        reads.canonical()


def test_a_field_that_is_read_late_is_named(usual: dict[str, Any]) -> None:
    from piecewised.runtime.vllm.passes import Configured
    from piecewised.runtime.vllm.setup import Setup

    configured = Configured(Setup.from_bytes(Setup.of_worker(a_config()).to_bytes()))
    with configured.compiling((1, 16)):
        assert configured.reads.take_late() == []
        assert configured.config.scheduler_config.max_num_seqs > 0
        assert configured.config.parallel_config.tensor_parallel_size == 1
    assert configured.reads.take_late() == ["scheduler_config.max_num_seqs"]


def test_a_shadow_is_what_it_shadows(usual: dict[str, Any]) -> None:
    from piecewised.runtime.vllm.reads import Reads
    from vllm.config import CompilationConfig, VllmConfig

    config = a_config()
    shadow = Reads().shadow(config)
    assert isinstance(shadow, VllmConfig) and isinstance(shadow.compilation_config, CompilationConfig)
    assert shadow.compilation_config is shadow.compilation_config
    assert shadow.compilation_config.pass_config.compute_hash() == config.compilation_config.pass_config.compute_hash()


def test_what_does_not_pickle_is_named(usual: dict[str, Any]) -> None:
    from piecewised.runtime.vllm.reads import NotPortable
    from piecewised.runtime.vllm.setup import Setup

    config = a_config()
    config.additional_config = {"a": lambda: None}
    with pytest.raises(NotPortable, match=r"VllmConfig\.additional_config can't be pickled"):
        Setup.of_worker(config).to_bytes()


def graph_of(*names: str) -> torch.fx.GraphModule:
    """A graph that calls operators on its input."""
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    for name in names:
        namespace, _, op = name.partition("::")
        x = graph.call_function(getattr(getattr(torch.ops, namespace), op), (x, 2.0))
    graph.output((x,))
    return torch.fx.GraphModule(torch.nn.Module(), graph)


def test_modules_that_register_operators_are_known_by_their_content(
    usual: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import toy_ops
    from piecewised.runtime.vllm import modules

    (found,) = modules.modules_of(graph_of("toy::scale"))
    assert (found.name, found.file) == ("toy_ops", toy_ops.__file__)
    assert identity_of(a_config(), graph=graph_of("toy::scale"))["modules"] == {"toy_ops": found.digest}
    assert str(Path(toy_ops.__file__).parent) not in json.dumps(usual)


def test_a_module_is_imported_from_the_workers_file_where_it_is_nowhere_else(
    usual: dict[str, Any], tmp_path: Path
) -> None:
    from piecewised.runtime.vllm import modules
    from piecewised.runtime.vllm.reads import NotPortable

    path = tmp_path / "piecewised_test_elsewhere.py"
    path.write_text("VALUE = 7\n")
    module = modules.Module(path.stem, str(path), modules._digest(path))
    modules.import_module(module)
    assert sys.modules[path.stem].VALUE == 7
    other = modules.Module(path.stem, str(path), "0" * 64)
    with pytest.raises(NotPortable, match="has changed since this executor imported it"):
        modules.import_module(other)


def test_a_module_with_other_content_is_refused(usual: dict[str, Any], tmp_path: Path) -> None:
    from piecewised.runtime.vllm import modules
    from piecewised.runtime.vllm.reads import NotPortable

    path = tmp_path / "piecewised_test_changed.py"
    path.write_text("raise SystemExit('never executed')\n")
    with pytest.raises(NotPortable, match="is not the one that the worker has"):
        modules.import_module(modules.Module(path.stem, str(path), "0" * 64))
    assert path.stem not in sys.modules


def test_operators_of_the_program_itself_are_refused(usual: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    import toy_ops
    from piecewised.runtime.vllm import modules
    from piecewised.runtime.vllm.reads import NotPortable

    monkeypatch.setattr(toy_ops.scale_fake, "__module__", "__main__")
    with pytest.raises(NotPortable, match="put it into a module of its own"):
        modules.modules_of(graph_of("toy::scale"))
