"""What vLLM's compile of a piece depends on, beside the graph: made portable in a worker, made again in an executor.

A worker takes its configuration down as a :class:`~.setup.Setup`, which travels pickled; both sides configure vLLM's own passes from
it (:mod:`.passes`) with the same code, while everything that they read is noted (:mod:`.reads`), and :mod:`.identity` is the text that is in
the key. Needs vLLM; nothing else of `runtime` imports it.
"""

from __future__ import annotations

#: The one kind of object that vLLM's operators take and graphs have no form for: the name of a layer.
OPAQUE_TYPE = "vllm.utils.torch_utils.LayerName"
