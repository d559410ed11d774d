"""The HTTP port of a real daemon: probes, and metrics as a strict parser of OpenMetrics reads them."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import environment
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from service_harness import Client, Daemon, results, small_request

DOCS = Path(__file__).resolve().parents[2] / "docs/metrics.md"


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    # A cold compile takes long on a busy machine, and one of the tests waits for it while the daemon drains.
    with Daemon(tmp_path, "--listen-http", "127.0.0.1:0", "--drain-deadline-s", "300") as daemon:
        yield daemon


def get(daemon: Daemon, path: str) -> tuple[int, str, str]:
    """Status, content type and text."""
    found = re.search(r"listening on (http://\S+)/$", daemon.log_text(), re.MULTILINE)
    assert found is not None, daemon.log_text()
    try:
        with urllib.request.urlopen(found[1] + path, timeout=30) as answer:
            return answer.status, answer.headers["content-type"], answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.headers.get("content-type", ""), error.read().decode()


def metrics(daemon: Daemon) -> dict[str, float]:
    """Every sample, by its name and labels as they are written."""
    status, content_type, text = get(daemon, "/metrics")
    assert status == 200 and content_type.startswith("application/openmetrics-text; version=1.0.0")
    samples = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation, family.name
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            samples[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return samples


def wait_until_ready(daemon: Daemon) -> None:
    deadline = time.monotonic() + 120
    while get(daemon, "/readyz")[0] != 200:
        assert time.monotonic() < deadline, daemon.log_text()
        time.sleep(0.1)


def test_probes_tell_alive_from_ready(daemon: Daemon) -> None:
    assert get(daemon, "/healthz")[::2] == (200, "ok\n")
    wait_until_ready(daemon)
    assert get(daemon, "/readyz")[::2] == (200, "ready\n")
    assert get(daemon, "/no-such-page")[0] == 404
    with Client(daemon.endpoint) as client:
        events = client.compile(small_request(7))
        assert next(events).WhichOneof("event") == "queued"
        assert daemon.process is not None
        daemon.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 120
        while (answer := get(daemon, "/readyz"))[0] == 200:
            assert time.monotonic() < deadline, answer
        assert answer[::2] == (503, "not ready: it is ending\n")
        assert get(daemon, "/healthz")[0] == 200, "who ends in order must not be killed for it"
        assert len(results(events)[0]) == 1


def test_a_daemon_without_a_toolchain_is_alive_and_says_why_it_is_not_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # None is named and none is found: it goes on serving what is in its store.
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("VIRTUAL_ENV", "PIECEWISED_PYTHON"):
        monkeypatch.delenv(name, raising=False)
    with Daemon(tmp_path, "--listen-http", "127.0.0.1:0", python="") as daemon:
        deadline = time.monotonic() + 60
        while "importing torch" in (answer := get(daemon, "/readyz"))[2]:
            assert time.monotonic() < deadline, answer
            time.sleep(0.1)
        assert answer[0] == 503 and "python3" in answer[2], answer
        assert get(daemon, "/healthz")[0] == 200
        assert metrics(daemon)["piecewised_ready"] == 0


def test_metrics_count_what_happens(daemon: Daemon) -> None:
    wait_until_ready(daemon)
    before = metrics(daemon)
    assert before["piecewised_ready"] == 1 and before["piecewised_keys_total{source=compiled}"] == 0
    with Client(daemon.endpoint) as client:
        ready, _, _ = results(client.compile(small_request(1)))
        results(client.compile(small_request(1)))
        bad = small_request(2)
        bad["graph"]["nodes"][2]["callFunction"]["args"][1] = {"stringValue": "no number"}
        assert results(client.compile(bad))[1][0].reason == "COMPILE_ERROR"
        n_bytes = sum(len(chunk.data) for chunk in client.fetch(ready[0].handle.digest))
        fallbacks = [{"reason": "UNSUPPORTED_GRAPH", "nPieces": "3"}, {"reason": "not a name\n", "nPieces": "1"}]
        client.report_fallbacks(fallbacks)

    now = metrics(daemon)
    handle = ready[0].handle
    expected = {
        "piecewised_keys_total{source=compiled}": 1,
        "piecewised_keys_total{source=store}": 1,
        "piecewised_keys_total{source=joined}": 0,
        "piecewised_keys_total{source=failed}": 1,
        "piecewised_compile_seconds_saved_total": handle.timings.total_s,
        "piecewised_compiles_total{outcome=OK}": 1,
        "piecewised_compiles_total{outcome=COMPILE_ERROR}": 1,
        "piecewised_compile_duration_seconds_count": 1,
        "piecewised_compile_duration_seconds_sum": handle.timings.total_s,
        "piecewised_compile_cpu_seconds_total": handle.timings.cpu_s,
        "piecewised_verifications_total{result=passed}": 1,
        "piecewised_fetches_total": 1,
        "piecewised_fetched_bytes_total": n_bytes,
        "piecewised_client_fallbacks_total{reason=UNSUPPORTED_GRAPH}": 3,
        "piecewised_client_fallbacks_total{reason=OTHER}": 1,
        "piecewised_store_artifacts": 1,
        "piecewised_store_artifact_bytes": handle.size_bytes,
        "piecewised_store_puts_total": 1,
        "piecewised_store_failures": 1,
        "piecewised_jobs{state=queued}": 0,
        "piecewised_jobs{state=running}": 0,
        "piecewised_executors_idle": 1,
    }
    assert {name: now.get(name) for name in expected} == pytest.approx(expected)
    phases = {phase.phase: phase.seconds for phase in handle.timings.phases}
    counted = {name: now[f"piecewised_phase_seconds_total{{phase={name}}}"] for name in phases}
    assert counted == pytest.approx(phases)
    bounds = {
        name: count for name, count in now.items() if name.startswith("piecewised_compile_duration_seconds_bucket")
    }
    took = handle.timings.total_s
    assert bounds["piecewised_compile_duration_seconds_bucket{le=+Inf}"] == 1
    assert [count for count in bounds.values()] == [
        float(float(name[:-1].rpartition("=")[2]) >= took) for name in bounds
    ]


OUT_OF_TIME = """
import torch, warnings
warnings.simplefilter("ignore")
compiled = torch.compile(lambda x: torch.sin(x) + 3, backend="piecewised", options={"compile_sizes": [4], "budget_s": 0.001})
with torch.inference_mode():
    torch.testing.assert_close(compiled(torch.ones(4)), torch.sin(torch.ones(4)) + 3)
"""


def test_what_workers_compile_by_themselves_is_counted(daemon: Daemon) -> None:
    wait_until_ready(daemon)
    variables = environment(PIECEWISED_ENDPOINT=daemon.endpoint, PIECEWISED_CACHE_DIR=str(daemon.folder / "cache"))
    subprocess.run([sys.executable, "-c", OUT_OF_TIME], check=True, env=variables, timeout=300)
    assert metrics(daemon)["piecewised_client_fallbacks_total{reason=BUDGET_SPENT}"] == 1


def test_every_metric_is_documented(daemon: Daemon) -> None:
    wait_until_ready(daemon)
    with Client(daemon.endpoint) as client:
        results(client.compile(small_request(1)))
        client.report_fallbacks([{"reason": "A", "nPieces": "1"}])
    of_a_histogram = re.compile(r"_(bucket|count|sum)$")
    found = {of_a_histogram.sub("", name.partition("{")[0]) for name in metrics(daemon)}
    assert set(re.findall(r"`(piecewised_\w+)`", DOCS.read_text())) == found
