"""What every worker of these tests imports and finds out, once: workers are forked from a process that has done so."""

import torch
import torch._dynamo
import torch._inductor.compile_fx
import torch._inductor.cpu_vec_isa
import torch._inductor.standalone_compile
import vllm
import vllm._C_stable_libtorch
import vllm.compilation.backends
import vllm.compilation.decorators
import vllm.config
import vllm.forward_context
import vllm.ir.ops  # noqa: F401

# Which instructions the CPU has: Inductor asks compilers and processes of its own.
torch._inductor.cpu_vec_isa.pick_vec_isa()
