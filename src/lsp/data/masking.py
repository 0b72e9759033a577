"""Which positions are guessed, and what stands there instead: a pure function of (seed, epoch, row, position).

No generator is carried along, so masks do not depend on the batch a row is in, on the number of devices, or on
whether the run was resumed. The numbers come from SplitMix64 (Steele, Lea and Flood, 2014) used as a hash.

What is drawn together is a *unit*: a token, a word, or spans that overlap. A unit is hidden whole or not at all.

Suffixes: B rows, T tokens, K slots (positions to guess), W words, N rows of a sample.
"""

import itertools
import math
from collections.abc import Callable
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np

from lsp.data import words
from lsp.data.tokenizer import MASK, Tokenizer

FIRST_WORD = MASK + 1  # ids below are special: never guessed, never put in as a random token
GOLDEN = np.uint64(0x9E3779B97F4A7C15)
STAGES = 3  # numbers of slots while the mask rate changes
LONGEST_SPAN = 10  # words
SHORTER = 0.8  # each span is one word longer with this chance: SpanBERT's geometric distribution of p = 0.2
TAIL = 0.005  # share of the rows that `slots_seen` lets overflow


class Masked(NamedTuple):
    """Rows with some tokens hidden. Unused slots point at position 0 with target 0 and weight 0."""

    tokens: np.ndarray  # int32 [B, T]
    slots: np.ndarray  # int32 [B, K], positions in rising order
    targets: np.ndarray  # int32 [B, K], what stood there
    weights: np.ndarray  # float32 [B, K], 1 for a used slot
    overflow: int  # positions drawn that had no slot and were left as they are


class Drawn(NamedTuple):
    """What should be hidden."""

    tokens: np.ndarray  # bool [B, T]
    units: np.ndarray  # int64 [B, T], the unit of each drawn token; numbers rise along a row
    order: np.ndarray  # uint64 [units]: where slots are short, those with the smallest numbers have them


# Draws from tokens [B, T] and their noise [B, T], so that each ordinary token is hidden with a given probability.
Draw = Callable[[np.ndarray, np.ndarray, float], Drawn]


