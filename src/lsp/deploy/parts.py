"""What of a model's size is its vocabulary, its encoder, its head, its tokenizer: parameters, and bytes on disk."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lsp.arrays import count, stored_bytes
from lsp.checkpoint import Checkpoint
from lsp.data.published import Published
from lsp.manifest import bytes_under

PARTS = {"embeddings": "embeddings", "layers": "encoder", "norm": "encoder"}  # what else there is belongs to the head


class Part(NamedTuple):
    part: str
    parameters: int
    bytes: int


def of_run(base: Checkpoint) -> list[Part]:
    """Embeddings, encoder, head and tokenizer. The bytes are those on disk, so that they add up to the run's `bytes`;
    the store keeps all arrays together, and each part has a share of it as large as its arrays are."""
    trees: dict[str, dict[str, object]] = {"embeddings": {}, "encoder": {}, "head": {}}
    for name, tree in base.params.items():
        trees[PARTS.get(name, "head")][name] = tree
    shares = [stored_bytes(tree) for tree in trees.values()]
    sizes = shared_out(bytes_under(base.path / "params"), shares)
    parts = [Part(part, count(tree), size) for (part, tree), size in zip(trees.items(), sizes, strict=True)]
    return [*parts, Part("tokenizer", 0, bytes_under(base.path / "tokenizer"))]


def of_export(folder: Path) -> list[Part]:
    """The model's file, what else is written beside it, and the tokenizer; they add up to the export's `bytes`."""
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    own = folder / "tokenizer"  # ONNX has its file beside the model's
    tokenizer = bytes_under(own) if own.is_dir() else (folder / Published.file).stat().st_size
    return [Part("model", result["parameters"], result["bytes"] - tokenizer), Part("tokenizer", 0, tokenizer)]


def shared_out(total: int, shares: list[int]) -> list[int]:
    """`total` cut in whole numbers that are to each other as the shares are."""
    ends = np.round(np.cumsum(shares) / max(1, sum(shares)) * total).astype(np.int64)
    return np.diff(ends, prepend=0).tolist()
