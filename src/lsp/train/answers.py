"""What a model answers, for people: labels and probabilities out of logits."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from lsp.recipe import Problem
from lsp.train.metrics import probabilities, sigmoid


def alike(problem: Problem, one_NC: Any, other_NC: Any) -> Any:
    """Which examples have the same label, or labels, by two models' logits, bool [N]; NumPy or JAX. Not of numbers."""
    if problem == "multi_label":
        return ((one_NC > 0) == (other_NC > 0)).all(-1)
    return one_NC.argmax(-1) == other_NC.argmax(-1)


def of(problem: Problem, names: Sequence[str], logits_NC: np.ndarray, top: int = 0) -> Iterator[dict[str, Any]]:
    """For each example `label`, and where there are classes the `probability` of it and the `probabilities` of all, or
    of the `top` most likely.

    Of examples with several classes the label is a list, and the probability that of the likeliest class; of numbers
    the label is the number.
    """
    if problem == "regression":
        yield from ({"label": round(float(value), 6)} for value in logits_NC[:, 0])
        return
    found_NC = sigmoid(logits_NC) if problem == "multi_label" else probabilities(logits_NC)
    guesses_N = logits_NC.argmax(1)  # as metrics count them; probabilities can't tell what is nearer than their digits
    for row, logits, best in zip(np.round(found_NC, 6), logits_NC, guesses_N, strict=True):
        order = np.argsort(-logits, kind="stable")
        chosen = order[:top] if top else range(len(names))
        yield {
            "label": [names[c] for c in np.flatnonzero(logits > 0).tolist()]
            if problem == "multi_label"
            else names[best],
            "probability": float(row[best]),
            "probabilities": {names[c]: float(row[c]) for c in chosen},
        }
