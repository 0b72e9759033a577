"""What a compiled step takes of a device's memory, and how much a device has."""

import math
import os
from pathlib import Path
from typing import Any, NamedTuple

import jax

# The share of a device's memory that a step may fill: runtimes and fragmentation take the rest.
USABLE = 0.95


class Memory(NamedTuple):
    """Bytes of one device during a step. Gradients are counted, not seen: a program has no name for them, so they are
    taken off what it says of its temporaries."""

    parameters: int
    optimizer: int
    batch: int
    gradients: int
    activations: int  # and every other temporary
    program: int  # compiled code; of this machine's processor, what the process grew by while compiling
    start: int  # the weights that a run began with and holds on to: on the host, which for a processor is the same

    @property
    def total(self) -> int:
        return sum(self)


def of(compiled: Any, state: Any, batch: Any) -> Memory:
    """That of a compiled step, whose state and batch are given as arrays or shapes with their places."""
    stats = compiled.memory_analysis()
    # What a step returns beside the state that it overwrites is a few numbers, if donation worked.
    temporaries = stats.temp_size_in_bytes + stats.output_size_in_bytes - stats.alias_size_in_bytes
    return parted(state, batch, temporaries, stats.generated_code_size_in_bytes)


def parted(state: Any, batch: Any, temporaries: int, program: int) -> Memory:
    """The memory of a step with so many bytes of temporaries and of code."""
    parameters = size(state.params)
    gradients = min(parameters, temporaries)
    activations = temporaries - gradients
    return Memory(parameters, size(state.opt_state), size(batch), gradients, activations, program, 0)


def size(tree: Any) -> int:
    """Bytes of a tree's shards on one device."""
    leaves = jax.tree.leaves(tree)
    return sum(leaf.dtype.itemsize * math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in leaves)


def usable() -> int:
    """Bytes of one device of this process that a step may fill; of a processor, its share of the machine's."""
    device = jax.local_devices()[0]
    there = (device.memory_stats() or {}).get("bytes_limit")
    return int(USABLE * (there or machine() / jax.local_device_count()))


def machine() -> int:
    """Bytes of this machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def resident() -> int:
    """Bytes of memory that this process has; 0 where there is no /proc."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
