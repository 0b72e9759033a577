"""Which tokens drove an answer: integrated gradients (Sundararajan et al., 2017), from a text of [MASK]s to the text.

Dimensions: A points of the way, T tokens, D width.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lsp.data.examples import width_for
from lsp.data.tokenizer import MASK, spelt
from lsp.model.config import ModelConfig
from lsp.model.encoder import graphdef
from lsp.recipe import Problem

FEWEST, MOST, AT_ONCE = 32, 512, 16  # points of the way: at first, at the most, and in one batch
CLOSE = 0.02  # share of the way's height that the attributions may miss


class Attributed(NamedTuple):
    """`weights` float32 [T] add up to `value` - `baseline`, but for `gap`; `points` were needed for that."""

    weights: np.ndarray
    value: float
    baseline: float
    gap: float
    points: int


def score(problem: Problem, logits_AC: jax.Array, output: int) -> jax.Array:
    """What is explained: the log odds of a class, or the number. fp32 [A]."""
    if problem != "single_label":
        return logits_AC[:, output]
    others = jnp.where(jnp.arange(logits_AC.shape[-1]) == output, -jnp.inf, logits_AC)
    return logits_AC[:, output] - jax.nn.logsumexp(others, axis=-1)


class Explainer:
    """Attributions of one text at a time. Reusable, so that nothing compiles twice for texts of like length."""

    def __init__(self, config: ModelConfig, params: Any) -> None:
        self.params, self.limit = params, config.max_length
        structure = graphdef(config)

        def value(shift_ATD: jax.Array, params: Any, tokens_T: jax.Array, types_T: jax.Array, output: Any) -> Any:
            rows = shift_ATD.shape[0]
            tokens_AT, types_AT = (jnp.broadcast_to(each, (rows, len(each))) for each in (tokens_T, types_T))
            model, seen_AT = nnx.merge(structure, params), (tokens_AT != 0).astype(jnp.int32)
            logits_AC = model.classify(tokens_AT, seen_AT, types_AT, shift_BTD=shift_ATD)
            found_A = score(config.problem, logits_AC, output)
            return found_A.sum(), found_A

        def slopes(params: Any, tokens_T: Any, types_T: Any, output: Any, at_A: jax.Array) -> Any:
            """Values at points of the way [A], and how each token's step there adds to them [A, T]."""
            table = nnx.merge(structure, params).embeddings.tokens
            # Special tokens stay as they are: the frame of a text is no part of it.
            moves_T = (tokens_T > MASK)[:, None]
            way_TD = jnp.where(moves_T, table(tokens_T) - table(jnp.full_like(tokens_T, MASK)), 0.0)
            shift_ATD = (at_A[:, None, None] - 1) * way_TD
            slope_ATD, found_A = jax.grad(value, has_aux=True)(shift_ATD, params, tokens_T, types_T, output)
            return found_A, (slope_ATD * way_TD).sum(-1)

        self.slopes = jax.jit(slopes, static_argnums=3)

    def __call__(self, tokens_T: np.ndarray, types_T: np.ndarray, output: int) -> Attributed:
        """Why `output` is what it is for the tokens int32 [T]. The way is cut finer until the weights add up."""
        length = len(tokens_T)
        room = min(width_for(length), max(self.limit, length)) - length
        inputs = np.pad(tokens_T, (0, room)), np.pad(types_T, (0, room))

        def along(at_A: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            parts = [
                jax.device_get(self.slopes(self.params, *inputs, output, part.astype(np.float32)))
                for part in np.split(at_A, range(AT_ONCE, len(at_A), AT_ONCE))
            ]
            return np.concatenate([values for values, _ in parts]), np.concatenate([slopes for _, slopes in parts])

        baseline, value = along(np.repeat([0.0, 1.0], AT_ONCE // 2))[0][[0, -1]].tolist()
        points = FEWEST
        while True:
            weights_T = along((np.arange(points) + 0.5) / points)[1].mean(0)[:length]
            gap = value - baseline - float(weights_T.sum())
            if abs(gap) <= CLOSE * abs(value - baseline) or points >= MOST:
                return Attributed(weights_T, value, baseline, gap, points)
            points *= 2


def by_word(tokens_T: np.ndarray, pieces: list[str], weights_T: np.ndarray) -> list[tuple[str, float]]:
    """Words and the sums of their pieces' weights. A piece that begins with `▁`, or follows a special one, begins a
    word; special pieces are none."""
    words: list[tuple[str, float]] = []
    new = True
    for token, piece, weight in zip(tokens_T.tolist(), pieces, weights_T.tolist(), strict=True):
        if token <= MASK:
            new = True
            continue
        if new or piece.startswith("▁"):
            words.append(("", 0.0))
        words[-1] = (words[-1][0] + piece.removeprefix("▁"), words[-1][1] + weight)
        new = False
    return [(spelt(word), weight) for word, weight in words if word]
