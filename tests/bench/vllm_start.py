"""Real vLLM engines on a GPU: how long a start takes with vLLM's own compiler and with the daemon, and whether they say the same.

    python tests/bench/vllm_start.py --daemon target/release/piecewised --model llama8b --out FOLDER [--sizes 1,2,4,8,16] [SCENARIO ...]

The interpreter has vLLM and the piecewised package. Models are shapes with made-up weights, the same in every engine. Scenarios, each from empty folders unless it
says otherwise, and each engine a process of its own:

    stock        an engine with vLLM's own compiler, then again in the same folders
    ours         a new daemon and an engine, then again in the same folders (warm), then in empty ones (a new pod)
    stock-two    two engines at once, with folders of their own
    ours-two     a new daemon, and two engines at once, with folders of their own

FOLDER gets one JSON file for each engine and the logs; printed is a table, and whether all tokens are equal. Ratios hold within one run only.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
import time
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "python"))

import ready_daemon

_COMMON = {
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
}
# As transformers' configurations name them.
MODELS: dict[str, dict[str, Any]] = {
    # The shape of Llama 3.1 8B.
    "llama8b": {
        **_COMMON,
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **{"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32},
        **{"num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256, "max_position_embeddings": 131072},
        **{"rms_norm_eps": 1e-5, "rope_theta": 500000.0, "attention_bias": False, "mlp_bias": False},
        **{"bos_token_id": 128000, "eos_token_id": 128001},
    },
    # The shape of Qwen3 30B-A3B, with a quarter of its layers, so that two engines fit on one GPU.
    "qwen3moe": {
        **_COMMON,
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        **{"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 12, "num_attention_heads": 32},
        **{"num_key_value_heads": 4, "head_dim": 128, "vocab_size": 151936, "max_position_embeddings": 40960},
        **{"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768, "norm_topk_prob": True},
        **{"decoder_sparse_step": 1, "mlp_only_layers": [], "rms_norm_eps": 1e-6, "rope_theta": 1000000.0},
        **{"attention_bias": False, "bos_token_id": 151643, "eos_token_id": 151645},
    },
}
_ENGINE_VARIABLES = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}
# What vLLM says in its log alone, in seconds.
_SAID = {
    "capture_s": r"Graph capturing finished in (\d+) secs",
    "dynamo_s": r"Dynamo bytecode transform time: ([\d.]+) s",
}
SCENARIOS = ("stock", "ours", "stock-two", "ours-two")


def main() -> None:
    """Runs the scenarios and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--daemon", type=pathlib.Path, help="a release build of the binary")
    parser.add_argument("--model", choices=sorted(MODELS), default="llama8b")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--sizes", default="", help="compile_sizes, by commas")
    parser.add_argument(
        "--kv-gib",
        type=float,
        default=4.0,
        help="KV cache of an engine; fixed, since engines that measure memory at once collide",
    )
    parser.add_argument("--timeout-s", type=float, default=600.0, help="of one engine")
    parser.add_argument("--cold", action="store_true", help="only the cold starts of `stock` and `ours`")
    parser.add_argument("--engine", help=argparse.SUPPRESS)
    parser.add_argument("scenarios", nargs="*", choices=[*SCENARIOS, []], metavar="SCENARIO")
    args = parser.parse_args()
    if args.engine:
        engine(args)
        return
    args.out.mkdir(parents=True, exist_ok=True)
    model = args.out / args.model
    model.mkdir(exist_ok=True)
    (model / "config.json").write_text(json.dumps(MODELS[args.model]))
    ready_daemon.BINARY, ready_daemon.PYTHON = args.daemon, sys.executable
    os.environ.update(_ENGINE_VARIABLES)
    # What the first engine would pay for all: reading vLLM and torch from the disk.
    subprocess.run([sys.executable, "-c", "import vllm.entrypoints.llm"], check=True, stdout=subprocess.DEVNULL)
    bench = Bench(args)
    for scenario in args.scenarios or SCENARIOS:
        bench.run(scenario)
    bench.report()


