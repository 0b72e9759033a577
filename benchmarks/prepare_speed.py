"""How fast text becomes packed rows on this machine.

    python benchmarks/prepare_speed.py CORPUS [--vocab-size 8192] [--seq-len 128] [--tokenizer unigram]

Prints one JSON object. CORPUS is what `lsp prepare` takes. It is read and decompressed first, so rates are of the
stage they name: MB is 10^6 bytes of UTF-8 text. Rates of encoding and packing are the best of three.
"""

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from lsp.data import packing, shards, text, tokenizer


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds and result."""
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


def best(work: Callable[[], Any], times: int = 3) -> float:
    return min(timed(work)[0] for _ in range(times))


def measure(paths: list[str], vocab_size: int, sequence_length: int, kind: str) -> dict[str, Any]:
    reading, documents = timed(lambda: list(text.documents(text.expand(paths))))
    megabytes = sum(len(document.encode()) for document in documents) / 1e6
    sampling, lines = timed(lambda: tokenizer.sample(documents, vocab_size, seed=0))
    training, words = timed(lambda: tokenizer.learn(lines, vocab_size=vocab_size, kind=kind, lowercase=False))

    chunks = list(packing.chunks(documents))
    tokenizing = best(lambda: [packing.encode(chunk, words) for chunk in chunks])
    encoded = [packing.encode(chunk, words) for chunk in chunks]

    def place() -> None:
        shelf = packing.Shelf(sequence_length)
        for chunk in encoded:
            shelf.add(chunk)

    placing = best(place)
    with tempfile.TemporaryDirectory() as folder:
        outs = [Path(folder, str(attempt)) for attempt in range(3)]
        attempts = [timed(partial(shards.pack, documents, words, out, sequence_length)) for out in outs]
    seconds, counts = min(attempts, key=lambda attempt: attempt[0])
    return {
        "command": "prepare_speed " + " ".join(sys.argv[1:]),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "megabytes": round(megabytes, 2),
        "documents": len(documents),
        "tokens": counts.useful_tokens,
        "read_megabytes_per_second": round(megabytes / reading, 2),
        "sample_seconds": round(sampling, 2),
        "tokenizer_seconds": round(training, 2),
        "tokenize_megabytes_per_second": round(megabytes / tokenizing, 2),
        "place_megabytes_per_second": round(megabytes / placing, 2),
        "tokenize_and_pack_megabytes_per_second": round(megabytes / seconds, 2),
        "padding_share": round(counts.padding_share, 4),
        "peak_memory_megabytes": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", nargs="+")
    parser.add_argument("--vocab-size", type=int, default=8192)
    parser.add_argument("--seq-len", type=int, default=128)
    parser.add_argument("--tokenizer", choices=("unigram", "bpe"), default="unigram")
    asked = parser.parse_args()
    print(json.dumps(measure(asked.corpus, asked.vocab_size, asked.seq_len, asked.tokenizer)))
