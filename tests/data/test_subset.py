"""A tokenizer with fewer pieces cuts the texts it was made for as the whole one does: every kind of tokenizer."""

import random
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer as Plain
from tokenizers import models, pre_tokenizers, processors

from lsp.data import tokenizer
from lsp.data.published import Published
from lsp.data.subset import joined, subset
from lsp.data.tokenizer import CLS, MASK, PAD, SEP, SPECIALS, UNK, Tokenizer

GOLDEN = Path(__file__).parent.parent / "deploy" / "golden"
TEXTS = ["the cat sat on the mat", "a dog, who barked at the moon, slept", "nobody knew why it was warm"]
OTHERS = ["cats knowing tests", "Über 12 moons <s> sleeping", "zebra [MASK] 北京"]


def unigram_json() -> Tokenizer:
    """A Unigram model as XLM-RoBERTa has it."""
    pieces = [
        "<s>",
        "<pad>",
        "</s>",
        "<unk>",
        "▁",
        *"abcdehiklmnorstuwy",
        "▁the",
        "▁cat",
        "at",
        "▁m",
        "oon",
        "know",
        "<mask>",
    ]
    made = Plain(models.Unigram([(piece, -float(place)) for place, piece in enumerate(pieces)], 3, byte_fallback=False))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    ends = [("<s>", 0), ("</s>", 2)]
    made.post_processor = processors.TemplateProcessing("<s> $A </s>", "<s> $A </s> </s> $B </s>", ends)
    return Published(made.to_str().encode())


def whole(kind: str) -> Tokenizer:
    if kind in ("unigram", "bpe"):
        pick = random.Random(0)
        words = ["".join(pick.choices("abcdeilmnorstu", k=pick.randint(2, 8))) for _ in range(60)]
        lines = [*TEXTS * 20, *(" ".join(pick.choices(words, k=20)) for _ in range(200))]
        return tokenizer.train(iter(lines), vocab_size=350, kind=kind, lowercase=False, seed=0)
    return unigram_json() if kind == "published unigram" else Tokenizer.load(GOLDEN / kind)


@pytest.mark.parametrize("kind", ["unigram", "bpe", "bert-bare", "roberta-words", "published unigram"])
def test_texts_of_kept_pieces_are_cut_as_before(kind: str) -> None:
    words = whole(kind)
    ids = words.encode(TEXTS)
    wanted = np.zeros(words.size, bool)
    wanted[np.concatenate([np.array(each) for each in ids])] = True
    small, old = subset(words, wanted)
    assert small.size == len(old) < words.size
    assert old[:5].tolist() == [PAD, UNK, CLS, SEP, MASK]
    assert len(set(old.tolist())) == len(old)
    assert [old[np.array(each)].tolist() for each in small.encode(TEXTS)] == ids
    assert small.between == words.between
    assert small.pieces(range(small.size)) == words.pieces(old.tolist())
    assert not np.isin(np.flatnonzero(wanted), old, invert=True).any()
    for text in OTHERS:  # cut smaller, and the same text still, where the whole one lost nothing
        again = small.encode([text])[0]
        assert max(again) < small.size
        assert small.decode(again) == words.decode(words.encode([text])[0]) or UNK in again


def test_special_pieces_stay_where_the_file_has_them() -> None:
    """A tokenizer.json's own template, padding and added pieces speak of the new ids."""
    words = whole("bert-bare")
    wanted = np.zeros(words.size, bool)
    wanted[np.array(words.encode(TEXTS[:1])[0])] = True
    small, _ = subset(words, wanted)
    plain = Plain.from_str(small.model.decode())
    encoded = plain.encode("the cat", "the mat")
    names = [plain.id_to_token(index) for index in encoded.ids]
    assert names[0] == "[CLS]" and names[-1] == "[SEP]" and names.count("[SEP]") == 2
    assert plain.token_to_id("[unused0]") is None or plain.token_to_id("[unused0]") < small.size
    assert sorted(plain.get_vocab().values()) == list(range(small.size))


def test_a_piece_is_put_together_by_the_merges_that_come_first() -> None:
    ranks = {("a", "b"): 0.0, ("b", "c"): 1.0, ("ab", "c"): 2.0, ("a", "bc"): 3.0}
    assert joined("abc", lambda one, other: ranks.get((one, other))) == {"a", "b", "c", "ab", "abc"}
    assert joined("abcbc", lambda one, other: ranks.get((one, other))) == {"a", "b", "c", "ab", "abc", "bc"}


def test_special_names_are_ours() -> None:
    small, _ = subset(whole("unigram"), np.zeros(350, bool))
    assert small.pieces(range(5)) == list(SPECIALS)
    assert small.decode(small.encode(["any text, даже это"])[0]) == "any text, даже это"
