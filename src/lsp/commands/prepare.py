"""`lsp prepare`: raw text to a tokenizer and packed rows of tokens."""

import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lsp import LspError, directory, manifest
from lsp import recipe as recipes
from lsp.data import parts, shards, text
from lsp.data.tokenizer import Tokenizer


def run(
    paths: Sequence[str],
    out: Path,
    recipe: recipes.Prepare,
    tokenizer: Path | None,
    overwrite: bool,
    progress: Any,
    part: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """Packs the text of `paths` into `out` and returns the result. Training data for `lsp pretrain --data`.

    With `part` = (k, n) it makes the k-th of n shares of the work, beside other processes, and leaves the end of it to
    a call without.
    """
    with text.spooled(paths, out) as readable:
        if part and readable != list(paths):
            raise LspError("--part can't share out text that is piped in.", hint="Write the text to a file first.")
        if shards.prepared(readable):
            raise LspError(
                f"{paths[0]} is prepared already.", hint=f"Train on it: lsp pretrain --data {paths[0]} --out RUN"
            )
        inputs = {"text": text.digest(readable)}
        if tokenizer is not None:
            words = Tokenizer.load(tokenizer)
            inputs["tokenizer"] = words.hash
            recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, vocab_size=words.size))
        with directory.claim(
            out,
            command="prepare",
            recipe=recipes.dump(recipe),
            inputs=inputs,
            overwrite=overwrite,
            shared=part is not None,
        ) as held:
            if held.complete:
                return held.result()
            packed_before = (out / "rows").is_dir()  # by a process that was killed before it could say so
            began = time.perf_counter()
            counts = parts.prepare(readable, out, recipe.data, tokenizer, recipe.seed, progress, part)
            seconds = time.perf_counter() - began
            first = {"command": "prepare", "out": str(out)}
            first["status"] = f"part {part[0]} of {part[1]} complete" if part else "complete"
            speed = 0.0 if packed_before else round(counts.bytes_in / 1e6 / seconds, 3)
            result = first | {"seconds": round(seconds, 3)} | _counted(counts) | {"megabytes_per_second": speed}
            if part is not None:
                return result
            result |= _made(out, recipe.data)
            manifest.write_atomically(out / "result.json", json.dumps(result, indent=1) + "\n")
            made = {"stage": "prepare", "tokenizer": Tokenizer.load(out).hash, "inputs": inputs}
            manifest.seal(out, made | dataclasses.asdict(counts))
            return result


def _counted(counts: shards.Counts) -> dict[str, Any]:
    """What a result says of documents, rows and tokens."""
    return {
        "documents": counts.documents,
        "duplicates": counts.duplicates,
        "rows": counts.rows,
        "tokens": counts.tokens,
        "useful_tokens": counts.useful_tokens,
        "padding_share": round(counts.padding_share, 4),
    }


def _made(out: Path, data: recipes.Text) -> dict[str, Any]:
    """What a result says of the whole directory: its bytes, and whose rows they are."""
    made: dict[str, Any] = {"bytes": manifest.bytes_under(out / "rows") + manifest.bytes_under(out / "tokenizer")}
    sources = shards.Rows.open(out).sources
    if data.client_field:
        rows = [source["rows"] for source in sources]
        made["clients"] = {"count": len(rows), "fewest_rows": min(rows), "most_rows": max(rows)}
    elif sources:
        made["sources"] = sources
    return made
