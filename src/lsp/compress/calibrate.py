"""What reaches each matrix of a classifier when it reads a sample: sums over real tokens that padding has no part in
and that do not grow with the sample.

Dimensions: B rows, T tokens, E examples of a row, M tokens of all rows, K channels that enter a matrix.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, Self, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lsp import interrupt
from lsp.compress.quantize import Path, Tree, mapped, quantizable
from lsp.data.examples import Examples, places, shared
from lsp.model.config import ModelConfig
from lsp.model.encoder import graphdef
from lsp.model.int8 import Matrix, matmul

OUTLIER = 6.0  # times the median channel's largest value
RECURRENT = ("forward", "backward")  # an LSTM's own products: inside a scan, where nobody can look on

Measure = Callable[[str, jax.Array, jax.Array], Any]  # name of the kernel, x [M, K] with 0 on padding, bool [M]
Add = Callable[[Any, Any], Any]  # of what `Measure` makes of two batches, as NumPy


@dataclass(frozen=True)
class Observed(Matrix):
    """A matrix that shows what it is multiplied with while a function is traced."""

    w: Any
    see: Callable[[jax.Array], None]

    def product(self, x: jax.Array, transpose: bool) -> jax.Array:
        self.see(x)
        return matmul(x, self.w, transpose=transpose)

    def rows(self, ids: jax.Array) -> jax.Array:
        raise TypeError("a table that is looked up has no input to show")


class Texts(Protocol):
    """Rows of which some can be taken: of a table, or examples."""

    @property
    def texts(self) -> list[tuple[str, ...]]: ...

    def some(self, chosen: np.ndarray) -> Self: ...


Rows = TypeVar("Rows", bound=Texts)


def sample(whole: Rows, count: int, seed: int = 0) -> Rows:
    """At most `count` of the rows, drawn at random, in their order."""
    chosen = np.random.default_rng(seed).permutation(len(whole.texts))[:count]
    return whole.some(np.sort(chosen))


def observable(path: Path) -> bool:
    """Whether it is the path of a matrix that is quantised and whose input can be seen."""
    return quantizable(path) and path[-1] == "kernel" and path[-2] not in RECURRENT


def observe(config: ModelConfig, params: Tree, examples: Examples, measure: Measure, add: Add) -> dict[str, Any]:
    """For each observable kernel, by its name ("layers.0.attention.qkv.kernel"), `measure` of all inputs that it has
    when the classifier reads the examples, one batch after the other and added by `add`.

    Each real token is one row of x and each counts once; where a layer answers for the first token of an example
    alone, x holds no other. What `measure` makes is computed inside the compiled forward, so that no activations leave
    it.
    """
    structure = graphdef(config)

    @jax.jit
    def look(params: Tree, batch: dict[str, jax.Array]) -> dict[str, Any]:
        seen: dict[str, Any] = {}
        segments_BT = batch["segments"]
        examples_E = jnp.arange(1, places(segments_BT.shape[1]) + 1)
        there = {
            segments_BT.shape[1]: segments_BT > 0,
            len(examples_E): (segments_BT[:, :, None] == examples_E).any(1),
        }

        def watched(path: Path, w: Any) -> Any:
            def see(x: jax.Array) -> None:
                there_M = there[x.shape[1]].reshape(-1)
                x_MK = x.reshape(-1, x.shape[-1]).astype(jnp.float32)
                name = ".".join(map(str, path))
                seen[name] = measure(name, jnp.where(there_M[:, None], x_MK, 0.0), there_M)

            return Observed(w, see) if observable(path) else w

        model = nnx.merge(structure, mapped(watched, params))
        model.classify(batch["tokens"], segments_BT, batch["types"], shared=len(examples_E))
        return seen

    sums: dict[str, Any] = {}
    for _, batch in shared(examples, config.width):
        interrupt.check()
        found = jax.device_get(look(params, batch))
        sums = {name: add(sums[name], value) if sums else value for name, value in found.items()}
    return sums


def largest(config: ModelConfig, params: Tree, examples: Examples) -> dict[str, np.ndarray]:
    """The largest magnitude in each channel, float32 [K], by the name of the kernel."""
    return observe(config, params, examples, lambda name, x_MK, there_M: jnp.abs(x_MK).max(0), np.maximum)


def products(config: ModelConfig, params: Tree, examples: Examples) -> dict[str, np.ndarray]:
    """XᵀX of each kernel's inputs, float64 [K, K]: sums in float32 over the tokens of a batch, and in float64 over
    batches."""

    def square(name: str, x_MK: jax.Array, there_M: jax.Array) -> jax.Array:
        return x_MK.T @ x_MK

    sums = observe(config, params, examples, square, lambda one, other: one.astype(np.float64) + other)
    return {name: square.astype(np.float64) for name, square in sums.items()}


def outliers(largest: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """For each kernel with channels whose largest value is more than six times the median channel's: which, the largest
    first, and how many times the first is the median. Channels that nothing reaches do not count."""
    rows = []
    for name, largest_K in largest.items():
        if not largest_K.any():
            continue
        times_K = largest_K / np.median(largest_K[largest_K > 0])
        channels = np.argsort(-times_K, kind="stable")[: int((times_K > OUTLIER).sum())]
        if len(channels):
            rows.append({"kernel": name, "channels": channels.tolist(), "times": float(times_K[channels[0]])})
    return rows
