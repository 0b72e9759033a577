"""Masks against counting, against plain slow versions, and against what they must not depend on.

Shares are compared within four standard errors of what is counted.
"""

import math
from functools import partial

import numpy as np
import pytest

from lsp.data.masking import (
    FIRST_WORD,
    Draw,
    Masked,
    Rates,
    _noise,
    mask,
    single_tokens,
    slots_for,
    slots_seen,
    spans,
    whole_words,
)
from lsp.data.tokenizer import CLS, MASK, PAD, SEP
from lsp.data.words import BEGINS, BORDER, CLOSES

V = 1000
BORDERS = np.where(np.arange(V) % 10 < 6, BEGINS, 0).astype(np.uint8)  # six pieces in ten begin a word
BORDERS[:FIRST_WORD] = BEGINS | CLOSES | BORDER
EACH_A_WORD = np.maximum(BORDERS, BEGINS)
DRAWS = {"token": single_tokens, "word": partial(whole_words, BORDERS), "span": partial(spans, BORDERS)}
each_draw = pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)


def rows(number: int, length: int = 128) -> np.ndarray:
    """Rows with two pieces each and 8 tokens of padding."""
    tokens = np.random.default_rng(0).integers(FIRST_WORD, V, (number, length), np.int32)
    tokens[:, 0] = tokens[:, 40] = CLS
    tokens[:, 39] = tokens[:, -9] = SEP
    tokens[:, -8:] = PAD
    return tokens


def masked(
    tokens: np.ndarray,
    numbers: np.ndarray,
    epoch: int = 0,
    seed: int = 0,
    slots: int = 32,
    draw: Draw = single_tokens,
    rate: float = 0.15,
) -> Masked:
    return mask(tokens, numbers, epoch=epoch, seed=seed, rate=rate, slots=slots, vocab_size=V, draw=draw)


def hidden(result: Masked) -> np.ndarray:
    """Which positions have slots, bool [B, T]."""
    found = np.zeros(result.tokens.shape, bool)
    row, slot = np.nonzero(result.weights)
    found[row, result.slots[row, slot]] = True
    return found


def words_of(row: np.ndarray) -> list[list[int]]:
    """The positions of each word of a row, by the plain rule."""
    words: list[list[int]] = []
    for position, token in enumerate(row.tolist()):
        if token < FIRST_WORD:
            continue
        if BORDERS[token] == BEGINS or row[position - 1] < FIRST_WORD:
            words.append([])
        words[-1].append(position)
    return words


def splitmix(state: int) -> int:
    state = (state + 0x9E3779B97F4A7C15) % 2**64
    state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    state = (state ^ state >> 27) * 0x94D049BB133111EB % 2**64
    return state ^ state >> 31


def plainly(tokens: np.ndarray, number: int, epoch: int, seed: int, rate: float, slots: int) -> tuple[list[int], ...]:
    """One row masked token by token with Python's whole numbers: the tokens, and slots and targets that are used."""
    row = splitmix(splitmix(splitmix(seed) ^ epoch) ^ number)
    noise = [splitmix(row ^ position) for position in range(len(tokens))]
    ordinary = [p for p in range(len(tokens)) if tokens[p] >= FIRST_WORD]
    wanted = int(rate * len(ordinary) + (splitmix(noise[0] ^ 2**64 - 1) >> 11) / 2**53)
    drawn = sorted(sorted(ordinary, key=noise.__getitem__)[: min(wanted, slots)])
    shown = tokens.tolist()
    for position in drawn:
        second = splitmix(noise[position])
        if second >> 11 < 0.8 * 2**53:
            shown[position] = MASK
        elif second >> 11 < 0.9 * 2**53:
            shown[position] = FIRST_WORD + splitmix(second) % (V - FIRST_WORD)
    return shown, drawn, [int(tokens[position]) for position in drawn]


