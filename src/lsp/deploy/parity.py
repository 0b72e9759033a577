"""Does an exported classifier answer as its run does? Asked over lengths, batches and padding.

Dimensions: B rows, T tokens, C classes.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lsp import Exit, LspError
from lsp.checkpoint import Model
from lsp.data.tokenizer import CLS, MASK, SEP
from lsp.model.encoder import graphdef

# tokens int32 [B, T] with 0 on padding, types int32 [B, T] → logits fp32 [B, C], there when it returns
Answer = Callable[[np.ndarray, np.ndarray], np.ndarray]

SHAPES = (
    (1, 1),
    (1, 7),
    (1, 64),
    (4, 33),
    (8, 1 << 31),
)  # rows and tokens; the last ones are as long as the model takes


def compare(answer: Answer, model: Model, tolerance: float) -> dict[str, Any]:
    """`largest_difference` of a logit and `flips` of labels between what was exported and the run, over `rows` in
    `shapes`: random pieces, each row but the first of a batch padded, the second halves of the longer ones a second
    text. `allowed` is `tolerance` times the largest logit, or times 1 where that is less."""
    config, structure = model.config, graphdef(model.config)
    params = jax.device_put(model.params)

    @jax.jit
    def own(params: Any, tokens_BT: jax.Array, types_BT: jax.Array) -> jax.Array:
        return nnx.merge(structure, params).classify(tokens_BT, (tokens_BT != 0).astype(jnp.int32), types_BT)

    shapes = sorted({(rows, min(length, config.max_length)) for rows, length in SHAPES})
    batches = [_batch(model, rows, length) for rows, length in shapes]
    found_NC = np.concatenate([answer(*batch) for batch in batches])
    expected_NC = np.concatenate([jax.device_get(own(params, *batch)) for batch in batches])
    return {
        "largest_difference": float(np.abs(found_NC - expected_NC).max()),
        "allowed": tolerance * max(1.0, float(np.abs(expected_NC).max())),
        "flips": flips(config.problem, found_NC, expected_NC),
        "rows": len(expected_NC),
        "shapes": [f"{rows} × {length}" for rows, length in shapes],
        "platform": jax.default_backend(),
    }


def flips(problem: str, found_NC: np.ndarray, expected_NC: np.ndarray) -> int:
    """Rows whose label is another one; of numbers there are no labels."""
    if problem == "regression":
        return 0
    if problem == "multi_label":
        return int(((found_NC > 0) != (expected_NC > 0)).any(axis=1).sum())
    return int((found_NC.argmax(1) != expected_NC.argmax(1)).sum())


def refuse(out: Path, found: dict[str, Any]) -> None:
    """Raises LspError (exit 1) when an answer differs by more than is allowed; NaN does."""
    if not found["largest_difference"] <= found["allowed"]:
        raise LspError(
            f"{out}, read back, is another model: logits differ by up to {found['largest_difference']:.2g}, "
            f"{found['allowed']:.2g} is allowed, and {found['flips']} of {found['rows']} labels are others.",
            hint="Please report it, with the recipe that made the model.",
            code=Exit.NO,
        )


def _batch(model: Model, rows: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and types int32 [B, T]."""
    draw = np.random.default_rng(length)
    tokens_BT = draw.integers(MASK + 1, model.tokenizer.size, (rows, length)).astype(np.int32)
    types_BT = np.zeros_like(tokens_BT)
    tokens_BT[:, 0] = CLS
    for row, size in enumerate([length, *draw.integers(1, length, rows - 1).tolist()] if length > 1 else []):
        tokens_BT[row, size - 1], tokens_BT[row, size:] = SEP, 0
        types_BT[row, size // 2 : size] = size > 8
    return tokens_BT, types_BT
