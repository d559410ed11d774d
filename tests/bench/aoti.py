"""What a call costs: `aoti` through Rust, `aoti` through Python, `inductor` through Python, for the same piece in the same run.

Two pieces: one the size of a Llama layer between two attentions (smaller on a CPU), and one of its small operations only, with tiny kernels, which
is all host cost. Both are compiled by the executor into both formats, for [1, 256]. `host_us`: until a call returns, in short rounds that begin
with an idle GPU; `call_us`: with what it launched. On a CPU both hold the kernels too. `8 threads`: calls a second, of all together.

`--pieces few many` are kernels in a row, nothing to speak of each: the difference is what launching a kernel and making its output costs, and what is left of a call is the way's own.

    python tests/bench/aoti.py --rust-bench target/release/bench-aoti [--device cuda]

Prints one JSON object and a table.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/python"))

import executor_harness as h  # noqa: E402
import llama  # noqa: E402
import torch  # noqa: E402
from bench import machine  # noqa: E402

RANGE = [1, 256]
SIZES = [1, 16, 256]
N_ROUNDS, N_HOST_CALLS = 31, 20
PIECES = ("tiny", "layer", "few", "many")
_CALLS = re.compile(r"^ +(?:triton|cpp)_\w+(?:\.run)?\(", re.MULTILINE)
WAYS = (("inductor", "python"), ("aoti", "python"), ("aoti", "rust"))


@dataclass(frozen=True)
class Piece:
    """What is compiled and called."""

    function: Callable[..., Any]
    #: The model's width.
    hidden: int
    #: Of a number of tokens, on a device.
    arguments: Callable[[int, str], list[torch.Tensor]]
    #: The positions of those whose first dimension is the number of tokens.
    n_dynamic: list[int]


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rust-bench", type=Path, required=True, help="bench-aoti, a release build")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--pieces", nargs="+", default=["tiny", "layer"], choices=PIECES)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each measurement")
    parser.add_argument("--threads", type=int, default=8)
    args = parser.parse_args()
    report: dict[str, Any] = {"machine": machine(), "device": args.device, "threads": args.threads}
    with tempfile.TemporaryDirectory() as folder, h.Executor() as executor:
        executor.hello()
        for name, piece in pieces(args.device).items():
            if name in args.pieces:
                shrink(piece.hidden)
                report[name] = measured(executor, Path(folder) / name, piece, args)
    print(json.dumps(report, indent=1))
    table(report)


def pieces(device: str) -> dict[str, Piece]:
    """By name."""

    def of_llama(function: Any, hidden: int) -> Piece:
        return Piece(
            function, hidden, lambda n, device: llama.arguments(function, n, device), llama.n_dynamic(function)
        )

    def of_kernels(n_steps: int) -> Piece:
        return Piece(chain(n_steps), 64, lambda n, device: [torch.randn(n, 64, device=device)], [0])

    return {
        "tiny": of_llama(llama.small, 64),
        "layer": of_llama(llama.layer, 4096 if device == "cuda" else 512),
        "few": of_kernels(1),
        "many": of_kernels(9),
    }


def chain(n_steps: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Steps that don't go into one kernel: each needs all of what the one before it made."""

    def kernels(x: torch.Tensor) -> torch.Tensor:
        for i in range(n_steps):
            x = x - x.amax(i % 2, keepdim=True)
        return x

    return kernels


