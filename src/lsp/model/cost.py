"""What a model costs: parameters, floating-point operations and bytes, counted from its shapes."""

import math
from typing import Any

import jax
import numpy as np

from lsp.model.config import ModelConfig
from lsp.model.encoder import shapes


def parameters(config: ModelConfig) -> int:
    """Number of trained values, heads included."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes(config)))


def by_part(config: ModelConfig) -> dict[str, int]:
    """Parameters of each top-level part: embeddings, layers, norm, head."""
    return {part: sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree)) for part, tree in shapes(config).items()}


def attention_flops(config: ModelConfig, lengths: Any) -> int:
    """FLOPs of all scores and of what they weigh, for texts of `lengths` [N] tokens that see their `window`."""
    lengths = np.asarray(lengths, np.int64)
    products = 0
    for layer in config.layers if config.preset != "bilstm" else ():
        reach = np.minimum(lengths - 1, layer.window) if layer.window else np.maximum(lengths - 1, 0)
        pairs = lengths * (2 * reach + 1) - reach * (reach + 1)  # less what would lie outside of the text
        products += 2 * int(pairs.sum()) * layer.heads * layer.head_size
    return 2 * products


def forward_flops(config: ModelConfig, lengths: Any, slots: int = 0, rows: int = 1) -> int:
    """FLOPs of texts of `lengths` [N] tokens in `rows` rows: two for each multiply-add of every matrix product.

    `slots` tokens go through the vocabulary. Norms, softmax and activations are left out, as is usual. A training step
    costs three times this.
    """
    tokens, products = int(np.sum(lengths)), 0
    for number, layer in enumerate(config.layers):
        inner = layer.heads * layer.head_size
        if config.preset == "bilstm":  # four gates, from below and from the neighbour
            products += tokens * 4 * inner * (config.width + layer.head_size)
            continue
        feedforward = 2 if config.preset == "bert" else 3
        first = config.head == "classes" and config.pooling == "cls" and number == len(config.layers) - 1
        asked = rows if first else tokens  # the last layer of a classifier that reads one token makes no other
        products += config.width * (tokens * 3 * inner + asked * (inner + feedforward * layer.feedforward))
    if config.head == "words":
        products += slots * config.width * (config.width + config.vocab_size)
    if config.classes:
        products += rows * config.width * (config.width + config.classes)
    return 2 * products + attention_flops(config, lengths)


def needed_flops(config: ModelConfig, batch: dict[str, np.ndarray]) -> int:
    """FLOPs of a forward pass that answer something: none on padding, between texts that share a row, at a slot that is
    not used, in a row that fills a batch."""
    segments = batch["segments"].reshape(-1, batch["segments"].shape[-1]).astype(np.int64)
    numbers = segments + (1 + segments.max()) * np.arange(len(segments))[:, None]
    lengths = np.bincount(numbers[segments > 0])
    used = int(np.count_nonzero(batch["weights"]))
    slots, rows = (used, len(batch["tokens"])) if "slots" in batch else (0, used)
    return forward_flops(config, lengths[lengths > 0], slots, rows)


def training_flops(config: ModelConfig, batch: dict[str, np.ndarray], teacher: ModelConfig | None = None) -> int:
    """FLOPs that a training step needs for a batch: forward, and twice as many backward; a teacher's forward."""
    return 3 * needed_flops(config, batch) + (needed_flops(teacher, batch) if teacher else 0)


def nonzero(params: Any) -> int:
    """Values that are not zero, over every array of the tree."""
    return sum(int((leaf != 0).sum()) for leaf in jax.tree.leaves(params))
