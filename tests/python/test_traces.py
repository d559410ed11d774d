"""Traces of real compiles, as a collector made of OTLP's own gRPC service receives them."""

from __future__ import annotations

import secrets
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from service_harness import DAEMON, Client, Daemon, results, small_request

REQUEST = "piecewised.v1.CompileService/Compile"


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps every span that it is sent."""

    def __init__(self, credentials: grpc.ServerCredentials | None = None) -> None:
        self.spans: list[Span] = []
        self.resources: list[dict[str, str]] = []
        self.metadata: dict[str, str] = {}
        self.peers: set[bytes] = set()
        self._changed = threading.Condition()
        self._server = grpc.server(ThreadPoolExecutor(2))
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(self, self._server)
        if credentials is None:
            self.port = self._server.add_insecure_port("127.0.0.1:0")
        else:
            self.port = self._server.add_secure_port("127.0.0.1:0", credentials)

    def Export(self, request: Any, context: grpc.ServicerContext) -> Any:
        with self._changed:
            self.metadata |= dict(context.invocation_metadata())
            self.peers |= set(context.auth_context().get("x509_common_name", ()))
            for one in request.resource_spans:
                self.resources.append({it.key: it.value.string_value for it in one.resource.attributes})
                for scope in one.scope_spans:
                    self.spans.extend(scope.spans)
            self._changed.notify_all()
        return trace_service_pb2.ExportTraceServiceResponse()

    def find(self, what: Callable[[Span], bool], n: int = 1) -> list[Span]:
        """Waits for so many spans of a kind."""
        deadline = time.monotonic() + 60
        with self._changed:
            while len(found := [span for span in self.spans if what(span)]) < n:
                names = [span.name for span in self.spans]
                assert self._changed.wait(deadline - time.monotonic()), f"it does not come; there are {names}"
        return found

    def one(self, name: str, **attributes: Any) -> Span:
        """Waits for the one span with a name and attributes."""
        (span,) = self.find(lambda span: span.name == name and attributes.items() <= attributes_of(span).items())
        return span

    def children(self, parent: Span, n: int) -> list[Span]:
        """Waits for so many spans of a parent; in the order in which they began."""
        found = self.find(lambda span: span.parent_span_id == parent.span_id, n)
        return sorted(found, key=lambda span: span.start_time_unix_nano)

    def __enter__(self) -> Collector:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(None)


def attributes_of(span: Span) -> dict[str, Any]:
    """With the proto's dots as underscores, for keyword arguments."""
    value = lambda it: getattr(it.value, it.value.WhichOneof("value"))  # noqa: E731
    return {it.key.replace(".", "_"): value(it) for it in span.attributes}


