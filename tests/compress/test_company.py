"""An int8 classifier says of a text what it says of it alone, to the last bit, whatever else it is asked."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from lsp.compress.calibrated import maker
from lsp.compress.quantize import quantize
from lsp.data.examples import Examples
from lsp.model import attention
from lsp.model.config import Layer, ModelConfig
from lsp.recipe import Quantization
from lsp.train.evaluate import Classifier


@pytest.mark.parametrize(
    ("preset", "pooling", "method", "width", "heads", "size"),
    [
        ("bert", "cls", "dynamic", 128, 4, 32),
        ("modern", "mean", "dynamic", 128, 4, 32),
        ("bert", "mean", "static", 128, 4, 32),
        ("bert", "cls", "dynamic", 96, 3, 32),  # its norms over what the pooler reads have few numbers
        ("bert", "cls", "dynamic", 64, 8, 8),
    ],
)
def test_an_example_has_the_same_bits_alone_and_in_company(
    draw: Callable[..., Any],
    invent: Callable[..., Examples],
    preset: Any,
    pooling: Any,
    method: Any,
    width: int,
    heads: int,
    size: int,
) -> None:
    config = ModelConfig(preset, 300, width, (Layer(heads, size, 256),) * 2, 256).classifier(3, pooling, 0.0)
    params, some = draw(config, 0), invent(40, lengths=(4, 9, 31, 33, 60, 68, 130))
    small = quantize(params, maker(Quantization(method=method), config, params, some))
    classifier = Classifier(config)
    together = classifier.logits(small, some)
    for number in range(0, 40, 3):
        np.testing.assert_array_equal(classifier.logits(small, some.some(np.array([number])))[0], together[number])
    longest = int(np.argmax(some.lengths))
    pair = classifier.logits(small, some.some(np.array([0, longest])))
    np.testing.assert_array_equal(pair, together[[0, longest]])


@pytest.mark.parametrize("size", [4, 8, 20, 24, 32, 33, 48, 64])
def test_a_text_has_the_same_bits_wherever_in_a_row_it_begins(size: int) -> None:
    """XLA's CPU adds weights times values of most sizes up in two sums, of even and odd tokens of the row."""
    random = np.random.default_rng(0)
    text = random.standard_normal((3, 16, 4, 30, size)).astype(np.float32)
    plain = jax.jit(attention.plain, compiler_options=attention.KEPT_BARRIERS)

    def beginning(start: int) -> np.ndarray:
        here = slice(start, start + 30)
        parts, meet = np.zeros((3, 16, 4, 64, size), np.float32), np.zeros((16, 64, 64), bool)
        parts[:, :, :, here], meet[:, here, here] = text, True
        return np.asarray(plain(*parts, meet))[:, :, here]

    for start in (1, 8, 13, 34):
        np.testing.assert_array_equal(beginning(start), beginning(0), err_msg=f"{start}")
