"""Packed arrays come back bit for bit, are packed only when that is smaller, and their places take what they must."""

import math

import ml_dtypes
import numpy as np
import pytest

from lsp.model.sparse import ENTRIES, entropy, is_packed, least_bytes, pack, unpack


def rice_bits(flat: np.ndarray, k: int) -> int:
    """Bits of the gaps, one at a time: unary high parts and k low bits each."""
    total = gap = 0
    for value in [*flat, 1]:
        if value:
            total, gap = total + (gap >> k) + 1 + k, 0
        else:
            gap += 1
    return total


@pytest.mark.parametrize("dtype", [np.float32, np.int8, ml_dtypes.bfloat16, np.float64, np.bool_])
@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("shape", [(), (1,), (127, 129), (3, 5, 1000)])
def test_an_array_is_packed_exactly_when_that_is_smaller(dtype: type, share: float, shape: tuple[int, ...]) -> None:
    random = np.random.default_rng(0)
    dense: np.ndarray = np.asarray(random.integers(1, 100, shape) * (random.random(shape) < share)).astype(dtype)
    entry = pack(dense)
    there = (dense != 0).ravel()
    there[0] |= not there.any()  # of zeros alone the first is kept
    # Both parts fill whole bytes, so the best k may differ by a byte where two are nearly as good.
    places = min(rice_bits(there, k) for k in range(8)) / 8
    rest = 1 + int(there.sum()) * dense.itemsize + 8 * dense.ndim + ENTRIES
    if is_packed(entry):
        assert isinstance(entry, dict)
        assert places <= entry["places"].size - 1 <= places + 2
        assert sum(part.nbytes for part in entry.values()) + ENTRIES < dense.nbytes
        assert all(part.size for part in entry.values())
    else:
        assert rest + places + 2 >= dense.nbytes
    back = unpack(entry)
    assert back.dtype == dense.dtype and back.shape == dense.shape and back.tobytes() == dense.tobytes()


@pytest.mark.parametrize("share", [0.5, 0.2, 0.1, 0.03, 0.001])
def test_places_take_hardly_more_than_their_entropy(share: float) -> None:
    there = np.random.default_rng(1).random(400_000) < share
    entry = pack(there.astype(np.float32))
    assert isinstance(entry, dict)
    s = there.mean()
    least = -there.size * (s * math.log2(s) + (1 - s) * math.log2(1 - s))
    assert entropy(there) == pytest.approx(least)
    assert least < 8 * entry["places"].size < 1.03 * least + 16 or share == 0.001  # where seven low bits are too few
    assert least_bytes(there.astype(np.int8)) == there.sum() + math.ceil(least / 8)


def test_there_is_nothing_to_say_of_places_that_are_all_alike() -> None:
    assert entropy(np.zeros(9, bool)) == entropy(np.ones(9, bool)) == 0
    assert least_bytes(np.zeros((3, 3), np.float32)) == 0


def test_an_array_of_a_known_code() -> None:
    dense = np.zeros(2000, np.float32)
    dense[[3, 4, 300]] = [1, 2, 3]  # gaps 3, 0, 295, 1699
    entry = pack(dense)
    assert isinstance(entry, dict)
    high = "1" + "1" + "001" + "0" * 13 + "1"  # each gap >> 7 zeros and a one
    low = "0000011" + "0000000" + "0100111" + "0100011"  # gap & 127
    padded = high.ljust(24, "0") + low.ljust(32, "0")
    assert entry["places"].tolist() == [7, *(int(padded[i : i + 8], 2) for i in range(0, 56, 8))]
    np.testing.assert_array_equal(entry["values"], [1, 2, 3])


def test_negative_zero_nan_and_other_layouts_survive() -> None:
    dense = np.zeros((200, 100), np.float32)
    dense[3, 4], dense[5, 6], dense[7, 8] = -0.0, np.nan, -np.inf
    for array in (dense, dense.T, dense[::2]):
        assert is_packed(pack(array)) and unpack(pack(array)).tobytes() == array.tobytes()


def test_bitmaps_of_format_1_are_read() -> None:
    dense = np.random.default_rng(0).standard_normal((30, 7)).astype(np.float32)
    dense.ravel()[np.arange(210) % 3 > 0] = 0
    there = dense.ravel() != 0
    old = {"bitmap": np.packbits(there), "values": dense.ravel()[there], "shape": np.array([30, 7])}
    assert is_packed(old) and unpack(old).tobytes() == dense.tobytes()
    for change in ({"shape": np.array([31, 7])}, {"values": np.ones(3)}, {"shape": np.array([2**40, 2**20])}):
        with pytest.raises(ValueError, match="packed array"):
            unpack(old | change)


@pytest.mark.parametrize(
    "change",
    [
        *({"shape": shape} for shape in ([-1, 5], [2**40, 2**20], [10, 11], [40_001])),
        *({"values": values} for values in ([1], [1] * 201, [[1] * 200])),
        *({"places": places} for places in ([], [8, 255], [0], [7, 0, 0], [0, 255, 255])),
    ],
)
def test_parts_that_contradict_each_other_are_refused(change: dict[str, list[int]]) -> None:
    entry = pack(np.eye(200, dtype=np.float32))
    assert isinstance(entry, dict)
    types = {"places": np.uint8, "shape": np.int64, "values": np.float32}
    with pytest.raises(ValueError, match="packed array"):
        unpack(entry | {name: np.array(value, types[name]) for name, value in change.items()})
