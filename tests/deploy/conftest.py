"""Runs on disk that nobody trained."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from lsp import checkpoint, directory
from lsp.compress.quantize import quantize
from lsp.data.tokenizer import Tokenizer, train
from lsp.model.config import Layer, ModelConfig
from lsp.model.encoder import shapes

TEXT = ["the cat sat on the mat and looked at the other cats", "a dog ran over the hill to the old mill house"] * 40
LABELS = ("bad", "fair", "good")


@pytest.fixture(scope="session")
def words() -> Tokenizer:
    return train(TEXT, vocab_size=285, kind="unigram", lowercase=False, seed=0)


@pytest.fixture(scope="session")
def build(words: Tokenizer) -> Callable[..., checkpoint.Model]:
    """`build(preset, int8=…, head=…, …)`: a model of two layers, matrices loud enough that its answers differ."""

    def model(preset: Any, int8: bool = False, head: str = "classes", **changes: Any) -> checkpoint.Model:
        layers = (Layer(2, 8, 64),) * 2 if preset == "bilstm" else (Layer(2, 8, 24), Layer(1, 8, 40))
        config = ModelConfig(preset, words.size, 16, layers, max_length=32)
        if head == "classes":
            config = config.classifier(**{"classes": 3, "pooling": "mean", "dropout": 0.0} | changes)
        draw = np.random.default_rng(1)

        def leaf(path: tuple, shape: jax.ShapeDtypeStruct) -> np.ndarray:
            if path[-1].key in ("kernel", "table"):
                return draw.standard_normal(shape.shape).astype(np.float32) * 1.5 * shape.shape[0] ** -0.5
            return np.full(shape.shape, float(path[-1].key == "scale"), np.float32)

        params = jax.tree_util.tree_map_with_path(leaf, shapes(config))
        params = jax.tree.map(np.asarray, quantize(params)) if int8 else params
        labels = LABELS if config.head == "classes" and config.problem != "regression" else ()
        return checkpoint.Model(config, params, words, labels)

    return model


@pytest.fixture(scope="session")
def store() -> Callable[[checkpoint.Model, Path], Path]:
    """`store(model, path)`: a finished run, sealed as a stage seals it."""

    def run(model: checkpoint.Model, path: Path) -> Path:
        with directory.claim(path, command="finetune", recipe="", inputs={}) as held:
            checkpoint.finish(held, model, stage="finetune", step=3, metrics={}, result={})
        return path

    return run
