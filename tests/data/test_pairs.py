"""Pairs are BERT's: compared with a plain version of its algorithm, and counted."""

import random
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from lsp import Exit, LspError, recipe
from lsp.console import Progress
from lsp.data import batches, parts, shards, tokenizer
from lsp.data.packing import Encoded, Shelf
from lsp.data.pairs import NEXT, RANDOM, Pairs, parted
from lsp.data.shards import Rows
from lsp.data.tokenizer import CLS, PAD, SEP

T = 64
FIRST = 1000  # the first token of the first document; each token of a corpus has a number of its own
Documents = list[list[list[int]]]  # lines of tokens


def corpus(documents: int, lines: tuple[int, int], tokens: tuple[int, int], seed: int = 0) -> Documents:
    pick, at = random.Random(seed), FIRST
    made: Documents = []
    for _ in range(documents):
        made.append([])
        for _ in range(pick.randint(*lines)):
            size = pick.randint(*tokens)
            made[-1].append([*range(at, at + size)])
            at += size
    return made


def encoded(documents: Documents) -> Encoded:
    lines = [line for document in documents for line in document]
    tokens = np.array([token for line in lines for token in line], np.int32)
    sizes, counts = (np.array([len(each) for each in of], np.int64) for of in (lines, documents))
    return Encoded(tokens, sizes, counts)


class Pair(NamedTuple):
    """What the plain version made of a chunk."""

    row: list[int]
    document: int
    target: int
    chunk: int  # lines
    random: bool


def plain(documents: Documents, length: int, seed: str) -> list[Pair]:
    """`create_instances_from_document` of Devlin et al. with lists, and with numbers drawn as `Pairs` draws them."""
    draw, found, room = random.Random(seed), [], length - 3

    def below(number: int) -> int:
        return int(draw.random() * number)

    def cut(text: list[int], size: int) -> list[int]:
        over = len(text) - size
        coins = draw.getrandbits(over) if over else 0
        for coin in range(over):
            text = text[1:] if coins >> coin & 1 else text[:-1]
        return text

    for number, document in enumerate(documents):
        target = 2 + below(room - 1) if draw.random() < 0.1 else room
        chunk: list[list[int]] = []
        index = 0
        while index < len(document):
            chunk.append(document[index])
            if index == len(document) - 1 or sum(map(len, chunk)) >= target:
                split = 1 if len(chunk) == 1 else 1 + below(len(chunk) - 1)
                first = [token for line in chunk[:split] for token in line]
                second: list[int] = []
                is_random = len(chunk) == 1 or draw.random() < 0.5
                if is_random:
                    others = [*range(number + 1, len(documents)), *range(number)]
                    other = documents[others[below(len(others))]]
                    for line in other[below(len(other)) :]:
                        second += line
                        if len(second) >= target - len(first):
                            break
                    index -= len(chunk) - split
                else:
                    second = [token for line in chunk[split:] for token in line]
                sizes = [len(first), len(second)]
                while sum(sizes) > room:
                    sizes[0 if sizes[0] > sizes[1] else 1] -= 1
                first, second = cut(first, sizes[0]), cut(second, sizes[1])
                row = [SEP if is_random else CLS, *first, SEP, *second, SEP]
                found.append(Pair(row + [PAD] * (length - len(row)), number, target, len(chunk), is_random))
                chunk = []
            index += 1
    return found


def texts(row: np.ndarray) -> tuple[list[int], list[int]]:
    """A and B, which are what lies between three special tokens."""
    useful = row[row != PAD].tolist()
    middle = useful.index(SEP, 1)
    assert useful[-1] == SEP and useful.index(SEP, middle + 1) == len(useful) - 1
    return useful[1:middle], useful[middle + 1 : -1]


def owners(documents: Documents) -> dict[int, tuple[int, int]]:
    """Document and line of each token."""
    return {token: (d, n) for d, lines in enumerate(documents) for n, line in enumerate(lines) for token in line}


def near(share: float, expected: float, count: int) -> bool:
    """Within four standard errors."""
    return abs(share - expected) < 4 * (expected * (1 - expected) / count) ** 0.5


@pytest.fixture(scope="module")
def documents() -> Documents:
    return corpus(2000, (1, 30), (1, 25))


@pytest.fixture(scope="module")
def rows(documents: Documents) -> np.ndarray:
    return Pairs(T, "0").add(encoded(documents))


@pytest.mark.parametrize(
    ("length", "lines", "tokens"), [(64, (1, 30), (1, 25)), (16, (1, 9), (1, 40)), (9, (1, 3), (1, 2))]
)
def test_pairs_are_those_of_the_plain_version(length: int, lines: tuple[int, int], tokens: tuple[int, int]) -> None:
    documents = corpus(200, lines, tokens, seed=length)
    made = Pairs(length, "seed").add(encoded(documents))
    assert made.tolist() == [pair.row for pair in plain(documents, length, "seed")]