class Bench:
    """The engines that were run, and what they said."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.results: dict[str, dict[str, Any]] = {}

    def run(self, scenario: str) -> None:
        """One scenario."""
        compiler, _, two = scenario.partition("-")
        folders = [self.args.out / f"folders-{scenario}-{n}" for n in range(2)]
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
        daemon = daemon_of(self.args, scenario) if compiler == "ours" else None
        try:
            endpoint = daemon.endpoint if daemon else None
            if two:
                names = [f"{scenario}-{n}" for n in range(2)]
                engines = [self.start(name, folder, endpoint) for name, folder in zip(names, folders, strict=True)]
                for name, process in zip(names, engines, strict=True):
                    self.wait(name, process)
                return
            self.one(f"{compiler}-cold", folders[0], endpoint)
            if self.args.cold:
                return
            self.one(f"{compiler}-warm", folders[0], endpoint)
            if daemon:
                self.one(f"{compiler}-pod", folders[1], endpoint)
        finally:
            if daemon:
                (self.args.out / f"handles-{scenario}.json").write_text(json.dumps(handles(self.args, daemon)))
                daemon.stop()
                shutil.rmtree(daemon.folder / "store", ignore_errors=True)
            for folder in folders:
                shutil.rmtree(folder, ignore_errors=True)

    def one(self, name: str, folder: pathlib.Path, endpoint: str | None) -> None:
        """One engine by itself."""
        self.wait(name, self.start(name, folder, endpoint))

    def start(self, name: str, folder: pathlib.Path, endpoint: str | None) -> subprocess.Popen[bytes]:
        """Starts an engine, whose caches are below `folder`."""
        variables = {
            **ready_daemon.environment(),
            "VLLM_CACHE_ROOT": str(folder / "vllm"),
            "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
            "TRITON_CACHE_DIR": str(folder / "triton"),
        }
        if endpoint is None:
            variables["VLLM_PLUGINS"] = ""
        else:
            variables |= {"PIECEWISED_ENDPOINT": endpoint, "PIECEWISED_CACHE_DIR": str(folder / "piecewised")}
        folder.mkdir(parents=True, exist_ok=True)
        flags = [
            "--model",
            self.args.model,
            "--out",
            self.args.out,
            "--sizes",
            self.args.sizes,
            "--kv-gib",
            self.args.kv_gib,
        ]
        command = [sys.executable, __file__, "--engine", name, *map(str, flags)]
        with open(self.args.out / f"{name}.log", "wb") as log:
            return subprocess.Popen(command, env=variables, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def wait(self, name: str, process: subprocess.Popen[bytes]) -> None:
        """Waits for an engine's result; one that fails ends the run with its last words."""
        log = self.args.out / f"{name}.log"
        try:
            status = process.wait(timeout=self.args.timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            status = process.wait()
        if status != 0:
            sys.exit(f"the engine {name} ended with {status}:\n{log.read_text(errors='replace')[-6000:]}")
        self.results[name] = json.loads((self.args.out / f"{name}.json").read_text())
        said = log.read_text(errors="replace")
        for key, pattern in _SAID.items():
            self.results[name][key] = sum(map(float, re.findall(pattern, said)))
        print(row(name, self.results[name]), flush=True)

    def report(self) -> None:
        """Whether all said the same, and the ratios that one run allows."""
        tokens = {name: result["tokens"] for name, result in self.results.items()}
        first = next(iter(tokens))
        different = [name for name in tokens if tokens[name] != tokens[first]]
        print("tokens: all equal" if not different else f"tokens: {', '.join(different)} differ from {first}")
        for ours, stock in (
            ("ours-cold", "stock-cold"),
            ("ours-warm", "stock-warm"),
            ("ours-pod", "stock-warm"),
            ("ours-two-0", "stock-two-0"),
            ("ours-two-1", "stock-two-1"),
        ):
            if ours in self.results and stock in self.results:
                ratios = {
                    key: self.results[ours][key] / self.results[stock][key]
                    for key in ("start_s", "compile_s", "decode_ms")
                    if self.results[stock][key]
                }
                print(f"{ours} / {stock}:", ", ".join(f"{key} {ratio:.3f}" for key, ratio in ratios.items()))
        (self.args.out / "report.json").write_text(json.dumps(self.results, indent=1))


def daemon_of(args: argparse.Namespace, scenario: str) -> ready_daemon.Daemon:
    """A daemon with an empty store, for vLLM's interpreter and in its environment. Its log stays in its folder."""
    import piecewised

    folder = args.out / f"daemon-{scenario}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    daemon = ready_daemon.Daemon(folder).start()
    # It imports vLLM now, as it does while a worker builds its model.
    piecewised.Client(daemon.endpoint).capabilities("vllm")
    return daemon


def handles(args: argparse.Namespace, daemon: ready_daemon.Daemon) -> list[dict[str, Any]]:
    """Of all that the daemon made: where its time went."""

    def asked(*words: str) -> Any:
        command = [args.daemon, *words, "--json", "--endpoint", daemon.endpoint]
        return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)

    return [asked("show", entry["key"]) for entry in asked("ls") if entry.get("compiled")]


