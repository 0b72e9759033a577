"""Structured pruning: heads and feed-forward units taken out of the matrices, so that the model is smaller and faster.

Dimensions: D width, H heads, S head size, F feed-forward units, N parts of a block.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from lsp.compress.importance import Block
from lsp.model.config import ModelConfig

Tree = dict[Any, Any]


def shrink(config: ModelConfig, params: Tree, kept: dict[Block, np.ndarray]) -> tuple[ModelConfig, Tree]:
    """The model with the heads and units `kept` alone: int [n] in order, at least one of each block. `params` are
    floats; the blocks come out as NumPy arrays."""
    layers, shapes = {}, []
    for number, shape in enumerate(config.layers):
        layer = params["layers"][number]
        heads, units = kept[number, "attention"], kept[number, "feedforward"]
        layers[number] = layer | {
            "attention": _with_heads(layer["attention"], heads, shape.head_size),
            "feedforward": _with_units(layer["feedforward"], units),
        }
        shapes.append(replace(shape, heads=len(heads), feedforward=len(units)))
    return replace(config, layers=tuple(shapes)), params | {"layers": layers}


def _with_heads(block: Tree, heads: np.ndarray, size: int) -> Tree:
    """A head's query, key and value lie side by side in `qkv`; `out` has its rows in the same order."""
    columns = (heads[:, None] * 3 * size + np.arange(3 * size)).ravel()
    rows = (heads[:, None] * size + np.arange(size)).ravel()
    return block | {"qkv": _columns(block["qkv"], columns), "out": _rows(block["out"], rows)}


def _with_units(block: Tree, units: np.ndarray) -> Tree:
    into = {name: _columns(block[name], units) for name in ("up", "gate") if name in block}
    return block | into | {"down": _rows(block["down"], units)}


def _columns(linear: Tree, columns: np.ndarray) -> Tree:
    return {name: np.ascontiguousarray(np.asarray(leaf)[..., columns]) for name, leaf in linear.items()}


def _rows(linear: Tree, rows: np.ndarray) -> Tree:
    return linear | {"kernel": np.ascontiguousarray(np.asarray(linear["kernel"])[rows])}
