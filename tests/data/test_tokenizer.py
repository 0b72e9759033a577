"""The five special ids are fixed and out of reach of any text; the rest is SentencePiece, deterministic and quiet."""

import random
import unicodedata
from pathlib import Path

import pytest

from lsp import Exit, LspError
from lsp.data import packing, tokenizer
from lsp.data.published import Published
from lsp.data.tokenizer import CLS, MASK, PAD, SEP, SPECIALS, UNK, Tokenizer

GOLDEN = Path(__file__).parents[1] / "deploy" / "golden"


def corpus(documents: int = 300) -> list[str]:
    """Sentences of made-up words, the frequent ones often."""
    pick = random.Random(0)
    words = ["".join(pick.choices("abcdeilmnorstu", k=pick.randint(2, 8))) for _ in range(400)]
    return [" ".join(words[int(pick.paretovariate(0.6)) % 400] for _ in range(40)) for _ in range(documents)]


def train(texts: list[str], vocab_size: int = 400, kind: str = "unigram", lowercase: bool = False) -> Tokenizer:
    return tokenizer.train(iter(texts), vocab_size=vocab_size, kind=kind, lowercase=lowercase, seed=0)


@pytest.fixture(scope="module", params=["unigram", "bpe"])
def words(request: pytest.FixtureRequest) -> Tokenizer:
    return train(corpus(), kind=request.param)


@pytest.mark.parametrize("name", ["bert-bare", "roberta-words", "modernbert-words", "ours"])
def test_lines_come_out_as_in_the_whole_text(name: str, words: Tokenizer) -> None:
    """Of byte-level tokenizers two words would be one, and the newline between them lost."""
    folder = GOLDEN / name
    cut = Published((folder / "tokenizer.json").read_bytes()) if folder.exists() else words
    document = "the cats\nand dogs,\n  sleeping\nin it"
    found = packing.encode([document, "one"], cut)
    assert found.documents.tolist() == [4, 1]
    assert found.tokens.tolist() == [*cut.encode_arrays([document])[0], *cut.encode_arrays(["one"])[0]]


def test_the_special_pieces_have_their_ids(words: Tokenizer) -> None:
    assert words.pieces(range(5)) == list(SPECIALS)
    assert (PAD, UNK, CLS, SEP, MASK) == (0, 1, 2, 3, 4)
    assert words.size == 400


def test_text_that_spells_a_special_piece_is_text(words: Tokenizer) -> None:
    spelt = "a [MASK] b [CLS] [SEP] [PAD] [UNK] <0x00> </s>"
    ids = words.encode([spelt])[0]
    assert min(ids) > MASK
    assert words.decode(ids) == spelt


def test_a_corpus_full_of_special_pieces_does_not_confuse_training() -> None:
    words = train([*corpus(100), *["x[MASK]x[MASK] [CLS] <0x41> [UNK][PAD] \u2581\u2581"] * 100])
    assert words.pieces(range(5)) == list(SPECIALS)
    assert min(words.encode(["x[MASK]x [CLS]"])[0]) > MASK


def test_any_character_survives_through_bytes(words: Tokenizer) -> None:
    strange = "été 你好 \U0001f600 λ"
    ids = words.encode([strange])[0]
    assert UNK not in ids
    assert words.decode([CLS, *ids, SEP, PAD]) == unicodedata.normalize("NFKC", strange)


def test_text_is_nfkc_and_keeps_its_case_unless_asked() -> None:
    texts = [document.title() for document in corpus(100)]
    kept, folded = train(texts), train(texts, lowercase=True)
    assert kept.decode(kept.encode(["ﬁve Ⅷ Ａ"])[0]) == "five VIII A"
    assert folded.decode(folded.encode(["ﬁve Ⅷ Ａ"])[0]) == "five viii a"


def test_training_twice_gives_the_same_bytes(words: Tokenizer) -> None:
    kind = "unigram" if train(corpus()).hash == words.hash else "bpe"
    assert train(corpus(), kind=kind).model == words.model


def test_training_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    train(corpus(50))
    assert capfd.readouterr() == ("", "")


def test_lists_and_arrays_hold_the_same_ids(words: Tokenizer) -> None:
    texts = ["", *corpus(5)]
    assert [array.tolist() for array in words.encode_arrays(texts)] == words.encode(texts)


def test_a_saved_tokenizer_is_found_in_its_run(words: Tokenizer, tmp_path: Path) -> None:
    words.save(tmp_path / "run" / "tokenizer")
    assert Tokenizer.load(tmp_path / "run").hash == Tokenizer.load(tmp_path / "run" / "tokenizer").hash == words.hash


@pytest.mark.parametrize("content", [b"", b"junk", bytes(100)])
def test_what_is_no_tokenizer_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(LspError) as error:
        Tokenizer.load(tmp_path)
    assert error.value.code == Exit.ARTIFACT
    assert str(tmp_path) in error.value.message


def test_too_little_text_says_which_size_works() -> None:
    with pytest.raises(LspError) as error:
        train(corpus(), vocab_size=5000)
    assert error.value.code == Exit.DATA
    works = int(error.value.hint.rstrip(".").rpartition("=")[2])
    assert train(corpus(), vocab_size=works).size == works


def test_hardly_any_text_asks_for_more_text() -> None:
    with pytest.raises(LspError, match="too little") as error:
        train(["hello world"])
    assert error.value.hint == "Give more text."  # no size that a recipe allows would do


def test_no_text_is_said_so() -> None:
    with pytest.raises(LspError, match="no text") as error:
        train(["", "  \n "])
    assert error.value.code == Exit.DATA


def test_a_sample_is_bounded_and_takes_every_line_alike() -> None:
    lines = [f"{number:05d}" for number in range(10_000)]
    taken = tokenizer.sample(["\n".join(lines[at : at + 100]) for at in range(0, 10_000, 100)], 400, seed=1, size=5000)
    assert len(taken) == 1000
    assert taken == sorted(set(taken))
    by_tenth = [sum(number // 1000 == tenth for number in map(int, taken)) for tenth in range(10)]
    assert all(65 <= count <= 140 for count in by_tenth)  # 100 ± 9.5 in each tenth
    assert taken != tokenizer.sample(["\n".join(lines)], 400, seed=2, size=5000)


def test_a_sample_larger_than_the_text_is_the_text() -> None:
    assert tokenizer.sample(["a b\n\nc", "d"], 400, seed=0) == ["a b", "c", "d"]
