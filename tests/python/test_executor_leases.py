"""Which stretches of a job are leased, on a CPU: what tuning times and nothing else; and what the leases themselves keep to."""

from __future__ import annotations

import threading
from typing import Any

import executor_harness as h
import pytest
from piecewised_executor import benchmarks, lease
from piecewised_executor.lease import EXCLUSIVE, SHARED, Leases
from torch._inductor.runtime import benchmarking

EXP = h.one_kernel()
JOB: dict[str, Any] = {"range": [2, 16], "dispatch_argument": 0, "hint": 8}


def test_a_compile_for_the_cpu_leases_nothing(executor: h.Executor) -> None:
    message, fields, _ = executor.compile(EXP, **JOB)
    assert message == "done" and fields["latencies"], fields
    assert executor.leases == []


def test_what_tuning_times_on_the_cpu_is_timed_alone(executor: h.Executor) -> None:
    message, fields, _ = executor.compile(EXP, **JOB, options={"tuning": "full"})
    assert message == "done", fields
    candidates = [candidate for candidate in fields["tuning"]["candidates"] if candidate["latencies"]]
    n_sizes = len(candidates[0]["latencies"])
    assert len(candidates) > 1 and executor.leases == ["exclusive"] * n_sizes


class Asked:
    """Remembers what it is asked for."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.leases = Leases(self.said.append, lambda: self.said.append("back"))


def test_within_a_shared_lease_an_exclusive_one_takes_its_place() -> None:
    asked = Asked()
    with lease.using(asked.leases), lease.running("cuda"):
        with lease.timing("cuda"), lease.timing("cuda"), lease.running("cuda"):
            assert asked.said == [SHARED, "back", EXCLUSIVE]
        with lease.paused():
            assert asked.said[-2:] == [SHARED, "back"]
            with lease.timing("cuda"):
                assert asked.said[-1] == EXCLUSIVE
        assert asked.said[-2:] == ["back", SHARED]
    assert asked.said[-1] == "back" and asked.said.count("back") * 2 == len(asked.said)


@pytest.mark.parametrize("mode", [SHARED, EXCLUSIVE])
def test_an_exception_gives_it_back(mode: str) -> None:
    asked = Asked()
    with pytest.raises(ZeroDivisionError), asked.leases.hold(SHARED), asked.leases.hold(mode):
        raise ZeroDivisionError
    assert asked.said[-1] == "back" and len(asked.said) % 2 == 0


def test_another_thread_waits_until_the_lease_is_given_back() -> None:
    asked = Asked()
    entered = threading.Event()

    def other() -> None:
        with asked.leases.hold(SHARED):
            entered.set()

    with asked.leases.hold(EXCLUSIVE):
        thread = threading.Thread(target=other)
        thread.start()
        assert not entered.wait(0.2)
    thread.join()
    assert asked.said == [EXCLUSIVE, "back", SHARED, "back"]


def test_nothing_is_asked_outside_of_a_job_or_for_what_disturbs_nobody() -> None:
    with lease.timing("cuda"), lease.running("cuda"):
        pass
    asked = Asked()
    with lease.using(asked.leases), lease.running("cpu"), lease.timing("cpu", is_tuning=False):
        pass
    assert asked.said == []


def test_inductors_benchmarks_are_leased() -> None:
    benchmarks.install()
    benchmarks.install()
    asked = Asked()
    during: list[list[str]] = []
    with lease.using(asked.leases):
        benchmarking.benchmarker.benchmark_cpu(lambda: during.append(list(asked.said)), warmup=1, rep=1)
    assert during[0] == [EXCLUSIVE] and asked.said == [EXCLUSIVE, "back"]
