"""More texts for a student to ask its teacher about: copies of the training texts with other words in some places.

A masked LM puts words there that it finds likely (TinyBERT: Jiao et al., 2020); but here all places of a copy are
filled at once, and a proposal is drawn as likely as the model finds it. Without one, words are hidden, and some copies
keep a few words only (Tang et al., 2019, without their exchange of words by part of speech, for which lsp has no
tagger). A copy is a function of the seed, its number and the example's; the labels may no longer be right for it.

It costs 4 bytes a token and about 200 bytes an example; a masked LM reads each copy once, and what it proposed is kept
in the cache folder.

Dimensions: B rows, T tokens, W words, K hidden words of a row, P proposals, V vocabulary.
"""

import copy
import hashlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lsp import Exit, LspError, checkpoint
from lsp.checkpoint import Checkpoint
from lsp.compress.teacher import kept
from lsp.data import words
from lsp.data.examples import Examples, alone, width_for
from lsp.data.tokenizer import CLS, MASK, SEP
from lsp.model.encoder import Model
from lsp.model.weightonly import dequantize
from lsp.train.evaluate import Forward

REPLACED, PROPOSALS = 0.4, 15  # share of the words that a masked LM replaces, and by how many that it may
HIDDEN = 0.1  # share of the words that are hidden without one
SHORTENED, LONGEST = 0.25, 5  # share of such copies that keep a few words of a text only, and how many at most


def copies(
    examples: Examples, base: Checkpoint, augmenter: Checkpoint | None, seed: int, count: int, progress: Any
) -> Examples:
    """`count` copies of all examples, which are in the tokens of `base`; no label is known to be right for them."""
    codes_V = words.borders(base.tokenizer.pieces(range(base.tokenizer.size)))
    proposals = Proposals(augmenter, codes_V) if augmenter else None
    made = []
    with progress.task("making copies of the texts", count) as task:
        for number in range(count):
            made.append(_copy(examples, codes_V, (seed, number), proposals is None))
            if proposals:
                _fill(made[-1], proposals.kept(made[-1], (seed, number), progress))
            task.update(number + 1)
    return Examples.joined(made)


def proposer(path: Path, base: Checkpoint) -> Checkpoint:
    """The masked LM at `path`. Raises LspError: exit 2 if it is none, 4 if it reads other tokens than the teacher."""
    found = checkpoint.open(path).expect("words")
    if found.tokenizer.hash != base.tokenizer.hash:
        raise LspError(
            f"{path} has another tokenizer ({found.tokenizer.hash[:8]}) than the teacher {base.path} "
            f"({base.tokenizer.hash[:8]}).",
            hint="Give the encoder that the teacher was made from, or leave out --augmenter.",
            code=Exit.ARTIFACT,
        )
    return found


def _copy(examples: Examples, codes_V: np.ndarray, at: tuple[int, int], shortened: bool) -> Examples:
    """The examples with words hidden, [MASK] in the place of each."""
    made = copy.copy(examples)
    made.tokens, made.seconds = [], examples.seconds.copy()
    for row, tokens in enumerate(examples.tokens):
        random = np.random.default_rng([*at, row])
        kept = np.ones(len(tokens), bool)
        hidden, first = _hidden(tokens, codes_V, HIDDEN if shortened else REPLACED, random)
        if shortened and random.random() < SHORTENED:
            kept = _few(tokens, first, random)
        kept &= first | ~hidden
        made.tokens.append(np.where(hidden, np.int32(MASK), tokens)[kept])
        made.seconds[row] = kept[: examples.seconds[row]].sum()
    made.lengths = np.fromiter(map(len, made.tokens), np.int64, len(made.tokens))
    made.known, made.wanted = np.zeros(len(made.tokens), np.float32), None
    return made


