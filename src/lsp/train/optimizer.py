"""AdamW with decoupled decay, warm-up and clipping, from Optax's parts."""

from typing import Any

import jax
import optax

from lsp import recipe as recipes


def adamw(
    train: recipes.Train, after: optax.GradientTransformation | None = None
) -> optax.GradientTransformationExtraArgs:
    """Clip, AdamW (Loshchilov and Hutter, 2019), the schedule; then `after`, which sees the final update."""
    return optax.with_extra_args_support(
        optax.chain(
            optax.clip_by_global_norm(train.clip) if train.clip else optax.identity(),
            optax.scale_by_adam(train.beta1, train.beta2),
            optax.add_decayed_weights(train.weight_decay, mask=decayed),
            optax.scale_by_learning_rate(schedule(train)),
            after or optax.identity(),
        )
    )


def decayed(params: Any) -> Any:
    """True for matrices. Biases and norms are not decayed: they have no scale to shrink."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def schedule(train: recipes.Train) -> optax.Schedule:
    """Learning rate by step: a line up over `warmup`, then a line or a cosine down to 0 at the last step."""
    rising = round(train.warmup * train.steps)
    falling = max(1, train.steps - rising)
    fall = {"linear": optax.linear_schedule(train.learning_rate, 0.0, falling)}
    fall["cosine"] = optax.cosine_decay_schedule(train.learning_rate, falling)
    # The first step already moves: step 0 of a warm-up over n steps has 1/(n+1) of the peak.
    rise = optax.linear_schedule(train.learning_rate / (rising + 1), train.learning_rate, max(1, rising))
    return optax.join_schedules([rise, fall[train.schedule]], [rising])
