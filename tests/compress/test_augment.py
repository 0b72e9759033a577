"""Copies of texts: what may change in them, what may not, and what the masked LM has to do with it."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from lsp.checkpoint import Checkpoint
from lsp.compress import augment
from lsp.console import Progress
from lsp.data import tokenizer
from lsp.data import words as borders
from lsp.data.examples import Examples
from lsp.data.tasks import Table
from lsp.data.tokenizer import CLS, MASK, SEP
from lsp.model.config import Layer, ModelConfig
from lsp.model.encoder import graphdef

Draw = Callable[[ModelConfig, int], dict]
TEXTS = ["the cat sat on the mat and saw a dog", "a dog who barked at the moon", "nobody knew why it was warm"]
QUIET = Progress(quiet=True)


@pytest.fixture(scope="module")
def words() -> Any:
    pick = random.Random(0)
    others = ["".join(pick.choices("abcdeilmnorstu", k=pick.randint(2, 8))) for _ in range(60)]
    lines = [*TEXTS * 20, *(" ".join(pick.choices(others, k=20)) for _ in range(200))]
    return tokenizer.train(iter(lines), vocab_size=350, kind="unigram", lowercase=False, seed=0)


@pytest.fixture
def base(words: Any, draw: Draw, tmp_path: Path, monkeypatch: Any) -> Checkpoint:
    """An encoder with a masked-word head, in the place of teacher and augmenter."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config = ModelConfig("bert", words.size, 16, (Layer(2, 8, 24),), max_length=32)
    return Checkpoint(tmp_path, {"self": "one"}, config, jax.device_get(draw(config, 0)), words, ())


def of(words: Any, texts: list[tuple[str, ...]]) -> Examples:
    made = Examples(Table(texts, [row % 2 for row in range(len(texts))], ("no", "yes")), words, 32)
    return made


def cut(words: Any, tokens: np.ndarray) -> list[list[int]]:
    """The words of an example, special pieces among them, as lists of pieces."""
    codes = borders.borders(words.pieces(range(words.size)))
    return [part.tolist() for part in np.split(tokens, np.flatnonzero(borders.starts(codes[tokens][None])[0])[1:])]


def like(own: list[int], word: list[int]) -> bool:
    return own in (word, [MASK])


def test_without_a_masked_lm_words_are_hidden_and_some_copies_are_short(words: Any, base: Checkpoint) -> None:
    examples = of(words, [(text,) for text in TEXTS * 200])
    made = augment.copies(examples, base, None, 0, 2, QUIET)
    assert len(made) == 2 * len(examples) and not made.known.any()
    assert np.array_equal(made.labels, np.tile(examples.labels, 2))
    hidden = kept = short = 0
    for row, tokens in enumerate(made.tokens):
        whole, own = (cut(words, each) for each in (examples.tokens[row % len(examples)], tokens))
        count = len(own) - 2
        windows = [whole[at : at + count] for at in range(1, len(whole) - count)]
        starts = [window for window in windows if all(map(like, own[1:-1], window))]
        assert own[0] == [CLS] and own[-1] == [SEP] and starts, "words in a row, or masks in their places"
        assert made.lengths[row] == len(tokens) == made.seconds[row]
        short += len(own) < len(whole)
        kept, hidden = kept + len(own) - 2, hidden + own.count([MASK])
    assert len(made) * 0.2 < short < len(made) * 0.3 and 0.08 < hidden / kept < 0.12


def test_of_a_pair_each_text_keeps_some_words_and_the_second_its_place(words: Any, base: Checkpoint) -> None:
    made = augment.copies(of(words, [(TEXTS[0], TEXTS[1])] * 100), base, None, 0, 1, QUIET)
    for tokens, second in zip(made.tokens, made.seconds, strict=True):
        first, other = tokens[1 : second - 1], tokens[second:-1]
        assert tokens[second - 1] == SEP and len(first) and len(other)
        assert not np.isin([CLS, SEP], np.concatenate([first, other])).any()
        assert {*other.tolist()} - {MASK} <= {*words.encode([TEXTS[1]])[0]}


def test_a_copy_is_a_function_of_seed_row_and_number(words: Any, base: Checkpoint) -> None:
    examples = of(words, [(text,) for text in TEXTS * 5])

    def texts(seed: int, count: int, some: Examples = examples) -> list[list[int]]:
        return [tokens.tolist() for tokens in augment.copies(some, base, None, seed, count, QUIET).tokens]

    assert texts(0, 2)[:15] == texts(0, 1) and texts(0, 2)[15:] != texts(0, 1) != texts(1, 1)
    assert texts(0, 1, of(words, [(text,) for text in TEXTS]))[:3] == texts(0, 1)[:3]


def test_a_masked_lm_fills_its_likeliest_words_in(words: Any, base: Checkpoint) -> None:
    examples = of(words, [(text,) for text in TEXTS * 30])
    hidden = augment.copies(examples, base, None, 0, 1, QUIET)  # to see that nothing of it is changed
    made = augment.copies(examples, base, base, 0, 1, QUIET)
    assert any(MASK in tokens for tokens in hidden.tokens) and not any(MASK in tokens for tokens in made.tokens)

    @jax.jit
    def asked(params: dict, tokens: np.ndarray, at: np.ndarray) -> jax.Array:
        model = nnx.merge(graphdef(base.config), params)
        return model.guess(model.encode(tokens, (tokens > 0).astype(np.int32)), at)[0]

    codes = borders.borders(words.pieces(range(words.size)))
    changed = 0
    for row, tokens in enumerate(made.tokens[:3]):
        # The words drawn for row and copy, again, to ask the model by hand about the text with masks.
        own, first = augment._hidden(examples.tokens[row], codes, augment.REPLACED, np.random.default_rng([0, 0, row]))
        masked = np.where(own, MASK, examples.tokens[row])[first | ~own].astype(np.int32)
        at = np.flatnonzero(masked == MASK)
        assert np.array_equal(np.delete(tokens, at), np.delete(masked, at))
        logits = np.array(asked(base.params, masked[None], at[None].astype(np.int32)))
        logits[:, (codes & borders.BEGINS == 0) | (codes >= borders.BORDER)] = -np.inf
        ranks = (logits > logits[np.arange(len(at)), tokens[at]][:, None]).sum(1)
        assert (ranks < augment.PROPOSALS).all()
        changed += len(at)
    assert changed > 3


def test_proposals_are_asked_for_once(words: Any, base: Checkpoint, monkeypatch: Any) -> None:
    examples = of(words, [(text,) for text in TEXTS])
    first = augment.copies(examples, base, base, 0, 2, QUIET)

    def refuse(*_: Any) -> Iterator[Any]:
        raise AssertionError("asked again")

    monkeypatch.setattr(augment, "alone", refuse)
    again = augment.copies(examples, base, base, 0, 2, QUIET)
    assert all(map(np.array_equal, first.tokens, again.tokens))
    with pytest.raises(AssertionError, match="asked again"):
        augment.copies(examples, base, base, 1, 1, QUIET)


def test_a_text_without_words_stays(words: Any, base: Checkpoint) -> None:
    for augmenter in (None, base):
        made = augment.copies(of(words, [("",)]), base, augmenter, 0, 1, QUIET)
        assert made.tokens[0].tolist() == [CLS, SEP]
