"""Which positions are guessed, and what stands there instead: a pure function of (seed, epoch, row, position).

No generator is carried along, so masks do not depend on the batch a row is in, on the number of devices, or on
whether the run was resumed. The numbers come from SplitMix64 (Steele, Lea and Flood, 2014) used as a hash.

Suffixes: B rows, T tokens, K slots (positions to guess).
"""

import math
from typing import NamedTuple

import numpy as np

from lsp.data.tokenizer import MASK

FIRST_WORD = MASK + 1  # ids below are special: never guessed, never put in as a random token
GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class Masked(NamedTuple):
    """Rows with some tokens hidden. Unused slots point at position 0 with target 0 and weight 0."""

    tokens: np.ndarray  # int32 [B, T]
    slots: np.ndarray  # int32 [B, K], positions in rising order
    targets: np.ndarray  # int32 [B, K], what stood there
    weights: np.ndarray  # float32 [B, K], 1 for a used slot
    overflow: int  # positions drawn that had no slot and were left as they are


def slots_for(rate: float, sequence_length: int) -> int:
    """Slots a row needs: the mean number of masked positions plus two standard deviations, rounded up to 8.

    At rate 0.15 that is 32 for 128 tokens and 96 for 512: fewer than one full row in a hundred overflows.
    """
    mean = rate * sequence_length
    return min(sequence_length, max(8, 8 * math.ceil((mean + 2 * math.sqrt(mean * (1 - rate))) / 8)))


def mask(
    tokens: np.ndarray,
    rows: np.ndarray,
    *,
    epoch: np.ndarray | int,
    seed: int,
    rate: float,
    slots: int,
    vocab_size: int,
) -> Masked:
    """Draws each ordinary token of `tokens` [B, T] with probability `rate`; `rows` [B] are the rows' numbers.

    Of the drawn ones 80 % become [MASK], 10 % a random ordinary token, 10 % stay (Devlin et al., 2019). Special tokens
    and padding are never drawn. A row with more than `slots` drawn keeps a random choice of them.
    """
    tokens = tokens.astype(np.int32)
    noise = _noise(seed, epoch, rows, tokens.shape[1])
    drawn = (_uniform(noise) < rate) & (tokens >= FIRST_WORD)
    # The smallest numbers keep their slots: position has no say in who is dropped.
    order = np.argsort(np.where(drawn, noise, np.uint64(2**64 - 1)), axis=1, kind="stable")[:, :slots]
    positions = np.sort(np.where(np.take_along_axis(drawn, order, 1), order, tokens.shape[1]), axis=1)
    used = positions < tokens.shape[1]
    positions = np.where(used, positions, 0)

    targets = np.take_along_axis(tokens, positions, 1)
    second = _mix(np.take_along_axis(noise, positions, 1))
    random = FIRST_WORD + (_mix(second) % np.uint64(vocab_size - FIRST_WORD)).astype(np.int32)
    action = _uniform(second)
    shown = np.where(action < 0.8, MASK, np.where(action < 0.9, random, targets))
    hidden = tokens.copy()
    np.put_along_axis(hidden, positions, np.where(used, shown, tokens[:, :1]), 1)  # position 0 gets itself
    return Masked(
        tokens=hidden,
        slots=positions.astype(np.int32),
        targets=np.where(used, targets, 0).astype(np.int32),
        weights=used.astype(np.float32),
        overflow=int(drawn.sum() - used.sum()),
    )


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