def row(name: str, result: dict[str, Any]) -> str:
    """One engine, for people."""
    parts = "; ".join(
        f"{part['name']}: {part['n_compiled']} compiled, {part['n_joined']} joined, {part['n_from_store']} stored, {part['n_kept']} kept, {part['n_local']} local"
        for part in result["parts"]
    )
    return (
        f"{name:12} LLM() {result['start_s']:7.2f} s, torch.compile {result['compile_s']:7.2f} s (Dynamo {result['dynamo_s']:.2f} s), capture {result['capture_s']:3.0f} s, "
        f"decode {result['decode_ms']:.3f} ms a step{'; ' + parts if parts else ''}"
    )


def engine(args: argparse.Namespace) -> None:
    """One engine: started, asked twice, measured."""
    result: dict[str, Any] = {"name": args.engine, "pid": os.getpid()}
    from vllm import LLM, SamplingParams

    compilation = {"compile_sizes": [int(size) for size in args.sizes.split(",")]} if args.sizes else {}
    started = time.monotonic()
    llm = LLM(
        model=str(args.out / args.model),
        load_format="dummy",
        skip_tokenizer_init=True,
        max_model_len=4096,
        attention_backend="TRITON_ATTN",
        dtype="bfloat16",
        seed=0,
        gpu_memory_utilization=0.4,
        kv_cache_memory_bytes=int(args.kv_gib * 2**30),
        compilation_config=compilation,
    )
    result["start_s"] = time.monotonic() - started
    config = llm.llm_engine.vllm_config.compilation_config
    result["compile_s"] = float(config.compilation_time)
    prompts = [{"prompt_token_ids": list(range(100 + i, 120 + 21 * i))} for i in range(4)]
    outputs = llm.generate(
        prompts, SamplingParams(max_tokens=32, temperature=0, ignore_eos=True, detokenize=False), use_tqdm=False
    )
    result["tokens"] = [list(output.outputs[0].token_ids) for output in outputs]
    result["decode_ms"] = decode_ms(llm, SamplingParams)
    import piecewised
    from vllm.compilation.counter import compilation_counter

    result["parts"] = piecewised.stats()["parts"]
    result["local_reasons"] = piecewised.stats()["local_reasons"]
    result["counters"] = dict(vars(compilation_counter))
    folders = {
        name: os.environ[name]
        for name in ("VLLM_CACHE_ROOT", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "PIECEWISED_CACHE_DIR")
        if name in os.environ
    }
    result["folders"] = {name: census(pathlib.Path(folder)) for name, folder in folders.items()}
    (args.out / f"{args.engine}.json").write_text(json.dumps(result, indent=1, default=repr))
    # The engine's own ending takes seconds and is not what is measured.
    os._exit(0)


def decode_ms(llm: Any, sampling: Any) -> float:
    """Milliseconds of one decoding step of one sequence: the difference of a long and a short answer, median of five."""

    def seconds(n_tokens: int) -> float:
        started = time.monotonic()
        llm.generate(
            [{"prompt_token_ids": list(range(50, 66))}],
            sampling(max_tokens=n_tokens, temperature=0, ignore_eos=True, detokenize=False),
            use_tqdm=False,
        )
        return time.monotonic() - started

    seconds(8)
    return statistics.median((seconds(136) - seconds(8)) / 128 * 1e3 for _ in range(5))


def census(folder: pathlib.Path) -> dict[str, int]:
    """Files below a folder, and their bytes."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {"n_files": len(files), "bytes": sum(path.stat().st_size for path in files)}


if __name__ == "__main__":
    main()
