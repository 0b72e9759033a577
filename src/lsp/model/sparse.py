"""Arrays with many zeros, as where the others are and their values. Nothing is lost, not even -0.0.

Places take about what they must: 0.475 bits an element where 90 % are zeros at random, and no code of them can do with
less than 0.469. A float32 matrix with half its weights pruned takes 53 % of its dense bytes, an int8 one 63 %.
"""

import math
from typing import Any

import numpy as np

# What the store spends on the two entries that a packed array has more than a dense one, in bytes (measured).
ENTRIES = 1000
# Low bits of a gap at most: so a byte can't ask for more than a thousand elements, whatever a file says.
WIDEST = 7


def pack(array: np.ndarray) -> dict[str, np.ndarray] | np.ndarray:
    """`{"places", "values", "shape"}` when that takes fewer bytes, else the array itself.

    places: uint8, the gaps before each value and after the last, as `_coded`. values: [n], in the array's type and C
    order; the first zero when there is nothing else, since the store takes no empty arrays. shape: int64 [dimensions].
    """
    flat = np.ascontiguousarray(array).reshape(-1)
    there = flat.view(f"u{flat.itemsize}") != 0  # by bits: -0.0 is a value
    spent = max(int(there.sum()), 1) * flat.itemsize + 8 * array.ndim + ENTRIES
    if spent >= array.nbytes:
        return array
    found = np.flatnonzero(there) if there.any() else np.zeros(1, np.int64)
    places = _coded(np.diff(found, prepend=-1, append=flat.size) - 1)
    if spent + places.size >= array.nbytes:
        return array
    return {"places": places, "values": flat[found], "shape": np.array(array.shape, np.int64)}


def is_packed(entry: Any) -> bool:
    """Whether this is what `pack` makes of an array, or made of it in format 1."""
    return isinstance(entry, dict) and entry.keys() in ({"places", "values", "shape"}, {"bitmap", "values", "shape"})


def unpack(entry: dict[str, np.ndarray] | np.ndarray) -> np.ndarray:
    """The dense array. Raises ValueError when places, values and shape contradict each other."""
    if not is_packed(entry):
        return np.asarray(entry)
    assert isinstance(entry, dict)
    values, shape = entry["values"], tuple(int(n) for n in entry["shape"])
    if min(shape, default=1) < 0 or values.ndim != 1:
        raise ValueError(f"a packed array has values of shape {values.shape} and itself the shape {shape}")
    size = math.prod(shape)
    found = _from_bitmap(entry["bitmap"], size) if "bitmap" in entry else _decoded(entry["places"], values.size, size)
    if max(found.size, 1) != values.size:
        raise ValueError(f"a packed array has {values.size} values and {found.size} places for them")
    dense = np.zeros(size, values.dtype)
    dense[found] = values[: found.size]
    return dense.reshape(shape)


def entropy(there: np.ndarray) -> float:
    """Bits that no code of these places can go below on average, if any place is as likely as another (Shannon, 1948):
    size · (-s · log2 s - (1 - s) · log2(1 - s)), where s is the share of zeros."""
    size, full = there.size, int(np.count_nonzero(there))
    counts = (count for count in (full, size - full) if count)
    return sum(count * math.log2(size / count) for count in counts)


def least_bytes(array: np.ndarray) -> int:
    """Bytes of an array's values as they are, and of the entropy of their places."""
    there = np.asarray(array) != 0
    return int(np.count_nonzero(there)) * array.itemsize + math.ceil(entropy(there) / 8)


def _coded(gaps: np.ndarray) -> np.ndarray:
    """uint8: numbers in a Rice code (Rice and Plaunt, 1971; Golomb, 1966), its parts apart from each other.

    The first byte is k. Then for each gap come `gap >> k` zero bits and a one, filled up to a byte with zeros, and at
    last the k low bits of each gap, the highest first, filled up likewise. k is what takes the fewest bits.
    """
    k = min(range(WIDEST + 1), key=lambda k: gaps.size * k + int((gaps >> k).sum()))
    ends = np.cumsum((gaps >> k) + 1) - 1
    high = np.zeros(ends[-1] + 1, bool)
    high[ends] = True
    low = gaps[:, None] >> np.arange(k)[::-1] & 1
    return np.concatenate([np.array([k], np.uint8), np.packbits(high), np.packbits(low.astype(bool))])


def _decoded(places: np.ndarray, count: int, size: int) -> np.ndarray:
    """int64 [count]: the places that `_coded` has. Raises ValueError unless there are so many, below `size`."""
    fault = ValueError(f"a packed array's places, {places.size} bytes, do not fit {count} values of {size}")
    if places.dtype != np.uint8 or places.ndim != 1 or not places.size or places[0] > WIDEST:
        raise fault
    k = int(places[0])
    middle = places.size - math.ceil((count + 1) * k / 8)
    ends = np.flatnonzero(np.unpackbits(places[1 : max(1, middle)]))
    if ends.size != count + 1:
        raise fault
    low = np.unpackbits(places[middle:], count=(count + 1) * k).reshape(count + 1, k)
    gaps = ((np.diff(ends, prepend=-1) - 1) << k) + low @ (1 << np.arange(k)[::-1])
    found = np.cumsum(gaps + 1) - 1
    if found[-1] != size:
        raise fault
    return found[:-1]


def _from_bitmap(bitmap: np.ndarray, size: int) -> np.ndarray:
    """int64: the places whose bits are set, the first element in the highest bit. Raises ValueError."""
    if bitmap.dtype != np.uint8 or bitmap.shape != (math.ceil(size / 8),):
        raise ValueError(f"a packed array's bitmap of {bitmap.size} bytes does not fit its {size} elements")
    return np.flatnonzero(np.unpackbits(bitmap, count=size))
