"""Quantisation-aware training: the loop sees weights and activations rounded as `Int8` rounds them, and gradients that
know nothing of it (the straight-through estimator: Bengio et al., 2013; for BERT: Zafrir et al., 2019, "Q8BERT")."""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from lsp.compress.distill import match_teacher
from lsp.compress.quantize import Path, Tree, mapped, quantizable
from lsp.model.int8 import LARGEST, SMALLEST, Matrix, matmul, take
from lsp.recipe import Problem
from lsp.train.objectives import Objective

TEMPERATURE = 1.0  # the model learns from itself, and nothing of that is to be softened


@functools.partial(jax.tree_util.register_dataclass, data_fields=("w",), meta_fields=("axis",))
@dataclass(frozen=True)
class Rounded(Matrix):
    """A float matrix that multiplies as the `Int8` made of it would, but in float and with a gradient."""

    w: Any
    axis: int

    def product(self, x: jax.Array, transpose: bool) -> jax.Array:
        return matmul(straight_through(x, -1), straight_through(self.w, 1 - self.axis), transpose=transpose)

    def rows(self, ids: jax.Array) -> jax.Array:
        return straight_through(take(self.w, ids), -1)


def straight_through(x: jax.Array, axis: int) -> jax.Array:
    """x rounded to 127 steps up to the largest magnitude along an axis, with the gradient of x itself."""
    x32 = jax.lax.stop_gradient(x).astype(jnp.float32)
    absmax = jnp.maximum(jnp.abs(x32).max(axis=axis, keepdims=True), SMALLEST)
    near = jnp.round(x32 * (LARGEST / absmax)) * (absmax / LARGEST)
    return x + (near - x32).astype(x.dtype)


def rounded(params: Tree) -> Tree:
    """The model that `quantize` makes of the parameters, to be trained."""

    def leaf(path: Path, w: Any) -> Any:
        return Rounded(w, 1 if path[-1] == "kernel" else 0) if quantizable(path) else w

    return mapped(leaf, params)


def objective(problem: Problem, hard: float) -> Objective:
    """To answer in int8 as is `wanted`, by the float model; labels weigh `hard` of 1."""
    return Objective(match_teacher(TEMPERATURE, hard, problem), None, lambda trained, frozen: rounded(trained))
