"""Packed arrays come back bit for bit, and are packed only when that is smaller."""

import math

import ml_dtypes
import numpy as np
import pytest

from lsp.model.sparse import ENTRIES, is_packed, pack, unpack


@pytest.mark.parametrize("dtype", [np.float32, np.int8, ml_dtypes.bfloat16, np.float64, np.bool_])
@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("shape", [(), (1,), (127, 129), (3, 5, 1000)])
def test_an_array_is_packed_exactly_when_that_is_smaller(dtype: type, share: float, shape: tuple[int, ...]) -> None:
    random = np.random.default_rng(0)
    dense: np.ndarray = np.asarray(random.integers(1, 100, shape) * (random.random(shape) < share)).astype(dtype)
    entry = pack(dense)
    values = max(int((dense != 0).sum()), 1) * dense.itemsize
    assert is_packed(entry) == (math.ceil(dense.size / 8) + values + 8 * dense.ndim + ENTRIES < dense.nbytes)
    if isinstance(entry, dict):
        assert sum(part.nbytes for part in entry.values()) + ENTRIES < dense.nbytes
        assert all(part.size for part in entry.values())
    back = unpack(entry)
    assert back.dtype == dense.dtype and back.shape == dense.shape and back.tobytes() == dense.tobytes()


def test_negative_zero_nan_and_other_layouts_survive() -> None:
    dense = np.zeros((200, 100), np.float32)
    dense[3, 4], dense[5, 6], dense[7, 8] = -0.0, np.nan, -np.inf
    for array in (dense, dense.T, dense[::2]):
        assert is_packed(pack(array)) and unpack(pack(array)).tobytes() == array.tobytes()


@pytest.mark.parametrize(
    "change", [{"shape": [-1, 5]}, {"shape": [2**40, 2**40]}, {"shape": [10, 11]}, {"values": [1]}]
)
def test_parts_that_contradict_each_other_are_refused(change: dict[str, list[int]]) -> None:
    entry = pack(np.eye(200, dtype=np.float32))
    assert isinstance(entry, dict)
    with pytest.raises(ValueError, match="packed array"):
        unpack(entry | {name: np.array(value) for name, value in change.items()})
