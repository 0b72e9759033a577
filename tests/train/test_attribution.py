"""Integrated gradients add up, and are exact where the model is linear."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from lsp.model.config import ModelConfig
from lsp.model.encoder import initialise
from lsp.train.attribution import CLOSE, Explainer, by_word, score

TOKENS = np.array([2, 17, 250, 33, 3], np.int32)


def test_weights_add_up_to_the_difference(config: ModelConfig) -> None:
    config = config.classifier(3, "mean", 0.0)
    params = initialise(config, 0)
    explainer = Explainer(config, params)
    for output in range(3):
        found = explainer(TOKENS, np.zeros(5, np.int32), output)
        assert found.value - found.baseline == pytest.approx(float(found.weights.sum()) + found.gap, abs=1e-6)
        assert abs(found.gap) <= CLOSE * abs(found.value - found.baseline) and found.points in (32, 64, 128, 256, 512)
        assert found.weights[[0, 4]].tolist() == [0, 0]  # [CLS] and [SEP] stay
        masked = explainer(np.array([2, 4, 4, 4, 3], np.int32), np.zeros(5, np.int32), output)
        assert masked.value == pytest.approx(found.baseline, abs=1e-5) and not masked.weights.any()


def test_the_score_is_the_log_odds_of_the_class() -> None:
    logits = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    chance = special.softmax(logits.astype(np.float64), axis=1)[:, 1]
    np.testing.assert_allclose(score("single_label", jnp.asarray(logits), 1), special.logit(chance), rtol=1e-4)
    np.testing.assert_array_equal(score("multi_label", jnp.asarray(logits), 1), logits[:, 1])


def test_words_are_the_sums_of_their_pieces() -> None:
    tokens = np.array([2, 9, 10, 11, 3, 10, 3])
    pieces = ["[CLS]", "▁un", "likely", "▁end", "[SEP]", "ing", "[SEP]"]
    weights = np.array([0, 1, 2, 4, 0, 8, 0], np.float32)
    assert by_word(tokens, pieces, weights) == [("unlikely", 3), ("end", 4), ("ing", 8)]
