"""Labelled examples as tokens, in batches to train on, and in rows that they share."""

import itertools
from collections import Counter

import numpy as np
import pytest

from lsp.data import tokenizer
from lsp.data.batches import Batch
from lsp.data.examples import TOKENS_AT_ONCE, Examples, in_batches, places, shared, width_for
from lsp.data.pairs import fitting
from lsp.data.tasks import Table
from lsp.data.tokenizer import CLS, PAD, SEP, Tokenizer

T = 32
TEXTS = [f"the {n % 7} cats and {n} dogs " * (1 + n % 5) for n in range(203)]


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    return tokenizer.train(iter(TEXTS), vocab_size=290, kind="bpe", lowercase=False, seed=0)


def equal(a: Batch, b: Batch) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def table(texts: list[str], classes: int = 3) -> Table:
    return Table([(text,) for text in texts], [n % classes for n in range(len(texts))], ("a", "b", "c")[:classes])


def test_one_text_and_two_are_framed_and_typed(words: Tokenizer) -> None:
    a, b = words.encode(["the cats", "and 3 dogs"])
    single = Examples(Table([("the cats",)], [1], ("x", "y")), words, T).batch(np.array([0]), 2)
    assert single["tokens"][0].tolist() == [CLS, *a, SEP] + [PAD] * (16 - len(a) - 2)
    assert not single["types"].any()
    assert single["labels"].tolist() == [1, 0]
    assert single["weights"].tolist() == [1, 0]
    pair = Examples(Table([("the cats", "and 3 dogs")], [0], ("x", "y")), words, T).batch(np.array([0]), 1)
    expected = [CLS, *a, SEP, *b, SEP]
    assert pair["tokens"][0, : len(expected)].tolist() == expected
    assert pair["types"][0, : len(expected)].tolist() == [0] * (len(a) + 2) + [1] * (len(b) + 1)
    np.testing.assert_array_equal(pair["segments"], pair["tokens"] != PAD)


@pytest.mark.parametrize(
    ("sizes", "fitted"),
    [
        ((50, 3), (26, 3)),
        ((3, 50), (3, 26)),
        ((50, 50), (15, 14)),
        ((14, 15), (14, 15)),
        ((5, 5), (5, 5)),
    ],
)
def test_of_a_pair_the_longer_text_is_cut(sizes: tuple[int, int], fitted: tuple[int, int]) -> None:
    assert tuple(fitting(list(sizes), 29)) == fitted


@pytest.mark.parametrize("room", [12, 13])
def test_pairs_are_cut_as_exported_tokenizers_cut_them(words: Tokenizer, room: int) -> None:
    for first, second in itertools.product((1, 5, 6, 7, 20, 21), repeat=2):
        made = Examples(Table([("a " * first, "a " * second)], [0], ("x", "y")), words, room + 3)
        # tokenizers' utils/truncation.rs, LongestFirst: `short` and `long` are what is kept of the two.
        one, two = (len(words.encode(["a " * count])[0]) for count in (first, second))
        short, long = min(one, two), max(one, two)
        if short + long > room:
            long = short if short > room else max(short, room - short)
        if short + long > room:
            short, long = room // 2, room // 2 + room % 2
        kept = (long, short) if one > two else (short, long)
        assert (made.seconds[0] - 2, made.lengths[0] - made.seconds[0] - 1) == kept, (first, second)


def test_examples_that_are_too_long_are_cut_and_counted(words: Tokenizer) -> None:
    examples = Examples(table(["cats", "the cats and dogs " * 50, "dogs"]), words, 20)
    assert examples.cut == 1
    assert examples.lengths.max() == 20
    assert examples.tokens[1][-1] == SEP
    assert examples.batch(np.arange(3), 3)["tokens"].shape == (3, 20)


