"""Names from callers, in every place that takes one: none of them is a path, and none writes a line of the log."""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import piecewised
import pytest
from service_harness import Client, Daemon, int_arg, node, results, small_request

ADMIN = "piecewised.v1.AdminService"
TOOLCHAIN = hashlib.sha256(b"toolchain").hexdigest()

# Each would be a line of its own, or write over one, where it went into a log or a terminal as it is.
INJECTED = "FORGED"
LINES = [
    f"x\n{INJECTED}  INFO audit: evicted by root",
    f"x\r{INJECTED}",
    f"x\x1b[2J\x1b[1;1H{INJECTED}",
    f"x\u2028{INJECTED}\x85y",
]


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    folder = tmp_path_factory.mktemp("hostile") / "daemon"
    folder.mkdir()
    with Daemon(
        folder,
        "--listen-http",
        "127.0.0.1:0",
        "--listen-tcp",
        "127.0.0.1:0",
        "--verify",
        "off",
        "--log",
        "info,piecewised_api=debug",
    ) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def client(daemon: Daemon) -> Iterator[Client]:
    with Client(daemon.endpoint) as client:
        yield client


def renamed(request: dict[str, Any], old: str, new: str) -> dict[str, Any]:
    """The request with another name wherever this one is."""
    return json.loads(json.dumps(request).replace(json.dumps(old), json.dumps(new)))


def fails(request: dict[str, Any], word: str) -> dict[str, Any]:
    """One whose compile fails with the caller's word in torch's message."""
    pads = {"list": {"items": [int_arg(1), int_arg(1)]}}
    args = [node("x"), pads, {"stringValue": word}]
    request["graph"]["nodes"][2]["callFunction"] = {"target": "torch.ops.aten.pad.default", "args": args}
    return request


def with_constant(name: str) -> dict[str, Any]:
    request = small_request(1)
    meta = {
        "dtype": "float32",
        "device": {"type": "cpu"},
        "layout": "strided",
        "sizes": [{"integer": "1"}],
        "strides": [{"integer": "1"}],
    }
    request["graph"]["constants"] = [{"name": name, "data": "AACAPw==", "meta": meta}]
    request["graph"]["nodes"].insert(2, {"name": "c", "getAttr": {"target": name}})
    request["graph"]["nodes"][3]["callFunction"]["args"][1] = node("c")
    return request


# What takes a name in a request for a compile.
PLACES: dict[str, Callable[[str], dict[str, Any]]] = {
    "node": lambda name: renamed(small_request(1), "y", name),
    "argument of a compile that fails": lambda name: fails(small_request(2), name),
    "symbol": lambda name: renamed(small_request(1), "s0", name),
    "constant": with_constant,
    "target": lambda name: renamed(small_request(1), "_operator.add", name),
    "label": lambda name: {**small_request(1), "label": name},
    "program": lambda name: {**small_request(1), "program": {"program": name, "run": "r", "index": 0, "nPieces": 1}},
    "run": lambda name: {**small_request(1), "program": {"program": "p", "run": name, "index": 0, "nPieces": 1}},
    "frontend": lambda name: {**small_request(1), "frontend": {"name": name, "version": "1", "identity": "e30="}},
    "frontend's version": lambda name: {
        **small_request(1),
        "frontend": {"name": "vllm", "version": name, "identity": "e30="},
    },
    "option": lambda name: {**small_request(1), "options": {"inductor": {name: {"boolValue": True}}}},
    "toolchain": lambda name: {**small_request(1), "toolchain": {"fingerprint": name, "torchVersion": name}},
    "device": lambda name: {**small_request(1), "device": {"type": name, "name": name, "capability": name}},
}


def send(client: Client, request: dict[str, Any]) -> None:
    """What becomes of it is another test's business; that it is answered is this one's."""
    try:
        results(client.compile(request))
    except grpc.RpcError as error:
        assert error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN), (
            error
        )
        assert len((error.details() or "").split()) > 4, error


def ask(client: Client, method: str, **fields: Any) -> None:
    rpc = client.channel.unary_unary(f"/{ADMIN}/{method}", lambda it: it.SerializeToString(), lambda it: it)
    try:
        rpc(client.message(f"{method}Request", **fields), timeout=60)
    except grpc.RpcError as error:
        expected = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND)
        assert error.code() in expected, (method, fields, error)


