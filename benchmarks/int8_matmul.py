"""Int8 against float32 on this machine's CPU: the dots alone, and a whole quantised dense layer.

    python benchmarks/int8_matmul.py --out int8_matmul.json

Prints one JSON object. For each shape of a 4x256 encoder and of BERT-base (M rows, K in, N out) and each variant the
best and the median time in milliseconds of `--repeats` calls. Variants take turns call by call, so that a busy machine
troubles all alike; compare within one run only.

float32: x @ w.  s8_s8 and u8_s8: the integer dot alone.  int8: `matmul` as models use it (quantise each row, dot,
dequantise).  int8_constant: the same with the weight compiled in instead of handed over.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lsp.model import int8

SHAPES = {
    "4x256, batch 32 x 128": [(4096, 256, 768), (4096, 256, 256), (4096, 256, 1024), (4096, 1024, 256)],
    "BERT-base, batch 4 x 128": [(512, 768, 2304), (512, 768, 768), (512, 768, 3072), (512, 3072, 768)],
}
Call = tuple[Callable[..., Any], tuple[Any, ...]]


def variants(m: int, k: int, n: int) -> dict[str, Call]:
    """Each variant's compiled function and arguments."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((m, k)), jnp.float32)
    w = jnp.asarray(rng.standard_normal((k, n)), jnp.float32)
    w8 = int8.quantize_array(w, axis=1)
    s = jnp.asarray(rng.integers(-127, 128, (m, k)), jnp.int8)
    u = (s.astype(jnp.int32) + 128).astype(jnp.uint8)
    signed = jax.jit(lambda a, b: lax.dot(a, b, preferred_element_type=jnp.int32))
    mixed = jax.jit(int8.mixed_dot)
    assert np.array_equal(signed(s, w8.q), mixed(u, w8.q) - w8.colsum)
    return {
        "float32": (jax.jit(jnp.dot), (x, w)),
        "s8_s8": (signed, (s, w8.q)),
        "u8_s8": (mixed, (u, w8.q)),
        "int8": (jax.jit(int8.matmul), (x, w8)),
        "int8_constant": (jax.jit(lambda x: int8.matmul(x, w8)), (x,)),
    }


def interleaved(calls: dict[str, Call], repeats: int) -> dict[str, dict[str, float]]:
    """Best and median milliseconds of each, in turns; the first call of each compiles and is not counted."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, (function, arguments) in calls.items():
            began = time.perf_counter()
            jax.block_until_ready(function(*arguments))
            if turn:
                times[name].append(1e3 * (time.perf_counter() - began))
    return {
        name: {"best": round(min(each), 3), "median": round(statistics.median(each), 3)} for name, each in times.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=50, help="timed calls of each variant")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    options = parser.parse_args()
    rows = []
    for model, shapes in SHAPES.items():
        for m, k, n in shapes:
            times = interleaved(variants(m, k, n), options.repeats)
            speedup = round(times["float32"]["best"] / times["int8"]["best"], 2)
            rows.append({"model": model, "m": m, "k": k, "n": n, "ms": times, "speedup": speedup})
    info = Path("/proc/cpuinfo")
    names = [line.partition(": ")[2] for line in info.read_text().splitlines() if line.startswith("model name")]
    result = {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "jax": jax.__version__,
        "repeats": options.repeats,
        "rows": rows,
    }
    text = json.dumps(result, indent=1, ensure_ascii=False)
    print(text)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
