"""The text that names everything which a piece's code depends on beside its graph: what is in the key."""

from __future__ import annotations

import json

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


def _is_identity(name: str) -> bool:
    # How Inductor's own cache would know passes; here there is none.
    return name != "_cache_config_ignore_prefix"