def shrink(hidden: int) -> None:
    """The pieces read their sizes when they are called."""
    llama.HIDDEN, llama.FFN = hidden, hidden * 7 // 2
    llama.HEAD = min(128, hidden // 4)
    llama.HEADS, llama.KV_HEADS = hidden // llama.HEAD, max(hidden // llama.HEAD // 4, 1)
    llama.QKV = (llama.HEADS + 2 * llama.KV_HEADS) * llama.HEAD


def measured(executor: Any, folder: Path, piece: Piece, args: argparse.Namespace) -> dict[str, Any]:
    """One piece, all ways."""
    given = piece.arguments(64, args.device)
    for position in piece.n_dynamic:
        torch._dynamo.mark_dynamic(given[position], 0)
    torch._dynamo.reset()
    gm, inputs = h.capture(piece.function, *given)
    graph = h.client_module("fxgraph").to_graph(gm, inputs)
    argument = next(i for i, node in enumerate(graph["nodes"]) if "sym_int" in node["op"]["placeholder"]["value"])
    # Dynamo's inputs are in the order of their first use; what is no argument of the function is a size.
    names = [f"l_{name}_" for name in inspect.signature(piece.function).parameters]
    places = [names.index(node["name"]) if node["name"] in names else None for node in graph["nodes"][: len(inputs)]]
    result: dict[str, Any] = {}
    for kind in ("inductor", "aoti"):
        started = time.perf_counter()
        message, fields, blob = executor.compile(
            graph, range=RANGE, dispatch_argument=argument, hint=16, format=kind, **device_of(args.device)
        )
        assert message == "done", fields
        artifact = h.materialise(blob, folder / kind)
        entries = {str(size): h.entry_for(fields, size) for size in SIZES}
        result[kind] = {"compile_s": time.perf_counter() - started, "bytes": len(blob), "entries": entries}
        result[kind]["python"] = through_python(artifact, entries, piece, places, args)
    # The package's are the same.
    result["n_kernels"] = {
        size: len(_CALLS.findall((folder / f"inductor/programs/{entry}.py").read_text()))
        for size, entry in result["inductor"]["entries"].items()
    }
    result["aoti"]["rust"] = through_rust(folder / "aoti", result["aoti"]["entries"], args)
    return result


def device_of(device: str) -> dict[str, Any]:
    """What a compile for it is asked with."""
    if device == "cpu":
        return {}
    from piecewised.runtime import fingerprint

    return {"device": fingerprint.cuda_device(0)}


def through_python(
    artifact: Path, entries: dict[str, str], piece: Piece, places: list[int | None], args: argparse.Namespace
) -> dict[str, Any]:
    """With the package's own loader."""
    from piecewised.runtime.load import load_entry

    loads = []
    for _ in range(6):
        started = time.perf_counter()
        load_entry(artifact, "e0")
        loads.append((time.perf_counter() - started) * 1e3)
    result: dict[str, Any] = {"first_load_ms": loads[0], "load_ms": statistics.median(loads[1:]), "sizes": {}}
    for size in SIZES:
        run = load_entry(artifact, entries[str(size)])

        def call_arguments(size: int = size) -> list[Any]:
            tensors = piece.arguments(size, args.device)
            return [size if place is None else tensors[place] for place in places]

        with torch.inference_mode():
            result["sizes"][str(size)] = one_thread(run, call_arguments(), args)
        result["sizes"][str(size)]["threads_calls_per_s"] = many_threads(run, call_arguments, args)
    return result


def one_thread(run: Callable[..., Any], values: list[Any], args: argparse.Namespace) -> dict[str, float]:
    """As `bench-aoti` does it."""
    synchronise = torch.cuda.synchronize if args.device == "cuda" else (lambda: None)

    def one_round(n: int) -> tuple[float, float]:
        synchronise()
        started = time.perf_counter()
        for _ in range(n):
            run(*values)
        host = time.perf_counter() - started
        synchronise()
        return host / n * 1e6, (time.perf_counter() - started) / n * 1e6

    for _ in range(3):
        one_round(N_HOST_CALLS)
    host = statistics.median(one_round(N_HOST_CALLS)[0] for _ in range(N_ROUNDS))
    n = int(min(max(args.seconds / N_ROUNDS / (one_round(N_HOST_CALLS)[1] / 1e6), 1), 10_000))
    call = statistics.median(one_round(n)[1] for _ in range(N_ROUNDS))
    return {"host_us": host, "call_us": call}


def many_threads(run: Callable[..., Any], make: Callable[[], list[Any]], args: argparse.Namespace) -> float:
    """Calls a second of all threads together."""
    barrier = threading.Barrier(args.threads)
    rates: list[float] = []

    def work() -> None:
        values = make()
        with torch.inference_mode():
            barrier.wait()
            started, n_calls = time.perf_counter(), 0
            while time.perf_counter() - started < args.seconds:
                for _ in range(N_HOST_CALLS):
                    run(*values)
                n_calls += N_HOST_CALLS
                if args.device == "cuda":
                    torch.cuda.current_stream().synchronize()
            rates.append(n_calls / (time.perf_counter() - started))

    threads = [threading.Thread(target=work) for _ in range(args.threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(rates) == args.threads, "a thread failed"
    return sum(rates)


def through_rust(artifact: Path, entries: dict[str, str], args: argparse.Namespace) -> dict[str, Any]:
    """With `bench-aoti`, once for each entry that some size needs."""
    result: dict[str, Any] = {"sizes": {}}
    library = str(Path(torch.__file__).parent / "lib")
    for entry in sorted(set(entries.values())):
        sizes = ",".join(size for size, one in entries.items() if one == entry)
        command = [args.rust_bench, artifact, "--entry", entry, "--sizes", sizes, "--seconds", str(args.seconds)]
        command += ["--threads", str(args.threads), *(["--cuda", "0"] if args.device == "cuda" else [])]
        environment = {**os.environ, "LD_LIBRARY_PATH": library}
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
        said = json.loads(done.stdout)
        result["sizes"].update(said.pop("sizes"))
        result.update(said)
    return result


def table(report: dict[str, Any]) -> None:
    """For people."""
    print(
        f"\n{'piece':8} {'way':18} {'size':>5} {'host us':>9} {'call us':>9} {report['threads']:>3} threads, calls/s   load ms (first)   KB"
    )
    for piece in [name for name in PIECES if name in report]:
        for kind, way in WAYS:
            found = report[piece][kind]
            for size, row in sorted(found[way]["sizes"].items(), key=lambda item: int(item[0])):
                load = f"{found[way]['load_ms']:.1f} ({found[way]['first_load_ms']:.1f})"
                print(
                    f"{piece:8} {kind + ', ' + way:18} {size:>5} {row['host_us']:>9.1f} {row['call_us']:>9.1f} "
                    f"{row['threads_calls_per_s']:>20.0f} {load:>17} {found['bytes'] / 1000:>6.0f}"
                )
    if {"few", "many"} <= report.keys():
        few, many = report["few"], report["many"]
        for kind, way in WAYS:
            for size in map(str, SIZES):
                low, high = (piece[kind][way]["sizes"][size]["host_us"] for piece in (few, many))
                n_more = many["n_kernels"][size] - few["n_kernels"][size]
                if n_more == 0:
                    continue  # A C++ compiler makes one of them.
                kernel_us = (high - low) / n_more
                rest_us = low - few["n_kernels"][size] * kernel_us
                print(
                    f"{kind + ', ' + way:18} {size:>5}: {kernel_us:.2f} us for each of {n_more} more kernels, {rest_us:.2f} us for the rest of a call"
                )


if __name__ == "__main__":
    main()