class Rates(NamedTuple):
    """A mask rate that goes in a straight line from `first`, at step 0, to `last`, at the last of `steps`, and stays.

    The way is cut into `STAGES` of equal length. The number of slots is that of a stage's highest rate, so that late
    steps do not pay for slots that early ones needed, and yet only a few shapes are compiled.
    """

    first: float
    last: float
    steps: int

    def at(self, step: int) -> float:
        return self._between(min(1.0, step / max(1, self.steps - 1)))

    def highest(self, step: int) -> float:
        """The highest rate of the stage that `step` is in."""
        return self.stages()[min(step * STAGES // max(1, self.steps - 1), STAGES - 1)]

    def stages(self) -> list[float]:
        """The highest rate of each stage."""
        edges = [self._between(edge / STAGES) for edge in range(STAGES + 1)]
        return [max(pair) for pair in itertools.pairwise(edges)]

    def _between(self, done: float) -> float:
        return (1 - done) * self.first + done * self.last if self.first != self.last else self.first


def drawing(masking: str, tokenizer: Tokenizer) -> Draw:
    """The way of drawing that the recipe's `data.masking` asks for."""
    if masking == "token":
        return single_tokens
    borders = words.borders(tokenizer.pieces(range(tokenizer.size)))
    return partial(whole_words if masking == "word" else spans, borders)


def single_tokens(tokens: np.ndarray, noise: np.ndarray, rate: float) -> Drawn:
    """Each token by itself, and of every row a share as exact as whole tokens allow, as in BERT (Devlin et al., 2019).

    Of n ordinary tokens those `floor(rate·n + u)` are hidden that have the smallest numbers. The row draws u from
    [0, 1), where BERT rounds, so that each token is hidden with probability `rate`.
    """
    ordinary = tokens >= FIRST_WORD
    number = np.where(ordinary, noise, ~np.uint64(0))
    wanted = (rate * ordinary.sum(1) + _uniform(_mix(~noise[:, 0]))).astype(np.int64)
    last = np.take_along_axis(np.sort(number, axis=1), np.maximum(wanted - 1, 0)[:, None], axis=1)
    drawn = ordinary & (number <= last) & (wanted > 0)[:, None]
    return Drawn(drawn, np.arange(noise.size).reshape(noise.shape), noise.reshape(-1))


def whole_words(borders: np.ndarray, tokens: np.ndarray, noise: np.ndarray, rate: float) -> Drawn:
    """All pieces of a word or none, by the number of its first (the whole-word masking that BERT was released with).

    `borders` [V] are the codes of `words.borders`. A special token is a word, and one that is never drawn.
    """
    codes = borders[tokens]
    starts = words.starts(codes)
    first_W = np.flatnonzero(starts)
    numbers = noise.reshape(-1)[first_W]
    drawn_W = _below(numbers, rate) & (codes.reshape(-1)[first_W] < words.BORDER)
    word = np.cumsum(starts).reshape(starts.shape) - 1
    return Drawn(drawn_W[word], word, numbers)


def spans(borders: np.ndarray, tokens: np.ndarray, noise: np.ndarray, rate: float) -> Drawn:
    """Runs of words, of 1 to 10 with chances that fall by a fifth (SpanBERT: Joshi et al., 2020), inside a segment.

    At each word a span may begin; where spans overlap they are one unit. See `_tails` for why the share is `rate`.
    Rows begin with [CLS], so that no span runs from one into the next.
    """
    codes = borders[tokens]
    first_W = np.flatnonzero(words.starts(codes))
    numbers, special_W = noise.reshape(-1)[first_W], codes.reshape(-1)[first_W] >= words.BORDER
    inside, opening = _tails(rate)
    begin = np.flatnonzero(_below(numbers, rate) & ~special_W)  # no chance of a span is above the rate
    uniform = _uniform(numbers[begin])
    length = np.where(special_W[begin - 1], _length(uniform, opening), _length(uniform, inside))
    begin, length = begin[length > 0], length[length > 0]
    border = np.append(np.flatnonzero(special_W), len(first_W))
    reach = np.maximum.accumulate(np.minimum(begin + length, border[np.searchsorted(border, begin)]))

    alone = np.append(-1, reach[:-1]) <= begin  # reached by none of the spans before
    unit_begin, unit_end = begin[alone], reach[np.append(alone, True)[1:]]
    place_W = np.append(first_W, tokens.size)  # of words in the flattened tokens
    begins, changes = np.zeros((2, tokens.size + 1), np.int8)
    begins[place_W[unit_begin]] = 1
    changes += begins
    changes[place_W[unit_end]] -= 1
    drawn = np.cumsum(changes[:-1], dtype=np.int8).astype(bool)
    units = np.cumsum(begins[:-1], dtype=np.int64) - 1
    # The noise of a word says how long its span is, so the order needs numbers of its own.
    return Drawn(drawn.reshape(tokens.shape), units.reshape(tokens.shape), _mix(~numbers[unit_begin]))


@lru_cache(maxsize=256)
def _tails(rate: float) -> tuple[np.ndarray, np.ndarray]:
    """Chances that a word is hidden by spans from it on over more than r words, r = 0 to 9: [10] inside a segment and
    [10] at its first word.

    A span begins at a word with chance s and covers more than d words with chance P(L > d). A word is hidden unless
    none of the ten spans that could reach it does so, so s solves Π_d (1 - s·P(L > d)) = 1 - rate. Segments would begin
    with too few hidden words, having none before them, so their first word draws the reach of all spans that would
    have begun at it or before: more than r words with chance 1 - Π_d (1 - s·P(L > d + r)). Then every word of a
    segment is hidden with probability `rate`.
    """
    longer = [(SHORTER**d - SHORTER**LONGEST_SPAN) / (1 - SHORTER**LONGEST_SPAN) for d in range(LONGEST_SPAN)]
    low, high = 0.0, 1.0
    for _ in range(60):
        s = (low + high) / 2
        low, high = (s, high) if math.prod(1 - s * tail for tail in longer) > 1 - rate else (low, s)
    opening = [1 - math.prod(1 - high * tail for tail in longer[r:]) for r in range(LONGEST_SPAN)]
    return high * np.array(longer), np.array(opening)


def _length(uniform: np.ndarray, tails: np.ndarray) -> np.ndarray:
    """How many of the falling `tails` lie above each number."""
    return len(tails) - np.searchsorted(tails[::-1], uniform, side="right")


def slots_for(rate: float, sequence_length: int) -> int:
    """Slots that a row of `single_tokens` needs at most, rounded up to 4: at rate 0.15, 20 for 128 tokens.

    Words and spans come in lumps, and how large those are is up to the text: see `slots_seen`.
    """
    return min(sequence_length, max(4, 4 * math.ceil(rate * sequence_length / 4)))


def slots_seen(rate: float, tokens: np.ndarray, draw: Draw) -> int:
    """Slots that are too few for one row in 200 of the sample `tokens` [N, T], rounded up to 8."""
    noise = _noise(0, 0, np.arange(len(tokens)), tokens.shape[1])
    hidden = np.sort(draw(tokens, noise, rate).tokens.sum(1))
    enough = int(hidden[math.ceil((1 - TAIL) * len(hidden)) - 1])
    return min(tokens.shape[1], max(8, 8 * math.ceil(enough / 8)))


def mask(
    tokens: np.ndarray,
    rows: np.ndarray,
    *,
    epoch: np.ndarray | int,
    seed: int,
    rate: float,
    slots: int,
    vocab_size: int,
    draw: Draw = single_tokens,
) -> Masked:
    """Hides each ordinary token of `tokens` [B, T] with probability `rate`; `rows` [B] are the rows' numbers.

    Of the drawn ones 80 % become [MASK], 10 % a random ordinary token, 10 % stay (Devlin et al., 2019), each token for
    itself. Special tokens and padding are never drawn. A row with more than `slots` drawn keeps a random choice of its
    units: as in BERT, one for which there is no room is passed over.
    """
    noise = _noise(seed, epoch, rows, tokens.shape[1])
    drawn, units, order = draw(tokens, noise, rate)
    wanted = np.count_nonzero(drawn, axis=1)
    for row in np.flatnonzero(wanted > slots):
        drawn[row] = _fitting(drawn[row], units[row], order, slots)
    at, position = np.nonzero(drawn)
    counts = np.count_nonzero(drawn, axis=1)
    slot = np.arange(len(at)) - np.repeat(np.cumsum(counts) - counts, counts)

    hidden = tokens.astype(np.int32)
    stood = hidden[at, position]
    second = _mix(noise[at, position])
    random = FIRST_WORD + (_mix(second) % np.uint64(vocab_size - FIRST_WORD)).astype(np.int32)
    action = _uniform(second)
    hidden[at, position] = np.where(action < 0.8, MASK, np.where(action < 0.9, random, stood))
    masked = Masked(
        tokens=hidden,
        slots=np.zeros((len(tokens), slots), np.int32),
        targets=np.zeros((len(tokens), slots), np.int32),
        weights=np.zeros((len(tokens), slots), np.float32),
        overflow=int(wanted.sum() - counts.sum()),
    )
    masked.slots[at, slot], masked.targets[at, slot], masked.weights[at, slot] = position, stood, 1
    return masked


def _fitting(drawn: np.ndarray, units: np.ndarray, order: np.ndarray, slots: int) -> np.ndarray:
    """Which of a row's drawn tokens, bool [T], are in units that have slots."""
    unit, sizes = np.unique(units[drawn], return_counts=True)
    kept = []
    for index in np.argsort(order[unit], kind="stable"):
        if sizes[index] <= slots:
            slots -= sizes[index]
            kept.append(unit[index])
    return drawn & np.isin(units, kept)


def _noise(seed: int, epoch: np.ndarray | int, rows: np.ndarray, length: int) -> np.ndarray:
    """A 64-bit number for each position, [B, T]."""
    state = _mix(np.array([seed % 2**64], np.uint64))
    for part in (np.broadcast_to(epoch, rows.shape), rows):
        state = _mix(state ^ part.astype(np.uint64))
    return _mix(state[:, None] ^ np.arange(length, dtype=np.uint64))


def _mix(state: np.ndarray) -> np.ndarray:
    """One output of SplitMix64 for each state."""
    state = state + GOLDEN
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def _uniform(noise: np.ndarray) -> np.ndarray:
    """float64 in [0, 1) from the upper 53 bits."""
    return (noise >> np.uint64(11)) * 2.0**-53


def _below(noise: np.ndarray, rate: float) -> np.ndarray:
    """`_uniform(noise) < rate`, in whole numbers."""
    return (noise >> np.uint64(11)) < np.uint64(math.ceil(rate * 2.0**53))