@pytest.mark.parametrize(("rate", "slots"), [(0.15, 32), (0.15, 16), (0.4, 24), (1.0, 128)])
def test_single_tokens_are_the_plain_formula_bit_for_bit(rate: float, slots: int) -> None:
    tokens, numbers = rows(16), np.arange(70_000, 70_016)
    result = masked(tokens, numbers, epoch=3, seed=11, slots=slots, rate=rate)
    for row in range(16):
        used = int(result.weights[row].sum())
        shown, drawn, targets = plainly(tokens[row], int(numbers[row]), 3, 11, rate, slots)
        assert result.tokens[row].tolist() == shown
        assert result.slots[row].tolist() == drawn + [0] * (slots - used)
        assert result.targets[row].tolist() == targets + [0] * (slots - used)
    assert {array.dtype for array in result[:3]} == {np.dtype(np.int32)}


@each_draw
def test_of_the_drawn_tokens_80_percent_are_masked_10_random_10_kept(draw: Draw) -> None:
    tokens = rows(2000)
    result = masked(tokens, np.arange(2000), draw=draw, slots=96)
    used = result.weights == 1
    before = np.take_along_axis(tokens, result.slots, 1)[used]
    after = np.take_along_axis(result.tokens, result.slots, 1)[used]
    random = after[(after != MASK) & (after != before)]
    # A random token is the one that stood there once in V.
    for share, expected in (
        ((after == MASK).mean(), 0.8),
        ((after == before).mean(), 0.1),
        (len(random) / len(after), 0.1),
    ):
        assert abs(share - expected) < 4 * math.sqrt(expected * (1 - expected) / len(after)) + 0.1 / V
    assert random.min() >= FIRST_WORD
    assert random.max() < V
    assert np.bincount(random * 10 // V, minlength=10).min() > 0.08 * len(random)  # spread over the vocabulary


@each_draw
@pytest.mark.parametrize("rate", [0.05, 0.15, 0.3, 0.8])
def test_the_share_of_hidden_tokens_is_the_rate(draw: Draw, rate: float) -> None:
    tokens = rows(4000)
    found = draw(tokens, _noise(5, 0, np.arange(4000), 128), rate).tokens
    ordinary = tokens >= FIRST_WORD
    assert not found[~ordinary].any()
    surplus = found.sum(1) - rate * ordinary.sum(1)  # one number a row, and rows are independent
    assert abs(surplus.mean()) < 4 * surplus.std() / math.sqrt(4000)


@each_draw
def test_special_tokens_and_padding_are_never_touched_even_at_rate_one(draw: Draw) -> None:
    tokens = rows(50)
    result = masked(tokens, np.arange(50), rate=1.0, slots=128, draw=draw)
    special = tokens < FIRST_WORD
    np.testing.assert_array_equal(result.tokens[special], tokens[special])
    assert result.weights.sum() == (~special).sum()
    assert result.overflow == 0
    assert not masked(tokens, np.arange(50), rate=0.0, draw=draw).weights.any()


@each_draw
def test_only_slots_differ_and_targets_say_what_stood_there(draw: Draw) -> None:
    tokens = rows(200)
    result = masked(tokens, np.arange(200), draw=draw)
    restored = result.tokens.copy()
    for row, (slots, targets, weights) in enumerate(zip(result.slots, result.targets, result.weights, strict=True)):
        used = slots[weights == 1]
        assert list(used) == sorted(set(used.tolist()))
        restored[row, used] = targets[weights == 1]
    np.testing.assert_array_equal(restored, tokens)


@each_draw
def test_a_row_is_masked_the_same_in_any_batch(draw: Draw) -> None:
    tokens, numbers = rows(64), np.arange(1000, 1064)
    together = masked(tokens, numbers, draw=draw)
    shuffled = np.random.default_rng(1).permutation(64)
    apart = masked(tokens[shuffled], numbers[shuffled], draw=draw)
    alone = masked(tokens[5:6], numbers[5:6], draw=draw)
    for name in ("tokens", "slots", "targets", "weights"):
        np.testing.assert_array_equal(getattr(together, name)[shuffled], getattr(apart, name))
        np.testing.assert_array_equal(getattr(together, name)[5:6], getattr(alone, name))


@each_draw
def test_epochs_seeds_and_rows_have_masks_of_their_own(draw: Draw) -> None:
    tokens = np.repeat(rows(1), 300, axis=0)
    numbers = np.arange(300)
    base = masked(tokens, numbers, draw=draw, slots=96).tokens == MASK
    others = [
        masked(tokens, *changed, draw=draw, slots=96) for changed in ((numbers, 1), (numbers, 0, 1), (numbers + 1,))
    ]
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


@pytest.mark.parametrize("slots", [8, 16, 128])
def test_words_are_hidden_whole_or_not_at_all(slots: int) -> None:
    tokens = rows(300)
    result = masked(tokens, np.arange(300), slots=slots, draw=DRAWS["word"])
    found = hidden(result)
    for row in range(300):
        assert {len({bool(found[row, position]) for position in word}) for word in words_of(tokens[row])} == {1}
    wanted = masked(tokens, np.arange(300), slots=128, draw=DRAWS["word"]).weights.sum()
    assert found.sum() + result.overflow == wanted
    assert (result.overflow > 0) == (slots < 128)


@pytest.mark.parametrize("slots", [16, 128])
def test_spans_begin_and_end_with_words_and_none_is_cut(slots: int) -> None:
    tokens = rows(300)
    wanted = hidden(masked(tokens, np.arange(300), slots=128, draw=DRAWS["span"]))
    result = masked(tokens, np.arange(300), slots=slots, draw=DRAWS["span"])
    found = hidden(result)
    assert (found <= wanted).all()
    assert found.sum() + result.overflow == wanted.sum()
    units = spans(BORDERS, tokens, _noise(0, 0, np.arange(300), 128), 0.15).units
    for row in range(300):
        assert {len({bool(found[row, position]) for position in word}) for word in words_of(tokens[row])} == {1}
        for unit in np.unique(units[row, wanted[row]]):
            assert len(set(found[row, wanted[row] & (units[row] == unit)].tolist())) == 1


def test_each_word_of_a_segment_is_hidden_as_often_whatever_its_place() -> None:
    """The first words too, which no span from before the segment can reach."""
    tokens = np.full((20_000, 24), 500, np.int32)
    tokens[:, [0, 4, 17]], tokens[:, [3, 16, 23]] = CLS, SEP
    found = spans(EACH_A_WORD, tokens, _noise(1, 0, np.arange(20_000), 24), 0.3).tokens
    share = found.mean(0)[tokens[0] >= FIRST_WORD]
    assert abs(share - 0.3).max() < 4 * math.sqrt(0.3 * 0.7 / 20_000)
    across = np.corrcoef(found[:, 15], found[:, 18])[0, 1]  # the last word of a segment and the first of the next
    assert abs(across) < 4 / math.sqrt(20_000)


def test_spans_are_as_long_as_those_of_spanbert() -> None:
    """The runs of hidden words against those of a simulation with NumPy's generator and SpanBERT's own table."""
    start, length, number = 0.03, 300, 800
    chances = np.array([0.2 * 0.8 ** (n - 1) for n in range(1, 11)])
    chances /= chances.sum()
    assert (chances * np.arange(1, 11)).sum() == pytest.approx(3.8, abs=0.01)  # the mean that the paper gives
    rate = 1 - math.prod(1 - start * chances[d:].sum() for d in range(10))
    random = np.random.default_rng(0)
    simulated = np.zeros((number, length + 10), bool)
    for row, word in zip(*np.nonzero(random.random((number, length)) < start), strict=True):
        simulated[row, word : word + random.choice(10, p=chances) + 1] = True
    tokens = np.full((number, length + 2), 500, np.int32)
    tokens[:, 0], tokens[:, -1] = CLS, SEP
    drawn = spans(EACH_A_WORD, tokens, _noise(2, 0, np.arange(number), length + 2), rate).tokens

    def runs(found: np.ndarray) -> np.ndarray:
        """How many runs have each length, 20 and more together; those at the ends of a row are left out."""
        inner = np.pad(found[:, 10:-10].astype(int), [(0, 0), (1, 1)])
        begins, ends = (np.argwhere(np.diff(inner) == step) for step in (1, -1))
        whole = (begins[:, 1] > 0) & (ends[:, 1] < inner.shape[1] - 2)
        return np.bincount(np.minimum(ends[whole, 1] - begins[whole, 1], 20), minlength=21)[1:]

    a, b = runs(simulated[:, :length]), runs(drawn[:, 1:-1])
    assert min(a.sum(), b.sum()) > 4000
    surprise = ((a * math.sqrt(b.sum() / a.sum()) - b * math.sqrt(a.sum() / b.sum())) ** 2 / (a + b)).sum()
    assert surprise < 19 + 4 * math.sqrt(2 * 19)  # chi-square with 19 degrees of freedom


@pytest.mark.parametrize(("rate", "length", "slots"), [(0.15, 128, 20), (0.15, 512, 80), (0.3, 128, 40), (1.0, 12, 12)])
def test_slots_hold_the_most_that_a_row_can_draw(rate: float, length: int, slots: int) -> None:
    assert slots_for(rate, length) == slots
    tokens = np.full((3000, length), 500, np.int32)
    drawn = single_tokens(tokens, _noise(3, 0, np.arange(3000), length), rate).tokens.sum(1)
    assert set(drawn.tolist()) == {math.floor(rate * length), math.ceil(rate * length)}
    assert drawn.max() <= slots


def test_a_share_of_the_rows_is_rounded_up_so_that_the_mean_is_exact() -> None:
    tokens = np.full((40_000, 11), 500, np.int32)
    drawn = single_tokens(tokens, _noise(4, 0, np.arange(40_000), 11), 0.15).tokens
    up = drawn.sum(1).mean() - 1  # 1.65 tokens a row
    assert abs(up - 0.65) < 4 * math.sqrt(0.65 * 0.35 / 40_000)
    assert abs(drawn.mean(0) - 0.15).max() < 4 * math.sqrt(0.15 * 0.85 / 40_000)  # each place as often


@pytest.mark.parametrize("rate", [0.15, 0.3])
def test_fewer_than_one_row_in_a_hundred_overflows(rate: float) -> None:
    tokens, sample = rows(7000)[:5000], rows(7000)[5000:]
    slots = {"token": slots_for(rate, 128)} | {name: slots_seen(rate, sample, DRAWS[name]) for name in ("word", "span")}
    for name, draw in DRAWS.items():
        wanted = draw(tokens, _noise(9, 0, np.arange(5000), 128), rate).tokens.sum(1)
        assert (wanted > slots[name]).mean() < (0.01 if name != "token" else 1e-9)
        assert slots[name] % 4 == 0
        assert slots[name] < 3.5 * slots["token"]


def test_a_rate_goes_in_a_straight_line_and_its_stages_hold_it() -> None:
    rates = Rates(0.3, 0.15, 101)
    assert [rates.at(step) for step in (0, 50, 100, 500)] == pytest.approx([0.3, 0.225, 0.15, 0.15])
    assert rates.stages() == pytest.approx([0.3, 0.25, 0.2])
    assert all(rates.highest(step) >= rates.at(step) for step in range(200))
    assert [rates.highest(step) for step in (0, 33, 34, 66, 67, 100, 500)] == pytest.approx(
        [0.3, 0.3, 0.25, 0.25, 0.2, 0.2, 0.2]
    )
    assert Rates(0.1, 0.4, 4).stages() == pytest.approx([0.2, 0.3, 0.4])
    assert {Rates(0.15, 0.15, 0).at(step) for step in range(9)} == {0.15}
