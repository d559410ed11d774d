"""What every worker of these tests imports, imported once: workers are forked from a process that has done so."""

import vllm
import vllm._C_stable_libtorch
import vllm.compilation.backends
import vllm.compilation.decorators
import vllm.config
import vllm.forward_context
import vllm.ir.ops  # noqa: F401
