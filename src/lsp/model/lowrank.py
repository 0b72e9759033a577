"""A matrix that is kept, plus a product of two thin ones that is trained: a leaf of the parameter tree, as `Int8` is.

Dimensions: K rows of the matrix, N its columns, R the rank.
"""

import functools
from dataclasses import dataclass
from typing import Any

import jax


@functools.partial(jax.tree_util.register_dataclass, data_fields=("base", "a", "b"), meta_fields=("scale",))
@dataclass(frozen=True)
class LowRank:
    """The matrix `base` + `scale` · `a` @ `b` (LoRA: Hu et al., 2022), never put together in training: so the gradient
    of `base`, a third of the work, is never computed.

    base: float [K, N]. a: float [K, R]. b: float [R, N]; 0 at first. Leaves may be JAX or NumPy arrays.
    """

    base: Any
    a: Any
    b: Any
    scale: float

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    def merged(self) -> Any:
        """The matrix in one piece."""
        return self.base + self.scale * (self.a @ self.b)
