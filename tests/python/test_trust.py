"""What a worker does about a daemon whose key it does not trust: nothing of it is loaded, and the model runs all the same."""

from __future__ import annotations

import warnings
from pathlib import Path

import piecewised
import pytest
import torch
from conftest import Daemon

OTHER = "ed25519:" + "ab" * 32


def run(daemon: Daemon, **options: object) -> torch.Tensor:
    torch._dynamo.reset()
    plan = {"compile_ranges": [[2, 16]], "endpoint": daemon.endpoint, **options}
    model = torch.compile(lambda x: torch.relu(x) * 3, backend="piecewised", options=plan)
    x = torch.ones(5, 8)
    torch._dynamo.mark_dynamic(x, 0)
    with torch.inference_mode():
        return model(x)


def test_a_daemon_with_another_key_is_not_believed(
    daemon: Daemon, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIECEWISED_TRUSTED_KEYS", OTHER)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert run(daemon).eq(3).all()
    words = [str(warning.message) for warning in said if issubclass(warning.category, piecewised.PiecewisedWarning)]
    assert any("none of the keys that are trusted" in text for text in words), words
    assert not any((cache_dir / "artifacts").glob("*")), "nothing was fetched"

    monkeypatch.setenv("PIECEWISED_TRUSTED_KEYS", daemon.public_key())
    assert run(daemon, on_error="raise").eq(3).all()
    assert any((cache_dir / "artifacts").iterdir())
    assert not (cache_dir / "known_daemons").exists()


def test_the_key_of_a_first_use_is_remembered(daemon: Daemon, cache_dir: Path) -> None:
    assert run(daemon, on_error="raise").eq(3).all()
    known = cache_dir / "known_daemons"
    line = f"{daemon.public_key()} {daemon.endpoint}\n"
    assert known.read_text().endswith(line) and known.stat().st_mode & 0o777 == 0o600


def test_keys_that_are_none_are_the_callers_mistake() -> None:
    for keys in ("ed25519:1", "/nonexistent/keys"):
        with pytest.raises(piecewised.OptionError, match="PIECEWISED_TRUSTED_KEYS") as raised:
            piecewised.Client("unix:/nonexistent", trusted_keys=keys)
        assert raised.value.reason == "BAD_TRUSTED_KEYS"
