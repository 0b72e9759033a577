"""Gradients to updates: clipping, one of eight directions, weight decay and the learning rate, from Optax's parts.

    clip ──▶ (decay into the gradient) ──▶ direction ──▶ (decoupled decay) ──▶ × layer's rate ──▶ × learning rate
         ──▶ what a stage adds (pruning's masks) ──▶ (average of the last weights)

The step hands `progress` over, from 0 to 1: the share of the run that is done, by steps or by time. All that changes in
the course of a run follows it, so a run that must end by a deadline lands as softly as one that counts its steps.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from lsp import LspError
from lsp import recipe as recipes

Rate = Callable[[Any], jax.Array]

# With these the decay is a part of the gradient (L2), as their papers and PyTorch have it; with the others it is
# decoupled (Loshchilov and Hutter, 2019).
L2 = ("sgd", "adagrad", "adam")
MUON_MOMENTUM = 0.95


class Averaged(NamedTuple):
    """How many weights were averaged, and their mean."""

    seen: jax.Array
    mean: Any


def make(
    train: recipes.Train, after: optax.GradientTransformation | None = None
) -> optax.GradientTransformationExtraArgs:
    """The whole chain; `update` takes `progress=`. `after` sees the final update. Raises LspError (exit 2)."""
    decay = optax.add_decayed_weights(train.weight_decay, mask=matrices)
    none = optax.identity()
    return optax.chain(
        optax.clip_by_global_norm(train.clip) if train.clip else none,
        decay if train.optimizer in L2 else none,
        direction(train, none if train.optimizer in L2 else decay),
        scale_by_depth(train.layer_decay) if train.layer_decay != 1.0 else none,
        scale_by_rate(train),
        after or none,
        average(train.average) if train.average else none,
    )


def direction(train: recipes.Train, decay: optax.GradientTransformation) -> optax.GradientTransformation:
    """The direction of steepest ascent that the optimizer makes of gradients, with decoupled `decay` where it has its
    place. Betas are the recipe's; constants are those of the papers."""
    beta1, beta2 = train.beta1, train.beta2
    adam = optax.chain(optax.scale_by_adam(beta1, beta2), decay)
    match train.optimizer:
        case "sgd":
            return optax.trace(beta1) if beta1 else optax.identity()
        case "adagrad":  # Duchi et al., 2011
            return optax.scale_by_rss(initial_accumulator_value=0.0, eps=1e-10)
        case "adam" | "adamw":  # Kingma and Ba, 2015
            return adam
        case "stableadamw":
            return optax.chain(scale_by_stable_adam(beta1, beta2), decay)
        case "lion":  # Chen et al., 2023
            return optax.chain(optax.scale_by_lion(beta1, beta2), decay)
        case "lamb":  # You et al., 2020; biases and norms have no trust ratio, as in the authors' code
            trust = optax.masked(optax.scale_by_trust_ratio(), matrices)
            return optax.chain(optax.scale_by_adam(beta1, beta2, eps=1e-6), decay, trust)
        case "muon":
            sides = partial(jax.tree.map, lambda _: contrib.MuonDimensionNumbers())
            orthogonal = contrib.scale_by_muon(beta=MUON_MOMENTUM, weight_dimension_numbers=sides)
            muon = optax.chain(orthogonal, scale_by_size(), decay)
            return optax.partition({"muon": muon, "adam": adam}, hidden)


def schedule(train: recipes.Train) -> Rate:
    """Learning rate by progress."""
    shape = course(train)
    return lambda progress: train.learning_rate * shape(progress)


def course(train: recipes.Train) -> Rate:
    """The share of the peak learning rate by progress: a line up over `warmup`, then the shape that the recipe names.

    `linear` and `cosine` fall to 0. `inverse_sqrt` falls with the root of the steps (Vaswani et al., 2017). `wsd` stays
    at the peak and falls over the last `decay` with 1 − sqrt (Hägele et al., 2024). With `restart` all of that is the
    course of the run up to there, and once more of the rest (Loshchilov and Hutter, 2017). Raises LspError (exit 2).
    """
    warmup, decay, restart = train.warmup, train.decay, train.restart
    if train.schedule == "inverse_sqrt" and not warmup:
        raise LspError("The inverse_sqrt schedule begins at its warm-up.", hint="Set train.warmup, to 0.06 say.")
    if train.schedule == "wsd" and warmup + decay > 1:
        raise LspError(
            f"train.warmup = {warmup} and train.decay = {decay} are more than the whole run.", hint="Lower one of them."
        )
    # The share of the fall that is done, and what is left of the peak there.
    since = warmup if train.schedule != "wsd" else 1 - decay
    shape: dict[str, Callable[[jax.Array], jax.Array]] = {
        "linear": lambda fallen: 1 - fallen,
        "cosine": lambda fallen: 0.5 * (1 + jnp.cos(math.pi * fallen)),
        "wsd": lambda fallen: 1 - jnp.sqrt(fallen),
        "inverse_sqrt": lambda fallen: jnp.sqrt(warmup / (warmup + fallen * (1 - warmup))),
    }

    def rate(progress: Any) -> jax.Array:
        progress = jnp.asarray(progress, jnp.float32)
        if restart:
            progress = jnp.where(progress < restart, progress / restart, (progress - restart) / (1 - restart))
        rising = progress / warmup if warmup else 1.0
        fallen = jnp.clip((progress - since) / max(1 - since, 1e-9), 0.0, 1.0)
        return jnp.minimum(jnp.minimum(rising, 1.0), shape[train.schedule](fallen))

    return rate


