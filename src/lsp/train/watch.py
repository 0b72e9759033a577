"""Which steps must not be made: a loss or gradient that is not finite, or far above those of the last updates.

Losses are compared as they are and gradient norms by their logarithms: as finetuning takes hold of a pretrained model
its gradient grows by a few times within a few dozen steps, which is no spike, and where norms vary little both are one.

The step decides on the device, from a window that is a part of its state, and a step that is refused changes nothing,
nor does any later one; so a resumed run decides as the one that went on. The host hears of it one step late, when the
state is still the one that the refused step began with, and gives `answer`: stop, skip the batch (as OLMo 2's SkipStep
does, 2024), or go back to the newest saved step and on behind the batch (as PaLM was trained, Chowdhery et al., 2022).
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lsp import Exit, LspError
from lsp.train import mesh as meshes

if TYPE_CHECKING:
    from lsp.train.step import TrainState

WINDOW = 128  # updates that a loss is compared with, and steps in which skips are counted
ENOUGH = 64  # updates before which nothing is called a spike: a deviation needs some losses
SKIPS = WINDOW // 10  # skipped steps in a window; with one more the run has diverged
REWINDS = 3  # in a run
# A deviation is at least this share of the mean: where a loss stands still, rounding is no spike.
LEAST = 0.01
TINY = np.finfo(np.float32).tiny  # a gradient of 0 has a logarithm too


class Recent(NamedTuple):
    """What is remembered of a run: rings of its last updates and skips, and counts. Update n is at place n % size."""

    losses: Any  # float32 [WINDOW]
    norms: Any  # float32 [WINDOW]
    updates: Any  # int32
    warned: Any  # bool: a spike was seen and spikes shall pass
    skips: Any  # int32 [SKIPS], the steps that were skipped last
    skipped: Any  # int32, steps without an update that lasts
    rewinds: Any  # int32


FRESH = Recent(
    losses=np.zeros(WINDOW, np.float32),
    norms=np.zeros(WINDOW, np.float32),
    updates=np.int32(0),
    warned=np.bool_(False),
    skips=np.full(SKIPS, -WINDOW, np.int32),
    skipped=np.int32(0),
    rewinds=np.int32(0),
)


class Refused(NamedTuple):
    """A step that was not made: its number from 0, mean loss, gradient norm and host batch."""

    step: int
    loss: float
    norm: float
    batch: dict[str, np.ndarray]

    def finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.norm)


def sound(recent: Recent, loss: jax.Array, norm: jax.Array, spike: float) -> jax.Array:
    """Whether a step of this mean loss and gradient norm may be made, bool; `spike` in deviations, 0 for any height."""
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    if not spike:
        return finite
    mean, deviation = _window(recent.losses, recent.updates)
    high = loss > mean + spike * jnp.maximum(deviation, LEAST * jnp.abs(mean))
    mean, deviation = _window(_log(recent.norms), recent.updates)
    high |= _log(norm) > mean + spike * jnp.maximum(deviation, LEAST)
    return finite & (recent.warned | (recent.updates < ENOUGH) | ~high)


def noted(recent: Recent, loss: jax.Array, norm: jax.Array) -> Recent:
    """With this update in the window."""
    place = recent.updates % WINDOW
    return recent._replace(
        losses=recent.losses.at[place].set(loss), norms=recent.norms.at[place].set(norm), updates=recent.updates + 1
    )


def _window(values: jax.Array, updates: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and standard deviation of what the window holds, scalars."""
    count = jnp.minimum(updates, WINDOW)
    filled = jnp.arange(WINDOW) < count
    size = jnp.maximum(count, 1).astype(jnp.float32)
    mean = jnp.where(filled, values, 0.0).sum() / size
    return mean, jnp.sqrt(jnp.where(filled, jnp.square(values - mean), 0.0).sum() / size)


def _log(norms: jax.Array) -> jax.Array:
    return jnp.log(jnp.maximum(norms, TINY))


def answer(
    refused: Refused,
    state: "TrainState",
    on_divergence: str,
    restore: Callable[[], "TrainState"],
    warn: Callable[[str], None],
    box: str,
) -> "TrainState":
    """The state from which the run goes on after a refused step; `box` is where the step can be replayed from.

    `restore` gives the newest saved state. Raises Diverged: with `stop` when loss or gradient is not finite,
    with `skip` at the 13th step in 128, with `rewind` at the fourth.
    """
    step, recent = refused.step, jax.device_get(state.recent)
    found = _described(refused, recent)
    said = f"step {step + 1}: {found}"
    if on_divergence == "stop":
        if not refused.finite():
            raise Diverged(step + 1, found, "The update was not made.", box)
        warn(f"{said}; going on, and no further spike is reported. {box}")
        return _moved(state, step, recent._replace(warned=np.bool_(True)))
    if on_divergence == "skip":
        oldest = int(recent.skips.min())
        if step - oldest < WINDOW:
            raise Diverged(step + 1, found, f"{SKIPS} of the last {WINDOW} steps were skipped already.", box)
        skips = np.where(np.arange(SKIPS) == recent.skips.argmin(), np.int32(step), recent.skips)
        warn(f"{said}; the step is skipped. {box}")
        return _moved(state, step + 1, recent._replace(skips=skips, skipped=recent.skipped + np.int32(1)))
    if recent.rewinds >= REWINDS:
        raise Diverged(step + 1, found, f"The run went back {REWINDS} times already.", box)
    for leaf in jax.tree.leaves(state):
        leaf.delete()  # two states may not fit into memory
    state = restore()
    before, old = int(state.step), jax.device_get(state.recent)
    warn(f"{said}; going back to step {before} and skipping the batches up to this one. {box}")
    lost = np.int32(step + 1 - before)
    return _moved(state, step + 1, old._replace(skipped=old.skipped + lost, rewinds=recent.rewinds + np.int32(1)))


class Diverged(LspError):
    """Training that came to nothing at the step with the number `step`, from 1 (exit 6)."""

    def __init__(self, step: int, said: str, more: str = "", box: str = "") -> None:
        hint = "Lower train.learning_rate or lengthen train.warmup, then run again with --overwrite."
        message = f"Training diverged at step {step}: {said}. {more}".rstrip()
        super().__init__(message, hint=f"{hint} {box}".rstrip(), code=Exit.DIVERGED)
        self.step = step


def _described(refused: Refused, recent: Recent) -> str:
    """`loss 9.31 (mean of the last 128: 2.4 ± 0.12), gradient norm 4.2 (0.8, times or over 1.1)`."""
    count = min(int(recent.updates), WINDOW)
    if not refused.finite() or not count:
        return f"loss {refused.loss:.4g}, gradient norm {refused.norm:.4g}"
    losses, logs = recent.losses[:count], np.log(np.maximum(recent.norms[:count], TINY))
    loss = f"loss {refused.loss:.4g} (mean of the last {count}: {losses.mean():.4g} ± {losses.std():.2g})"
    norm = f"{np.exp(logs.mean()):.4g}, times or over {np.exp(logs.std()):.3g}"
    return f"{loss}, gradient norm {refused.norm:.4g} ({norm})"


def _moved(state: "TrainState", step: int, recent: Recent) -> "TrainState":
    """The state with another step and memory, each where it was on the devices."""
    old = (state.step, state.recent)
    new = (np.int32(step), recent)
    step_there, recent_there = meshes.spread(new, jax.tree.map(lambda leaf: leaf.sharding, old))
    return state._replace(step=step_there, recent=recent_there)
