"""A whole classifier in fp32 and in int8, 32 rows of 128 tokens, interleaved in one process. Prints one JSON object.

    python benchmarks/int8_encoder.py --preset modern --repeats 30

Random weights of 4×256, vocabulary 8,192: the time does not depend on their values.
"""

import argparse
import json
import statistics
import time

from lsp.allocator import keep_freed_memory

keep_freed_memory()  # as the command line does, before there are threads

import jax  # noqa: E402
import numpy as np  # noqa: E402
from flax import nnx  # noqa: E402

from lsp import recipe  # noqa: E402
from lsp.compress.quantize import quantize  # noqa: E402
from lsp.model.config import ModelConfig  # noqa: E402
from lsp.model.encoder import compiler_options, graphdef, initialise  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="modern", choices=["bert", "modern"])
    parser.add_argument("--repeats", type=int, default=30)
    options = parser.parse_args()
    config = ModelConfig.from_recipe(recipe.Model(preset=options.preset), 8192).classifier(2, "mean", 0.0)
    tokens = np.random.default_rng(0).integers(5, 8192, (32, 128), np.int32)
    batch = (tokens, np.ones_like(tokens), np.zeros_like(tokens))
    structure = graphdef(config)
    forward = jax.jit(lambda params, batch: nnx.merge(structure, params).classify(*batch))
    fp32 = jax.device_put(initialise(config, 0))
    kinds = {"fp32": fp32, "int8": jax.device_put(quantize(fp32))}
    compiled = {
        kind: forward.lower(params, batch).compile(compiler_options=compiler_options(params))
        for kind, params in kinds.items()
    }
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(options.repeats):
        for kind, params in kinds.items():
            began = time.perf_counter()
            jax.block_until_ready(compiled[kind](params, batch))
            seconds[kind].append(time.perf_counter() - began)
    best = {kind: 1000 * min(times) for kind, times in seconds.items()}
    median = {kind: 1000 * statistics.median(times) for kind, times in seconds.items()}
    report = {"preset": options.preset, "repeats": options.repeats, "best_ms": best, "median_ms": median}
    ratios = {"ratio_of_bests": best["fp32"] / best["int8"], "ratio_of_medians": median["fp32"] / median["int8"]}
    print(json.dumps(report | ratios, default=float))


if __name__ == "__main__":
    main()