def _hidden(
    tokens_T: np.ndarray, codes_V: np.ndarray, share: float, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """The tokens of the words that are drawn, and those that begin a word, each bool [T]. Special pieces stay."""
    first_T = words.starts(codes_V[tokens_T][None])[0]
    drawn_W = (random.random(int(first_T.sum())) < share) & (codes_V[tokens_T[first_T]] < words.BORDER)
    return drawn_W[np.cumsum(first_T) - 1], first_T


def _few(tokens_T: np.ndarray, first_T: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """bool [T]: the tokens of up to `LONGEST` words in a row of each text, and those around the texts."""
    kept_W = np.isin(tokens_T[first_T], (CLS, SEP))
    inside = np.flatnonzero(~kept_W)
    for text in np.split(inside, np.flatnonzero(np.diff(inside) > 1) + 1):
        count = min(int(random.integers(1, LONGEST + 1)), len(text))
        begin = int(random.integers(0, len(text) - count + 1))
        kept_W[text[begin : begin + count]] = True
    return kept_W[np.cumsum(first_T) - 1]


def _fill(examples: Examples, pieces: np.ndarray) -> None:
    """Puts the pieces, int32 [all masks], in the places of the masks."""
    done = 0
    for tokens in examples.tokens:
        at = np.flatnonzero(tokens == MASK)
        tokens[at] = pieces[done : done + len(at)]
        done += len(at)


class Proposals:
    """What a masked LM would put in the places of masks: pieces that begin a word and are not special."""

    def __init__(self, augmenter: Checkpoint, codes_V: np.ndarray) -> None:
        self.augmenter = augmenter
        self.params = jax.device_put(dequantize(augmenter.params))
        fit_V = np.zeros(augmenter.config.vocab_size, bool)
        fit_V[: len(codes_V)] = (codes_V & words.BEGINS > 0) & (codes_V < words.BORDER)

        def propose(model: Model, batch: dict[str, jax.Array]) -> jax.Array:
            hidden_BTD = model.encode(batch["tokens"], batch["segments"], batch["types"])
            logits_BKV = jnp.where(fit_V, model.guess(hidden_BTD, batch["slots"]), -jnp.inf)
            best_BKP, pieces_BKP = jax.lax.top_k(logits_BKV, batch["noise"].shape[-1])
            # The largest sum of a logit and Gumbel noise is drawn as softmax draws (Gumbel, 1954).
            drawn_BK1 = (best_BKP + batch["noise"]).argmax(-1, keepdims=True)
            return jnp.take_along_axis(pieces_BKP, drawn_BK1, axis=-1)[..., 0]

        self.forward, self.count = Forward(augmenter.config, propose), min(PROPOSALS, int(fit_V.sum()))

    def kept(self, examples: Examples, at: tuple[int, int], progress: Any) -> np.ndarray:
        """A piece for each mask, int32 [all masks], for the seed and the number of the copy; asked once and kept."""
        found = hashlib.sha256(self.augmenter.manifest["self"].encode() + repr(at).encode())
        for array in (examples.lengths, np.concatenate(examples.tokens)):
            found.update(np.ascontiguousarray(array).tobytes())
        counts = np.array([np.count_nonzero(tokens == MASK) for tokens in examples.tokens])
        like = (np.int32, (int(counts.sum()),))
        return kept("augmented", found.hexdigest(), lambda: self(examples, counts, at), like, progress)

    def __call__(self, examples: Examples, counts: np.ndarray, at: tuple[int, int]) -> np.ndarray:
        """As `kept`, of examples with so many masks each."""
        ends = np.cumsum(counts)
        pieces = np.zeros(ends[-1], np.int32)
        for rows, batch in alone(examples):
            width = width_for(int(counts[rows].max(initial=1)), fine=True)
            slots = np.zeros((len(batch["tokens"]), width), np.int32)
            noise = np.zeros((*slots.shape, self.count), np.float32)
            for place, row in enumerate(rows.tolist()):
                shape, random = (counts[row], self.count), np.random.default_rng([*at, row, 1])
                slots[place, : counts[row]] = np.flatnonzero(examples.tokens[row] == MASK)
                noise[place, : counts[row]] = random.gumbel(size=shape)
            inputs = {name: batch[name] for name in ("tokens", "segments", "types")}
            answers_BK = self.forward(self.params, inputs | {"slots": slots, "noise": noise})
            for place, row in enumerate(rows.tolist()):
                pieces[ends[row] - counts[row] : ends[row]] = answers_BK[place, : counts[row]]
        return pieces
