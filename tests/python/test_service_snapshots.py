"""Snapshots through a real daemon: kept, fetched, refused."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

import piecewised
import pytest
from service_harness import Daemon

TOOLCHAIN = hashlib.sha256(b"toolchain").hexdigest()


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with Daemon(tmp_path, "--listen-tcp", "127.0.0.1:0", "--max-artifact-bytes", str(2 << 20)) as daemon:
        yield daemon


def content(seed: int, n_bytes: int = 1_000_001) -> bytes:
    block = hashlib.sha256(str(seed).encode()).digest()
    return (block * (n_bytes // len(block) + 1))[:n_bytes]


def test_what_was_put_is_there_after_a_kill(daemon: Daemon) -> None:
    client = piecewised.Client(daemon.endpoint)
    assert client.fetch_snapshot("vllm", "aot", TOOLCHAIN) is None
    client.put_snapshot("vllm", "aot", TOOLCHAIN, content(1))
    client.put_snapshot("vllm", "aot", TOOLCHAIN, content(2))
    client.put_snapshot("vllm", "empty", TOOLCHAIN, b"")
    daemon.kill()
    with daemon:
        client = piecewised.Client(daemon.endpoint)
        assert client.fetch_snapshot("vllm", "aot", TOOLCHAIN) == content(2)
        assert client.fetch_snapshot("vllm", "empty", TOOLCHAIN) == b""
        assert client.fetch_snapshot("vllm", "aot", TOOLCHAIN[:-1]) is None
        assert client.fetch_snapshot("other", "aot", TOOLCHAIN) is None


def test_only_trusted_peers_put_and_all_fetch(daemon: Daemon) -> None:
    address = re.search(r"listening on (http://\S+)", daemon.log_text())
    assert address is not None
    key = json.loads(piecewised.Client(daemon.endpoint).status())["public_key"]
    stranger = piecewised.Client(address[1], trusted_keys=key)
    with pytest.raises(piecewised.PiecewisedError) as refused:
        stranger.put_snapshot("vllm", "aot", TOOLCHAIN, content(1))
    assert refused.value.reason == "FRONTEND_NOT_TRUSTED"
    piecewised.Client(daemon.endpoint).put_snapshot("vllm", "aot", TOOLCHAIN, content(3))
    assert stranger.fetch_snapshot("vllm", "aot", TOOLCHAIN) == content(3)
    # Over TCP nobody's key is taken by itself.
    with pytest.raises(piecewised.Untrusted, match="over TCP"):
        piecewised.Client(address[1]).fetch_snapshot("vllm", "aot", TOOLCHAIN)


def test_what_is_too_large_or_has_no_name_is_refused(daemon: Daemon) -> None:
    client = piecewised.Client(daemon.endpoint)
    with pytest.raises(piecewised.PiecewisedError) as refused:
        client.put_snapshot("vllm", "aot", TOOLCHAIN, content(1, (2 << 20) + 1))
    assert refused.value.reason == "SNAPSHOT_TOO_LARGE" and "max_artifact_bytes" in str(refused.value)
    client.put_snapshot("vllm", "aot", TOOLCHAIN, content(1, 2 << 20))
    for frontend, name, toolchain in (("", "n", "f"), ("f", "", "f"), ("f", "a\nb", "f"), ("f", "n", "")):
        with pytest.raises(ValueError, match="snapshot's name is not usable"):
            client.fetch_snapshot(frontend, name, toolchain)


def test_a_damaged_one_is_absent(daemon: Daemon) -> None:
    client = piecewised.Client(daemon.endpoint)
    client.put_snapshot("vllm", "aot", TOOLCHAIN, content(1))
    (path,) = (path for path in (daemon.folder / "store/artifacts").rglob("*") if path.is_file())
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    assert client.fetch_snapshot("vllm", "aot", TOOLCHAIN) is None
    client.put_snapshot("vllm", "aot", TOOLCHAIN, content(1))
    assert client.fetch_snapshot("vllm", "aot", TOOLCHAIN) == content(1)
