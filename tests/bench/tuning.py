"""What `tuning: full` makes on a GPU, against what stock torch.compile makes of the same piece.

Needs a GPU; talks to an executor directly, so no daemon and no build are needed:

    python tests/bench/tuning.py tune  --folder F [--piece layer|small]     the ranges, tuned (minutes)
    python tests/bench/tuning.py stock --folder F [--piece layer|small]     stock: one generic compile, one tuned compile for each size
    python tests/bench/tuning.py table --folder F [--piece layer|small]     all of it timed in one process, in turn, as a table
    python tests/bench/tuning.py fast  --folder F [--piece layer|small]     untuned artifacts, for load
    python tests/bench/tuning.py load  --folder F [--piece layer|small]     loads and first calls in fresh processes without a compiler

Several executors compile side by side and lease the GPU from each other for what they time there, as the daemon has it.
Stock's compiles are Inductor's own results with the same options and hints as stock would have; they are packed as ours, which changes
nothing about their kernels.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import inspect
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests/python"), str(ROOT / "tests/bench")]

import executor_harness as h  # noqa: E402
import llama  # noqa: E402
import torch  # noqa: E402

SIZES = (1, 2, 4, 8, 16, 64, 256, 2048, 8192)
# What `load` loads: ranges and hints.
LOADED = {
    "fast-17-256": ((17, 256), 64),
    "fast-generic": ((2, 16384), 8192),
    "full-17-256": ((17, 256), 64),
}
RANGES = ((1, 16), (17, 256), (257, 8192))
TUNED_LIKE_STOCK = {"max_autotune": {"bool": True}, "coordinate_descent_tuning": {"bool": True}}


def graph_of(piece: str, n: int = 64) -> tuple[dict[str, Any], list[Any]]:
    """The piece as a graph, and for each placeholder "n" or which argument of the function it is."""
    function = getattr(llama, piece)
    given = llama.arguments(function, n)
    for i in llama.n_dynamic(function):
        torch._dynamo.mark_dynamic(given[i], 0)
    gm, inputs = h.capture(function, *given)
    # Dynamo orders placeholders by first use, and names those of arguments after them: l_residual_.
    names = list(inspect.signature(function).parameters)
    placeholders = [node.target for node in gm.graph.find_nodes(op="placeholder")]
    order = [names.index(name[2:-1]) if name.startswith(("l_", "L_")) else "n" for name in placeholders]
    return h.client_module("fxgraph").to_graph(gm, inputs), order


class Leases:
    """Of one GPU, for executors of this process: one exclusive one, or several shared ones."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._n_shared = 0
        self._is_exclusive = False
        self._n_waiting = 0

    def take(self, mode: str) -> Callable[[], None]:
        """Waits for a lease; gives what returns it. Who waits for an exclusive one is not overtaken."""
        with self._changed:
            if mode == "exclusive":
                self._n_waiting += 1
                self._changed.wait_for(lambda: not self._is_exclusive and self._n_shared == 0)
                self._n_waiting -= 1
                self._is_exclusive = True
                return self._return_exclusive
            self._changed.wait_for(lambda: not self._is_exclusive and self._n_waiting == 0)
            self._n_shared += 1
            return self._return_shared

    def _return_exclusive(self) -> None:
        with self._changed:
            self._is_exclusive = False
            self._changed.notify_all()

    def _return_shared(self) -> None:
        with self._changed:
            self._n_shared -= 1
            self._changed.notify_all()


def compile_into(folder: Path, jobs: dict[str, dict[str, Any]], piece: str, n_executors: int) -> None:
    """Each job becomes a folder with its handle; those that are there already are kept."""
    graph, order = graph_of(piece)
    (folder / f"{piece}.order.json").write_text(json.dumps(order))
    (folder / f"{piece}.graph.json").write_text(json.dumps(graph))
    torch.cuda.empty_cache()
    leases = Leases()
    waiting = [(name, job) for name, job in jobs.items() if not (folder / f"{piece}-{name}.json").exists()]

    def work() -> None:
        with h.Executor({"PATH": os.environ["PATH"]}) as executor:
            returns: list[Callable[[], None]] = []
            executor.on_lease = lambda mode: returns.append(leases.take(mode))
            executor.on_release = lambda: returns.pop()()
            device = next(kind for kind in executor.hello()["devices"] if kind["type"] == "cuda")
            while waiting:
                name, job = waiting.pop(0)
                started = time.monotonic()
                message, fields, blob = executor.compile(
                    graph, dispatch_argument=order.index("n"), device=device, **job
                )
                seconds = time.monotonic() - started
                if message != "done":
                    print(piece, name, "failed:", fields["message"][:1000], flush=True)
                    continue
                (folder / f"{piece}-{name}.tar").write_bytes(blob)
                (folder / f"{piece}-{name}.json").write_text(json.dumps(fields))
                print(f"{piece} {name}: {seconds:.1f} s, {len(blob)} bytes, {summary(fields)}", flush=True)

    with concurrent.futures.ThreadPoolExecutor(n_executors) as pool:
        for done in [pool.submit(work) for _ in range(min(n_executors, len(waiting)))]:
            done.result()


