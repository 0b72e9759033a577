"""Int8 products against NumPy, and what must not change them: batch, padding, devices, export."""

import os
import platform
import subprocess
import sys
import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from lsp import processor
from lsp.model import int8
from lsp.model.int8 import Int8, matmul, quantize_array, take

RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def slow_matmul(x: np.ndarray, w: Int8, transpose: bool = False) -> np.ndarray:
    """What `matmul` documents, in NumPy; np.round is half to even as well."""
    absmax = np.maximum(np.abs(x).max(-1, keepdims=True), np.float32(1e-30))
    x_q = np.round(x * (np.float32(127) / absmax)).astype(np.int32)
    q = np.asarray(w.q, np.int32)
    return (x_q @ (q.T if transpose else q)).astype(np.float32) * (absmax / np.float32(127)) * np.asarray(w.scale)


@pytest.mark.parametrize("axis", [0, 1])
def test_a_weight_comes_back_within_half_a_step(axis: int) -> None:
    w = normal(40, 24)
    w8 = quantize_array(w, axis)
    scale = np.expand_dims(np.asarray(w8.scale), 1 - axis)
    assert w8.q.dtype == jnp.int8 and w8.scale.dtype == jnp.float32 and w8.colsum.dtype == jnp.int32
    assert np.abs(np.asarray(w8.q)).max() == 127
    np.testing.assert_allclose(scale.squeeze(), np.abs(w).max(1 - axis) / 127, rtol=1e-6)
    assert np.all(np.abs(np.asarray(w8.dequantize()) - w) <= scale * 0.5001)
    np.testing.assert_array_equal(w8.colsum, 128 * np.asarray(w8.q, np.int32).sum(1 - axis))
    again = quantize_array(w8.dequantize(), axis)
    np.testing.assert_array_equal(again.q, w8.q)


def test_a_zero_channel_and_a_zero_row_stay_zero() -> None:
    w = normal(16, 8)
    w[:, 3] = 0
    x = normal(4, 16)
    x[2] = 0
    y = np.asarray(matmul(jnp.asarray(x), quantize_array(w, 1)))
    assert np.isfinite(y).all() and not y[:, 3].any() and not y[2].any() and y[0, 0] != 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_not_made_finite(bad: float) -> None:
    w = normal(16, 8)
    x = normal(4, 16)
    x[1, 5] = bad
    y = np.asarray(jax.jit(matmul)(x, quantize_array(w, 1)))
    assert not np.isfinite(y[1]).any() and np.isfinite(y[[0, 2, 3]]).all()
    w[3, 3] = bad
    with pytest.raises(ValueError, match="NaN or infinity"):
        quantize_array(w, 1)


@pytest.mark.parametrize("shape", [(48,), (1, 48), (7, 48), (3, 5, 48), (2, 1, 3, 48)])
def test_products_of_any_rank_equal_numpys(shape: tuple[int, ...]) -> None:
    w8 = quantize_array(normal(48, 20), 1)
    x = normal(*shape)
    y = np.asarray(jax.jit(matmul)(x, w8))
    assert y.shape == (*shape[:-1], 20)
    np.testing.assert_allclose(y, slow_matmul(x, w8), rtol=1e-6, atol=1e-7)


