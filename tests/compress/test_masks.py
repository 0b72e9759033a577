"""Which weights live, against sorting."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsp import LspError
from lsp.compress.masks import Pattern, largest


@pytest.mark.parametrize("kind", ["normal", "many equal", "all equal", "positive", "some dead"])
def test_the_least_of_all_matrices_go_to_the_exact_number(kind: str) -> None:
    rng = np.random.default_rng(0)
    scores = [rng.standard_normal(shape).astype(np.float32) for shape in ((7, 5), (4, 9), (3, 1))]
    if kind == "many equal":
        scores = [np.round(s) + 0.0 for s in scores]  # + 0: no -0
    if kind == "all equal":
        scores = [np.ones_like(s) for s in scores]
    if kind == "positive":
        scores = [np.abs(s) for s in scores]
    masks = [np.ones(s.shape, bool) for s in scores]
    if kind == "some dead":
        masks = [np.abs(s) > 0.3 for s in scores]
        scores = [np.where(mask, s, -np.inf).astype(np.float32) for s, mask in zip(scores, masks, strict=True)]
    flat, dead = (np.concatenate([each.ravel() for each in all]) for all in (scores, [~mask for mask in masks]))
    draw = jax.jit(largest)
    for count in (0, 1, 2, 30, 37, 73, 74):
        kept = np.concatenate([np.asarray(mask).ravel() for mask in draw(scores, np.int32(count), masks)])
        least = np.zeros(flat.size, bool)
        least[np.argsort(flat, kind="stable")[:count]] = True
        np.testing.assert_array_equal(~kept, least | dead, err_msg=str(count))


def test_the_largest_of_each_group_of_inputs_are_held() -> None:
    scores = np.array([[3.0, 0.0], [1.0, 0.0], [2.0, 0.0], [-1.0, -np.inf], [9.0, 1.0], [9.5, 4.0]], np.float32)
    held = np.asarray(Pattern(1, 3).held(jnp.asarray(scores)))
    inf = np.inf
    # Of equal ones the last.
    np.testing.assert_array_equal(held, [[inf, 0], [1, 0], [2, inf], [-1, -inf], [9, 1], [inf, inf]])


@pytest.mark.parametrize("text", ["2-4", "4:4", "0:4", "5:4", "2:4:8", "a:b", "-1:4"])
def test_what_is_no_pattern_is_refused(text: str) -> None:
    with pytest.raises(LspError, match="is no N:M"):
        Pattern.parse(text)
    assert Pattern.parse("2:4") == (2, 4) and Pattern.parse("2:4").sparsity == 0.5
