"""One masked-LM training step, 32 rows of 128 tokens, AdamW, fp32, random data. Prints one JSON object.

    python benchmarks/train_step.py --preset modern --repeats 12
    python benchmarks/train_step.py --preset modern --repeats 12 --plain-malloc   # without lsp/allocator.py

The allocator is set once a process, so compare by running the two in turn: A B A B.
"""

import argparse
import json
import statistics
import time

from lsp.allocator import keep_freed_memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="modern", choices=["bert", "modern"])
    parser.add_argument("--repeats", type=int, default=12)
    parser.add_argument("--plain-malloc", action="store_true")
    options = parser.parse_args()
    if not options.plain_malloc:
        keep_freed_memory()  # before jax makes threads

    import jax.numpy as jnp
    import numpy as np

    from lsp import recipe
    from lsp.data.masking import slots_for
    from lsp.model.config import ModelConfig
    from lsp.model.encoder import graphdef, initialise
    from lsp.train import optimizer
    from lsp.train.objectives import Objective, masked_lm
    from lsp.train.step import Signals, TrainState, make_train_step, make_update

    config = ModelConfig.from_recipe(recipe.Model(preset=options.preset), 8192)
    rng, rows, length = np.random.default_rng(0), 32, 128
    slots = slots_for(0.15, length)
    batch = {
        "tokens": rng.integers(5, 8192, (rows, length), np.int32),
        "segments": np.ones((rows, length), np.int32),
        "slots": rng.integers(0, length, (rows, slots), np.int32),
        "targets": rng.integers(5, 8192, (rows, slots), np.int32),
        "weights": np.ones((rows, slots), np.float32),
    }
    tx, params = optimizer.make(recipe.Train(steps=1000)), initialise(config, 0)
    state = TrainState(jnp.int32(0), params, tx.init(params))
    step = make_train_step(make_update(graphdef(config), Objective(masked_lm), tx))
    compiled = step.lower(state, None, batch, np.int32(0), Signals(0.5)).compile()
    seconds = []
    for index in range(options.repeats):
        began = time.perf_counter()
        state, metrics = compiled(state, None, batch, np.int32(index), Signals(0.5))
        float(metrics["loss"].total)
        seconds.append(time.perf_counter() - began)
    report = {"preset": options.preset, "plain_malloc": options.plain_malloc, "repeats": options.repeats}
    print(json.dumps(report | {"best_s": round(min(seconds), 3), "median_s": round(statistics.median(seconds), 3)}))


if __name__ == "__main__":
    main()
