"""What a step makes smaller. An objective pairs a loss with arrays that it reads and never trains, such as a teacher's.

Dimensions: B rows, T tokens, K masked slots, V vocabulary, D width, C classes.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lsp.model.config import ModelConfig
from lsp.model.encoder import Model
from lsp.recipe import Privacy, Problem
from lsp.train.metrics import Mean

Batch = dict[str, jax.Array]
Loss = Callable[[Model, Any, Batch, jax.Array | None], tuple[Mean, dict[str, Mean]]]


def all_of(trained: Any, frozen: Any) -> Any:
    """What is trained is the whole model."""
    return trained


def frozen_alone(trained: Any, frozen: Any) -> Any:
    """Of what is trained the loss reads the model."""
    return frozen


class Objective(NamedTuple):
    """`frozen` enters the step as an argument, since jit turns captured arrays into constants. `whole` makes the
    model's parameters of those that are trained and of `frozen`, and `beside` what the loss reads as `frozen`, where
    it trains more than the model. With `private` no one example may be told."""

    loss: Loss
    frozen: Any = None
    whole: Callable[[Any, Any], Any] = all_of
    beside: Callable[[Any, Any], Any] = frozen_alone
    private: Privacy | None = None


def pretraining(config: ModelConfig) -> Loss:
    """The loss for the heads of an encoder: masked LM, and next-sentence prediction where it has classes."""
    return masked_lm_of_pairs if config.classes else masked_lm


def masked_lm(model: Model, frozen: Any, batch: Batch, key: jax.Array | None) -> tuple[Mean, dict[str, Mean]]:
    """Cross-entropy at the masked slots only, and how many were guessed right. Unused slots weigh nothing."""
    hidden_BTD = model.encode(batch["tokens"], batch["segments"], key=key)
    logits_BKV = model.guess(hidden_BTD, batch["slots"])
    return scored(logits_BKV, batch["targets"], batch["weights"])


def masked_lm_of_pairs(model: Model, frozen: Any, batch: Batch, key: jax.Array | None) -> tuple[Mean, dict[str, Mean]]:
    """BERT's loss: the mean at the masked slots plus the mean over rows of whether the second text is a random one.

    A row weighs so much that all rows together weigh as the batch's masked slots do: then one division makes both
    means, into however many parts the batch is cut. Rows that only fill a batch weigh nothing.
    """
    hidden_BTD = model.encode(batch["tokens"], batch["segments"], batch["types"], key=key)
    words, metrics = scored(model.guess(hidden_BTD, batch["slots"]), batch["targets"], batch["weights"])
    logits_B2, shares_B = model.follow(hidden_BTD), batch["pair_weights"]
    pairs, right = scored(logits_B2, batch["labels"], (shares_B > 0).astype(jnp.float32))
    metrics |= {"masked_lm_loss": words, "next_sentence_loss": pairs, "next_sentence_accuracy": right["accuracy"]}
    total = words.total + scored(logits_B2, batch["labels"], shares_B)[0].total
    return Mean(total, words.count), metrics


def classification(model: Model, frozen: Any, batch: Batch, key: jax.Array | None) -> tuple[Mean, dict[str, Mean]]:
    """Cross-entropy of the labels, one example a row. Rows that only fill a batch weigh nothing."""
    return scored(_logits(model, batch, key), batch["labels"], batch["weights"])


def multi_label(model: Model, frozen: Any, batch: Batch, key: jax.Array | None) -> tuple[Mean, dict[str, Mean]]:
    """As `classification`, where an example may have several classes: of each by itself, the mean over classes."""
    return scored_apart(_logits(model, batch, key), batch["labels"], batch["weights"])


def regression(model: Model, frozen: Any, batch: Batch, key: jax.Array | None) -> tuple[Mean, dict[str, Mean]]:
    """As `classification`, where labels are numbers: the squared error."""
    return scored_number(_logits(model, batch, key), batch["labels"], batch["weights"])


def _logits(model: Model, batch: Batch, key: jax.Array | None) -> jax.Array:
    return model.classify(batch["tokens"], batch["segments"], batch["types"], key=key)


def scored_apart(logits_BC: jax.Array, marks_BC: jax.Array, weights_B: jax.Array) -> tuple[Mean, dict[str, Mean]]:
    """Cross-entropy in nats of each class being there or not, the mean over classes; accuracy is to have all right."""
    loss_B = optax.sigmoid_binary_cross_entropy(logits_BC, marks_BC).mean(-1)
    right_B = ((logits_BC > 0) == (marks_BC > 0.5)).all(-1).astype(jnp.float32)
    count = weights_B.sum()
    return Mean((loss_B * weights_B).sum(), count), {"accuracy": Mean((right_B * weights_B).sum(), count)}


def scored_number(logits_B1: jax.Array, numbers_B: jax.Array, weights_B: jax.Array) -> tuple[Mean, dict[str, Mean]]:
    """Squared error."""
    loss_B = jnp.square(logits_B1[:, 0] - numbers_B)
    return Mean((loss_B * weights_B).sum(), weights_B.sum()), {}


def divergence(problem: Problem, wanted_BC: jax.Array, found_BC: jax.Array, temperature: float = 1.0) -> jax.Array:
    """How far answers are from those wanted, float32 [B], from the logits of both: T²·KL(wanted ‖ found) with both
    softened by T = `temperature`; of each class by itself where there may be several, the mean over classes; of numbers
    the squared distance, which nothing softens."""
    if problem == "regression":
        return jnp.square(found_BC - wanted_BC)[:, 0]
    if problem == "multi_label":
        marks_BC = jax.nn.sigmoid(wanted_BC / temperature)
        cross_BC, own_BC = (
            optax.sigmoid_binary_cross_entropy(of_BC / temperature, marks_BC) for of_BC in (found_BC, wanted_BC)
        )
        return temperature**2 * (cross_BC - own_BC).mean(-1)
    wanted_BC, found_BC = (jax.nn.log_softmax(of_BC / temperature) for of_BC in (wanted_BC, found_BC))
    return temperature**2 * (jnp.exp(wanted_BC) * (wanted_BC - found_BC)).sum(-1)


def scored(logits: jax.Array, targets: jax.Array, weights: jax.Array) -> tuple[Mean, dict[str, Mean]]:
    """Weighted cross-entropy in nats and accuracy, over any number of leading dimensions."""
    loss, right = cross_entropy(logits, targets)
    count = weights.sum()
    return Mean((loss * weights).sum(), count), {"accuracy": Mean((right.astype(weights.dtype) * weights).sum(), count)}


LABELS: dict[Problem, Loss] = {
    "single_label": classification,
    "multi_label": multi_label,
    "regression": regression,
}
JUDGES: dict[Problem, Callable[[jax.Array, jax.Array, jax.Array], tuple[Mean, dict[str, Mean]]]] = {
    "single_label": scored,
    "multi_label": scored_apart,
    "regression": scored_number,
}


@jax.custom_vjp
def cross_entropy(logits: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """-log softmax(logits)[target], fp32 [...], and whether the target's logit is the largest, bool [...], of logits
    [..., V].

    Its gradient is written out, softmax(logits) - onehot(target): the one that JAX derives scatters into a copy of the
    logits. The exponentials are kept for it instead of the logits, so each is computed once.
    """
    return _cross_entropy_forward(logits, targets)[0]


def _cross_entropy_forward(logits: jax.Array, targets: jax.Array) -> Any:
    largest = logits.max(-1, keepdims=True)
    powers = jnp.exp(logits - largest)
    total = powers.sum(-1, keepdims=True)
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)
    loss = jnp.log(total) + largest - picked
    return (loss[..., 0], (picked == largest)[..., 0]), (powers, total, targets)


def _cross_entropy_backward(kept: Any, gradient: Any) -> tuple[jax.Array, None]:
    powers, total, targets = kept
    slope = gradient[0][..., None]
    numbers = jax.lax.broadcasted_iota(jnp.int32, powers.shape, powers.ndim - 1)
    return powers * (slope / total) - jnp.where(numbers == targets[..., None], slope, 0.0), None


cross_entropy.defvjp(_cross_entropy_forward, _cross_entropy_backward)
