"""Differentially private SGD (Abadi et al., 2016): what the weights tell of any one example is bounded.

A step takes each example with the same chance, by itself (Poisson sampling), cuts its gradient to a length, and adds
Gaussian noise to the sum. What that spends is counted by Rényi divergences (Mironov et al., 2019).

Dimensions: B examples in a batch.
"""

import math
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import optax

from lsp import Exit, LspError
from lsp import recipe as recipes
from lsp.data.examples import Examples, sampled
from lsp.model.sharding import EACH
from lsp.train import memory
from lsp.train.metrics import Mean

if TYPE_CHECKING:
    from grain import MapDataset

ORDERS = (*range(2, 65), *range(72, 257, 8), 320, 384, 512, 768, 1024)
OVERFULL = 1e-12  # chance that a batch has no room for what was drawn: counted in delta

Gradients = Callable[..., tuple[Any, dict[str, Mean]]]


def check(recipe: recipes.Finetune, several: bool) -> None:
    """Raises LspError (exit 2) for what would spend more than is counted."""
    if not recipe.privacy.noise:
        return
    if not recipe.privacy.clip:
        raise LspError(
            "privacy.clip is 0: no gradient is as short, and nothing would be learnt.",
            hint="Say how long an example's gradient may be, as in --set privacy.clip=1.",
        )
    asked = {
        "--seeds and --sweep": several,
        "adapt.grow": recipe.adapt.grow,
        "head.class_weights": recipe.head.class_weights != "none",
        "train.on_divergence": recipe.train.on_divergence != "stop",
    }
    if key := next((key for key, there in asked.items() if there), None):
        raise LspError(
            f"{key} would tell more of single examples than privacy.noise hides.", hint="Leave one of the two out."
        )


def clipped(gradients: Gradients, clip: float) -> Gradients:
    """The sum over examples of gradients no longer than `clip` each, from a function that sums them as they are."""

    def each(params: Any, frozen: Any, batch: Any, key: jax.Array) -> tuple[Any, dict[str, Mean]]:
        def one(row: Any, key: jax.Array) -> tuple[Any, dict[str, Mean]]:
            return gradients(params, frozen, jax.tree.map(lambda x: x[None], row), key)

        keys = jax.random.split(key, next(iter(batch.values())).shape[0])
        grads, metrics = jax.vmap(one, axis_name=EACH)(batch, keys)
        total, _ = optax.per_example_global_norm_clip(grads, clip)
        return total, jax.tree.map(lambda x: x.sum(0), metrics)

    return each


def noisy(grads: Any, deviation: float, key: jax.Array) -> Any:
    """With noise of this standard deviation on every number."""
    leaves, structure = jax.tree.flatten(grads)
    keys = jax.random.split(key, len(leaves))
    made = [
        leaf + deviation * jax.random.normal(k, leaf.shape, leaf.dtype) for leaf, k in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(structure, made)


def secret(path: Path) -> int:
    """64 random bits that batches and noise follow from: who knew them could take the noise off again. They stay in the
    folder of the run's steps, so that a killed run goes on as it was, and go with it when the run is complete."""
    place = path / "secret"
    path.mkdir(parents=True, exist_ok=True)
    if not place.exists():
        place.touch(mode=0o600)
    if not (found := place.read_text()):
        found = f"{secrets.randbits(64)}\n"
        place.write_text(found)
    return int(found)


def drawn(examples: Examples, train: recipes.Train, secret: int, trained: Any) -> "MapDataset":
    """Batches in which each example is by chance, `train.batch_size` of them on average. Raises LspError: exit 2 for
    more than there are, 5 where the gradients of `trained` for all examples of a part do not fit the memory."""
    rows = room(len(examples), train.batch_size, train.accumulate * jax.device_count())
    at_once = rows // train.accumulate
    needed = at_once * sum(leaf.nbytes for leaf in jax.tree.leaves(trained))
    if needed > memory.usable():
        raise LspError(
            f"The gradients of {at_once} examples take {needed / 1e9:,.0f} GB.",
            hint="Raise train.accumulate, or train less of the model: --set adapt.lora_rank=8.",
            code=Exit.MACHINE,
        )
    return sampled(examples, rows=rows, share=train.batch_size / len(examples), seed=secret)


def room(examples: int, batch_size: int, parts: int) -> int:
    """Rows for a batch in which each example is with chance `batch_size / examples`: so many that hardly ever one has
    no place, as a multiple of `parts`. Raises LspError (exit 2) for more than there are."""
    if batch_size > examples:
        raise LspError(f"train.batch_size = {batch_size} is more than the {examples} examples.", hint="Lower it.")
    rows = examples
    if batch_size < examples:
        share, k = batch_size / examples, np.arange(1, examples + 1)
        rising = np.cumsum(np.log((examples - k + 1) / k) + math.log(share / (1 - share)))
        chances = np.exp(examples * math.log1p(-share) + rising)  # of 1, 2, … examples
        more = np.cumsum(chances[::-1])[::-1]  # of at least so many
        rows = int(np.argmax(more <= OVERFULL)) if (more <= OVERFULL).any() else examples
    return -(-rows // parts) * parts


def spent(noise: float, share: float, steps: int, delta: float) -> float:
    """Epsilon: after so many steps, each of which drew every example with chance `share` and added `noise` times the
    clipped length, no example changes the odds of any weights by more than e^epsilon, but for a chance of `delta`.

    By the best of the orders of Rényi's divergence, converted as Canonne, Kamath and Steinke (2020) do.
    """
    found = [
        steps * divergence(noise, share, order)
        + math.log1p(-1 / order)
        - (math.log(delta) + math.log(order)) / (order - 1)
        for order in ORDERS
    ]
    return max(0.0, min(found))


def divergence(noise: float, share: float, order: int) -> float:
    """Rényi divergence of a whole `order` between a step with and without an example: (1/(a-1)) log of the sum over k
    of C(a, k) (1-q)^(a-k) q^k exp((k²-k) / 2σ²) (Mironov et al., 2019)."""
    if share == 1:
        return order / (2 * noise**2)
    k = np.arange(order + 1, dtype=np.float64)
    choose = math.lgamma(order + 1) - np.array([math.lgamma(i + 1) + math.lgamma(order - i + 1) for i in k])
    logs = choose + (order - k) * math.log1p(-share) + k * math.log(share) + (k * k - k) / (2 * noise**2)
    return float(np.logaddexp.reduce(logs)) / (order - 1)


def report(recipe: recipes.Finetune, examples: int, steps: int) -> dict[str, Any]:
    """What a result says of a private run."""
    share = recipe.train.batch_size / examples
    delta = recipe.privacy.delta or 1 / (10 * examples)
    return {
        "privacy": {
            "epsilon": spent(recipe.privacy.noise, share, steps, delta),
            "delta": delta + steps * OVERFULL,
            "noise": recipe.privacy.noise,
            "clip": recipe.privacy.clip,
            "share": share,
            "steps": steps,
        }
    }
