"""Masks against counting, and against what they must not depend on."""

import numpy as np
import pytest

from lsp.data.masking import FIRST_WORD, Masked, mask, slots_for
from lsp.data.tokenizer import CLS, MASK, PAD, SEP

V = 1000


def rows(number: int, length: int = 128) -> np.ndarray:
    """Rows with two pieces each and 8 tokens of padding."""
    tokens = np.random.default_rng(0).integers(FIRST_WORD, V, (number, length), np.int32)
    tokens[:, 0] = tokens[:, 40] = CLS
    tokens[:, 39] = tokens[:, -9] = SEP
    tokens[:, -8:] = PAD
    return tokens


def masked(tokens: np.ndarray, numbers: np.ndarray, epoch: int = 0, seed: int = 0, slots: int = 32) -> Masked:
    return mask(tokens, numbers, epoch=epoch, seed=seed, rate=0.15, slots=slots, vocab_size=V)


def test_of_the_drawn_tokens_80_percent_are_masked_10_random_10_kept() -> None:
    tokens = rows(2000)
    result = masked(tokens, np.arange(2000))
    used = result.weights == 1
    ordinary = (tokens >= FIRST_WORD).sum()
    assert result.weights.sum() + result.overflow == pytest.approx(0.15 * ordinary, rel=0.02)
    before = np.take_along_axis(tokens, result.slots, 1)[used]
    after = np.take_along_axis(result.tokens, result.slots, 1)[used]
    assert (after == MASK).mean() == pytest.approx(0.8, abs=0.01)
    assert (after == before).mean() == pytest.approx(0.1, abs=0.01)
    random = after[(after != MASK) & (after != before)]
    assert len(random) / len(after) == pytest.approx(0.1, abs=0.01)
    assert random.min() >= FIRST_WORD
    assert random.max() < V
    assert np.bincount(random * 10 // V, minlength=10).min() > 0.08 * len(random)  # spread over the vocabulary


def test_special_tokens_and_padding_are_never_touched_even_at_rate_one() -> None:
    tokens = rows(50)
    result = mask(tokens, np.arange(50), epoch=0, seed=0, rate=1.0, slots=128, vocab_size=V)
    special = tokens < FIRST_WORD
    np.testing.assert_array_equal(result.tokens[special], tokens[special])
    assert result.weights.sum() == (~special).sum()
    assert result.overflow == 0


def test_only_slots_differ_and_targets_say_what_stood_there() -> None:
    tokens = rows(200)
    result = masked(tokens, np.arange(200))
    restored = result.tokens.copy()
    for row, (slots, targets, weights) in enumerate(zip(result.slots, result.targets, result.weights, strict=True)):
        used = slots[weights == 1]
        assert list(used) == sorted(set(used.tolist()))
        restored[row, used] = targets[weights == 1]
    np.testing.assert_array_equal(restored, tokens)


def test_a_row_is_masked_the_same_in_any_batch() -> None:
    tokens, numbers = rows(64), np.arange(1000, 1064)
    together = masked(tokens, numbers)
    shuffled = np.random.default_rng(1).permutation(64)
    apart = masked(tokens[shuffled], numbers[shuffled])
    alone = masked(tokens[5:6], numbers[5:6])
    for name in ("tokens", "slots", "targets", "weights"):
        np.testing.assert_array_equal(getattr(together, name)[shuffled], getattr(apart, name))
        np.testing.assert_array_equal(getattr(together, name)[5:6], getattr(alone, name))


def test_epochs_seeds_and_rows_have_masks_of_their_own() -> None:
    tokens = np.repeat(rows(1), 300, axis=0)
    numbers = np.arange(300)
    base = masked(tokens, numbers).tokens == MASK
    others = [masked(tokens, numbers, epoch=1), masked(tokens, numbers, seed=1), masked(tokens, numbers + 1)]
    for other in others:
        both = (base & (other.tokens == MASK)).sum() / base.sum()
        assert both == pytest.approx(0.12, abs=0.03)  # independent draws agree by chance only
    by_position = base.mean(0)[1:39]
    assert by_position.min() > 0.05
    assert by_position.max() < 0.20


def test_an_epoch_for_each_row_is_the_same_as_one_by_one() -> None:
    tokens, numbers = rows(4), np.arange(4)
    mixed = mask(tokens, numbers, epoch=np.array([0, 0, 1, 1]), seed=0, rate=0.15, slots=32, vocab_size=V)
    np.testing.assert_array_equal(mixed.tokens[:2], masked(tokens, numbers).tokens[:2])
    np.testing.assert_array_equal(mixed.tokens[2:], masked(tokens, numbers, epoch=1).tokens[2:])


def test_overflow_is_counted_and_left_alone() -> None:
    tokens = rows(100)
    wide, narrow = masked(tokens, np.arange(100), slots=128), masked(tokens, np.arange(100), slots=8)
    assert wide.overflow == 0
    assert narrow.weights.sum() + narrow.overflow == wide.weights.sum()
    assert narrow.overflow > 0
    assert ((narrow.tokens != tokens) <= (wide.tokens != tokens)).all()
    assert narrow.slots[narrow.weights == 1].mean() == pytest.approx(59, abs=6)  # no end of the row is favoured


@pytest.mark.parametrize(("rate", "length", "slots"), [(0.15, 128, 32), (0.15, 512, 96), (0.3, 128, 56), (1.0, 12, 12)])
def test_slots_are_the_mean_and_two_deviations_rounded_up(rate: float, length: int, slots: int) -> None:
    assert slots_for(rate, length) == slots


def test_overflow_is_rare() -> None:
    tokens = rows(5000)
    result = masked(tokens, np.arange(5000), slots=slots_for(0.15, 128))
    assert result.overflow < 1e-3 * result.weights.sum()
