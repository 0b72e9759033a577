"""Does an exported model answer as its run does? Asked over lengths, batches and padding.

Dimensions: N texts, B rows, T tokens, C classes, D width.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lsp import Exit, LspError
from lsp.checkpoint import Model
from lsp.data.tokenizer import CLS, MASK, PAD, SEP
from lsp.model.config import ModelConfig
from lsp.model.encoder import compiler_options, graphdef
from lsp.model.weightonly import any_quantized, dequantize
from lsp.train import answers

# tokens int32 [B, T] with 0 on padding, types int32 [B, T] → logits fp32 [B, C], or hidden states [B, T, D] of an
# encoder without classes; there when it returns
Answer = Callable[[np.ndarray, np.ndarray], np.ndarray]

LARGEST_FILE = 2**31 - 2**20  # bytes
TEXTS, LONGEST = 6, 512  # texts that are compared, and tokens of the longest
# What a difference may be, as a share of the largest answer (of 1 where all are smaller): float32 sums in another order
# come to 1e-6. In int8 such a sum may be rounded the other way, and then two programs differ as much as either differs
# from float32, if not more: 1.7 times was seen, and 17 times where a bias was scaled that should not have been.
# But static limits cut off what random texts have beyond them, which is no rounding: so never more than this share.
# A text alone and in a batch is answered by one program, whose sums differ by its padding alone: one such difference.
TOLERANCE, ROUNDINGS, COMPANY, MOST = 1e-4, 4, 1, 0.25


def fits_one_file(params: Any) -> None:
    """Raises LspError (exit 2) where parameters are more than one message of protobuf or flatbuffers holds."""
    size = sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(params))
    if size > LARGEST_FILE:
        raise LspError(
            f"The model takes {size / 2**30:.1f} GiB, and one file of this format holds less than 2.",
            hint="Make it smaller first: lsp compress quantize.",
        )


def answerer(config: ModelConfig, params: Any) -> Answer:
    """What the model itself answers; compiled for each shape when that first comes."""
    structure, params = graphdef(config), jax.device_put(params)

    @partial(jax.jit, compiler_options=compiler_options(params))
    def compute(params: Any, tokens_BT: jax.Array, types_BT: jax.Array) -> jax.Array:
        model = nnx.merge(structure, params)
        ask = model.classify if config.head == "classes" else model.encode
        return ask(tokens_BT, (tokens_BT != PAD).astype(jnp.int32), types_BT)

    return lambda tokens_BT, types_BT: jax.device_get(compute(params, tokens_BT, types_BT))


@contextmanager
def exact() -> Iterator[None]:
    """Computes on the processor, where a product of float32 is one: graphics cards and TPUs round what they multiply to
    10 or 7 bits. Where jax was given no processor, on what there is."""
    try:
        host = jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        host = None
    with jax.default_device(host):
        yield


def compare(answer: Answer, model: Model) -> dict[str, Any]:
    """How far the answers of what was exported are from the model's, over texts of several `lengths`, all in one batch,
    by three, and alone without padding: the `largest_difference`, the `flips` of labels, and the `batch_difference`
    between the answers to one text. `allowed` is what the first may be, `batch_allowed` the last."""
    tokens_NT, types_NT = texts(model)
    expected = answerer(model.config, model.params)(tokens_NT, types_NT)
    largest, rounded = max(1.0, float(np.abs(expected).max())), 0.0
    if any_quantized(model.params):
        floats = answerer(model.config, dequantize(model.params))(tokens_NT, types_NT)
        rounded = _furthest(expected, floats, tokens_NT)
    found = _in_batches(answer, tokens_NT, types_NT)
    return {
        "largest_difference": _furthest(found, expected, tokens_NT),
        "batch_difference": _furthest(found.max(0), found.min(0), tokens_NT),
        "flips": flips(model.config, found[0], expected),
        "allowed": TOLERANCE * largest + min(ROUNDINGS * rounded, MOST * largest),
        "batch_allowed": TOLERANCE * largest + COMPANY * min(rounded, MOST / ROUNDINGS * largest),
        "lengths": (tokens_NT != PAD).sum(1).tolist(),
        "platform": next(iter(jnp.zeros(()).devices())).platform,
    }


def flips(config: ModelConfig, found_NC: np.ndarray, expected_NC: np.ndarray) -> int:
    """Texts whose label is another one; numbers and hidden states have no labels."""
    if config.head != "classes" or config.problem == "regression":
        return 0
    return int((~answers.alike(config.problem, found_NC, expected_NC)).sum())


def refuse(out: Path, found: dict[str, Any]) -> None:
    """Raises LspError (exit 1) when an answer differs by more than is allowed; NaN does."""
    own = ("largest_difference", "allowed", "the run's")
    for key, most, what in (own, ("batch_difference", "batch_allowed", "each other, batched or alone")):
        if not found[key] <= found[most]:
            raise LspError(
                f"The answers of {out}, read back, differ by up to {found[key]:.2g} from {what}; "
                f"{found[most]:.2g} is allowed. {found['flips']} of {len(found['lengths'])} labels are others.",
                hint="Please report it, with the recipe that made the model.",
                code=Exit.NO,
            )


def texts(model: Model) -> tuple[np.ndarray, np.ndarray]:
    """Random texts of two to many tokens: tokens, and types with a second text in every other one; int32 [N, T]."""
    random, longest = np.random.default_rng(0), min(LONGEST, model.config.max_length)
    lengths_N = np.geomspace(2, longest, TEXTS).round().astype(int)
    tokens_NT = random.integers(MASK + 1, model.tokenizer.size, (TEXTS, longest), dtype=np.int32)
    place_T = np.arange(longest)
    tokens_NT[place_T >= lengths_N[:, None]] = PAD
    tokens_NT[:, 0], tokens_NT[np.arange(TEXTS), lengths_N - 1] = CLS, SEP
    second_NT = (place_T >= lengths_N[:, None] // 2) & (tokens_NT != PAD) & (np.arange(TEXTS)[:, None] % 2 == 1)
    return tokens_NT, second_NT.astype(np.int32) * (model.config.types > 1)


def _in_batches(answer: Answer, tokens_NT: np.ndarray, types_NT: np.ndarray) -> np.ndarray:
    """All texts together, three at a time and so padded less, and alone without padding; [3, N, …]."""
    found = []
    for rows in (len(tokens_NT), 3, 1):
        parts = []
        for at in range(0, len(tokens_NT), rows):
            tokens, types = tokens_NT[at : at + rows], types_NT[at : at + rows]
            longest = (tokens != PAD).sum(1).max()
            made = answer(tokens[:, :longest], types[:, :longest])
            missing = [(0, 0), (0, tokens.shape[1] - longest), (0, 0)] if made.ndim == 3 else 0
            parts.append(np.pad(made, missing))
        found.append(np.concatenate(parts))
    return np.stack(found)


def _furthest(some: np.ndarray, others: np.ndarray, tokens_NT: np.ndarray) -> float:
    """The largest difference of answers; of hidden states those of padding are nobody's."""
    apart = np.abs(some - others)
    return float((apart[..., tokens_NT != PAD, :] if apart.shape[-3:-1] == tokens_NT.shape else apart).max())
