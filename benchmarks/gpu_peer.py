"""transformers on the card of benchmarks/gpu.py: training steps and answers of BERT-base and ModernBERT-base, bf16.

    python benchmarks/gpu_peer.py --models base,modern-base --lengths 128,512,1024

The same shapes, rows and tokens a step: rows without padding, `BertForMaskedLM` or `ModernBertForMaskedLM` with
PyTorch's scaled_dot_product_attention, autocast to bf16, 15 or 30 % of the positions as targets, fused AdamW, clipping
at 1. Eager, and with --compile through torch.compile too. Then the forward pass of a classifier whose weights are bf16.
Prints one JSON object a line. Needs torch and transformers, not lsp.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import transformers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    ModernBertConfig,
    ModernBertForMaskedLM,
)

REPEATS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="base,modern-base")
    parser.add_argument("--lengths", default="128,512,1024", help="tokens a row, with commas")
    parser.add_argument("--tokens", type=int, default=65_536, help="tokens a step")
    parser.add_argument("--only", default="steps,forward")
    parser.add_argument("--compile", action="store_true", help="with torch.compile too")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("there is no NVIDIA card here")
    transformers.logging.set_verbosity_error()
    torch.backends.cuda.matmul.allow_tf32 = True
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    print(json.dumps({"device": torch.cuda.get_device_name()} | versions), flush=True)
    lengths, ways = list(map(int, args.lengths.split(","))), (False, True) if args.compile else (False,)
    for model in args.models.split(",") if "steps" in args.only else ():
        for length in lengths:
            for compiled in ways:
                print(json.dumps(training(model, length, args.tokens, compiled)), flush=True)
    for length in lengths if "forward" in args.only else ():
        for rows in (32, 256):
            for compiled in ways:
                print(json.dumps(answers(length, rows, compiled)), flush=True)


def config(model: str, length: int) -> Any:
    shape = {"hidden_size": 768, "num_attention_heads": 12, "max_position_embeddings": max(512, length)}
    if model == "base":
        return BertConfig(vocab_size=32_768, attention_probs_dropout_prob=0.0, **shape)  # as ours
    return ModernBertConfig(vocab_size=50_368, num_hidden_layers=22, intermediate_size=1_152, **shape)


def training(name: str, length: int, tokens: int, compiled: bool) -> dict[str, Any]:
    torch.manual_seed(0)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    about, kind = config(name, length), BertForMaskedLM if name == "base" else ModernBertForMaskedLM
    model = kind._from_config(about, attn_implementation="sdpa").cuda().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    rows = tokens // length
    ids = torch.randint(5, about.vocab_size, (rows, length), device="cuda")
    targets = torch.where(torch.rand(rows, length, device="cuda") < (0.15 if name == "base" else 0.3), ids, -100)
    mask = torch.ones_like(ids)
    run = torch.compile(model) if compiled else model

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            loss = run(input_ids=ids, attention_mask=mask, labels=targets).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    seconds = timed(step)
    return {
        "model": name,
        "length": length,
        "rows": rows,
        "compiled": compiled,
        "best_ms": round(1000 * min(seconds), 2),
        "median_ms": round(1000 * statistics.median(seconds), 2),
        "tokens_per_second": round(tokens / statistics.median(seconds)),
        "peak_memory_gb": round(torch.cuda.max_memory_allocated() / 1e9, 3),
    }


@torch.inference_mode()
def answers(length: int, rows: int, compiled: bool) -> dict[str, Any]:
    about = config("base", length)
    model = BertForSequenceClassification._from_config(about, attn_implementation="sdpa").cuda().bfloat16().eval()
    ids = torch.randint(5, about.vocab_size, (rows, length), device="cuda")
    mask = torch.ones_like(ids)
    run = torch.compile(model) if compiled else model
    seconds = timed(lambda: run(input_ids=ids, attention_mask=mask).logits)
    rate = round(rows / statistics.median(seconds))
    return {"model": "base, forward", "rows": rows, "length": length, "compiled": compiled, "examples_per_second": rate}


def timed(run: Callable[[], Any]) -> list[float]:
    """Seconds of each of the repeats, after three that are not counted."""
    for _ in range(3):
        run()
    torch.cuda.synchronize()
    seconds = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        run()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return seconds


if __name__ == "__main__":
    main()
