"""One training step: the only place where parameters change."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from lsp.model.sharding import EACH, gather
from lsp.train import privacy, watch
from lsp.train.metrics import Mean
from lsp.train.objectives import Objective

SEED_0 = np.zeros(2, np.uint32)  # as a raw key
NOISE = 1 << 30  # what sets the noise of a private step apart from its dropout


class TrainState(NamedTuple):
    """All that a run needs to go on: int32 step, fp32 parameters, optimizer state, what the watch remembers, and
    uint32 [2] from which it draws. Of several variants that are trained together every array has a first axis more."""

    step: Any
    params: Any
    opt_state: optax.OptState
    recent: watch.Recent = watch.FRESH
    key: Any = SEED_0


class Variant(NamedTuple):
    """What may differ between models that are trained together."""

    seed: int
    learning_rate: float  # the peak


def begin(update: "Update", params: Any, key: Any = SEED_0, learning_rate: Any = None, step: int = 0) -> TrainState:
    """The state that a run begins with, at this step. `learning_rate` takes the place of the recipe's."""
    with jax.numpy_dtype_promotion("standard"):  # Optax multiplies zeros of one type and numbers of another
        opt_state = update.init(params)
    if learning_rate is not None:
        opt_state = optax.tree.set(opt_state, learning_rate=learning_rate)
    return TrainState(jnp.int32(step), params, opt_state, key=key)


def raw_key(seed: int) -> np.ndarray:
    """uint32 [2]: the halves of 64 bits."""
    return np.array([seed >> 32 & 0xFFFFFFFF, seed & 0xFFFFFFFF], np.uint32)


def key_at(raw: Any, step: jax.Array) -> jax.Array:
    """The key that a step draws from."""
    return jax.random.fold_in(jax.random.wrap_key_data(raw, impl="threefry2x32"), step)


def begin_together(update: "Update", params: Any, variants: Sequence[Variant]) -> TrainState:
    """The state of several runs, from parameters [V, …]."""
    keys = np.stack([raw_key(variant.seed) for variant in variants])
    rates = np.array([variant.learning_rate for variant in variants], np.float32)
    return jax.vmap(partial(begin, update))(params, keys, rates)


class Signals(NamedTuple):
    """What processes tell each other with a step: numbers or arrays of them, of which the largest counts. So all of
    them end a run at the same step, though each has a clock and hears signals of its own."""

    progress: Any  # the share of the run that is done, 0 to 1
    stop: Any = 0.0  # the exit code with which to save and stop, else 0


class Update(NamedTuple):
    """What a batch does to parameters. `init(params)` is the optimizer's first state, and `update(params, opt_state,
    frozen, batch, key, progress)` gives both after the batch, the metrics as `Mean`, `loss` among them, and the norm of
    the gradient before clipping."""

    init: Callable[[Any], Any]
    update: Callable[..., tuple[Any, Any, dict[str, Mean], jax.Array]]