def send_everywhere(client: Client, daemon: Daemon, name: str) -> None:
    for place in PLACES.values():
        send(client, place(name))
    client.report_fallbacks([{"reason": name, "nPieces": "1"}])
    client.capabilities(name)
    ask(client, "RemoveManifest", program=name)
    ask(client, "GetArtifact", key=name)
    ask(client, "ListArtifacts", pageToken=name)
    with pytest.raises(grpc.RpcError):
        client.manifest(name)
    own = piecewised.Client(daemon.endpoint)
    for names in ((name, "n", TOOLCHAIN), ("tests", name, TOOLCHAIN), ("tests", "n", name)):
        try:
            own.put_snapshot(*names, b"content")
            assert own.fetch_snapshot(*names) == b"content"
        except (ValueError, piecewised.PiecewisedError) as error:
            assert "not usable" in str(error) or "name" in str(error), error


@pytest.mark.parametrize("name", LINES, ids=["line", "return", "escape", "separator"])
def test_no_name_writes_a_line_of_the_log(daemon: Daemon, client: Client, name: str) -> None:
    send_everywhere(client, daemon, name)
    # Two peers that send different graphs under one label: where they differ is said by the node's name.
    (line,) = [
        line for line in daemon.log_text().split("\n") if line.startswith("listening on http://") and line[-1] != "/"
    ]
    with Client(line.removeprefix("listening on ")) as other:
        for peer, constant in ((client, 7), (other, 8)):
            send(peer, {**renamed(small_request(constant), "y", name), "label": f"compared/{LINES.index(name)}"})
    # As bytes, since some of what ends a line to a person's program is more than one.
    log = daemon.log.read_bytes()
    lines = log.decode().split("\n")
    assert not [line for line in lines if line.lstrip().startswith(INJECTED)]
    said = [line for line in lines if INJECTED in line]
    # Of a message with several lines it is the first that is logged.
    for words, where in (
        ("refused: ", said),
        ("is not the same as the other's", said),
        ("Unrecognised padding", lines),
    ):
        assert any(words in line for line in where), f"nothing was put to the test of {words!r}"
    assert not any(c in log.decode() for c in "\r\x1b\x07\x85\u2028")
    for line in filter(None, lines):
        assert line.startswith(("20", "listening on ")), f"every line begins as the daemon's lines do: {line!r}"


def everything(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


@pytest.mark.parametrize(
    "name",
    [
        "../escaped",
        "../../escaped",
        "/tmp/piecewised-escaped",
        "..",
        ".",
        "a/../../../escaped",
        "a\0/../escaped",
        "..\\escaped",
        "%2e%2e/escaped",
        "~/escaped",
        "C:escaped",
        "$HOME/escaped",
        "n" * 5000,
    ],
    ids=lambda name: name[:20].replace("\0", "NUL"),
)
def test_no_name_is_a_path(daemon: Daemon, client: Client, name: str) -> None:
    around = daemon.folder.parent
    outside = {path for path in everything(around) if daemon.folder not in path.parents}
    send_everywhere(client, daemon, name)
    assert {path for path in everything(around) if daemon.folder not in path.parents} == outside
    assert not [path for path in everything(daemon.folder) if "escaped" in path.name]
    assert not Path("/tmp/piecewised-escaped").exists() and not (Path.home() / "escaped").exists()
    # What it wrote has names of its own making.
    assert len(results(client.compile(small_request(1)))[0]) == 1


def test_no_address_of_the_http_port_is_a_path(daemon: Daemon) -> None:
    (line,) = [
        line for line in daemon.log_text().splitlines() if line.startswith("listening on http://") and line[-1] == "/"
    ]
    host, _, port = line.removeprefix("listening on http://").strip("/").partition(":")
    for path in (
        "/../../../../etc/passwd",
        "/..%2f..%2f..%2fetc%2fpasswd",
        "//etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/api/v1/../../../etc/passwd",
        "/api/v1/artifacts/../../../../etc/passwd",
        "/healthz%00/etc/passwd",
        "/\\..\\etc\\passwd",
    ):
        with socket.create_connection((host, int(port)), timeout=60) as stream:
            stream.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
            answer = b""
            while part := stream.recv(65536):
                answer += part
        assert answer.split()[1] in (b"400", b"404") and b"root:" not in answer, (path, answer)
