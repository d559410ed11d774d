"""Whom this process trusts, and what it shows daemons: for the connections that it makes from now on, in place of the environment's."""

from __future__ import annotations

import os
from typing import Any

_NAMES = ("trusted_keys", "ca", "cert", "key", "token")

_given: dict[str, str] = {}


def configure(
    *,
    trusted_keys: str | os.PathLike[str] | None = None,
    ca: str | os.PathLike[str] | None = None,
    cert: str | os.PathLike[str] | None = None,
    key: str | os.PathLike[str] | None = None,
    token: str | os.PathLike[str] | None = None,
) -> None:
    """Sets what every connection of this process uses, instead of the variable of the same name; None leaves that to the variable.

    ``trusted_keys`` (``PIECEWISED_TRUSTED_KEYS``): the public keys of the daemons whose code is loaded, as ``piecewised status`` has
    them, separated by commas, or a file of them. Without any, a daemon's key is taken when its Unix socket is used first.

    ``ca`` (``PIECEWISED_CA``): who signs daemons' certificates, needed for ``https://``; ``cert`` and ``key`` (``PIECEWISED_CERT``,
    ``PIECEWISED_KEY``): this client's own; all PEM files. ``token`` (``PIECEWISED_TOKEN``): a file with a bearer token in it.
    """
    given = {"trusted_keys": trusted_keys, "ca": ca, "cert": cert, "key": key, "token": token}
    _given.clear()
    _given.update({name: os.fspath(value) for name, value in given.items() if value is not None})


def of_client() -> dict[str, str]:
    """What a connection is made with."""
    return dict(_given)


def of_cache() -> dict[str, str]:
    """What decides which artifacts of the cache folder are loaded."""
    return {name: _given[name] for name in ("trusted_keys",) if name in _given}


def key() -> tuple[Any, ...]:
    """Changes with everything here that counts."""
    return tuple((_given.get(name), os.environ.get(f"PIECEWISED_{name.upper()}")) for name in _NAMES)
