"""A matrix whose inputs pass gates: a leaf of the parameter tree, as `Int8` is."""

import functools
from dataclasses import dataclass
from typing import Any

import jax


@functools.partial(jax.tree_util.register_dataclass, data_fields=("kernel", "gates"), meta_fields=())
@dataclass(frozen=True)
class Gated:
    """The product (x · `gates`) @ `kernel`. Gates of 1 change nothing; their gradient says what each input is for.

    kernel: float [K, N]. gates: float, of a shape that goes with x [..., K]; [B, 1, K] tells the rows of a batch apart.
    """

    kernel: Any
    gates: Any

    @property
    def shape(self) -> tuple[int, ...]:
        return self.kernel.shape