def test_a_factor_scales_the_input_and_a_limit_sets_its_steps() -> None:
    w8, x = quantize_array(normal(48, 20), 1), normal(7, 48)
    factor = np.exp2(RNG.integers(-4, 5, 48)).astype(np.float32)
    smooth = Int8.stored(w8.q, w8.scale, 1, factor)
    y = np.asarray(jax.jit(matmul)(x, smooth))
    np.testing.assert_allclose(y, slow_matmul(x * factor, w8), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(smooth.dequantize(), factor[:, None] * np.asarray(w8.dequantize()), rtol=1e-6)
    assert matmul(jnp.ones((2, 48), jnp.bfloat16), smooth).dtype == jnp.bfloat16
    limit = np.float32(1.5)
    static = Int8.stored(w8.q, w8.scale, 1, None, limit)
    steps = np.clip(np.round(x * (np.float32(127) / limit)), -128, 127).astype(np.int32)
    assert steps.min() == -128 and steps.max() == 127
    exact = (steps @ np.asarray(w8.q, np.int32)).astype(np.float32) * (limit / np.float32(127)) * np.asarray(w8.scale)
    np.testing.assert_allclose(jax.jit(matmul)(x, static), exact, rtol=1e-6, atol=1e-7)
    both = Int8.stored(w8.q, w8.scale, 1, factor, limit)
    np.testing.assert_array_equal(matmul(jnp.asarray(x), both), matmul(jnp.asarray(x * factor), static))
    x[4, 5] = np.inf  # counts as the limit; nobody looks for it
    y = np.asarray(jax.jit(matmul)(x, static))
    np.testing.assert_array_equal(y[4], jax.jit(matmul)(np.where(np.isinf(x), limit, x), static)[4])
    for i in (0, 6):
        np.testing.assert_array_equal(jax.jit(matmul)(x[i], static), y[i], err_msg="alone as in company")


def test_without_them_the_program_is_the_plain_one() -> None:
    """No multiplication more, no cut: `factor` and `limit` of None leave no trace."""
    w8 = quantize_array(normal(64, 32), 1)
    text = jax.jit(matmul).lower(normal(4, 64), w8).as_text()
    assert text.count("stablehlo.multiply") == 3 and "clamp" not in text and "is_finite" not in text
    assert len(jax.tree.leaves(w8)) == 3


def test_a_table_is_multiplied_along_its_rows_and_looked_up() -> None:
    table = normal(30, 16)
    t8 = quantize_array(table, 0)
    x = normal(2, 5, 16)
    np.testing.assert_allclose(matmul(jnp.asarray(x), t8, transpose=True), slow_matmul(x, t8, True), rtol=1e-6)
    np.testing.assert_allclose(matmul(jnp.asarray(x), table, transpose=True), x @ table.T, rtol=1e-4, atol=1e-5)
    ids = jnp.array([[3, 29], [0, 3]], jnp.int32)
    np.testing.assert_array_equal(take(t8, ids), np.asarray(t8.dequantize())[np.asarray(ids)])
    np.testing.assert_array_equal(take(table, ids), table[np.asarray(ids)])


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("sizes", [(24, 8), (8, 24)])
def test_the_gradient_of_a_float_product_is_the_derived_one(sizes: tuple[int, int], transpose: bool) -> None:
    x, w, weights = normal(2, 5, sizes[0]), normal(*sizes), normal(2, 5, sizes[1])
    w = w.T if transpose else w

    def ours(x: jax.Array, w: jax.Array) -> jax.Array:
        return (matmul(x, w, transpose=transpose) * weights).sum()

    def plain(x: jax.Array, w: jax.Array) -> jax.Array:
        return (x @ (w.T if transpose else w) * weights).sum()

    for found, expected in zip(jax.grad(ours, (0, 1))(x, w), jax.grad(plain, (0, 1))(x, w), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_scales_on_the_summed_axis_are_refused() -> None:
    x = jnp.ones((2, 8))
    with pytest.raises(ValueError, match="sums over"):
        matmul(x, quantize_array(normal(8, 8), 0))
    with pytest.raises(ValueError, match="sums over"):
        matmul(x, quantize_array(normal(8, 8), 1), transpose=True)
    with pytest.raises(ValueError, match="axis 0"):
        take(quantize_array(normal(8, 8), 1), jnp.array([1]))


def test_the_extremes_do_not_saturate() -> None:
    """Instructions older than VNNI add pairs in 16 bits: 255 · 127 · 2 does not fit there."""
    for x_sign in (1.0, -1.0):
        for w_sign in (1, -1):
            q = np.full((3072, 16), 127 * w_sign, np.int8)
            w8 = Int8.stored(q, np.ones(16, np.float32), 1)
            y = matmul(jnp.full((4, 3072), x_sign * 127), w8)
            np.testing.assert_array_equal(y, np.full((4, 16), x_sign * w_sign * 127 * 127 * 3072, np.float32))


@pytest.mark.parametrize("sizes", [(64, 32), (256, 768), (33, 7), (8, 1)])
def test_a_row_does_not_depend_on_its_batch(sizes: tuple[int, int]) -> None:
    """One row alone takes another kernel than many; the sums are whole numbers, so nothing may differ."""
    w8 = quantize_array(normal(*sizes), 1)
    x = normal(4, 6, sizes[0]) * np.exp(3 * normal(4, 6, 1))
    product = jax.jit(matmul)
    together = np.asarray(product(x, w8))
    padded = np.asarray(product(np.concatenate([x, np.zeros_like(x)], 1), w8))
    np.testing.assert_array_equal(padded[:, :6], together)
    for i in range(4):
        np.testing.assert_array_equal(product(x[i], w8), together[i])
        np.testing.assert_array_equal(product(x[i, :1], w8), together[i, :1])
        np.testing.assert_array_equal(product(x[i, 0], w8), together[i, 0])


def test_the_result_has_the_type_of_x() -> None:
    w8 = quantize_array(normal(16, 8), 1)
    assert matmul(jnp.ones((2, 16), jnp.bfloat16), w8).dtype == jnp.bfloat16
    assert matmul(jnp.ones((2, 16), jnp.bfloat16), normal(16, 8)).dtype == jnp.bfloat16


def test_numpy_leaves_work_and_the_tree_keeps_the_axis() -> None:
    w8 = quantize_array(normal(16, 8), 1)
    host = jax.device_get(w8)
    assert isinstance(host, Int8) and isinstance(host.q, np.ndarray) and host.axis == 1 and host.shape == (16, 8)
    x = jnp.asarray(normal(3, 16))
    np.testing.assert_array_equal(matmul(x, host), matmul(x, w8))
    np.testing.assert_array_equal(host.dequantize(), w8.dequantize())
    stored = Int8.stored(host.q, host.scale, 1)
    assert isinstance(stored.colsum, np.ndarray)
    np.testing.assert_array_equal(stored.colsum, host.colsum)
    assert int8.present({"a": [w8]}) and not int8.present({"a": [w8.q]})


def test_a_weight_can_be_donated() -> None:
    w8 = quantize_array(normal(16, 8), 1)
    want = -np.asarray(w8.q)
    back = jax.jit(lambda w: jax.tree.map(jnp.negative, w), donate_argnums=0)(w8)
    assert w8.q.is_deleted() and back.axis == 1
    np.testing.assert_array_equal(back.q, want)


def test_training_int8_is_refused_in_words() -> None:
    w8 = quantize_array(normal(16, 8), 1)
    with pytest.raises(TypeError, match="dequantize"):
        jax.grad(lambda x: matmul(x, w8).sum())(jnp.ones((2, 16)))


@pytest.mark.parametrize("vnni", [True, False])
def test_export_keeps_int8_with_any_batch_on_every_platform(vnni: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "multiplies_int8", lambda: vnni)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    w8 = quantize_array(normal(64, 32), 1)
    rows, tokens = export.symbolic_shape("rows, tokens")
    shape = jax.ShapeDtypeStruct((rows, tokens, 64), jnp.float32)
    x = jnp.asarray(normal(3, 5, 64))
    product = jax.jit(lambda x: matmul(x, w8))
    own = product.trace(x).lower(lowering_platforms=("cpu",)).as_text()
    assert f"x{'ui8' if vnni else 'i8'}>, tensor<64x32xi8>" in own and ("ui8" in own) == vnni
    exported = export.export(product, platforms=["cpu", "cuda", "tpu"])(shape)
    np.testing.assert_array_equal(exported.call(x), product(x))
    assert "xui8>, tensor<64x32xi8>" in exported.mlir_module()  # for other machines than this
    elsewhere = export.export(jax.jit(lambda x: matmul(x, w8)), platforms=["cuda", "tpu"])(shape)
    assert "xi8>, tensor<64x32xi8>" in elsewhere.mlir_module() and "ui8" not in elsewhere.mlir_module()
    assert "xbf16>, tensor<64x32xbf16>" in elsewhere.mlir_module()  # exact on any card


def test_without_the_mixed_dot_the_plain_one_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    w8 = quantize_array(normal(64, 32), 1)
    x = jnp.asarray(normal(5, 64))
    monkeypatch.setattr(int8, "_mixed_pays", lambda: True)
    mixed = jax.jit(lambda x: matmul(x, w8))
    assert "ui8" in mixed.trace(x).lower(lowering_platforms=("cpu",)).as_text()
    want = mixed(x)
    monkeypatch.setattr(int8, "_mixed_works", lambda: False)
    plain = jax.jit(lambda x: matmul(x, w8))
    assert "ui8" not in plain.trace(x).lower(lowering_platforms=("cpu",)).as_text()
    np.testing.assert_array_equal(plain(x), want)


@pytest.mark.parametrize("shape", [(1, 64), (1, 1, 64)])
def test_a_single_row_widens_no_weights(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8, "_mixed_pays", lambda: True)
    kernel, table, x = quantize_array(normal(64, 32), 1), quantize_array(normal(32, 64), 0), jnp.asarray(normal(*shape))
    for weight, transpose in ((kernel, False), (table, True)):
        product = jax.jit(lambda x, weight=weight, transpose=transpose: matmul(x, weight, transpose=transpose))
        anyhow = jax.ShapeDtypeStruct((*export.symbolic_shape("rows"), *shape[1:]), jnp.float32)
        for call in (product, jax.jit(export.export(product, platforms=["cpu", "cuda"])(anyhow).call)):
            compiled = call.lower(x).compile()
            assert "s32[64,32]" not in compiled.as_text() and "s32[32,64]" not in compiled.as_text()
            many = jnp.concatenate([x, -x, x])
            np.testing.assert_array_equal(compiled(x), call(many)[:1])
            np.testing.assert_array_equal(call(many), product(many))


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("inputs", [1, 64, 1024, 1025, 3072])
def test_products_in_bfloat16_are_exact(inputs: int, transpose: bool) -> None:
    rng = np.random.default_rng(inputs)
    x = rng.integers(-128, 128, (2, 3, inputs)).astype(np.float32)
    q = rng.integers(-127, 128, (inputs, 5), dtype=np.int8)
    x[0, 0], x[0, 1], q[:, 0], q[:, 1] = -128, 127, 127, -127  # the largest sums
    want = x.astype(np.int64) @ q.astype(np.int64)
    products = jax.jit(partial(int8._floats, transpose=transpose))
    found = products(x, q.T if transpose else q, np.zeros(5, np.int32))
    assert found.dtype == jnp.int32
    np.testing.assert_array_equal(found, want)


def test_a_gpu_multiplies_int8_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    w8 = quantize_array(normal(64, 32), 1)
    lowered = jax.jit(lambda x: matmul(x, w8)).trace(normal(5, 64)).lower(lowering_platforms=("cuda",)).as_text()
    assert "xbf16>, tensor<64x32xbf16>" in lowered and "xi8>, tensor<64x32xi8>) -> tensor<5x32xi32>" not in lowered


def test_the_self_check_knows_right_from_wrong() -> None:
    assert int8._agrees(int8.mixed_dot)
    assert not int8._agrees(lambda u, q: int8.mixed_dot(u, q).at[3, 7].add(1)), "one number of 512"

    def saturating(u: jax.Array, q: jax.Array) -> jax.Array:
        """As AVX2's VPMADDUBSW: pairs are summed in 16 bits."""
        products = u.astype(jnp.int32)[:, :, None] * q.astype(jnp.int32)
        pairs = products.reshape(u.shape[0], -1, 2, q.shape[1]).sum(2)
        return jnp.clip(pairs, -(2**15), 2**15 - 1).sum(1)

    assert not int8._agrees(saturating)
    assert not int8._agrees(lambda u, q: jnp.dot(u, u)), "one that fails is no error"


@pytest.mark.parametrize(
    ("machine", "features", "pays"),
    [
        ("x86_64", "flags : fma avx2 avx512_vnni", True),
        ("x86_64", "flags : fma avx2 avx_vnni", True),
        ("x86_64", "flags : fma avx2", False),
        ("x86_64", "", True),  # nobody says
        ("aarch64", "Features : fp asimd", True),
    ],
)
def test_the_mixed_dot_is_for_processors_that_are_fast_at_it(
    machine: str, features: str, pays: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processor, "features", lambda: features)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    assert int8._mixed_pays() == pays


def test_a_failing_self_check_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8, "_agrees", lambda *_: False)
    int8._mixed_works.cache_clear()
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            assert not int8._mixed_works() and not int8._mixed_works()
        assert [str(warning.message) for warning in said] == [
            "This CPU build of XLA has no exact uint8 x int8 dot: int8 runs on a slower one."
        ]
    finally:
        int8._mixed_works.cache_clear()


SPLIT = """
import jax, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from lsp.model.int8 import Int8, matmul, quantize_array
rng = np.random.default_rng(0)
x = rng.standard_normal((8, 4, 64)).astype(np.float32)
w = quantize_array(rng.standard_normal((64, 32)).astype(np.float32), 1)
mesh = jax.make_mesh((2, 2), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
with jax.set_mesh(mesh):  # the self-check runs first in here
    rows = jax.device_put(x, NamedSharding(mesh, P("data")))
    split = jax.jit(matmul)(rows, jax.device_put(w, NamedSharding(mesh, P())))
    assert split.sharding.spec[0] == "data", split.sharding
    program = jax.jit(matmul).lower(rows, jax.device_put(w, NamedSharding(mesh, P()))).compile().as_text()
    assert "all-gather" not in program and "all-reduce" not in program
    results = [split]
    for spec in (P(None, "tensor"), P("tensor", None)):
        kernel = Int8(jax.device_put(w.q, NamedSharding(mesh, spec)), w.scale, w.colsum, 1)
        results.append(jax.jit(matmul)(rows, kernel))
whole = matmul(x, w)
for result in results:
    np.testing.assert_array_equal(result, whole)
"""


def test_rows_split_over_devices_give_the_same_without_communication() -> None:
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-W", "error", "-c", SPLIT], env=environment, check=True, timeout=120)
