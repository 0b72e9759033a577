"""An int8 classifier says of a text what it says of it alone, to the last bit, whatever else it is asked."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lsp.compress.calibrated import maker
from lsp.compress.quantize import quantize
from lsp.data.examples import Examples
from lsp.model.config import Layer, ModelConfig
from lsp.recipe import Quantization
from lsp.train.evaluate import Classifier


@pytest.mark.parametrize(
    ("preset", "pooling", "method"),
    [("bert", "cls", "dynamic"), ("modern", "mean", "dynamic"), ("bert", "mean", "static")],
)
def test_an_example_has_the_same_bits_alone_and_in_company(
    draw: Callable[..., Any], invent: Callable[..., Examples], preset: Any, pooling: Any, method: Any
) -> None:
    config = ModelConfig(preset, 300, 128, (Layer(4, 32, 256),) * 2, 256).classifier(3, pooling, 0.0)
    params, some = draw(config, 0), invent(40, lengths=(4, 9, 31, 33, 60, 68, 130))
    small = quantize(params, maker(Quantization(method=method), config, params, some))
    classifier = Classifier(config)
    together = classifier.logits(small, some)
    for number in range(0, 40, 3):
        np.testing.assert_array_equal(classifier.logits(small, some.some(np.array([number])))[0], together[number])
    longest = int(np.argmax(some.lengths))
    pair = classifier.logits(small, some.some(np.array([0, longest])))
    np.testing.assert_array_equal(pair, together[[0, longest]])
