"""`piecewised store`: what a node has compiled is checked, exported, and served by another daemon that never compiled it."""

from __future__ import annotations

import json
import pathlib
import subprocess
from collections.abc import Iterator

import pytest
from service_harness import DAEMON, Client, Daemon, results, small_request


def store(*arguments: str | pathlib.Path) -> subprocess.CompletedProcess[str]:
    """Runs a command of `piecewised store` to its end."""
    return subprocess.run([DAEMON, "store", *arguments], capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[pathlib.Path, bytes]]:
    """The store of a daemon that compiled something and has ended, and the artifact."""
    daemon = Daemon(tmp_path_factory.mktemp("node"))
    with daemon, Client(daemon.endpoint) as client:
        ready, failed, summary = results(client.compile(small_request(constant=7)))
        assert not failed and summary.n_compiled == 1
        artifact = b"".join(chunk.data for chunk in client.fetch(ready[0].handle.digest))
        locked = store("check", "--store-dir", daemon.folder / "store")
        assert locked.returncode == 4
        assert f"process {daemon.process.pid} " in locked.stderr and " serve --socket " in locked.stderr, locked.stderr
        assert "while no daemon has it open" in locked.stderr
    yield daemon.folder / "store", artifact


def test_another_node_serves_what_it_imported(node: tuple[pathlib.Path, bytes], tmp_path: pathlib.Path) -> None:
    """Without one compile, and the same file is made from it again."""
    path, artifact = node
    files = [tmp_path / "first.tar", tmp_path / "second.tar"]
    exported = store("export", files[0], "--store-dir", path)
    assert exported.returncode == 0 and exported.stdout.startswith(f"{files[0]}: 1 artifacts"), exported
    other = Daemon(tmp_path)
    taken = store("import", files[0], "--store-dir", tmp_path / "store", "--json")
    assert taken.returncode == 0, taken
    report = json.loads(taken.stdout)
    assert (report["n_handles"], report["n_artifacts"], report["n_problems"]) == (1, 1, 0)
    with other, Client(other.endpoint) as client:
        ready, failed, summary = results(client.compile(small_request(constant=7)))
        assert not failed and (summary.n_compiled, summary.n_from_store) == (0, 1)
        assert b"".join(chunk.data for chunk in client.fetch(ready[0].handle.digest)) == artifact
    assert store("export", files[1], "--store-dir", tmp_path / "store").returncode == 0
    assert files[0].read_bytes() == files[1].read_bytes()


def test_damage_has_an_exit_code_and_words(node: tuple[pathlib.Path, bytes], tmp_path: pathlib.Path) -> None:
    """Found without being changed, then repaired; a file that was cut short imports nothing wrong."""
    file, copy = tmp_path / "export.tar", tmp_path / "copy"
    assert store("export", file, "--store-dir", node[0]).returncode == 0
    assert store("import", file, "--store-dir", copy).returncode == 0
    clean = store("check", "--store-dir", copy)
    assert clean.returncode == 0 and clean.stdout.endswith("nothing is wrong\n"), clean

    (artifact,) = (copy / "artifacts").glob("*/*")
    content = bytearray(artifact.read_bytes())
    content[500] ^= 1
    artifact.write_bytes(content)
    for _ in range(2):
        found = store("check", "--store-dir", copy, "--json")
        assert found.returncode == 5
        (problem,) = json.loads(found.stdout)["problems"]
        assert problem["kind"] == "artifact" and problem["what"].endswith(artifact.name)
    repaired = store("check", "--repair", "--store-dir", copy)
    assert repaired.returncode == 0 and "1 problems were repaired" in repaired.stdout, repaired
    assert not artifact.exists()

    file.write_bytes(file.read_bytes()[:-4000])
    cut = store("import", file, "--store-dir", copy)
    assert cut.returncode == 5 and "entries of the file were not taken" in cut.stdout, cut
    assert store("check", "--store-dir", copy).returncode == 0


def test_what_cannot_be_used_is_said(tmp_path: pathlib.Path) -> None:
    """No store, no export, no file."""
    absent = store("check", "--store-dir", tmp_path / "nowhere")
    assert absent.returncode == 1 and "there is no store at" in absent.stderr
    assert store("export", tmp_path / "x.tar", "--store-dir", tmp_path / "nowhere").returncode == 1
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "text").write_text("hello")
    foreign = store("import", tmp_path / "text", "--store-dir", tmp_path / "new")
    assert foreign.returncode == 1 and "not an export of a piecewised store" in foreign.stderr, foreign
    assert store("repair").returncode == 2
