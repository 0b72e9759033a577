"""What one device can do, from its maker's data sheet, and the names by which a TPU slice is asked for."""

import re
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lsp import LspError, nearest
from lsp import recipe as recipes
from lsp.train.memory import Memory, machine


class Accelerator(NamedTuple):
    """Peaks of one device: dense bf16 products and fp32 ones at JAX's default precision (FLOP/s), memory (bytes) and
    its bandwidth, and what a device can send to its neighbours in one direction (bytes/s, inside a node or a slice).

    `mfu` is the share of the peak that a training step is expected to reach; `--mfu` sets another.
    """

    bf16: float
    fp32: float
    memory: float
    bandwidth: float
    link: float
    mfu: float = 0.35

    def peak(self, precision: str) -> float:
        return self.bf16 if precision == "bf16" else self.fp32


# Sources: NVIDIA's data sheets of A100, H100, H200 (SXM) and DGX B200, without sparsity, fp32 as TF32, NVLink's two
# directions halved; cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}, where fp32 products are made of bf16 ones and the
# interconnect's two directions are halved. A share of 0.35 is what ModernBERT's 8×H100 reached (31 to 36 %, Warner et
# al., 2024, by its tokens and hours); of larger models on TPU, MaxText reports 44 to 65 %.
ACCELERATORS = {
    "a100": Accelerator(312e12, 156e12, 80e9, 2.04e12, 300e9),
    "h100": Accelerator(989e12, 494e12, 80e9, 3.35e12, 450e9),
    "h200": Accelerator(989e12, 494e12, 141e9, 4.8e12, 450e9),
    "b200": Accelerator(2250e12, 1125e12, 180e9, 8.0e12, 900e9),
    "v4": Accelerator(275e12, 275e12, 32e9, 1.23e12, 300e9),
    "v5e": Accelerator(197e12, 197e12, 16e9, 0.82e12, 200e9),
    "v5p": Accelerator(459e12, 459e12, 95e9, 2.77e12, 600e9),
    "v6e": Accelerator(918e12, 918e12, 32e9, 1.64e12, 400e9),
}
TPUS = ("v4", "v5e", "v5p", "v6e")


# What jax calls them; a GPU by a word in its name.
TPU_NAMES = {
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
}


class Time(NamedTuple):
    """Seconds of a step in each of three resources that work side by side; the slowest decides (Williams et al.,
    2009). What is not hidden behind it comes on top: this is a lower bound, but for the share of the peak."""

    compute: float
    memory: float
    network: float

    @property
    def step(self) -> float:
        return max(self)

    @property
    def bound(self) -> str:
        return max(zip(self, self._fields, strict=True))[1]


def roofline(chip: Accelerator, train: recipes.Train, flops: float, taken: Memory, sent: float, mfu: float) -> Time:
    """A step of `flops` FLOPs and `sent` bytes a device. State is read and written once a step and read twice more a
    micro-batch, each temporary written and read once; what crosses between devices does so at the link's full rate."""
    once, often = taken.parameters + taken.optimizer, taken.parameters + taken.gradients + taken.activations
    moved = 2 * once + 2 * train.accumulate * often
    return Time(flops / (chip.peak(train.precision) * mfu), moved / chip.bandwidth, sent / chip.link)


def here() -> Accelerator:
    """A device of this run: from the table, or measured if it is not there."""
    name = jax.devices()[0].device_kind
    word = next((word for word in ACCELERATORS if re.search(rf"\b{word}\b", name, re.IGNORECASE)), None)
    known = TPU_NAMES.get(name, word)
    return ACCELERATORS[known] if known else measure(jax.local_device_count())


def find(name: str) -> Accelerator:
    """The row of the table. Raises LspError (exit 2) with the nearest name."""
    if name not in ACCELERATORS:
        known = ", ".join(ACCELERATORS)
        raise LspError(
            f"--accelerator {name} is not in the table.{nearest(name, ACCELERATORS)}", hint=f"It has {known}."
        )
    return ACCELERATORS[name]


def measure(devices: int) -> Accelerator:
    """This machine's processor, shared by `devices`: the best of three fp32 products and of three copies of 256 MB.

    A step of the small encoders that fit it reaches about half of the products' rate (docs/benchmarks.md).
    """
    a = jnp.ones((2048, 2048), jnp.float32)
    product, whole = jax.jit(jnp.dot), np.ones(1 << 26, np.float32)
    times = [(_timed(lambda: product(a, a).block_until_ready()), _timed(whole.copy)) for _ in range(4)][1:]
    rate = 2 * 2048**3 / min(first for first, _ in times) / devices
    bandwidth = 2 * whole.nbytes / min(second for _, second in times) / devices
    return Accelerator(rate, rate, machine() / devices, bandwidth, bandwidth / 2, mfu=0.5)


def _timed(run: Callable[[], Any]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def kind(topology: str) -> str:
    """`v5e` of `v5e:16x16`. Raises LspError (exit 2) when it is not of that form or the kind is unknown."""
    match = re.fullmatch(r"(\w+):\d+x\d+(x\d+)?", topology)
    if match is None or match[1] not in TPUS:
        kinds = ", ".join(TPUS)
        raise LspError(
            f"--topology {topology} is not KIND:SHAPE.", hint=f"As in v5e:16x16 or v5p:4x4x4; kinds: {kinds}."
        )
    return match[1]