def test_half_of_the_pairs_are_random_where_there_is_a_choice(documents: Documents) -> None:
    pairs = plain(documents, T, "0")
    assert all(pair.random for pair in pairs if pair.chunk == 1)
    choice = [pair.random for pair in pairs if pair.chunk > 1]
    assert len(choice) > 5000
    assert near(sum(choice) / len(choice), 0.5, len(choice))


def test_a_next_text_follows_and_a_random_one_is_from_another_document(documents: Documents, rows: np.ndarray) -> None:
    owner = owners(documents)
    starts = {line[0] for document in documents for line in document}
    for row in rows:
        first, second = texts(row)
        assert first == [*range(first[0], first[-1] + 1)] and second == [*range(second[0], second[-1] + 1)]
        ends = [owner[text[place]] for text in (first, second) for place in (0, -1)]
        assert ends[0][0] == ends[1][0] and ends[2][0] == ends[3][0], "a text stays in its document"
        if row[0] == CLS:
            assert ends[0][0] == ends[2][0] and first[-1] < second[0]
        else:
            assert ends[0][0] != ends[2][0]
        if row[-1] == PAD:  # nothing was cut
            assert first[0] in starts and second[0] in starts
            assert row[0] == SEP or second[0] == first[-1] + 1


def test_a_tenth_of_the_documents_makes_shorter_pairs_of_any_length() -> None:
    documents = corpus(8000, (30, 30), (1, 1))
    room = 13
    made = Pairs(room + 3, "0").add(encoded(documents))
    owner, longest = owners(documents), Counter[int]()
    for row in made:
        first, second = texts(row)
        document = owner[first[0]][0]
        longest[document] = max(longest[document], len(first) + len(second))
    short = Counter(size for size in longest.values() if size < room)
    # One of 2 to 13 tokens is drawn, and 13 is not short.
    assert near(short.total() / 8000, 0.1 * 11 / 12, 8000)
    assert sorted(short) == list(range(2, room))
    assert all(near(count / short.total(), 1 / 11, short.total()) for count in short.values())


def test_a_random_text_begins_anywhere_in_any_other_document() -> None:
    documents = corpus(10, (8, 8), (1, 1))
    makers = [Pairs(16, str(seed)).add(encoded(documents)) for seed in range(2000)]
    owner = owners(documents)
    seen = [texts(row) for row in np.concatenate(makers) if row[0] == SEP]
    from_first = [owner[second[0]] for first, second in seen if owner[first[0]][0] == 3]
    for place, kinds in ((0, set(range(10)) - {3}), (1, set(range(8)))):
        counts = Counter(each[place] for each in from_first)
        assert set(counts) == kinds
        assert all(near(count / len(from_first), 1 / len(kinds), len(from_first)) for count in counts.values())


def test_a_text_too_long_is_cut_at_both_ends_alike() -> None:
    documents = corpus(500, (1, 1), (40, 40))
    fronts = overs = 0
    for row in Pairs(32, "0").add(encoded(documents)):
        first, second = texts(row)
        assert (len(first), len(second)) == (15, 14), "the longer is cut first, the second of equal ones"
        fronts += (first[0] - FIRST) % 40 + (second[0] - FIRST) % 40
        overs += 25 + 26
    assert near(fronts / overs, 0.5, overs)


def test_an_epoch_reads_a_document_once(documents: Documents, rows: np.ndarray) -> None:
    def read(rows: np.ndarray) -> Counter[int]:
        pairs = [(row[0], *texts(row)) for row in rows]
        return Counter(t for kind, first, second in pairs for t in (first + second if kind == CLS else first))

    every = sum(len(line) for document in documents for line in document)
    counts = read(rows)
    assert max(counts.values()) == 1
    assert len(counts) > 0.85 * every, "what is cut is lost, as in BERT"
    whole = Pairs(30 * 25 + 30 * 25 + 3, "0").add(encoded(documents))  # nothing is cut
    counts = read(whole)
    assert len(counts) == every and max(counts.values()) == 1


def test_a_corpus_in_chunks_makes_every_documents_pairs_once_and_in_order(documents: Documents) -> None:
    owner = owners(documents)
    maker, made = Pairs(T, "0"), []
    at = 0
    for size in (1, 1, 3, 1, 0, 500, 1, 1493):
        made.append(maker.add(encoded(documents[at : at + size])))
        at += size
    assert [len(each) > 0 for each in made] == [False, True, True, True, False, True, True, True]
    assert len(maker.rest()) == 0
    pairs = [(row[0], *texts(row)) for row in np.concatenate(made)]
    places = [owner[first[0]] for _, first, _ in pairs]
    assert places == sorted(places)
    assert {document for document, _ in places} == set(range(2000))
    assert all(owner[first[0]][0] != owner[second[0]][0] for kind, first, second in pairs if kind == SEP)


def test_empty_lines_and_documents_are_nothing() -> None:
    documents = corpus(50, (1, 9), (1, 9))
    gaps = [*documents[:20], [[]], *([[], *document, []] for document in documents[20:]), []]
    np.testing.assert_array_equal(Pairs(T, "0").add(encoded(gaps)), Pairs(T, "0").add(encoded(documents)))