class Caller:
    """A span that somebody else has, as the header that names it."""

    def __init__(self) -> None:
        self.trace_id, self.span_id = secrets.token_bytes(16), secrets.token_bytes(8)

    @property
    def metadata(self) -> list[tuple[str, str]]:
        return [("traceparent", f"00-{self.trace_id.hex()}-{self.span_id.hex()}-01")]


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        yield collector


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, collector: Collector) -> Iterator[Daemon]:
    flags = ["--otlp-endpoint", f"http://127.0.0.1:{collector.port}", "--n-executors", "1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        daemon = Daemon(tmp_path_factory.mktemp("traces"), *flags).start()
    with daemon:
        yield daemon


def test_a_compile_is_in_its_callers_trace_with_a_span_for_each_phase(daemon: Daemon, collector: Collector) -> None:
    caller = Caller()
    with Client(daemon.endpoint) as client:
        request = {**small_request(1), "label": "traced/0"}
        events = list(client.compile(request, metadata=caller.metadata))
    ready = next(event.ready for event in events if event.WhichOneof("event") == "ready")
    phases = [event.progress.phase for event in events if event.WhichOneof("event") == "progress"]

    span = collector.one(REQUEST, piecewised_label="traced/0")
    assert (span.trace_id, span.parent_span_id, span.kind) == (caller.trace_id, caller.span_id, Span.SPAN_KIND_SERVER)
    counts = {name: value for name, value in attributes_of(span).items() if name.startswith("piecewised_")}
    assert attributes_of(span)["rpc_grpc_status_code"] == 0 and attributes_of(span)["network_transport"] == "unix"
    expected = {"ready": 1, "from_store": 0, "compiled": 1, "joined": 0, "failed": 0, "entries": 1, "label": "traced/0"}
    assert counts == {f"piecewised_{name}": value for name, value in expected.items()}

    job = collector.one("job", piecewised_label="traced/0")
    assert (job.trace_id, job.parent_span_id, job.status.code) == (caller.trace_id, span.span_id, Status.STATUS_CODE_OK)
    assert attributes_of(job)["piecewised_key"] == ready.handle.key.hex()
    assert attributes_of(job)["piecewised_artifact_bytes"] == ready.handle.size_bytes

    steps = collector.children(job, 9)
    names = [step.name for step in steps]
    assert names[:5] == ["queued", "launch", "started", "rebuild", "compile"] and names[-3:] == [
        "pack",
        "verify",
        "store",
    ]
    # A caller is told of the latest one where several follow each other at once.
    assert set(phases) <= set(names) and {step.trace_id for step in steps} == {caller.trace_id}
    # They follow each other without a gap, from the job's beginning to its end.
    times = [(step.start_time_unix_nano, step.end_time_unix_nano) for step in steps]
    assert [start for start, _ in times] == [job.start_time_unix_nano, *[end for _, end in times[:-1]]]
    assert times[-1][1] == job.end_time_unix_nano
    assert {phase.phase for phase in ready.handle.timings.phases} <= set(names)

    resource = collector.resources[0]
    assert resource["service.name"] == "piecewised" and resource["service.version"] and resource["host.name"]
    assert f'trace_id="{caller.trace_id.hex()}"' in daemon.log_text(), "the log's lines lead to the trace"


def test_who_joins_a_job_keeps_his_own_trace_and_both_link_to_each_other(daemon: Daemon, collector: Collector) -> None:
    first, second = Caller(), Caller()
    with Client(daemon.endpoint) as one, Client(daemon.endpoint) as other:
        begun = one.compile({**small_request(2), "label": "joined/0"}, metadata=first.metadata)
        assert next(begun).WhichOneof("event") == "queued"
        _, _, summary = results(other.compile({**small_request(2), "label": "joined/1"}, metadata=second.metadata))
        assert summary.n_joined == 1
        results(begun)
    job = collector.one("job", piecewised_label="joined/0")
    own = collector.one(REQUEST, piecewised_label="joined/0")
    joiner = collector.one(REQUEST, piecewised_label="joined/1")
    assert (job.trace_id, own.trace_id, joiner.trace_id) == (first.trace_id, first.trace_id, second.trace_id)
    assert [(link.trace_id, link.span_id) for link in joiner.links] == [(job.trace_id, job.span_id)]
    assert [(link.trace_id, link.span_id) for link in job.links] == [(joiner.trace_id, joiner.span_id)]
    assert not own.links and attributes_of(joiner)["piecewised_joined"] == 1


def test_a_failure_is_in_the_jobs_span(daemon: Daemon, collector: Collector) -> None:
    bad = {**small_request(3), "label": "failing/0"}
    bad["graph"]["nodes"][2]["callFunction"]["args"][1] = {"stringValue": "no number"}
    with Client(daemon.endpoint) as client:
        results(client.compile(bad))
        job = collector.one("job", piecewised_label="failing/0")
        assert job.status.code == Status.STATUS_CODE_ERROR and "_operator.add" in job.status.message
        assert attributes_of(job)["error_type"] == "COMPILE_ERROR"
        span = collector.one(REQUEST, piecewised_label="failing/0")
        assert not span.parent_span_id and attributes_of(span)["piecewised_failed"] == 1
        # The request itself went well; one that is refused did not.
        assert span.status.code == Status.STATUS_CODE_UNSET
        with pytest.raises(grpc.RpcError):
            list(client.compile({**small_request(3), "label": "x" * 1000}, metadata=(caller := Caller()).metadata))
    (refused,) = collector.find(lambda span: span.trace_id == caller.trace_id)
    # By OpenTelemetry's conventions what a caller did wrong is no error of the server's.
    attributes = attributes_of(refused)
    assert refused.status.code == Status.STATUS_CODE_UNSET and "label" in attributes["piecewised_message"]
    assert attributes["error_type"] == attributes["piecewised_message"].partition(":")[0]
    assert attributes["rpc_grpc_status_code"] == grpc.StatusCode.INVALID_ARGUMENT.value[0]


@pytest.mark.parametrize(
    "traceparent", ["", "nonsense", f"00-{'0' * 32}-{'0' * 16}-01", f"ff-{'1' * 32}-{'1' * 16}-01"]
)
def test_a_header_that_names_no_trace_begins_a_new_one(daemon: Daemon, collector: Collector, traceparent: str) -> None:
    label = f"unnamed/{len(traceparent)}{traceparent[:2]}"
    with Client(daemon.endpoint) as client:
        request = {**small_request(1), "label": label}
        assert results(client.compile(request, metadata=[("traceparent", traceparent)]))[2].n_ready == 1
    assert not collector.one(REQUEST, piecewised_label=label).parent_span_id


def test_what_the_caller_does_not_sample_is_not_sent(daemon: Daemon, collector: Collector) -> None:
    caller, after = Caller(), Caller()
    with Client(daemon.endpoint) as client:
        unsampled = [("traceparent", caller.metadata[0][1][:-1] + "0")]
        results(client.compile({**small_request(4), "label": "unsampled/0"}, metadata=unsampled))
        results(client.compile({**small_request(4), "label": "sampled/0"}, metadata=after.metadata))
    collector.find(lambda span: span.trace_id == after.trace_id)
    assert not [span for span in collector.spans if span.trace_id == caller.trace_id]


def test_each_call_of_each_service_has_a_span_in_its_callers_trace(daemon: Daemon, collector: Collector) -> None:
    raw = {"request_serializer": None, "response_deserializer": None}
    calls = [
        ("piecewised.v1.CompileService/GetStatus", b"", grpc.StatusCode.OK),
        ("piecewised.v1.CompileService/FetchArtifact", b"\x0a\x20" + bytes(32), grpc.StatusCode.NOT_FOUND),
        ("piecewised.v1.AdminService/ListArtifacts", b"", grpc.StatusCode.OK),
        ("grpc.health.v1.Health/Check", b"", grpc.StatusCode.OK),
        ("piecewised.v1.CompileService/NoSuchMethod", b"", grpc.StatusCode.UNIMPLEMENTED),
    ]
    with Client(daemon.endpoint) as client:
        for method, message, code in calls:
            caller = Caller()
            found = grpc.StatusCode.OK
            try:
                list(client.channel.unary_stream(f"/{method}", **raw)(message, metadata=caller.metadata, timeout=60))
            except grpc.RpcError as error:
                found = error.code()
            assert found == code, method
            (span,) = collector.find(lambda span, caller=caller: span.trace_id == caller.trace_id)
            assert (span.kind, span.parent_span_id) == (Span.SPAN_KIND_SERVER, caller.span_id)
            attributes = attributes_of(span)
            assert (attributes["rpc_system"], attributes["rpc_grpc_status_code"]) == ("grpc", code.value[0])
            is_error = span.status.code == Status.STATUS_CODE_ERROR
            # Of these only UNIMPLEMENTED is the server's fault to OpenTelemetry's conventions.
            assert is_error == (code == grpc.StatusCode.UNIMPLEMENTED), span
            if code == grpc.StatusCode.UNIMPLEMENTED:
                # There is no end of names that callers could make up.
                assert (span.name, attributes["rpc_method"]) == ("_OTHER", "_OTHER")
                assert attributes["rpc_method_original"] == f"/{method}"
            else:
                assert span.name == method
                assert f"{attributes['rpc_service']}/{attributes['rpc_method']}" == method

        caller = Caller()
        watching = client.channel.unary_stream("/piecewised.v1.AdminService/WatchJobs", **raw)(
            b"", metadata=caller.metadata, timeout=60
        )
        next(watching)
        watching.cancel()
    (left,) = collector.find(lambda span: span.trace_id == caller.trace_id)
    assert attributes_of(left)["rpc_grpc_status_code"] == grpc.StatusCode.CANCELLED.value[0]
    assert left.status.code == Status.STATUS_CODE_UNSET


WORKER = """
import json, sys, warnings
import torch
warnings.simplefilter("ignore")

def run(function):
    options = {"compile_sizes": [4], "on_error": "raise"}
    with torch.inference_mode():
        torch.compile(function, backend="piecewised", options=options)(torch.ones(4))

run(lambda x: torch.sin(x) + 1)
assert "opentelemetry.trace" not in sys.modules, "it is imported for nobody who does not use it"
from opentelemetry.sdk.trace import TracerProvider
with TracerProvider().get_tracer("worker").start_as_current_span("start") as span:
    run(lambda x: torch.cos(x) + 2)
context = span.get_span_context()
print(json.dumps([f"{context.trace_id:032x}", f"{context.span_id:016x}"]))
"""


def test_a_workers_span_is_the_parent_of_what_it_asks_for(daemon: Daemon, collector: Collector, worker: Any) -> None:
    trace_id, span_id = worker(WORKER, PIECEWISED_ENDPOINT=daemon.endpoint).result()
    (span,) = collector.find(lambda span: span.name == REQUEST and span.trace_id.hex() == trace_id)
    assert span.parent_span_id.hex() == span_id
    (job,) = collector.find(lambda span: span.name == "job" and span.trace_id.hex() == trace_id)
    assert job.parent_span_id == span.span_id


def test_the_variables_of_opentelemetry_count_and_what_is_left_is_sent_at_the_end(
    tmp_path: Path, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without a toolchain there is nothing to wait for, and requests are refused.
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("VIRTUAL_ENV", "PIECEWISED_PYTHON"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.port}")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "compilers")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "600000")
    caller = Caller()
    with Daemon(tmp_path, python="") as daemon, Client(daemon.endpoint) as client:
        with pytest.raises(grpc.RpcError) as refused:
            list(client.compile(small_request(1), metadata=caller.metadata))
        assert refused.value.code() == grpc.StatusCode.FAILED_PRECONDITION, refused.value
    (span,) = collector.find(lambda span: span.trace_id == caller.trace_id)
    assert attributes_of(span)["error_type"] == "NO_TOOLCHAIN", span
    assert "python3" in attributes_of(span)["piecewised_message"]
    assert any(resource["service.name"] == "compilers" for resource in collector.resources)


def test_a_collector_that_is_not_there_is_in_nobodys_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("VIRTUAL_ENV", "PIECEWISED_PYTHON"):
        monkeypatch.delenv(name, raising=False)
    with Daemon(tmp_path, "--otlp-endpoint", "http://127.0.0.1:1", python="") as daemon:
        with Client(daemon.endpoint) as client:
            for _ in range(3):
                with pytest.raises(grpc.RpcError) as refused:
                    list(client.compile(small_request(1), metadata=Caller().metadata))
                assert refused.value.code() == grpc.StatusCode.FAILED_PRECONDITION
        assert daemon.terminate() == 0


class Authority:
    """A certificate authority, by the program that people make them with."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self.cert, self._key = folder / f"{name}.pem", folder / f"{name}.key"
        self._openssl("-x509", "-keyout", self._key, "-out", self.cert, "-subj", f"/CN={name}")

    def sign(self, name: str) -> tuple[Path, Path]:
        """Certificate and key of a name, both private files."""
        cert, key = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        names = f"subjectAltName=DNS:{name},IP:127.0.0.1"
        signer = ("-x509", "-CA", self.cert, "-CAkey", self._key, "-addext", "basicConstraints=critical,CA:FALSE")
        self._openssl(*signer, "-keyout", key, "-out", cert, "-subj", f"/CN={name}", "-addext", names)
        key.chmod(0o600)
        return cert, key

    @staticmethod
    def _openssl(*words: str | Path) -> None:
        fresh = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
        subprocess.run(["openssl", "req", *fresh, *words], check=True, capture_output=True)

    def collector(self) -> Collector:
        """One that asks for a certificate of this authority."""
        cert, key = self.sign("localhost")
        pair = (key.read_bytes(), cert.read_bytes())
        return Collector(grpc.ssl_server_credentials([pair], self.cert.read_bytes(), require_client_auth=True))


@pytest.fixture
def without_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Daemons without a toolchain: there is nothing to wait for, and calls are refused."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    for name in ("VIRTUAL_ENV", "PIECEWISED_PYTHON"):
        monkeypatch.delenv(name, raising=False)


def ask(daemon: Daemon) -> Caller:
    caller = Caller()
    with Client(daemon.endpoint) as client:
        status = client.channel.unary_unary("/piecewised.v1.CompileService/GetStatus")
        status(b"", metadata=caller.metadata, timeout=60)
    return caller


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
@pytest.mark.parametrize("by", ["flags", "variables"])
def test_a_collector_over_tls_is_known_by_its_authority_and_knows_the_daemon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, by: str
) -> None:
    authority = Authority(tmp_path, "ours")
    cert, key = authority.sign("node-7")
    headers = tmp_path / "headers"
    headers.write_text("# for the collector\nauthorization: Bearer a-secret-token\n")
    headers.chmod(0o600)
    with authority.collector() as collector:
        request.getfixturevalue("without_python")
        endpoint = f"https://localhost:{collector.port}"
        flags = ["--otlp-headers", str(headers)]
        if by == "flags":
            flags += ["--otlp-endpoint", endpoint, "--otlp-ca", str(authority.cert)]
            flags += ["--otlp-cert", str(cert), "--otlp-key", str(key)]
        else:
            monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
            monkeypatch.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", str(authority.cert))
            monkeypatch.setenv("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", str(cert))
            monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY", str(key))
            monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-scope=a%20team")
        with Daemon(tmp_path, *flags, python="") as daemon:
            caller = ask(daemon)
        collector.find(lambda span: span.trace_id == caller.trace_id)
        assert collector.metadata["authorization"] == "Bearer a-secret-token"
        assert collector.metadata.get("x-scope") == (None if by == "flags" else "a team")
        assert collector.peers == {b"node-7"}
    assert "a-secret-token" not in daemon.log_text()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_a_collector_of_another_authority_gets_nothing(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    authority, other = Authority(tmp_path, "ours"), Authority(tmp_path, "theirs")
    cert, key = authority.sign("node-7")
    with authority.collector() as collector:
        request.getfixturevalue("without_python")
        flags = [
            "--otlp-endpoint",
            f"https://localhost:{collector.port}",
            "--otlp-cert",
            str(cert),
            "--otlp-key",
            str(key),
        ]
        # Those whom the system trusts do not know our authority either.
        for ca in (["--otlp-ca", str(other.cert)], []):
            with Daemon(tmp_path, *flags, *ca, python="") as daemon:
                ask(daemon)
                assert daemon.terminate() == 0, "it is in nobody's way"
        assert not collector.spans


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--otlp-endpoint", "collector:4317"], "https://HOST:PORT"),
        (["--otlp-endpoint", "http://collector:4317", "--otlp-ca", "/x"], "without TLS"),
        (["--otlp-endpoint", "https://collector:4317", "--otlp-ca", "/nonexistent"], "/nonexistent cannot be used"),
        (["--otlp-endpoint", "https://collector:4317", "--otlp-ca", "FILE"], "there is no certificate in it"),
        (["--otlp-endpoint", "https://collector:4317", "--otlp-cert", "/x"], "set otlp_key too"),
        (["--otlp-endpoint", "http://collector:4317", "--otlp-headers", "FILE"], "in clear"),
        (["--otlp-endpoint", "https://collector:4317", "--otlp-headers", "FILE"], "line 1 is not"),
    ],
)
def test_what_cannot_be_used_is_told_at_the_start(tmp_path: Path, flags: list[str], words: str) -> None:
    file = tmp_path / "file"
    file.write_text("a-secret-without-a-name\n")
    file.chmod(0o600)
    flags = [str(file) if flag == "FILE" else flag for flag in flags]
    command = [DAEMON, "serve", "--socket", tmp_path / "s", "--store-dir", tmp_path / "store", *flags]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2 and words in ended.stderr, (ended.returncode, ended.stderr)
    assert "a-secret" not in ended.stderr + ended.stdout
