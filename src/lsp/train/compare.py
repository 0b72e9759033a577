"""Trials beside each other: the mean and spread of each setting over its seeds, and whether it is worse than the best.

Dimensions: N examples, C classes.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from lsp.recipe import Problem
from lsp.trials import Trial

FIRST: dict[Problem, str] = {"single_label": "accuracy", "multi_label": "f1", "regression": "pearson"}
# What `p` is about, whatever metric a setting is chosen by.
TESTED: dict[Problem, str] = {"single_label": "accuracy", "multi_label": "accuracy", "regression": "squared error"}
FLIPS, AT_ONCE = 9999, 100
CHANCE = 0.05  # from which a difference may be none


class Outcome(NamedTuple):
    """What a trial came to: dev metrics, how good each example's answer is [N], and the step at which it diverged."""

    trial: Trial
    metrics: dict[str, float]
    goodness_N: np.ndarray
    diverged: int | None = None

    def row(self) -> dict[str, Any]:
        """For a table of trials."""
        if self.diverged:
            return self.trial.named() | {"diverged_at_step": self.diverged}
        return self.trial.named() | self.metrics


def goodness(problem: Problem, logits_NC: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """float64 [N]: 1 for an example all of whose answer is right, else 0; of numbers minus the squared error."""
    if problem == "regression":
        return -np.square(logits_NC[:, 0].astype(np.float64) - labels)
    if problem == "multi_label":
        return ((logits_NC > 0) == (labels > 0.5)).all(1).astype(np.float64)
    return (logits_NC.argmax(1) == labels).astype(np.float64)


def best(outcomes: Sequence[Outcome], metric: str) -> int:
    """Which is best by the metric, the first of equals. One that diverged only where all did."""
    sign = -1 if metric == "loss" else 1
    return max(
        range(len(outcomes)),
        key=lambda i: (outcomes[i].diverged is None, sign * outcomes[i].metrics[metric]),
    )


def settings(outcomes: Sequence[Outcome], metric: str) -> list[dict[str, Any]]:
    """A row for each setting, the best mean first: over the seeds that did not diverge the mean of the metric, its
    standard deviation (None for one), the lowest and the highest; and `p`, by `sign_flips`, of being as good as the
    first by what is `TESTED`. One of which all diverged has their number alone."""
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(repr(outcome.trial.settings), []).append(outcome)
    sign, rows = -1 if metric == "loss" else 1, []
    for group in groups.values():
        sound = [outcome for outcome in group if outcome.diverged is None]
        row = group[0].trial.settings | {"seeds": len(sound)}
        if len(sound) < len(group):
            row["diverged"] = len(group) - len(sound)
        if not sound:
            rows.append((-np.inf, row, np.zeros(0)))
            continue
        values = [outcome.metrics[metric] for outcome in sound]
        mean, deviation = float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None
        row |= {f"mean_{metric}": mean, "deviation": deviation, "lowest": min(values), "highest": max(values)}
        rows.append((sign * mean, row, np.mean([outcome.goodness_N for outcome in sound], axis=0)))
    rows.sort(key=lambda each: -each[0])
    first = rows[0][2]
    for _, row, own in rows[1:]:
        if len(own):
            row["p"] = sign_flips(first - own)
    return [row for _, row, _ in rows]


def sign_flips(differences_N: np.ndarray, seed: int = 0) -> float:
    """The two-sided p-value of paired differences of mean 0, by flipping their signs at random (Fisher, 1935): for
    differences of 1 and -1 that is McNemar's exact test, as near as so many draws come to it."""
    away_M = differences_N[differences_N != 0]
    if not len(away_M):
        return 1.0
    random, seen = np.random.default_rng(seed), abs(away_M.sum()) * (1 - 1e-12)
    beyond = 0
    for at in range(0, FLIPS, AT_ONCE):
        signs = random.integers(0, 2, (min(AT_ONCE, FLIPS - at), len(away_M))) * 2.0 - 1.0
        beyond += int((np.abs(signs @ away_M) >= seen).sum())
    return (1 + beyond) / (1 + FLIPS)
