"""Int8 weights: four times smaller, and faster where the processor has an int8 dot.

Round to nearest, symmetric, one scale for each output channel; activations are quantised for each token when the model
runs (`model/int8.py`), so no calibration data is needed and no answer depends on its batch. What a sample can add to
that is in `compress/calibrated.py`.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from lsp import Exit, LspError
from lsp.model.int8 import Int8, quantize_array
from lsp.model.weightonly import is_quantized

Tree = dict[Any, Any]
Path = tuple[Any, ...]  # ("layers", 0, "attention", "qkv", "kernel")
Make = Callable[[str, Any, int], Any]  # the smaller matrix, of a name, a float matrix and its output-channel axis


def nearest(name: str, w: Any, axis: int) -> Int8:
    """Rounded to nearest, whatever its name is."""
    return quantize_array(w, axis)


def limited(name: str, w: Any, axis: int) -> Int8:
    """The same with a limit that no sample told: to be timed."""
    small = quantize_array(w, axis)
    return Int8.stored(small.q, small.scale, axis, None, np.float32(1)) if axis else small


def quantize(params: Tree, make: Make = nearest) -> Tree:
    """The same model with every kernel (by column) and every embedding table (by row) as `make` has it: as `Int8`,
    or as `WeightOnly`.

    The classifier's kernel, biases and norms stay float32: they are tiny, and the classifier's error is the answer's.
    What is quantised already stays as it is. Raises LspError (exit 4) naming a weight that holds NaN or infinity.
    """

    def leaf(path: Path, value: Any) -> Any:
        if is_quantized(value) or not quantizable(path):
            return value
        name = ".".join(map(str, path))
        try:
            return make(name, value, 1 if path[-1] == "kernel" else 0)
        except ValueError as error:
            raise LspError(
                f"{name} can't be quantised: {error}.",
                hint="Train this checkpoint again; a sound one has finite weights only.",
                code=Exit.ARTIFACT,
            ) from None

    return mapped(leaf, params)


def quantizable(path: Path) -> bool:
    """Whether it is the path of a matrix that becomes smaller: all but the classifier's, which is tiny."""
    return path[0] != "classifier" and path[-1] in ("kernel", "table")


def mapped(leaf: Callable[[Path, Any], Any], tree: Tree, path: Path = ()) -> Tree:
    """The same tree with `leaf(path, value)` in the place of each value."""
    return {
        name: mapped(leaf, value, (*path, name)) if isinstance(value, dict) else leaf((*path, name), value)
        for name, value in tree.items()
    }