def make_update(
    graphdef: Any,
    objective: Objective,
    tx: optax.GradientTransformationExtraArgs,
    *,
    accumulate: int = 1,
    full: int = 0,
    precision: str = "fp32",
    expected: int = 0,
) -> Update:
    """An update by gradients. The batch is cut into `accumulate` micro-batches whose sums are added and divided once;
    one of fewer rows than a `full` batch into fewer. `precision` bf16 casts the parameters once. A private
    objective clips the gradient of each example, adds noise, and divides by the `expected` number of examples."""
    private = objective.private

    def sums(params: Any, frozen: Any, batch: Any, key: jax.Array) -> tuple[Any, tuple[Mean, dict[str, Mean]]]:
        cast = objective.whole(params, frozen)
        if precision != "fp32":
            cast = jax.tree.map(lambda p: p.astype(jnp.bfloat16), cast)
        model, beside = nnx.merge(graphdef, gather(cast)), objective.beside(params, frozen)
        loss, metrics = objective.loss(model, beside, batch, key)
        return loss.total, (loss, metrics)

    def gradients(params: Any, frozen: Any, batch: Any, key: jax.Array) -> tuple[Any, dict[str, Mean]]:
        (_, (loss, metrics)), grads = jax.value_and_grad(sums, has_aux=True)(params, frozen, batch, key)
        return grads, metrics | {"loss": loss}

    if private:
        gradients = privacy.clipped(gradients, private.clip)

    def update(
        params: Any, opt_state: Any, frozen: Any, batch: Any, key: jax.Array, progress: jax.Array
    ) -> tuple[Any, Any, dict[str, Mean], jax.Array]:
        rows = next(iter(batch.values())).shape[0]
        count = max(1, accumulate * rows // (full or rows))
        count = next(parts for parts in range(count, rows + 1) if rows % parts == 0)
        if count == 1:
            grads, metrics = gradients(params, frozen, batch, key)
        else:
            parts = dealt(batch, count)

            def add(carry: Any, part: Any) -> tuple[Any, None]:
                number, micro = part
                return jax.tree.map(jnp.add, carry, gradients(params, frozen, micro, keys[number])), None

            keys = jax.random.split(key, count)
            first = jax.tree.map(lambda x: x[0], parts)
            rest = jax.tree.map(lambda x: x[1:], parts)
            start = gradients(params, frozen, first, keys[0])
            (grads, metrics), _ = jax.lax.scan(add, start, (jnp.arange(1, count), rest))
        guesses = jnp.maximum(metrics["loss"].count, 1.0)
        if private:
            grads = privacy.noisy(grads, private.noise * private.clip, jax.random.fold_in(key, NOISE))
            guesses = jnp.float32(expected)
        grads = jax.tree.map(lambda g: g / guesses, grads)
        with jax.numpy_dtype_promotion("standard"):  # Optax raises floats to the power of an integer count
            updates, opt_state = tx.update(grads, opt_state, params, progress=progress, grad=grads)
        return optax.apply_updates(params, updates), opt_state, metrics, optax.tree.norm(grads)

    return Update(tx.init, update)


def dealt(batch: Any, count: int) -> Any:
    """The batch in `count` parts [count, B / count, …]. Row i goes to part i % count, so each part stays spread over
    the devices."""
    return jax.tree.map(lambda x: x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1), batch)


def make_train_step(update: Update, *, spike: float = 0.0, variants: int = 0) -> Any:
    """Returns jitted `step(state, frozen, batch, index, signals) -> (state, metrics)`.

    `index` is the step that the batch belongs to. The update happens only if it is the state's own step and
    `watch.sound` agrees: loss and gradient norm are finite and no spike of `spike` deviations. Otherwise the state
    stays as it was, and so does every later step, although the host hears of it one step late. Metrics hold those of
    the update, `gradient_norm` (before clipping), `ok`, and the `signals` that all agree on.

    With `variants` the state is that of so many runs, and the batch is dealt out to them (`dealt`). One whose update is
    not sound stays behind for good; the others go on, and metrics are theirs.
    """

    def one(
        state: TrainState, frozen: Any, batch: Any, index: jax.Array, progress: jax.Array
    ) -> tuple[TrainState, dict[str, Any]]:
        key = key_at(state.key, state.step)
        params, opt_state, metrics, norm = update.update(state.params, state.opt_state, frozen, batch, key, progress)
        mean = metrics["loss"].total / jnp.maximum(metrics["loss"].count, 1.0)
        ok = watch.sound(state.recent, mean, norm, spike) & (state.step == index)
        new = TrainState(state.step + 1, params, opt_state, watch.noted(state.recent, mean, norm), state.key)
        state = jax.tree.map(lambda after, before: jnp.where(ok, after, before), new, state)
        return state, metrics | {"gradient_norm": norm, "ok": ok}

    def together(
        state: TrainState, frozen: Any, batch: Any, index: jax.Array, progress: jax.Array
    ) -> tuple[TrainState, dict[str, Any]]:
        every = jax.vmap(one, in_axes=(0, None, 0, None, None), axis_name=EACH)
        state, metrics = every(state, frozen, dealt(batch, variants), index, progress)
        ok = metrics.pop("ok")
        metrics = jax.tree.map(lambda leaf: jnp.where(ok, leaf, 0.0).sum(), metrics)
        metrics["gradient_norm"] /= jnp.maximum(ok.sum(), 1).astype(jnp.float32)
        return state, metrics | {"ok": ok.any()}

    @partial(jax.jit, donate_argnums=0)
    def train_step(
        state: TrainState, frozen: Any, batch: Any, index: jax.Array, signals: Signals
    ) -> tuple[TrainState, dict[str, Any]]:
        agreed = jax.tree.map(jnp.max, signals)
        state, metrics = (together if variants else one)(state, frozen, batch, index, agreed.progress)
        return state, metrics | {"signals": agreed}

    return train_step
