"""What a call costs on its way to the code for its size: `piecewised.PiecewiseBackend` against the way of vLLM's class of that name.

The reference is rendered below in plain Python, lookup by lookup; both call the same callable, which does nothing. Everything is measured
in one run and in turns, as medians. `net` is without calling that callable directly, so that it is the dispatch alone.

With --rust-bench it runs `bench-dispatch` too, the same for Rust workers. Prints one JSON object and a table.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import statistics
import subprocess
import timeit
from collections.abc import Callable, Container
from typing import Any

import piecewised
from bench import machine

ENDPOINTS = [512, 2048, 8192]
# What a call passes; the one in the middle is dispatched on.
ARGUMENT = 2
CALL = "call(a, b, size, c, d)"

Call = Callable[..., Any]


@dataclasses.dataclass
class Range:
    """As the reference has it: a plain dataclass with its own equality and hash."""

    start: int
    end: int

    def __contains__(self, size: int) -> bool:
        return self.start <= size <= self.end

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Range) and self.start == other.start and self.end == other.end

    def __hash__(self) -> int:
        return hash((self.start, self.end))


@dataclasses.dataclass
class Entry:
    """As the reference has it."""

    compile_range: Range
    compiled: bool
    runnable: Call


class Reference:
    """The reference's way from a call to its runnable: sizes are a list and entries are found by Range."""

    def __init__(self, ranges: list[Range], sizes: Container[int], entries: dict[Range, Entry]) -> None:
        self.compile_ranges = ranges
        self.compile_sizes = sizes
        self.range_entries = entries
        self.sym_shape_indices = [ARGUMENT]

    def find(self, size: int) -> Entry | None:
        """An exact size first, then the range."""
        if self.compile_sizes is None:
            return None
        if size in self.compile_sizes:
            return self.range_entries[Range(start=size, end=size)]
        for span in self.compile_ranges:
            if size in span:
                return self.range_entries[span]
        return None

    def __call__(self, *args: Any) -> Any:
        if self.sym_shape_indices:
            size = args[self.sym_shape_indices[0]]
            entry = self.find(size)
            assert entry is not None, f"{size} is outside of {self.compile_ranges}"
        else:
            (entry,) = (entry for entry in self.range_entries.values() if entry.compiled)
        assert entry.compiled
        return entry.runnable(*args)


class Sharpened:
    """What could be had from the reference without changing its shape: sizes and their entries in a dict of ints."""

    def __init__(self, ranges: list[tuple[Range, Entry]], sizes: dict[int, Entry]) -> None:
        self.ranges = ranges
        self.sizes = sizes
        self.sym_shape_indices = [ARGUMENT]

    def __call__(self, *args: Any) -> Any:
        size = args[self.sym_shape_indices[0]]
        entry = self.sizes.get(size)
        if entry is None:
            for span, candidate in self.ranges:
                if size in span:
                    entry = candidate
                    break
            else:
                raise AssertionError(f"{size} is outside of {self.ranges}")
        return entry.runnable(*args)


def runnable(*args: Any) -> None:
    """Stands in for compiled code."""


def subjects(sizes: list[int]) -> dict[str, Call]:
    """What is measured, for the three ranges and these sizes."""
    ranges = [Range(start + 1, end) for start, end in zip([0, *ENDPOINTS], ENDPOINTS, strict=False)]
    singles = [Range(size, size) for size in sizes]
    entries = {span: Entry(span, True, runnable) for span in [*singles, *ranges]}
    names = {f"[{span.start}, {span.end}]": runnable for span in entries}
    return {
        "bare": runnable,
        "reference": Reference(ranges, sizes, entries),
        "sharpened": Sharpened(
            [(span, entries[span]) for span in ranges], {span.start: entries[span] for span in singles}
        ),
        "piecewised": piecewised.PiecewiseBackend(compiled_runnables=names, sym_shape_indices=[ARGUMENT]),
    }


def measure(sizes: list[int], size: int, rounds: int, calls: int) -> dict[str, Any]:
    """Nanoseconds for one call with that size, each subject in turn."""
    timers = {}
    for name, call in subjects(sizes).items():
        # The first call with a size is not what is measured. An equal integer that is another object: as in a server.
        call(0, 0, size, 0, 0)
        values = {"given": call, "given_size": int(str(size))}
        timers[name] = timeit.Timer(CALL, "call, size = given, given_size; a = b = c = d = None", globals=values)
    seconds: dict[str, list[float]] = {name: [] for name in timers}
    for _ in range(rounds):
        for name, timer in timers.items():
            seconds[name].append(timer.timeit(calls) / calls)
    ns = {name: statistics.median(values) * 1e9 for name, values in seconds.items()}
    net = {name: value - ns["bare"] for name, value in ns.items() if name != "bare"}
    return {
        "n_ranges": len(ENDPOINTS),
        "n_sizes": len(sizes),
        "size": size,
        "is_single_size": size in sizes,
        "ns": ns,
        "net_ns": net,
        "ratio": ns["piecewised"] / ns["reference"],
        "net_ratio": net["piecewised"] / net["reference"],
        "net_ratio_sharpened": net["piecewised"] / net["sharpened"],
    }


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=301)
    parser.add_argument("--calls", type=int, default=5000)
    parser.add_argument("--rust-bench", type=pathlib.Path, help="a release build of bench-dispatch")
    args = parser.parse_args()
    rows = []
    for n_sizes in (0, 8, 64):
        # As CUDA graph capture sizes are: 8, 16, 24 and so on.
        sizes = [8 * i for i in range(1, n_sizes + 1)]
        # A size of the list's middle, then one in the middle range.
        for size in [*sizes[n_sizes // 2 : n_sizes // 2 + 1], 1001]:
            rows.append(measure(sizes, size, args.rounds, args.calls))
    report: dict[str, Any] = {"machine": machine(), "python": rows}
    if args.rust_bench is not None:
        report["rust"] = json.loads(subprocess.run([args.rust_bench], check=True, stdout=subprocess.PIPE).stdout)
    print(json.dumps(report, indent=1))
    table(report)


def table(report: dict[str, Any]) -> None:
    """The numbers for a reader."""
    print(f"\n{'sizes':>5} {'called with':<16}", end="")
    print("".join(f"{name:>12}" for name in ("bare", "reference", "sharpened", "piecewised")), end="")
    print("   of reference: raw, net   of sharpened: net")
    for row in report["python"]:
        what = "a single size" if row["is_single_size"] else "a range"
        cells = "".join(f"{value:>9.0f} ns" for value in row["ns"].values())
        print(f"{row['n_sizes']:>5} {what:<16}{cells}", end="")
        print(f"{row['ratio']:>17.2f} {row['net_ratio']:>7.2f} {row['net_ratio_sharpened']:>19.2f}")
    if "rust" in report:
        print(f"\n{'sizes':>5} {'Rust: same size':>17} {'mixed sizes':>14} {'the loop alone':>16}")
        for row in report["rust"]["table"]:
            print(f"{row['n_sizes']:>5} {row['same_ns']:>14.1f} ns", end="")
            print(f" {row['mixed_ns']:>11.1f} ns {row['loop_ns']:>13.1f} ns")


if __name__ == "__main__":
    main()