def test_a_shards_only_document_is_paired_with_itself() -> None:
    documents = corpus(1, (40, 40), (5, 5))
    maker = Pairs(T, "0")
    assert len(maker.add(encoded(documents))) == 0
    rows = maker.rest()
    assert {int(row[0]) for row in rows} == {CLS, SEP}
    assert len(maker.rest()) == 0


def test_stored_rows_come_apart_by_hand() -> None:
    rows = np.array([[CLS, 7, 8, SEP, 9, SEP, PAD], [SEP, 7, SEP, 8, 9, 9, SEP]], np.int32)
    tokens, types, labels = parted(rows)
    assert tokens.tolist() == [[CLS, 7, 8, SEP, 9, SEP, PAD], [CLS, 7, SEP, 8, 9, 9, SEP]]
    assert types.tolist() == [[0, 0, 0, 0, 1, 1, 0], [0, 0, 0, 1, 1, 1, 1]]
    assert labels.tolist() == [NEXT, RANDOM] == [0, 1]
    assert {array.dtype for array in (tokens, types, labels)} == {np.dtype(np.int32)}


STORIES = ["\n".join(f"the {n} cats saw {line} dogs" for line in range(1 + n % 9)) for n in range(200)]


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Rows:
    path = tmp_path_factory.mktemp("pairs")
    words = tokenizer.train(iter(STORIES), vocab_size=300, kind="bpe", lowercase=False, seed=0)
    shards.pack(STORIES, words, path, T, pairs="7")
    return Rows.open(path)


def test_batches_of_pairs_are_a_function_of_the_step(stored: Rows) -> None:
    one, other = (batches.pretraining(stored, batch_size=8, seed=1, mask_rate=0.15) for _ in range(2))
    for step in (0, 5, 40):
        assert all(np.array_equal(one[step][name], other[step][name]) for name in one[step])
    numbers = batches.row_numbers(stored, batch_size=8, seed=1)
    batch = one[5]
    tokens, types, labels = parted(stored.take(numbers[5]))
    used = batch["weights"] == 1
    batch["tokens"][np.nonzero(used)[0], batch["slots"][used]] = batch["targets"][used]
    np.testing.assert_array_equal(batch["tokens"], tokens)
    np.testing.assert_array_equal(batch["types"], types)
    np.testing.assert_array_equal(batch["labels"], labels)
    np.testing.assert_array_equal(batch["segments"], tokens != PAD)
    assert not used[:, 0].any() or (batch["slots"][used] > 0).all(), "no special token is hidden"
    assert batch["pair_weights"].tolist() == pytest.approx([used.sum() / 8] * 8)


def test_batches_that_grow_weigh_their_rows_as_their_slots(stored: Rows) -> None:
    dataset = batches.pretraining(stored, batch_size=4, seed=1, mask_rate=0.15)
    growing = batches.growing(dataset, batches.Growth(4, 16, 2), batches.Growth(T, T, 0), 0, 3)
    for size, batch in zip([4, 8, 16], growing, strict=True):
        assert batch["labels"].shape == batch["pair_weights"].shape == (size,)
        assert batch["pair_weights"].sum() == pytest.approx(batch["weights"].sum())


def test_rows_that_only_fill_an_evaluation_batch_weigh_nothing(stored: Rows) -> None:
    held = shards.Subset(stored, np.arange(11))
    found = list(batches.evaluation(held, 8))
    assert [(batch["pair_weights"] > 0).sum() for batch in found] == [8, 3]
    assert {batch["labels"].shape for batch in found} == {(8,)}


def test_packed_rows_are_stored_as_ever_and_never_mixed_with_pairs(stored: Rows, tmp_path: Path) -> None:
    words = tokenizer.train(iter(STORIES), vocab_size=300, kind="bpe", lowercase=False, seed=0)
    shards.pack(STORIES, words, tmp_path, T)
    head = (tmp_path / "rows" / "00000.rows").read_bytes()[: shards.HEADER_BYTES]
    assert int.from_bytes(head[8:12], "little") == 1
    assert not any(head[96:124])
    assert (Rows.open(tmp_path).pairs, stored.pairs) == (False, True)
    (tmp_path / "rows" / "00001.rows").write_bytes((stored.path / "rows" / "00000.rows").read_bytes())
    with pytest.raises(LspError, match="another kind of rows"):
        Rows.open(tmp_path)


def test_a_single_document_is_refused(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("\n".join(STORIES))
    data = recipe.Text(vocab_size=300, tokenizer="bpe", next_sentence=True)
    with pytest.raises(LspError, match="a single document") as refused:
        parts.prepare([str(tmp_path / "book.txt")], tmp_path / "out", data, None, 0, Progress(quiet=True))
    assert refused.value.code == Exit.DATA


def test_pairs_cost_the_padding_that_packing_saves(documents: Documents, rows: np.ndarray) -> None:
    shelf = Shelf(T)
    packed = np.concatenate([shelf.add(encoded(documents)), shelf.rest()])
    assert (rows == PAD).mean() > (packed == PAD).mean()
