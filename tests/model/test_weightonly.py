"""Weights in 8 or 4 bits against NumPy: groups, packing, products, look-ups, and the way to disk and back."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsp import Exit, LspError, arrays
from lsp.model import weightonly
from lsp.model.int8 import matmul, take
from lsp.model.weightonly import WeightOnly

RNG = np.random.default_rng(0)


def made(w: np.ndarray, axis: int, bits: int, group: int) -> WeightOnly:
    scale = weightonly.group_scales(w, axis, bits, group)
    q = np.round(w / weightonly.spread(scale, w.shape[1 - axis], 1 - axis)).astype(np.int8)
    return WeightOnly(weightonly.packed(q) if bits == 4 else q, scale, axis)


@pytest.mark.parametrize(("group", "width"), [(0, 24), (24, 24), (8, 8), (10, 8), (7, 6), (1, 1), (100, 24)])
@pytest.mark.parametrize("axis", [0, 1])
def test_each_group_has_the_scale_of_its_largest_weight(group: int, width: int, axis: int) -> None:
    w = RNG.standard_normal((24, 24)).astype(np.float32)
    scale = weightonly.group_scales(w, axis, 4, group)
    columns = w if axis else w.T
    slow = [[np.abs(columns[k : k + width, n]).max() / 7 for n in range(24)] for k in range(0, 24, width)]
    np.testing.assert_allclose(scale if axis else scale.T, slow, rtol=1e-6)
    assert scale.dtype == np.float32
    spread = weightonly.spread(scale, 24, 1 - axis)
    assert (np.abs(w) <= spread * 7 * 1.00001).all()


def test_a_last_group_may_be_shorter_and_zeros_have_a_scale() -> None:
    w = RNG.standard_normal((10, 3)).astype(np.float32)
    w[8:, 1] = 0
    scale = weightonly.group_scales(w, 1, 8, 4)
    np.testing.assert_allclose(scale[2, [0, 2]], np.abs(w[8:, [0, 2]]).max(0) / 127, rtol=1e-6)
    assert scale.shape == (3, 3) and scale[2, 1] == 1
    with pytest.raises(ValueError, match="NaN"):
        weightonly.group_scales(np.full((2, 2), np.nan, np.float32), 1, 8, 0)


@pytest.mark.parametrize("shape", [(5, 6), (1, 2), (3, 7)])
def test_four_bits_are_packed_and_come_back(shape: tuple[int, int]) -> None:
    q = RNG.integers(-8, 8, shape).astype(np.int8)
    packed = weightonly.packed(q)
    assert packed.nbytes == (q.nbytes // 2 if shape[1] % 2 == 0 else q.nbytes)
    np.testing.assert_array_equal(jax.jit(weightonly.unpacked)(packed), q)
    if shape == (5, 6):
        assert packed[2, 1] == (int(q[2, 2]) & 15) + 16 * (int(q[2, 3]) & 15)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group", [0, 8])
def test_products_and_look_ups_are_those_of_the_float_matrix(bits: int, group: int) -> None:
    w, table = (RNG.standard_normal(shape).astype(np.float32) for shape in ((24, 10), (30, 16)))
    x = RNG.standard_normal((2, 5, 24)).astype(np.float32)
    small = made(w, 1, bits, group)
    scale = weightonly.spread(small.scale, 24, 0)
    exact = np.round(w / scale) * scale
    np.testing.assert_allclose(small.dequantize(), exact, rtol=1e-6)
    assert small.shape == w.shape and np.abs(exact - w).max() <= 0.5001 * scale.max()
    np.testing.assert_allclose(jax.jit(matmul)(x, small), x @ exact, rtol=1e-4, atol=1e-5)
    rows = made(table, 0, bits, group)
    ids = jnp.array([[3, 29], [0, 3]], jnp.int32)
    np.testing.assert_array_equal(jax.jit(take)(rows, ids), np.asarray(rows.dequantize())[np.asarray(ids)])
    y = RNG.standard_normal((3, 16)).astype(np.float32)
    product = jax.jit(lambda x, w: matmul(x, w, transpose=True))(y, rows)
    np.testing.assert_allclose(product, y @ np.asarray(rows.dequantize()).T, rtol=1e-4, atol=1e-5)
    assert matmul(jnp.ones((2, 24), jnp.bfloat16), small).dtype == jnp.bfloat16
    with pytest.raises(ValueError, match="axis 0"):
        take(small, ids)


@pytest.mark.parametrize("shape", [(24, 10), (10, 24), (7, 9), (8, 8)])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("bits", [4, 8])
def test_what_is_on_disk_is_what_was_there(tmp_path: Path, shape: tuple[int, int], axis: int, bits: int) -> None:
    w = RNG.standard_normal(shape).astype(np.float32)
    small = made(w, axis, bits, 4)
    arrays.save_params(tmp_path / "params", {"layers": {0: {"kernel": small}}})
    loaded = arrays.load_params(tmp_path / "params")["layers"][0]["kernel"]
    assert isinstance(loaded, WeightOnly) and loaded.axis == axis and loaded.q.dtype == small.q.dtype
    np.testing.assert_array_equal(loaded.q, small.q)
    np.testing.assert_array_equal(loaded.scale, small.scale)
    assert arrays.count({"w": loaded}) == w.size


def test_scales_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    for scale in (np.ones((2, 3)), np.ones((9, 6)), np.ones(6)):
        entry = {"weights": np.zeros((8, 6), np.int8), "scale": scale.astype(np.float32)}
        arrays.save_params(tmp_path / "params", {"w": entry})
        with pytest.raises(LspError, match="do not fit") as caught:
            arrays.load_params(tmp_path / "params")
        assert caught.value.code == Exit.ARTIFACT
