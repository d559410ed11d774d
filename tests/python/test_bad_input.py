"""Bad input over the wire: each gets its status, its reason and a sentence, and the daemon goes on."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from service_harness import Client, Daemon, int_arg, node, results, small_request

INVALID = grpc.StatusCode.INVALID_ARGUMENT
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION


@pytest.fixture(scope="module")
def client(service_daemon: Daemon) -> Iterator[Client]:
    with Client(service_daemon.endpoint) as client:
        yield client


def refusal(client: Client, request: Any) -> tuple[grpc.StatusCode, str, str, dict[str, str]]:
    """Code, reason, message and metadata with which a request is refused."""
    with pytest.raises(grpc.RpcError) as caught:
        list(client.compile(request))
    error = caught.value
    details = dict(error.trailing_metadata()).get("grpc-status-details-bin")
    reason, metadata = error.details().partition(":")[0], {}
    if details is not None:
        status = status_pb2.Status.FromString(details)
        for detail in status.details:
            info = error_details_pb2.ErrorInfo()
            if detail.Unpack(info):
                assert info.domain == "piecewised"
                reason, metadata = info.reason, dict(info.metadata)
    return error.code(), reason, error.details(), metadata


def changed(change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    """A good request with one thing changed."""
    request = copy.deepcopy(small_request(1000))
    change(request)
    return request


def call(target: str, *args: dict[str, Any]) -> dict[str, Any]:
    return {"name": "y", "callFunction": {"target": target, "args": list(args)}}


def nodes(request: dict[str, Any]) -> list[dict[str, Any]]:
    return request["graph"]["nodes"]


def make_static(request: dict[str, Any]) -> None:
    """Without its symbol: one entry is all that a plan may come to."""
    request["graph"].pop("symbols")
    tensor = nodes(request)[1]["placeholder"]["value"]["tensor"]
    tensor["sizes"] = [{"integer": "4"}, {"integer": "8"}]
    del nodes(request)[0]
    request["plan"] = {"compileRangeEndpoints": {"endpoints": ["16", "32"]}}


CASES: list[tuple[str, grpc.StatusCode, str, Callable[[dict[str, Any]], Any]]] = [
    ("no graph", INVALID, "MISSING_FIELD", lambda r: r.pop("graph")),
    ("no plan", INVALID, "MISSING_FIELD", lambda r: r.pop("plan")),
    ("an empty graph", INVALID, "NO_OUTPUT", lambda r: r.update(graph={})),
    ("no output", INVALID, "NO_OUTPUT", lambda r: nodes(r).pop()),
    ("a cycle", INVALID, "CYCLE", lambda r: nodes(r).__setitem__(2, call("_operator.add", node("z"), node("x")))),
    (
        "a dangling reference",
        INVALID,
        "DANGLING_REFERENCE",
        lambda r: nodes(r).__setitem__(2, call("_operator.add", node("ghost"))),
    ),
    ("a duplicate name", INVALID, "DUPLICATE_NODE", lambda r: nodes(r)[2].update(name="x")),
    ("an unknown op kind", INVALID, "UNKNOWN_OP", lambda r: nodes(r)[2].pop("callFunction")),
    ("an empty argument", INVALID, "EMPTY_ARGUMENT", lambda r: nodes(r).__setitem__(2, call("_operator.add", {}))),
    ("torch.load", INVALID, "TARGET_NOT_ALLOWED", lambda r: nodes(r).__setitem__(2, call("torch.load", node("x")))),
    (
        "os.system",
        INVALID,
        "TARGET_NOT_ALLOWED",
        lambda r: nodes(r).__setitem__(2, call("os.system", {"stringValue": "id"})),
    ),
    (
        "eval",
        INVALID,
        "TARGET_NOT_ALLOWED",
        lambda r: nodes(r).__setitem__(2, call("builtins.eval", {"stringValue": "1"})),
    ),
    (
        "load_library",
        INVALID,
        "TARGET_NOT_ALLOWED",
        lambda r: nodes(r).__setitem__(2, call("torch.ops.load_library", node("x"))),
    ),
    (
        "an attribute that is none of a tensor's",
        INVALID,
        "ATTRIBUTE_NOT_ALLOWED",
        lambda r: nodes(r).__setitem__(2, call("builtins.getattr", node("x"), {"stringValue": "__class__"})),
    ),
    (
        "an opaque object",
        INVALID,
        "OPAQUE_NOT_ALLOWED",
        lambda r: nodes(r).__setitem__(2, call("_operator.add", {"opaque": {"type": "a.B", "value": "c"}})),
    ),
    ("an undeclared symbol", INVALID, "UNDECLARED_SYMBOL", lambda r: r["graph"].pop("symbols")),
    ("an empty plan", INVALID, "EMPTY_PLAN", lambda r: r.update(plan={})),
    ("size 0", INVALID, "BAD_SIZE", lambda r: r["plan"].update(compileSizes=["0"])),
    ("endpoint 0", INVALID, "BAD_ENDPOINT", lambda r: r.update(plan={"compileRangeEndpoints": {"endpoints": ["0"]}})),
    (
        "an inverted range",
        INVALID,
        "BAD_RANGE",
        lambda r: r.update(plan={"compileRanges": {"ranges": [{"start": "5", "end": "4"}]}}),
    ),
    (
        "overlapping ranges",
        INVALID,
        "OVERLAPPING_RANGES",
        lambda r: r.update(
            plan={"compileRanges": {"ranges": [{"start": "1", "end": "4"}, {"start": "4", "end": "8"}]}}
        ),
    ),
    ("two entries for a graph without symbolic input", INVALID, "STATIC_GRAPH", make_static),
    (
        "too many ranges",
        INVALID,
        "TOO_MANY_RANGES",
        lambda r: r["plan"].update(compileSizes=[str(n) for n in range(1, 5000)]),
    ),
    (
        "one hint for two entries",
        INVALID,
        "BAD_HINTS",
        lambda r: (r["plan"].update(compileSizes=["4"]), r["options"].update(hints=["4"])),
    ),
    ("a hint outside of its range", INVALID, "BAD_HINTS", lambda r: r["options"].update(hints=["17"])),
    ("a tuning of another version", INVALID, "UNKNOWN_CHOICE", lambda r: r["options"].update(tuning=77)),
    (
        "a specialisation of another version",
        INVALID,
        "UNKNOWN_CHOICE",
        lambda r: r["options"].update(specialisation=77),
    ),
    ("a guard policy of another version", INVALID, "UNKNOWN_CHOICE", lambda r: r["options"].update(guards=77)),
    ("a priority of another version", INVALID, "UNKNOWN_CHOICE", lambda r: r.update(priority=77)),
    (
        "an option that Inductor doesn't have",
        INVALID,
        "UNKNOWN_OPTION",
        lambda r: r["options"].update(inductor={"max_autotun": {"boolValue": True}}),
    ),
    (
        "an option that names a program",
        INVALID,
        "RESERVED_OPTION",
        lambda r: r["options"].update(inductor={"cpp.cxx": {"stringValue": "/bin/evil"}}),
    ),
    ("a foreign format", INVALID, "UNSUPPORTED_FORMAT", lambda r: r["options"].update(format=77)),
    (
        "another toolchain",
        PRECONDITION,
        "TOOLCHAIN_MISMATCH",
        lambda r: r.update(toolchain={"fingerprint": "00", "torchVersion": "1.13.0"}),
    ),
    (
        "another device",
        PRECONDITION,
        "NO_DEVICE",
        lambda r: r.update(device={"type": "cpu", "name": "x86_64", "capability": "none"}),
    ),
    (
        "a constant that is too large",
        EXHAUSTED,
        "GRAPH_TOO_LARGE",
        lambda r: r["graph"].update(
            constants=[
                {
                    "name": "c",
                    "data": "A" * (4 * (5 << 20) // 3 // 4 * 4),
                    "meta": {
                        "dtype": "uint8",
                        "device": {"type": "cpu"},
                        "sizes": [{"integer": "1"}],
                        "strides": [{"integer": "1"}],
                    },
                }
            ]
        ),
    ),
]


@pytest.mark.parametrize(("code", "reason", "change"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_refused_with_a_reason(
    client: Client, code: grpc.StatusCode, reason: str, change: Callable[[dict[str, Any]], Any]
) -> None:
    found = refusal(client, changed(change))
    assert found[:2] == (code, reason), found
    # A sentence, not only a name.
    assert len(found[2].removeprefix(f"{reason}:").split()) > 4, found[2]


def test_the_node_is_named(client: Client) -> None:
    *_, message, metadata = refusal(client, changed(lambda r: nodes(r).__setitem__(2, call("torch.load", node("x")))))
    assert metadata["node"] == "y"
    assert "torch.load" in message


def test_a_misspelt_option_is_answered_with_the_right_one(client: Client) -> None:
    *_, message, metadata = refusal(
        client, changed(lambda r: r["options"].update(inductor={"max_autotun": {"boolValue": True}}))
    )
    assert metadata["option"] == "max_autotun"
    assert "'max_autotune'" in message.replace('"', "'")


@pytest.mark.parametrize("raw", [b"\xff\xff\xff\xff", b"\x0a\x05abc", b"\x00", bytes(range(256))])
def test_undecodable_bytes(client: Client, raw: bytes) -> None:
    code, reason, message, _ = refusal(client, raw)
    assert (code, reason) == (INVALID, "UNDECODABLE"), message


def test_nesting_of_ten_thousand(client: Client) -> None:
    def varint(value: int) -> bytes:
        out = bytearray()
        while value > 127:
            out.append(value & 127 | 128)
            value >>= 7
        return bytes(out) + bytes([value])

    def field(number: int, payload: bytes) -> bytes:
        return varint(number << 3 | 2) + varint(len(payload)) + payload

    # Written by hand, since protobuf's own encoder refuses such a depth: Argument.list (15) of ArgumentList.items (1).
    argument = field(5, b"")
    for _ in range(10_000):
        argument = field(15, field(1, argument))
    call_function = field(1, b"_operator.add") + field(2, argument)
    graph = field(1, field(1, b"y") + field(4, call_function))
    code, reason, message, _ = refusal(client, field(1, graph))
    assert (code, reason) == (INVALID, "UNDECODABLE"), message


def test_nesting_that_decodes_and_is_too_deep(client: Client) -> None:
    argument: dict[str, Any] = {"none": {}}
    for _ in range(40):
        argument = {"list": {"items": [argument]}}
    found = refusal(client, changed(lambda r: nodes(r).__setitem__(2, call("_operator.add", argument))))
    assert found[:2] == (EXHAUSTED, "GRAPH_TOO_LARGE"), found


def test_a_hundred_thousand_nodes(client: Client) -> None:
    def grow(request: dict[str, Any]) -> None:
        chain = [
            {"name": f"n{i}", "callFunction": {"target": "_operator.add", "args": [node("x"), int_arg(i)]}}
            for i in range(100_000)
        ]
        nodes(request)[2:2] = chain

    found = refusal(client, changed(grow))
    assert found[:2] == (EXHAUSTED, "GRAPH_TOO_LARGE"), found


def test_a_message_that_is_too_large(client: Client) -> None:
    limit = client.capabilities().limits.max_message_bytes
    found = refusal(client, changed(lambda r: nodes(r)[2].update(name="n" * (limit + 1))))
    assert found[:2] == (EXHAUSTED, "MESSAGE_TOO_LARGE"), found


@pytest.mark.parametrize(
    ("digest", "offset", "code"),
    [(b"short", 0, INVALID), (bytes(32), 0, grpc.StatusCode.NOT_FOUND)],
)
def test_fetching_what_is_not_there(client: Client, digest: bytes, offset: int, code: grpc.StatusCode) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        list(client.fetch(digest, offset))
    assert caught.value.code() == code


def test_a_compile_that_fails_is_a_failed_event_with_the_compilers_words(client: Client) -> None:
    # x is [s0, 8]; a matrix product with itself has no meaning unless s0 is 8.
    request = changed(lambda r: nodes(r).__setitem__(2, call("torch.ops.aten.mm.default", node("x"), node("x"))))
    request["plan"] = {"compileRanges": {"ranges": [{"start": "9", "end": "16"}]}}
    ready, failed, summary = results(client.compile(request))
    assert not ready and summary.n_failed == 1
    assert failed[0].reason in ("COMPILE_ERROR", "UNPROVEN_RANGE"), failed[0]
    assert not failed[0].retryable
    assert failed[0].message


def test_after_all_that_it_compiles(client: Client) -> None:
    ready, failed, summary = results(client.compile(small_request(1000)))
    assert (len(ready), len(failed), summary.n_compiled) == (1, 0, 1), failed
    digest, size = ready[0].handle.digest, ready[0].handle.size_bytes
    with pytest.raises(grpc.RpcError) as caught:
        list(client.fetch(digest, size + 1))
    assert caught.value.code() == grpc.StatusCode.OUT_OF_RANGE