def summary(fields: dict[str, Any]) -> str:
    """What was chosen, where time went, how it was verified."""
    phases = {phase["phase"]: round(phase["seconds"], 1) for phase in fields["timings"]["phases"]}
    by_entry = {
        entry: f"{candidate['name']}@{candidate['hint']}"
        for candidate in fields["tuning"]["candidates"]
        for entry in candidate["entries"]
    }
    chosen = [(segment["range"], by_entry.get(segment["entry"], "")) for segment in fields["segments"]]
    failures = [candidate["failure"][:200] for candidate in fields["tuning"]["candidates"] if candidate["failure"]]
    verification = fields["verification"]
    errors = [round(checked["max_relative_error"], 5) for checked in verification["sizes"]]
    return f"{chosen} {phases} {verification['outcome']} {errors} {verification['note']} {fields['tuning']['note']} {failures}"


def tune(folder: Path, piece: str, n_executors: int) -> None:
    """The ranges of the plan, with `tuning: full`."""
    hints = {(1, 16): 4, (17, 256): 64, (257, 8192): 2048}
    jobs = {
        f"full-{low}-{high}": {"range": [low, high], "hint": hints[low, high], "options": {"tuning": "full"}}
        for low, high in RANGES
    }
    compile_into(folder, jobs, piece, n_executors)


def fast(folder: Path, piece: str, n_executors: int) -> None:
    """Two artifacts for `load`: the range around 64, and generic code."""
    options = {"fast-17-256": {}, "fast-generic": {"options": {"specialisation": "generic"}}}
    jobs = {name: {"range": list(LOADED[name][0]), "hint": LOADED[name][1], **given} for name, given in options.items()}
    compile_into(folder, jobs, piece, n_executors)


def stock(folder: Path, piece: str, n_executors: int) -> None:
    """Generic: [2, 16384] with the hint 8192. Single sizes: max_autotune and coordinate descent."""
    jobs = {"generic": {"range": [2, 16384], "hint": 8192, "options": {"specialisation": "generic"}}}
    for n in SIZES:
        jobs[f"single-{n}"] = {"range": [n, n], "hint": n, "options": {"inductor": TUNED_LIKE_STOCK}, "verify": False}
    compile_into(folder, jobs, piece, n_executors)


def table(folder: Path, piece: str) -> None:
    """Every program timed at every size that it is for, in turn, in this process."""
    from piecewised_executor import timing

    function = getattr(llama, piece)
    order = json.loads((folder / f"{piece}.order.json").read_text())
    loaded: dict[str, tuple[dict[str, Any], Path]] = {}
    for path in sorted(folder.glob(f"{piece}-*.tar")):
        name = path.stem.removeprefix(f"{piece}-")
        fields = json.loads((folder / f"{piece}-{name}.json").read_text())
        loaded[name] = fields, h.materialise(path.read_bytes(), folder / f"{piece}-{name}.d")
    load_entry = h.client_module("runtime.load").load_entry
    callables: dict[tuple[str, str], Any] = {}

    def run_for(name: str, n: int) -> Any:
        if name not in loaded:
            return None
        fields, where = loaded[name]
        entry = next((s["entry"] for s in fields["segments"] if s["range"][0] <= n <= s["range"][1]), None)
        if entry is None:
            return None
        if (name, entry) not in callables:
            callables[name, entry] = load_entry(where, entry)
        return callables[name, entry]

    rows = []
    for n in SIZES:
        given = llama.arguments(function, n)
        call = [n if at == "n" else given[at] for at in order]
        ours = next(f"full-{low}-{high}" for low, high in RANGES if low <= n <= high)
        runs = {"ours": run_for(ours, n), "generic": run_for("generic", n), "single": run_for(f"single-{n}", n)}
        runs = {name: run for name, run in runs.items() if run is not None}
        with torch.no_grad():
            # Twice, since which one comes first should not count.
            times = [timing.medians_us(list(runs.values()), call, "cuda", 0.5) for _ in range(2)]
        medians = {name: statistics.fmean(pair) for name, pair in zip(runs, zip(*times, strict=True), strict=True)}
        rows.append({"n": n, **medians})
        best = min(medians.get("generic", float("inf")), medians.get("single", float("inf")))
        print(
            f"{n:6} "
            + " ".join(f"{name} {us:9.2f}" for name, us in medians.items())
            + f"  ours/best {medians['ours'] / best:.3f}",
            flush=True,
        )
        del given, call
    (folder / f"{piece}.table.json").write_text(json.dumps(rows))


