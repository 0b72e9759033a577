"""Our parameters and published tensors: the same values by other names, and in another order.

A flat tree has the path of each parameter, with dots, as its key.

Suffixes: O outputs, I inputs of a published dense layer.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from lsp.data.tokenizer import Tokenizer
from lsp.deploy.families import Names
from lsp.model.config import ModelConfig
from lsp.model.encoder import shapes

VOCABULARY, BIAS = "embeddings.tokens.table", "words.bias"
POSITIONS, TYPES = "embeddings.positions.table", "embeddings.types.table"
Flat = dict[str, np.ndarray]


class Link(NamedTuple):
    """Parameters of ours and the published tensors that hold the same values."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]


def links(names: Names, wanted: dict[str, Any]) -> Iterator[Link]:
    """Which parameters of `wanted` are which tensors, by the modules of `names`."""
    layers = 1 + max(int(name.split(".")[1]) for name in wanted if name.startswith("layers."))
    for ours, theirs in names.items():
        for number in range(layers if "{}" in ours else 1):
            modules = ours.replace("{}", str(number)).split()
            for leaf, tensor in (("kernel", "weight"), ("scale", "weight"), ("table", "weight"), ("bias", "bias")):
                if f"{modules[0]}.{leaf}" in wanted:
                    yield Link(
                        tuple(f"{module}.{leaf}" for module in modules),
                        tuple(f"{module}.{tensor}" for module in theirs.replace("{}", str(number)).split()),
                    )


def shapes_by_name(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter, by its path with dots."""
    return {name: leaf.shape for name, leaf in flattened(shapes(config)).items()}


def flattened(tree: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {path[1:]: tree}
    return {name: leaf for key, child in tree.items() for name, leaf in flattened(child, f"{path}.{key}").items()}


def nested(flat: Flat) -> Any:
    """The inverse of `flattened`; numbers are numbers again."""
    tree: dict[Any, Any] = {}
    for name, leaf in flat.items():
        *path, last = (int(part) if part.isdecimal() else part for part in name.split("."))
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[last] = leaf
    return tree


def to_ours(link: Link, tensors: Sequence[np.ndarray], config: ModelConfig) -> Flat:
    """Published tensors as the parameters that hold the same values."""
    stacked_OI = tensors[0] if len(tensors) == 1 else np.concatenate(tensors)
    if ".qkv." in link.ours[0]:
        layer = config.layers[int(link.ours[0].split(".")[1])]
        # Theirs are all queries, all keys, all values; ours go head by head.
        stacked_OI = stacked_OI.reshape(3, layer.heads, layer.head_size, -1).swapaxes(0, 1).reshape(stacked_OI.shape)
    parts = np.split(stacked_OI, len(link.ours)) if len(link.ours) > 1 else [stacked_OI]
    dense = link.ours[0].endswith(".kernel")
    return {name: part.T.copy() if dense else part for name, part in zip(link.ours, parts, strict=True)}


def to_theirs(link: Link, flat: Flat, config: ModelConfig) -> Flat:
    """The inverse of `to_ours`."""
    dense = link.ours[0].endswith(".kernel")
    stacked_OI = np.concatenate([flat[name].T if dense else flat[name] for name in link.ours])
    if ".qkv." in link.ours[0]:
        layer = config.layers[int(link.ours[0].split(".")[1])]
        stacked_OI = stacked_OI.reshape(layer.heads, 3, layer.head_size, -1).swapaxes(0, 1).reshape(stacked_OI.shape)
    return dict(zip(link.theirs, np.split(stacked_OI, len(link.theirs)), strict=True))


def renumbered(rows: np.ndarray, words: Tokenizer) -> np.ndarray:
    """Rows by published ids [V, …] in the order of ours; those behind the last piece stay where they are."""
    return np.concatenate([rows[words.theirs], rows[words.size :]])


def published_order(rows: np.ndarray, words: Tokenizer) -> np.ndarray:
    """The inverse of `renumbered`."""
    ordered = rows.copy()
    ordered[words.theirs] = rows[: words.size]
    return ordered
