"""`lsp prepare`: raw text to a tokenizer and packed rows of tokens."""

import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lsp import directory, manifest
from lsp import recipe as recipes
from lsp.data import shards, text
from lsp.data.tokenizer import Tokenizer


def run(
    paths: Sequence[str], out: Path, recipe: recipes.Prepare, tokenizer: Path | None, overwrite: bool, progress: Any
) -> dict[str, Any]:
    """Packs the text of `paths` into `out` and returns the result. Training data for `lsp pretrain --data`."""
    with text.spooled(paths, out) as readable:
        inputs = {"text": text.digest(readable)}
        if tokenizer is not None:
            words = Tokenizer.load(tokenizer)
            inputs["tokenizer"] = words.hash
            recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, vocab_size=words.size))
        dumped = recipes.dump(recipe)
        with directory.claim(out, command="prepare", recipe=dumped, inputs=inputs, overwrite=overwrite) as held:
            if held.complete:
                return held.result()
            packed_before = (out / "rows").is_dir()  # by a process that was killed before it could say so
            began = time.perf_counter()
            counts = shards.prepare(readable, out, recipe.data, tokenizer, recipe.seed, progress)
            seconds = time.perf_counter() - began
            result = {
                "command": "prepare",
                "out": str(out),
                "status": "complete",
                "seconds": round(seconds, 3),
                "documents": counts.documents,
                "rows": counts.rows,
                "tokens": counts.tokens,
                "useful_tokens": counts.useful_tokens,
                "padding_share": round(counts.padding_share, 4),
                "bytes": manifest.bytes_under(out / "rows") + manifest.bytes_under(out / "tokenizer"),
                "megabytes_per_second": 0.0 if packed_before else round(counts.bytes_in / 1e6 / seconds, 3),
            }
            manifest.write_atomically(out / "result.json", json.dumps(result, indent=1) + "\n")
            made = {"stage": "prepare", "tokenizer": Tokenizer.load(out).hash, "inputs": inputs}
            manifest.seal(out, made | dataclasses.asdict(counts))
            return result
