"""What is left of a block answers as the whole one did: least squares, layer by layer, without labels or training.

Each matrix that heads or units leave through is fitted anew, on what the smaller model itself brings there, to what the
whole model adds to its stream, so that later layers make up for earlier ones. Removing inputs and refitting the others
is what second-order pruning does to a matrix (Hassibi and Stork, 1993; Kurtic et al., 2023, "ZipLM"), done once at the
end and exactly.

Dimensions: B rows, T tokens, M rows of a matrix, D width, K channels left of it, N values of all parts of a block.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lsp import interrupt
from lsp.compress.importance import EXIT, Block
from lsp.data.batches import Batch
from lsp.model import attention
from lsp.model.config import ModelConfig
from lsp.model.encoder import EncoderLayer, Turn, graphdef

Tree = Any
# Added to the mean square of each value of a block, as a share of their mean: the solution stays near what was there.
DAMPING = 1e-2
LEAST = 1e-30


class Half(NamedTuple):
    """One block of an encoder's layer, with the layer around it."""

    structure: Any
    number: int
    name: str

    def __call__(self, params: Tree, x_BTD: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array, EncoderLayer]:
        """What the block's parts found [B, T, N], the stream with their answer added [B, T, D], and the layer."""
        model = nnx.merge(self.structure, params)
        segments_BT = jnp.asarray(batch["segments"])
        layer = model.layers[self.number]
        turn: Turn = model.turns(attention.positions(segments_BT))[self.number]
        read_BTD = layer.before(getattr(layer, self.name), x_BTD)
        if self.name == "attention":
            parts_BTN = layer.attention.gather(read_BTD, segments_BT, turn)
            return parts_BTN, x_BTD + layer.attention.out(parts_BTN), layer
        parts_BTN = layer.feedforward.units(read_BTD)
        return parts_BTN, x_BTD + layer.feedforward.down(parts_BTN), layer

    def behind(self, params: Tree, x_BTD: jax.Array, batch: Batch) -> jax.Array:
        """The stream behind the block."""
        _, sum_BTD, layer = self(params, x_BTD, batch)
        return layer.after(getattr(layer, self.name), sum_BTD)


def refit(
    whole: tuple[ModelConfig, Tree],
    small: tuple[ModelConfig, Tree],
    batches: Sequence[Batch],
    task: Callable[[int], None],
    stream: np.ndarray | None = None,
    sparse: bool = False,
) -> Tree:
    """The parameters of `small`, made of `whole` by taking out heads and units, and all channels but `stream`, int [K],
    where that is given; with the matrices behind heads and units fitted to `whole` on `batches` (one example a row;
    padding counts nothing). Zeros of `sparse` matrices stay. `task` hears how many blocks are done."""
    params, structures = small[1], [graphdef(config) for config, _ in (whole, small)]
    channels = np.arange(whole[0].width) if stream is None else stream
    wholes, smalls = (
        [first(structure, params, batch) for batch in batches]
        for structure, params in zip(structures, (whole[1], params), strict=True)
    )
    blocks: list[Block] = [(number, name) for number in range(len(small[0].layers)) for name in EXIT]
    for done, block in enumerate(blocks, 1):
        old, new = (Half(structure, *block) for structure in structures)
        equations, ahead = jax.jit(lacking(old, new, channels, whole[0].bias)), jax.jit(new.behind)
        gram: Any = 0.0
        answer: Any = 0.0
        for place, batch in enumerate(batches):
            interrupt.check()
            *sums, wholes[place] = equations(whole[1], params, wholes[place], smalls[place], batch)
            gram, answer = gram + np.asarray(sums[0], np.float64), answer + np.asarray(sums[1], np.float64)
        params = changed(params, block, gram, answer, sparse)
        smalls = [ahead(params, x_BTD, batch) for x_BTD, batch in zip(smalls, batches, strict=True)]
        task(done)
    return params


def first(structure: Any, params: Tree, batch: Batch) -> jax.Array:
    """What the first layer reads of a batch."""
    model = nnx.merge(structure, params)
    positions_BT = attention.positions(jnp.asarray(batch["segments"]))
    return model.embed(jnp.asarray(batch["tokens"]), positions_BT, jnp.asarray(batch["types"]))


def lacking(
    whole: Half, small: Half, channels: np.ndarray, biased: bool
) -> Callable[..., tuple[jax.Array, jax.Array, jax.Array]]:
    """A function of both models' parameters, both streams and a batch: the normal equations of what the small block's
    answer lacks, [N, N] and [N, K], with one row more for a bias; and the whole model's next stream [B, T, D]."""

    def equations(
        whole_params: Tree, params: Tree, whole_BTD: jax.Array, x_BTK: jax.Array, batch: Batch
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        _, wanted_BTD, layer = whole(whole_params, whole_BTD, batch)
        parts_BTN, sum_BTK, _ = small(params, x_BTK, batch)
        there_BT1 = (jnp.asarray(batch["segments"]) > 0).astype(parts_BTN.dtype)[..., None]
        parts_BTN = jnp.pad(parts_BTN, ((0, 0), (0, 0), (0, int(biased))), constant_values=1.0) * there_BT1
        lacks_BTK = (wanted_BTD[..., channels] - sum_BTK) * there_BT1
        parts_MN, lacks_MK = (x.reshape(-1, x.shape[-1]) for x in (parts_BTN, lacks_BTK))
        ahead_BTD = layer.after(getattr(layer, whole.name), wanted_BTD)
        return parts_MN.T @ parts_MN, parts_MN.T @ lacks_MK, ahead_BTD

    return equations


def changed(params: Tree, at: Block, gram: np.ndarray, answer: np.ndarray, sparse: bool) -> Tree:
    """`params` with the matrix that a block's parts leave through, and its bias where it has one, as the normal
    equations ask; zeros of a `sparse` one stay."""
    number, name = at
    layer = params["layers"][number]
    linear = layer[name][EXIT[name]]
    kernel = np.asarray(linear["kernel"])
    there = np.ones(answer.shape, bool)
    if sparse:
        there[: len(kernel)] = kernel != 0
    change = solved(gram, answer, there).astype(np.float32)
    new = {"kernel": kernel + change[: len(kernel)]}
    if "bias" in linear:
        new["bias"] = np.asarray(linear["bias"]) + change[-1]
    layers = params["layers"] | {number: layer | {name: layer[name] | {EXIT[name]: new}}}
    return params | {"layers": layers}


def solved(gram: np.ndarray, answer: np.ndarray, there: np.ndarray) -> np.ndarray:
    """The change [M, K] that the damped normal equations ask for, float64: 0 where not `there`, bool [M, K]."""
    # What never varies, as all does where a single channel stays, is to be solved too: it has nothing to change.
    damped = gram + np.diag(np.full(len(gram), max(DAMPING * np.diag(gram).mean(), LEAST)))
    if there.all():
        return np.linalg.solve(damped, answer)
    change = np.zeros_like(answer)
    for column in range(answer.shape[1]):
        rows = np.flatnonzero(there[:, column])
        change[rows, column] = np.linalg.solve(damped[np.ix_(rows, rows)], answer[rows, column])
    return change
