"""From a program's manifest to what can be called: no graph, no Dynamo, no compile.

A manifest comes from a daemon by the program's name, or from a file that :func:`save_manifest` wrote. It names artifacts by
digest; those are taken from the cache folder, and from the daemon where they aren't there.

The file is text: a line with the checksum, and the manifest as JSON.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import _core, credentials
from .connections import connect
from .errors import FormatError
from .loading import Compiled, check_fits, fetch_and_load, load_folder
from .piecewise_backend import PiecewiseBackend
from .plan import ANY_SIZE, entry_name

_FIRST_LINE = "piecewised manifest 1 "

Manifest = dict[str, Any]


def load(
    manifest: str | bytes | os.PathLike[str] | Mapping[str, Any],
    *,
    endpoint: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    **plan: Any,
) -> list[PiecewiseBackend]:
    """The pieces of a finished program, in order, ready to be called.

    ``manifest``: a program's name at the daemon (a str), a file of :func:`save_manifest` (a Path) or its content (bytes), or
    the manifest itself (a dict). The options of a plan, where given, name the entries that have to be there; by default each
    piece has those that it was compiled for.

    Raises ArtifactError for what was made by another toolchain or for another device, and where a range is missing;
    Untrusted for what no trusted daemon has signed; FormatError for a file that is damaged; Refused where the daemon has no such program.
    """
    found = get_manifest(manifest, endpoint=endpoint, cache_dir=cache_dir)
    check_fits(f"program {found['program']}", found["toolchain"], found["devices"])
    cache = _core.Cache(cache_dir, **credentials.of_cache())
    pieces = found["pieces"]
    return [
        PiecewiseBackend(
            compiled_runnables={
                entry_name(tuple(entry)): _compiled(handle, cache, endpoint, cache_dir)
                for entry, handle in zip(piece["entries"] or [ANY_SIZE], piece["handles"], strict=True)
            },
            piece_index=piece["index"],
            n_pieces=len(pieces),
            cache_dir=cache_dir,
            # A piece without sizes has one entry whatever the plan.
            **(plan if piece["entries"] else {}),
        )
        for piece in pieces
    ]


def get_manifest(
    manifest: str | bytes | os.PathLike[str] | Mapping[str, Any],
    *,
    endpoint: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Manifest:
    """The manifest as a dict: the fields of ``piecewised.v1.Manifest``. Arguments and errors are those of :func:`load`."""
    if isinstance(manifest, str):
        # Before there is a connection: a path, which is no name, is the caller's mistake.
        _core.check_program_name(manifest)
        text, _ = connect(endpoint, cache_dir=cache_dir).manifest(manifest)
        return json.loads(text)  # type: ignore[no-any-return]
    if isinstance(manifest, Mapping):
        found = dict(manifest)
        _core.check_manifest(json.dumps(found), cache_dir, **credentials.of_cache())
        return found
    content = manifest if isinstance(manifest, bytes) else Path(manifest).read_bytes()
    return _parse(content, cache_dir)


def save_manifest(
    manifest: str | Mapping[str, Any], path: str | os.PathLike[str], *, endpoint: str | None = None
) -> None:
    """Writes a manifest, or that of the program of this name at the daemon, to a file for :func:`load`."""
    text = json.dumps(get_manifest(manifest, endpoint=endpoint), indent=1)
    path = Path(path)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_text(f"{_FIRST_LINE}{hashlib.sha256(text.encode()).hexdigest()}\n{text}")
    scratch.replace(path)


def _parse(content: bytes, cache_dir: str | os.PathLike[str] | None) -> Manifest:
    def bad(problem: str) -> FormatError:
        return FormatError(f"these bytes are not a manifest that can be used: {problem}", reason="BAD_MANIFEST")

    first, _, text = content.partition(b"\n")
    if not first.startswith(_FIRST_LINE.encode()):
        raise bad("they don't begin as save_manifest writes them")
    if first[len(_FIRST_LINE) :].decode(errors="replace") != hashlib.sha256(text).hexdigest():
        raise bad("their checksum is not right: they were cut off or altered")
    found: Manifest = json.loads(text)
    _core.check_manifest(json.dumps(found), cache_dir, **credentials.of_cache())
    return found


def _compiled(
    handle: dict[str, Any], cache: _core.Cache, endpoint: str | None, cache_dir: str | os.PathLike[str] | None
) -> Compiled:
    folder = cache.find(json.dumps(handle))
    if folder is not None:
        return load_folder(handle, folder)
    compiled, _ = fetch_and_load(connect(endpoint, cache_dir=cache_dir), handle, "store")
    return compiled