def test_an_epoch_of_labelled_batches_holds_every_example_once(words: Tokenizer) -> None:
    examples = Examples(table(TEXTS), words, 128)
    dataset = in_batches(examples, batch_size=8, seeds=[0])
    per_epoch = -(-len(TEXTS) // 8)

    def contents(epoch: int) -> Counter[tuple[int, ...]]:
        found: Counter[tuple[int, ...]] = Counter()
        for step in range(epoch * per_epoch, (epoch + 1) * per_epoch):
            batch = dataset[step]
            for tokens, label, weight in zip(batch["tokens"].tolist(), batch["labels"], batch["weights"], strict=True):
                found[(int(label), *(index for index in tokens if index != PAD))] += int(weight)
        return +found

    expected = Counter(
        (int(label), *tokens.tolist()) for label, tokens in zip(examples.labels, examples.tokens, strict=True)
    )
    assert contents(0) == contents(1) == expected
    assert not equal(dataset[0], dataset[per_epoch])
    assert equal(dataset[5], in_batches(examples, batch_size=8, seeds=[0])[5])


def test_examples_of_like_length_go_together(words: Tokenizer) -> None:
    examples = Examples(table(TEXTS), words, 128)
    dataset = in_batches(examples, batch_size=8, seeds=[0])
    padded = sum(dataset[step]["tokens"].size for step in range(26))
    one_width = 26 * 8 * width_for(examples.lengths.max())
    assert padded < 0.75 * one_width


def test_every_example_has_one_place_in_a_shared_row(words: Tokenizer) -> None:
    examples = Examples(table(TEXTS), words, 128)
    seen = []
    for chosen, batch in shared(examples, 128):
        rows, width = batch["tokens"].shape
        assert chosen.shape == (rows, places(width)) and rows * width <= TOKENS_AT_ONCE and width % 64 == 0 and rows > 1
        for row, place in np.argwhere(chosen >= 0).tolist():
            here = batch["segments"][row] == place + 1
            example = int(chosen[row, place])
            seen.append(example)
            assert here[0] or examples.lengths[example] <= 32, "a long one begins its row"
            np.testing.assert_array_equal(batch["tokens"][row][here], examples.tokens[example])
            assert (np.diff(np.flatnonzero(here)) == 1).all()
            expected = np.arange(here.sum()) >= examples.seconds[example]
            np.testing.assert_array_equal(batch["types"][row][here], expected)
    assert sorted(seen) == list(range(len(TEXTS)))


def test_short_examples_fill_their_rows(words: Tokenizer) -> None:
    examples = Examples(table(TEXTS), words, 128)
    short = examples.some(np.flatnonzero(examples.lengths <= 32))
    used, there = 0, 0
    for chosen, batch in shared(short, 128):
        used += int((batch["segments"] > 0).sum())
        there += int((chosen >= 0).any(1).sum()) * batch["tokens"].shape[1]
    assert used == short.lengths.sum() > 0.8 * there and len(short) > 30


def test_short_examples_share_and_long_ones_have_wide_rows(words: Tokenizer) -> None:
    examples = Examples(table(["a"] * 40 + ["a b c d e f g h " * 12]), words, 512)
    shapes = {batch["tokens"].shape[1]: chosen for chosen, batch in shared(examples, 128)}
    assert max(shapes) == width_for(examples.lengths.max()) and (shapes[max(shapes)] >= 0).sum() > 1
    assert all((chosen >= 0).sum(1).max() <= places(width) for width, chosen in shapes.items())


def test_a_narrow_model_has_rows_enough_for_arrays_that_are_not_small(words: Tokenizer) -> None:
    examples = Examples(table(["a"]), words, 128)
    for model_width, rows in ((384, 2), (128, 2), (96, 4), (64, 4), (24, 16), (8, 32)):
        ((chosen, batch),) = shared(examples, model_width)
        assert chosen.shape == (rows, places(64)) and batch["tokens"].shape == (rows, 64) and (chosen >= 0).sum() == 1
        assert chosen.size * model_width >= 4096


def test_widths_are_few_and_hold_what_they_must() -> None:
    widths = [width_for(length) for length in range(1, 513)]
    assert sorted(set(widths)) == [16, 32, 64, 96, 128, 192, 256, 384, 512]
    assert all(width >= length for length, width in enumerate(widths, 1))
    fine = [width_for(length, fine=True) for length in range(1, 513)]
    assert sorted(set(fine)) == [8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512]
    assert all(length <= width < 2 * max(8, length) for length, width in enumerate(fine, 1))


def test_rows_of_several_seeds_are_those_of_each(words: Tokenizer) -> None:
    """Row i is of seed number i % 3, and for all it is what a run of that seed alone trains on, wider perhaps."""
    examples, seeds = Examples(table(TEXTS), words, 128), [4, 7, 4]
    together = in_batches(examples, batch_size=8, seeds=seeds)
    alone = [in_batches(examples, batch_size=8, seeds=[seed]) for seed in seeds]
    wider = 0
    for step in range(52):
        batch = together[step]
        for place, dataset in enumerate(alone):
            for name, array in dataset[step].items():
                found = batch[name][place :: len(seeds)]
                if array.ndim > 1:
                    wider += found.shape[1] > array.shape[1]
                    assert not found[:, array.shape[1] :].any()
                    found = found[:, : array.shape[1]]
                np.testing.assert_array_equal(found, array)
    assert wider < 0.1 * 3 * 3 * 52, "lengths come in the same order for all seeds"


def test_joined_examples_are_those_of_all_parts_in_turn(words: Tokenizer) -> None:
    parts = [Examples(table(TEXTS[:5]), words, 128), Examples(table(TEXTS[5:12]), words, 128)]
    for number, part in enumerate(parts):
        part.known = np.full(len(part), 1.0 - number, np.float32)
        part.wanted = np.arange(2.0 * len(part), dtype=np.float32).reshape(-1, 2) + 100 * number
    whole = Examples.joined(parts)
    assert len(whole) == 12 and whole.cut == parts[0].cut + parts[1].cut
    for part, chosen in zip(parts, (np.arange(5), np.arange(5, 12)), strict=True):
        batch, own = whole.batch(chosen, 8), part.batch(np.arange(len(part)), 8)
        assert batch.keys() == own.keys() >= {"wanted", "known"}
        for name in own:
            np.testing.assert_array_equal(batch[name], own[name])
