"""What a step makes smaller. An objective pairs a loss with arrays that it reads and never trains, such as a teacher's.

Dimensions: B rows, T tokens, K masked slots, V vocabulary, D width, C classes.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lsp.model.encoder import Model
from lsp.train.metrics import Mean

Batch = dict[str, jax.Array]
Loss = Callable[[Model, Any, Batch, jax.Array | None], tuple[Mean, dict[str, Mean]]]


class Objective(NamedTuple):
    """`frozen` enters the step as an argument, since jit turns captured arrays into constants."""

    loss: Loss
    frozen: Any = None


def masked_lm(model: Model, frozen: Any, batch: Batch, key: jax.Array | None) -> tuple[Mean, dict[str, Mean]]:
    """Cross-entropy at the masked slots only, and how many were guessed right. Unused slots weigh nothing."""
    hidden_BTD = model.encode(batch["tokens"], batch["segments"], key=key)
    logits_BKV = model.guess(hidden_BTD, batch["slots"])
    return scored(logits_BKV, batch["targets"], batch["weights"])


def classification(model: Model, frozen: Any, batch: Batch, key: jax.Array | None) -> tuple[Mean, dict[str, Mean]]:
    """Cross-entropy of the labels, one example a row. Rows that only fill a batch weigh nothing."""
    logits_BC = model.classify(batch["tokens"], batch["segments"], batch["types"], key=key)
    return scored(logits_BC, batch["labels"], batch["weights"])


def scored(logits: jax.Array, targets: jax.Array, weights: jax.Array) -> tuple[Mean, dict[str, Mean]]:
    """Weighted cross-entropy in nats and accuracy, over any number of leading dimensions."""
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    right = (logits.argmax(-1) == targets).astype(jnp.float32)
    count = weights.sum()
    return Mean((loss * weights).sum(), count), {"accuracy": Mean((right * weights).sum(), count)}
