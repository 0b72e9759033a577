"""Fewer pieces: what is answered, what is stored, what is told of coverage, by hand."""

import random
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from lsp.checkpoint import Model
from lsp.compress import vocabulary
from lsp.compress.quantize import quantize
from lsp.data import tokenizer
from lsp.data.examples import Examples
from lsp.data.tasks import Table
from lsp.model.config import Layer, ModelConfig
from lsp.model.int8 import Int8
from lsp.train.evaluate import Classifier

Draw = Callable[[ModelConfig, int], dict]
TEXTS = ["the cat sat on the mat", "a dog who barked at the moon", "nobody knew why it was warm", "the dog sat"]


@pytest.fixture(scope="module")
def words() -> Any:
    pick = random.Random(0)
    others = ["".join(pick.choices("abcdeilmnorstu", k=pick.randint(2, 8))) for _ in range(60)]
    lines = [*TEXTS * 20, *(" ".join(pick.choices(others, k=20)) for _ in range(200))]
    return tokenizer.train(iter(lines), vocab_size=350, kind="unigram", lowercase=False, seed=0)


def examples(words: Any, texts: list[str]) -> Examples:
    return Examples(Table([(text,) for text in texts], [], ("no", "yes")), words, 32)


@pytest.mark.parametrize("int8", [False, True])
def test_texts_of_kept_pieces_are_answered_bit_for_bit(words: Any, draw: Draw, int8: bool) -> None:
    config = ModelConfig("bert", words.size, 16, (Layer(2, 8, 24),), max_length=32).classifier(2, "mean", 0.0)
    params = jax.device_get(quantize(draw(config, 0)) if int8 else draw(config, 0))
    read = examples(words, TEXTS)
    counts = vocabulary.counted(read, config.vocab_size)
    assert counts.sum() == read.lengths.sum()
    small, old = vocabulary.smaller(Model(config, params, words, ("no", "yes")), counts, 0)
    assert small.config.vocab_size == small.tokenizer.size == len(old) < config.vocab_size
    table = small.params["embeddings"]["tokens"]["table"]
    assert isinstance(table, Int8) == int8
    if int8:
        assert (table.colsum == 128 * table.q.sum(1, dtype=np.int32)).all()
    again = Classifier(small.config).logits(small.params, examples(small.tokenizer, TEXTS))
    assert np.array_equal(again, Classifier(config).logits(params, read))


@pytest.mark.parametrize(("share", "pieces"), [(0.5, 1), (0.51, 2), (0.8, 2), (0.81, 3), (1.0, 4)])
def test_so_many_pieces_are_a_share_of_all(share: float, pieces: int) -> None:
    assert vocabulary.commonest(np.array([0, 15, 50, 0, 5, 30]), share) == pieces


def test_the_commonest_pieces_stay(words: Any, draw: Draw) -> None:
    config = ModelConfig("bert", words.size, 16, (Layer(2, 8, 24),), max_length=32).classifier(2, "mean", 0.0)
    counts = vocabulary.counted(examples(words, TEXTS), config.vocab_size)
    model = Model(config, jax.device_get(draw(config, 0)), words, ("no", "yes"))
    every, _ = vocabulary.smaller(model, counts, 0)
    some, old = vocabulary.smaller(model, counts, 12)
    assert some.tokenizer.size < every.tokenizer.size
    best = set(np.argsort(-counts, kind="stable")[:12].tolist())
    assert best <= set(old.tolist())


def test_coverage_is_counted_in_old_pieces(words: Any) -> None:
    before = examples(words, TEXTS[:1])
    old = np.unique(before.tokens[0])[:-1]  # one piece is left out
    gone = np.unique(before.tokens[0])[-1]
    found = vocabulary.coverage(before, before, old)
    assert found["covered"] == pytest.approx((before.tokens[0] != gone).mean())
    assert found["tokens"] == 1 and found["unknown"] == found["unknown_before"] == 0
