"""What heads and feed-forward units are for: the Fisher information of gates behind them (Kwon et al., 2022, "A fast
post-training pruning framework for transformers"). No training: one pass forward and back over some examples.

Dimensions: B rows, T tokens, H heads, S head size, F feed-forward units, N parts of a block (heads or units).
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lsp import interrupt
from lsp.data.examples import Examples
from lsp.model.config import ModelConfig
from lsp.model.encoder import graphdef
from lsp.model.int8 import Matrix, matmul
from lsp.train.objectives import LABELS

Tree = Any


@functools.partial(jax.tree_util.register_dataclass, data_fields=("kernel", "gates"), meta_fields=())
@dataclass(frozen=True)
class Gated(Matrix):
    """The product (x · `gates`) @ `kernel`: gates of 1 change nothing, and their gradient says what each input is for.

    kernel: float [K, N]. gates: float [B, 1, K], for each row of a batch its own.
    """

    kernel: Any
    gates: Any

    def product(self, x: jax.Array, transpose: bool) -> jax.Array:
        return matmul(x * self.gates, self.kernel, transpose=transpose)

    def rows(self, ids: jax.Array) -> jax.Array:
        raise TypeError("gates stand before products")


Block = tuple[int, str]  # the number of a layer, and "attention" or "feedforward"
EXIT = {"attention": "out", "feedforward": "down"}  # the matrix that a block's parts leave through
ROWS = 32  # examples at a time


def sizes(config: ModelConfig) -> dict[Block, int]:
    """How many heads, or units, each block has."""
    found: dict[Block, int] = {}
    for number, layer in enumerate(config.layers):
        found |= {(number, "attention"): layer.heads, (number, "feedforward"): layer.feedforward}
    return found


def fisher(
    config: ModelConfig, params: Tree, examples: Examples, chosen: np.ndarray, task: Callable[[int], None]
) -> dict[Block, np.ndarray]:
    """The `information` of each block's gates, [N, N]."""
    return information(config, params, examples, chosen, sizes(config), partial(_gated, config), task)


def information(
    config: ModelConfig,
    params: Tree,
    examples: Examples,
    chosen: np.ndarray,
    parts: Mapping[Any, int],
    gated: Callable[[Tree, dict[Any, jax.Array]], Tree],
    task: Callable[[int], None],
) -> dict[Any, np.ndarray]:
    """Of each name in `parts`, which says N, the empirical Fisher information of so many gates, float64 [N, N]: the sum
    over the `chosen` examples of g·gᵀ, where g [N] is what the loss of the label changes by as a gate closes. Removing
    the parts R costs about ½ Σ over pairs in R, in nats.

    `params` are floats, and `gated` puts gates [B, 1, N] into them. `task` hears how many examples are done.
    """
    structure, judge = graphdef(config), LABELS[config.problem]

    def loss(gates: dict[Any, jax.Array], params: Tree, batch: dict[str, jax.Array]) -> Any:
        return judge(nnx.merge(structure, gated(params, gates)), None, batch, None)[0].total

    @jax.jit
    def summed(sums: dict[Any, jax.Array], params: Tree, batch: dict[str, jax.Array]) -> dict[Any, jax.Array]:
        open_ = {name: jnp.ones((batch["tokens"].shape[0], 1, size)) for name, size in parts.items()}
        slopes = jax.grad(loss)(open_, params, batch)
        return {name: sums[name] + jnp.einsum("bin,bim->nm", g, g) for name, g in slopes.items()}

    sums = {name: jnp.zeros((size, size)) for name, size in parts.items()}
    for start in range(0, len(chosen), ROWS):
        interrupt.check()
        sums = summed(sums, params, examples.batch(chosen[start : start + ROWS], ROWS))
        task(min(start + ROWS, len(chosen)))
    return {name: np.asarray(total, np.float64) for name, total in jax.device_get(sums).items()}


def _gated(config: ModelConfig, params: Tree, gates: dict[Block, jax.Array]) -> Tree:
    """`params` with gates [B, 1, N] before the matrix that each block's parts leave through."""
    layers = {number: dict(layer) for number, layer in params["layers"].items()}
    for (number, block), gate in gates.items():
        # A head's gate is that of all its values.
        wide = jnp.repeat(gate, config.layers[number].head_size, -1) if block == "attention" else gate
        matrix = layers[number][block][EXIT[block]]
        layers[number][block] = layers[number][block] | {
            EXIT[block]: matrix | {"kernel": Gated(jnp.asarray(matrix["kernel"]), wide)}
        }
    return params | {"layers": layers}


def order(fisher_NN: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """In which order to remove the parts of a block, int [N], and what it costs to remove the first 0, 1, …, N of them,
    float64 [N + 1]: next goes always the part that adds least, what it shares with those that are gone included."""
    fisher_NN = 0.5 * fisher_NN
    adds_N, cost = np.diag(fisher_NN).copy(), 0.0
    removed, costs = np.empty(len(adds_N), np.int64), np.zeros(len(adds_N) + 1)
    for place in range(len(adds_N)):
        part = int(adds_N.argmin())
        cost += adds_N[part]
        removed[place], costs[place + 1] = part, cost
        adds_N += 2 * fisher_NN[part]
        adds_N[removed[: place + 1]] = np.inf
    return removed, costs
