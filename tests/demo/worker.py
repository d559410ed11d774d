"""One worker of the demo: a Llama with random weights, compiled through the daemon, compared with eager at several sizes.

Writes one JSON object to the file named by --out: what `piecewised.stats()` says, and the largest difference from eager at
each size.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import time

import piecewised
import torch
from transformers import LlamaConfig, LlamaForCausalLM

RANGES = [[1, 16], [17, 128], [129, 512]]
SIZES = [1, 4]
# Several in every range, both ends of each, and the exact sizes.
TRIED = [1, 2, 3, 4, 11, 16, 17, 50, 128, 129, 300, 512]


def build_model(device: str) -> LlamaForCausalLM:
    """A small Llama: 4 layers, grouped-query attention, the same random weights in every process."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        vocab_size=1024,
        max_position_embeddings=1024,
        use_cache=False,
    )
    return LlamaForCausalLM(config).eval().to(device)


def tokens(n_tokens: int, device: str) -> torch.Tensor:
    """Token ids, shape [1, n_tokens], the same for the same n_tokens."""
    generator = torch.Generator().manual_seed(n_tokens)
    return torch.randint(0, 1024, (1, n_tokens), generator=generator).to(device)


def main() -> None:
    """Compiles, calls every size, compares, reports."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--endpoint", required=True)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()

    model = build_model(args.device)
    compiled = torch.compile(
        model,
        backend="piecewised",
        fullgraph=True,
        options={
            "compile_ranges": RANGES,
            "compile_sizes": SIZES,
            "endpoint": args.endpoint,
            "on_error": "raise",
            # One capture serves every size, as in vLLM: the daemon's plan says which code runs for which size, so Dynamo's
            # own guards (which would capture size 1 again) are not wanted.
            "guard_filter_fn": torch.compiler.skip_all_guards_unsafe,
        },
    )
    differences = {}
    with torch.inference_mode():
        first = tokens(64, args.device)
        # The token count is the dynamic dimension.
        torch._dynamo.mark_dynamic(first, 1)
        started = time.perf_counter()
        compiled(first)
        ready_s = time.perf_counter() - started
        for n_tokens in TRIED:
            ids = tokens(n_tokens, args.device)
            expected, actual = model(ids).logits, compiled(ids).logits
            differences[n_tokens] = (actual - expected).abs().max().item()
    report = {
        "ready_s": ready_s,
        "stats": piecewised.stats(),
        "differences": differences,
        "n_captures": torch._dynamo.utils.counters["stats"]["unique_graphs"],
    }
    args.out.write_text(json.dumps(report))


if __name__ == "__main__":
    main()
