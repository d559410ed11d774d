"""The text that names everything which a piece's code depends on beside its graph: what is in the key."""

from __future__ import annotations

import json
from typing import Any

from .passes import Configured
from .reads import canonical
from .setup import Payload, vllm_version


def identity(configured: Configured, payload: Payload) -> bytes:
    """UTF-8 JSON. Raises NotPortable where something that the passes read has no form in which it could be compared."""
    from vllm.compilation.passes.inductor_pass import pass_context
    from vllm.config.utils import Range

    with configured.active(), pass_context(Range(*payload.range)):
        options = {
            name: canonical(value)
            for name, value in sorted(configured.options(payload.range).items())
            if _is_identity(name)
        }
    value = {
        "vllm": vllm_version(),
        "range": list(payload.range),
        "options": options,
        "reads": configured.reads.canonical(),
        "priorities": configured.setup.priorities,
        "torch_wrap": configured.setup.torch_wrap,
        # Where they lie differs from one installation to the next.
        "modules": {module.name: module.digest for module in payload.modules},
    }
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def difference(ours: bytes, theirs: bytes) -> str:
    """The first things in which two identities differ, for people; empty: they are equal."""
    if ours == theirs:
        return ""
    left, right = _flat(json.loads(ours)), _flat(json.loads(theirs))
    names = [name for name in sorted({*left, *right}) if left.get(name) != right.get(name)]
    shown = [f"{name}: {left.get(name, 'absent')!s:.100} and {right.get(name, 'absent')!s:.100}" for name in names[:4]]
    return "; ".join([*shown, *([f"{len(names) - 4} more"] if len(names) > 4 else [])])


def _is_identity(name: str) -> bool:
    # How Inductor's own cache would know passes; here there is none.
    return name != "_cache_config_ignore_prefix"


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        return {
            k: v for name, item in value.items() for k, v in _flat(item, f"{path}.{name}" if path else name).items()
        }
    return {path: value}