_LOAD = """
import json, os, statistics, sys, time, types
started = time.perf_counter()
import torch
warm = json.loads(sys.argv[9])
if warm is None:
    package = types.ModuleType("piecewised"); package.__path__ = [sys.argv[1]]; sys.modules["piecewised"] = package
def refuse(event, args):
    if event in ("subprocess.Popen", "os.posix_spawn", "os.fork", "os.forkpty", "os.system", "os.exec", "os.spawn"):
        raise RuntimeError(f"a worker started a process: {event} {args}")
sys.path.insert(0, sys.argv[2])
import llama
folder, others, entry, piece, n, order = sys.argv[3], json.loads(sys.argv[4]), sys.argv[5], sys.argv[6], int(sys.argv[7]), json.loads(sys.argv[8])
given = llama.arguments(getattr(llama, piece), n)
call = [n if at == "n" else given[at] for at in order]
# What any worker has behind it when it calls its first piece: a product and an elementwise kernel of torch's own, and memory in its
# allocator, small and large.
(given[0] @ given[0].T).sum().item()
for size in (1 << 10, 1 << 28):
    torch.empty(size, dtype=torch.uint8, device="cuda")
sys.addaudithook(refuse)
def timed(work):
    torch.cuda.synchronize(); begun = time.perf_counter(); result = work(); torch.cuda.synchronize()
    return (time.perf_counter() - begun) * 1e3, result
from piecewised.runtime.load import load_entry
first_ms, run = timed(lambda: load_entry(folder, entry))
warm_ms, n_warmed = 0.0, 0
if warm is not None:
    from piecewised import warming
    graph = json.loads(open(warm["graph"]).read())
    runs = {segment["entry"]: load_entry(folder, segment["entry"]) for segment in warm["segments"]}
    def of(size):
        return next(runs[s["entry"]] for s in warm["segments"] if s["range"][0] <= size <= s["range"][1])
    warm_ms, n_warmed = timed(lambda: sum(warming.call(of(size), graph, warm, size, 0) for size in warming.sizes(warm)))
    run = of(n)
loads = [timed(lambda: load_entry(other, its)) for other, its in others]
later = [ms for ms, _ in loads]
with torch.no_grad():
    calls = [timed(lambda: run(*call))[0] * 1e3 for _ in range(60)]
    begun = time.perf_counter()
    for _ in range(200): run(*call)
    host_us = (time.perf_counter() - begun) / 200 * 1e6
    torch.cuda.synchronize()
    # Of an artifact whose kernels are new to the process, and whose products are not.
    later_calls = [timed(lambda: other(*call))[0] * 1e3 for _, other in loads]
print(json.dumps({"first_load_ms": first_ms, "warm_up_ms": warm_ms, "n_warm_calls": n_warmed, "later_loads_ms": later, "first_call_us": calls[0], "second_call_us": calls[1],
  "steady_call_us": statistics.median(calls[10:]), "first_calls_of_later_loads_us": later_calls, "host_us": host_us, "compiler_imported": "torch._inductor.compile_fx" in sys.modules}))
"""


def load(folder: Path, piece: str) -> None:
    """Loads one artifact first and two others after it, calls the first; with an empty PATH and starting a process an error. Then the same with the package's `warm_up` between."""
    order = (folder / f"{piece}.order.json").read_text()
    folders = {}
    for path in sorted(folder.glob(f"{piece}-f*.tar")):
        folders[path.stem] = h.materialise(path.read_bytes(), folder / f"{path.stem}.d")
    environment = {"HOME": "/nonexistent", "PATH": "/nonexistent"}
    if "LD_LIBRARY_PATH" in os.environ:
        environment["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
    handles = {name: json.loads((folder / f"{name}.json").read_text()) for name in folders}
    n = 64

    def is_for(fields: dict[str, Any]) -> bool:
        return any(segment["range"][0] <= n <= segment["range"][1] for segment in fields["segments"])

    for name, where in folders.items():
        fields = handles[name]
        if not is_for(fields):
            continue
        entry = h.entry_for(fields, n)
        others = [
            (str(folders[other]), h.entry_for(of_other, n))
            for other, of_other in handles.items()
            if other != name and is_for(of_other)
        ]
        arguments = [
            str(h.CLIENT_SOURCE / "piecewised"),
            str(ROOT / "tests/bench"),
            str(where),
            json.dumps(others),
            entry,
        ]
        span, hint = LOADED[name.removeprefix(f"{piece}-")]
        handle = {
            **{"range": span, "hint": hint, "segments": fields["segments"], "digest": name},
            **{"device": {"type": "cuda"}, "dispatch_argument": json.loads(order).index("n")},
            "graph": str(folder / f"{piece}.graph.json"),
        }
        for warm in (None, handle):
            done = subprocess.run(
                [sys.executable, "-c", _LOAD, *arguments, piece, str(n), order, json.dumps(warm)],
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
            size = (folder / f"{name}.tar").stat().st_size
            print(name, f"n={n} bytes={size}", done.stdout.strip(), done.stderr.strip()[-1500:], flush=True)


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["fast", "tune", "stock", "table", "load"])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--piece", choices=["layer", "small"], default="layer")
    parser.add_argument("--executors", type=int, default=4, help="that compile side by side")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("this bench needs a GPU; torch sees none here")
    given.folder.mkdir(parents=True, exist_ok=True)
    print(torch.cuda.get_device_name(), "torch", torch.__version__, flush=True)
    if given.what in ("table", "load"):
        {"table": table, "load": load}[given.what](given.folder, given.piece)
    else:
        {"fast": fast, "tune": tune, "stock": stock}[given.what](given.folder, given.piece, given.executors)


if __name__ == "__main__":
    main()
