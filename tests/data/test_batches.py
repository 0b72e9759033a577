"""Batches depend on (rows, seed, step) and nothing else, and leave nothing out."""

import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from lsp import Exit, LspError
from lsp.data import batches, shards, tokenizer
from lsp.data.masking import drawing, slots_for
from lsp.data.shards import Rows
from lsp.data.tokenizer import MASK, PAD, Tokenizer
from lsp.data.words import borders, starts

T = 32
TEXTS = [f"the {n % 7} cats and {n} dogs " * (1 + n % 5) for n in range(203)]


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    return tokenizer.train(iter(TEXTS), vocab_size=290, kind="bpe", lowercase=False, seed=0)


@pytest.fixture(scope="module")
def rows(words: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Rows:
    path = tmp_path_factory.mktemp("rows")
    shards.pack(TEXTS, words, path, T)
    return Rows.open(path)


def restored(batch: batches.Batch) -> list[tuple[int, ...]]:
    tokens = batch["tokens"].copy()
    for row, slots, targets, weights in zip(tokens, batch["slots"], batch["targets"], batch["weights"], strict=True):
        row[slots[weights == 1]] = targets[weights == 1]
    return [tuple(row) for row in tokens.tolist()]


def equal(a: batches.Batch, b: batches.Batch) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def test_an_epoch_holds_every_row_once_in_a_new_order_with_new_masks(rows: Rows) -> None:
    stored = Counter(tuple(row) for row in rows.take(np.arange(len(rows))).tolist())
    dataset = batches.pretraining(rows, batch_size=1, seed=3, mask_rate=0.15)
    epochs = [[dataset[epoch * len(rows) + i] for i in range(len(rows))] for epoch in (0, 1)]
    first, second = ([restored(batch)[0] for batch in epoch] for epoch in epochs)
    assert Counter(first) == Counter(second) == stored
    assert first != second
    assert equal(next(batches.read_ahead(dataset, 5, 6)), dataset[5])
    masks = [{tuple(batch["tokens"][0].tolist()) for batch in epoch} for epoch in epochs]
    assert len(masks[0] & masks[1]) < 0.1 * len(rows)


def test_a_batch_has_the_promised_shapes_and_types(rows: Rows) -> None:
    batch = batches.pretraining(rows, batch_size=4, seed=0, mask_rate=0.15)[0]
    slots = slots_for(0.15, T)
    expected = {"tokens": (4, T), "segments": (4, T), "slots": (4, slots), "targets": (4, slots), "overflow": ()}
    assert {name: batch[name].shape for name in expected} == expected
    assert {array.dtype for name, array in batch.items() if name != "weights"} == {np.dtype(np.int32)}
    assert batch["weights"].shape == (4, slots)
    assert batch["weights"].dtype == np.float32
    np.testing.assert_array_equal(batch["segments"] == 0, batch["tokens"] == PAD)


def test_a_step_gives_the_same_batch_whenever_it_is_asked(rows: Rows) -> None:
    dataset = batches.pretraining(rows, batch_size=5, seed=1, mask_rate=0.15)
    wanted = [dataset[step] for step in (70, 3, 70)]
    assert equal(wanted[0], wanted[2])
    again = batches.pretraining(rows, batch_size=5, seed=1, mask_rate=0.15)
    assert equal(again[70], wanted[0])
    assert not equal(batches.pretraining(rows, batch_size=5, seed=2, mask_rate=0.15)[3], wanted[1])


def test_reading_ahead_from_the_middle_is_asking_one_by_one(rows: Rows) -> None:
    dataset = batches.pretraining(rows, batch_size=4, seed=0, mask_rate=0.15)
    read = list(batches.read_ahead(dataset, 13, 30))
    assert len(read) == 17
    assert all(equal(batch, dataset[13 + i]) for i, batch in enumerate(read))
    assert list(batches.read_ahead(dataset, 5, 5)) == []


def test_an_abandoned_reader_stops_reading(rows: Rows) -> None:
    dataset = batches.pretraining(rows, batch_size=4, seed=0, mask_rate=0.15)
    before = threading.active_count()
    for _ in range(5):
        reader = batches.read_ahead(dataset, 0, 10_000_000)
        next(reader)
        reader.close()
    for _ in range(200):  # they end after the batch at hand
        if threading.active_count() <= before:
            return
        time.sleep(0.01)
    raise AssertionError(threading.enumerate())


def test_the_mask_rate_goes_down_a_line_in_three_shapes(rows: Rows) -> None:
    dataset = batches.pretraining(rows, batch_size=16, seed=0, mask_rate=0.6, mask_rate_end=0.2, steps=31)
    read = list(batches.read_ahead(dataset, 0, 31))
    widths = [batch["slots"].shape[1] for batch in read]
    assert (
        widths == [slots_for(0.6, T)] * 10 + [slots_for(0.2 + 0.4 * 2 / 3, T)] * 10 + [slots_for(0.2 + 0.4 / 3, T)] * 11
    )
    assert all(equal(batch, dataset[step]) for step, batch in enumerate(read))
    surplus, variance = 0.0, 0.0
    for step, batch in enumerate(read):
        rate, ordinary = 0.6 - 0.4 * step / 30, sum(token > MASK for row in restored(batch) for token in row)
        assert batch["overflow"] == 0
        wanted = batch["weights"].sum()
        assert abs(wanted - rate * ordinary) < len(batch["tokens"])  # a row is rounded up or down
        surplus, variance = surplus + wanted - rate * ordinary, variance + len(batch["tokens"]) / 4
    assert abs(surplus) < 4 * variance**0.5


def test_a_changing_rate_needs_to_know_the_steps(rows: Rows) -> None:
    with pytest.raises(LspError, match="number of steps is not known") as raised:
        batches.pretraining(rows, batch_size=4, seed=0, mask_rate=0.3, mask_rate_end=0.15)
    assert raised.value.code == Exit.USAGE
    assert "train.steps" in raised.value.hint
    same = [batches.pretraining(rows, batch_size=4, seed=0, mask_rate=0.3, mask_rate_end=end)[5] for end in (0.0, 0.3)]
    assert equal(*same)


@pytest.mark.parametrize("masking", ["word", "span"])
def test_batches_hide_whole_words_of_a_real_tokenizer(rows: Rows, words: Tokenizer, masking: str) -> None:
    codes = borders(words.pieces(range(words.size)))
    dataset = batches.pretraining(rows, batch_size=8, seed=0, mask_rate=0.2, draw=drawing(masking, words))
    overflow = 0
    for step in range(12):
        batch = dataset[step]
        before, found = np.array(restored(batch)), np.zeros((8, T + 1), bool)
        found[np.arange(8)[:, None], np.where(batch["weights"] == 1, batch["slots"], T)] = True
        inside = ~starts(codes[before])[:, 1:]
        assert (found[:, 1:T] == found[:, : T - 1])[inside].all()
        overflow += int(batch["overflow"] > 0)
    assert overflow < 12
    assert equal(
        dataset[3], batches.pretraining(rows, batch_size=8, seed=0, mask_rate=0.2, draw=drawing(masking, words))[3]
    )


def test_row_numbers_say_which_rows_a_batch_holds(rows: Rows) -> None:
    numbers = batches.row_numbers(rows, batch_size=5, seed=3)
    dataset = batches.pretraining(rows, batch_size=5, seed=3, mask_rate=0.15)
    for step in (0, 7, 200):
        assert restored(dataset[step]) == [tuple(row) for row in rows.take(numbers[step]).tolist()]


def test_evaluation_has_every_row_once_under_the_same_masks(rows: Rows) -> None:
    held_out = batches.evaluation(rows, 7)
    assert len(held_out) == -(-len(rows) // 7)
    once = [row for batch in held_out for row in restored(batch)]
    assert once[: len(rows)] == [tuple(row) for row in rows.take(np.arange(len(rows))).tolist()]
    assert all(set(row) == {PAD} for row in once[len(rows) :])
    assert {batch["tokens"].shape for batch in held_out} == {(7, T)}
    missing = len(held_out) * 7 - len(rows)
    assert not held_out[len(held_out) - 1]["weights"][7 - missing :].any()
    assert all(equal(a, b) for a, b in zip(held_out, batches.evaluation(rows, 7), strict=True))
    assert sum((batch["tokens"] == MASK).sum() for batch in held_out) > 0


def test_the_road_from_files_needs_neither_jax_nor_grain(tmp_path: Path) -> None:
    import subprocess
    import sys

    code = "import sys, lsp.commands.prepare, lsp.data.tasks; sys.exit('jax' in sys.modules or 'grain' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_batch_grows_by_doubling_and_every_row_comes_in_its_turn(rows: Rows) -> None:
    growth, whole_rows = batches.Growth(2, 8, 6), batches.Growth(T, T, 0)
    assert [growth.units(step) for step in range(9)] == [1, 1, 1, 2, 2, 2, 4, 4, 4]
    assert [growth.before(step) for step in range(9)] == [0, 1, 2, 3, 5, 7, 9, 13, 17]
    units = batches.pretraining(rows, batch_size=2, seed=3, mask_rate=0.3, mask_rate_end=0.1, steps=growth.before(9))
    grown = list(batches.growing(units, growth, whole_rows, 0, 9))
    assert [len(batch["tokens"]) for batch in grown] == [2, 2, 2, 4, 4, 4, 8, 8, 8]
    whole = [units[index] for index in range(growth.before(9))]
    for name in ("tokens", "segments"):
        np.testing.assert_array_equal(
            np.concatenate([batch[name] for batch in grown]), np.concatenate([unit[name] for unit in whole])
        )
    for name in ("targets", "weights", "overflow"):  # units of fewer slots are filled up
        assert sum(batch[name].sum() for batch in grown) == sum(unit[name].sum() for unit in whole)
    resumed = list(batches.growing(units, growth, whole_rows, 4, 9))
    for batch, again in zip(grown[4:], resumed, strict=True):
        assert all(np.array_equal(batch[name], again[name]) for name in batch)


def test_a_row_is_cut_into_fewer_and_fewer_pieces_and_nothing_else_changes(rows: Rows) -> None:
    dataset = batches.pretraining(rows, batch_size=4, seed=3, mask_rate=0.15)
    length = batches.Growth(T // 4, T, 6)
    cut = list(batches.growing(dataset, batches.Growth(4, 4, 0), length, 0, 8))
    pieces = [(4, 4, T // 4)] * 3 + [(4, 2, T // 2)] * 3 + [(4, T)] * 2
    assert [batch["segments"].shape for batch in cut] == pieces
    for step, batch in enumerate(cut):
        batch["segments"] = batch["segments"].reshape(4, T)
        assert equal(batch, dataset[step])


def test_a_batch_that_does_not_grow_is_the_unit() -> None:
    growth = batches.Growth(32, 32, 0)
    assert [growth.units(step) for step in (0, 5, 10**9)] == [1, 1, 1] and growth.before(10**9) == 10**9


@pytest.mark.parametrize("first, over, said", [(3, 10, "no doubling"), (64, 10, "no doubling"), (8, 0, "train.steps")])
def test_growth_that_can_not_be_is_refused(first: int, over: int, said: str) -> None:
    with pytest.raises(LspError, match=said) as caught:
        batches.Growth(first, 32, over)
    assert caught.value.code == 2
