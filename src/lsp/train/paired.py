"""Two models on the same examples: how much of the metric was lost, whether that is noise, and which answers changed.

Dimensions: N examples, C classes.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from lsp.recipe import Problem
from lsp.train import answers, metrics
from lsp.train.compare import FIRST, goodness, sign_flips
from lsp.train.confusion import COVERED, RESAMPLES

MOST = 1000  # flipped rows that are kept
DIRECTIONS = ("right to wrong", "wrong to right", "wrong to wrong")


class Pair(NamedTuple):
    """The logits of two models, fp32 [N, C] each, and the labels as `Examples.labels` has them."""

    problem: Problem
    before_NC: np.ndarray
    after_NC: np.ndarray
    labels: np.ndarray

    def lost(self) -> float:
        """By how much the main metric (`compare.FIRST`) is lower after than before."""
        both = (metrics.measured(self.problem, logits_NC, self.labels) for logits_NC in (self.before_NC, self.after_NC))
        before, after = (found[FIRST[self.problem]] for found in both)
        return before - after

    def goodness(self) -> tuple[np.ndarray, np.ndarray]:
        """Of each example, before and after: 1 where all of its answer is right, else 0; of numbers `goodness`."""
        before_N, after_N = (goodness(self.problem, each, self.labels) for each in (self.before_NC, self.after_NC))
        return before_N, after_N

    def flipped(self) -> np.ndarray:
        """Which examples have another label after than before, bool [N]. Numbers are no labels: none."""
        if self.problem == "regression":
            return np.zeros(len(self.labels), bool)
        return ~answers.alike(self.problem, self.before_NC, self.after_NC)


def compared(pair: Pair, seed: int = 0) -> dict[str, Any]:
    """For a result: `points_lost` of the main metric, in hundredths of it; their 95 % `interval`, by drawing examples
    again for both models at once (Efron, 1979); `flips`, how many labels changed in which direction; and `p`, how
    likely so lopsided a change of right answers is by chance: McNemar's exact test, of numbers `sign_flips` of the
    squared errors. Where no answer changed the interval is [0, 0]: the bootstrap knows no rarer event than what it saw.
    """
    before_N, after_N = pair.goodness()
    flips = {name: int(rows.sum()) for name, rows in _directions(pair)}
    if pair.problem == "regression":
        p = sign_flips(before_N - after_N, seed)
    else:
        p = mcnemar(flips["right to wrong"], flips["wrong to right"])
    tails = [(1 - COVERED) / 2, (1 + COVERED) / 2]
    return {
        "metric": FIRST[pair.problem],
        "points_lost": 100 * pair.lost(),
        "interval": (100 * np.quantile(_drawn(pair, before_N - after_N, seed), tails)).tolist(),
        "p": p,
        "examples": len(pair.labels),
        "flips": {name.replace(" ", "_"): count for name, count in flips.items()},
    }


def mcnemar(lost: int, won: int) -> float:
    """The two-sided p-value of `lost` right answers that became wrong and `won` wrong ones that became right, if each
    change went either way with the same chance (McNemar, 1947; the exact binomial)."""
    changed, fewer = lost + won, min(lost, won)
    ways = term = 1
    for k in range(fewer):
        term = term * (changed - k) // (k + 1)
        ways += term
    return min(1.0, 2 * ways / 2**changed)


def flips(pair: Pair, names: Sequence[str], texts: Sequence[tuple[str, ...]]) -> list[dict[str, Any]]:
    """The rows whose label flipped, those first that the model is now surest of, at most `MOST`: row (from 1), label,
    the answers before and after with their probabilities, direction, and the text (of a pair both)."""
    where = np.flatnonzero(pair.flipped())
    direction = {row: name for name, rows in _directions(pair) for row in np.flatnonzero(rows).tolist()}
    both = (answers.of(pair.problem, names, logits_NC[where]) for logits_NC in (pair.before_NC, pair.after_NC))
    found = []
    for row, before, after in zip(where.tolist(), *both, strict=True):
        label = pair.labels[row]
        several = pair.problem == "multi_label"
        found.append(
            {
                "row": row + 1,
                "label": [names[c] for c in np.flatnonzero(label).tolist()] if several else names[label],
                "before": before["label"],
                "after": after["label"],
                "direction": direction[row],
                "probability_before": before["probability"],
                "probability_after": after["probability"],
                "text": texts[row][0] if len(texts[row]) == 1 else list(texts[row]),
            }
        )
    return sorted(found, key=lambda each: -each["probability_after"])[:MOST]


def _directions(pair: Pair) -> Iterator[tuple[str, np.ndarray]]:
    """Which of the flipped examples went where, bool [N] for each of `DIRECTIONS`."""
    before_N, after_N = pair.goodness()
    flipped_N = pair.flipped()
    for name, was, became in zip(DIRECTIONS, (1, 0, 0), (0, 1, 0), strict=True):
        yield name, flipped_N & (before_N == was) & (after_N == became)


def _drawn(pair: Pair, lost_N: np.ndarray, seed: int) -> np.ndarray:
    """What would have been lost on `RESAMPLES` other draws of as many examples."""
    random, size = np.random.default_rng(seed), len(lost_N)
    if FIRST[pair.problem] == "accuracy":  # an example is lost, won or neither: of a draw only their counts matter
        shares = [(lost_N > 0).mean(), (lost_N < 0).mean(), (lost_N == 0).mean()]
        return random.multinomial(size, shares, RESAMPLES) @ np.array([1.0, -1.0, 0.0]) / size
    both = [metrics.resampled(pair.problem, logits_NC, pair.labels) for logits_NC in (pair.before_NC, pair.after_NC)]
    draws = (random.integers(0, size, size) for _ in range(RESAMPLES))
    before_after = [[of(rows)[FIRST[pair.problem]] for of in both] for rows in draws]
    return np.array([before - after for before, after in before_after])