class Peak(NamedTuple):
    """The highest learning rate of a run, float32: in its state, so that runs that differ in it are one program."""

    learning_rate: Any


def scale_by_rate(train: recipes.Train) -> optax.GradientTransformationExtraArgs:
    """Times minus the learning rate of this progress."""
    share = course(train)

    def update(updates: Any, state: Peak, params: Any = None, *, progress: Any, **_: Any) -> tuple[Any, Peak]:
        step = -state.learning_rate * share(progress)
        return jax.tree.map(lambda u: step.astype(u.dtype) * u, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: Peak(jnp.float32(train.learning_rate)), update)


def scale_by_stable_adam(beta1: float, beta2: float, epsilon: float = 1e-6) -> optax.GradientTransformation:
    """Adam whose update of a tensor is divided by RMS(g/√v) where that is over 1 (Wortsman et al., 2023): a gradient
    that its second moment has not seen coming moves little."""
    adam = optax.scale_by_adam(beta1, beta2, eps=epsilon)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        ascent, state = adam.update(updates, state, params)
        seen = 1 - beta2 ** state.count.astype(jnp.float32)

        def stabilised(ascent: jax.Array, gradient: jax.Array, nu: jax.Array) -> jax.Array:
            surprise = jnp.square(gradient) / jnp.maximum(nu / seen, epsilon**2)
            return ascent / jnp.maximum(1.0, jnp.sqrt(surprise.mean()))

        return jax.tree.map(stabilised, ascent, updates, state.nu), state

    return optax.GradientTransformation(adam.init, update)


def scale_by_size() -> optax.GradientTransformation:
    """Muon's orthogonal matrices at the size that Adam's updates have, so that one learning rate serves both:
    0.2·sqrt(the longer side) (Liu et al., 2025)."""
    return optax.stateless_with_tree_map(lambda update, _: 0.2 * max(update.shape) ** 0.5 * update)


def scale_by_depth(decay: float) -> optax.GradientTransformation:
    """Times decay^(layers above): the head moves at the full rate, the embeddings least (Clark et al., 2020)."""

    def one(path: Any, update: jax.Array, top: int) -> jax.Array:
        part = path[0].key
        depth = 0 if part == "embeddings" else 1 + path[1].key if part == "layers" else top
        return decay ** (top - depth) * update

    def scaled(updates: Any, _: Any) -> Any:
        top = max(updates.get("layers", {}), default=-1) + 2
        return jax.tree_util.tree_map_with_path(lambda path, update: one(path, update, top), updates)

    return optax.stateless(scaled)


def average(share: float) -> optax.GradientTransformationExtraArgs:
    """Keeps the mean of the weights after each of the last `share` of the steps (Izmailov et al., 2018)."""

    def init(params: Any) -> Averaged:
        return Averaged(jnp.int32(0), jax.tree.map(jnp.copy, params))  # copies: the step donates both

    def update(updates: Any, state: Averaged, params: Any = None, *, progress: Any, **_: Any) -> tuple[Any, Averaged]:
        seen = state.seen + (progress > 1 - share)
        weight = 1.0 / jnp.maximum(seen, 1).astype(jnp.float32)
        mean = jax.tree.map(lambda m, p, u: m + weight * (p + u - m), state.mean, params, updates)
        return updates, Averaged(seen, mean)

    return optax.GradientTransformationExtraArgs(init, update)


def weights(params: Any, opt_state: Any) -> Any:
    """What a finished run is made of: the averaged weights where `make` keeps them, else the last ones."""
    last = opt_state[-1]
    return last.mean if isinstance(last, Averaged) else params


def matrices(params: Any) -> Any:
    """True for matrices. Biases and norms are not decayed: they have no scale to shrink."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def hidden(params: Any) -> Any:
    """`muon` for the matrices inside the layers, `adam` for embeddings, heads, biases and norms (Jordan, 2024)."""

    def one(path: Any, leaf: jax.Array) -> str:
        return "muon" if path[0].key == "layers" and leaf.ndim == 2 else "adam"

    return jax.tree_util.tree_map_with_path(one, params)
