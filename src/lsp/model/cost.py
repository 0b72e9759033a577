"""What a model costs: parameters, floating-point operations and bytes, counted from its shapes."""

import math
from typing import Any

import jax

from lsp.model.config import ModelConfig
from lsp.model.encoder import shapes


def parameters(config: ModelConfig) -> int:
    """Number of trained values, heads included."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes(config)))


def by_part(config: ModelConfig) -> dict[str, int]:
    """Parameters of each top-level part: embeddings, layers, norm, head."""
    return {part: sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree)) for part, tree in shapes(config).items()}


def forward_flops(config: ModelConfig, length: int, slots: int = 0) -> int:
    """FLOPs of one row of `length` tokens: two for each multiply-add of every matrix product, `slots` of them through
    the vocabulary. Norms, softmax and activations are left out, as is usual. A training step costs three times this.
    """
    products = 0
    for layer in config.layers:
        inner = layer.heads * layer.head_size
        feedforward = 2 if config.preset == "bert" else 3
        products += length * config.width * (3 * inner + inner + feedforward * layer.feedforward)
        products += 2 * length * length * inner
    if config.head == "words":
        products += slots * config.width * (config.width + config.vocab_size)
    if config.classes:
        products += config.width * (config.width + config.classes)
    return 2 * products


def nonzero(params: Any) -> int:
    """Values that are not zero, over every array of the tree."""
    return sum(int((leaf != 0).sum()) for leaf in jax.tree.leaves(params))
