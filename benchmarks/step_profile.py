"""Where the time of one program goes on a CPU: XLA's own trace, summed by kind of operation. Prints one JSON object.

    python benchmarks/step_profile.py train                  # a masked-LM step of 32 rows of 128 tokens
    python benchmarks/step_profile.py classify --kind int8   # a classifier's answer to as many

Milliseconds a run. Operations that run at the same time count each in full, so the sum can exceed the wall clock; a
matrix product counts the wall clock of its call, on however many threads. 4×256, vocabulary 8,192, random data.
"""

import argparse
import collections
import json
import re
import tempfile
import time
from pathlib import Path
from typing import Any

from lsp.allocator import keep_freed_memory

keep_freed_memory()  # as the command line does, before there are threads

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from flax import nnx  # noqa: E402

from lsp import recipe  # noqa: E402
from lsp.compress.quantize import quantize  # noqa: E402
from lsp.model.config import ModelConfig  # noqa: E402
from lsp.model.encoder import graphdef, initialise  # noqa: E402
from lsp.train import optimizer  # noqa: E402
from lsp.train.objectives import Objective, masked_lm  # noqa: E402
from lsp.train.step import Signals, TrainState, make_train_step, make_update  # noqa: E402

ROWS, LENGTH, SLOTS, VOCABULARY = 32, 128, 32, 8192
RUNS = 3
# What an operation is called: the first of these that it computes.
KINDS = ("dot", "tanh", "exponential", "cosine", "scatter", "transpose", "reduce", "sqrt")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["train", "classify"])
    parser.add_argument("--preset", default="modern", choices=["bert", "modern"])
    parser.add_argument("--kind", default="fp32", choices=["fp32", "int8"], help="weights of `classify`")
    options = parser.parse_args()
    config = ModelConfig.from_recipe(recipe.Model(preset=options.preset), VOCABULARY)
    run, program = training(config) if options.what == "train" else classifying(config, options.kind)
    for _ in range(RUNS):
        run()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            began = time.perf_counter()
            for _ in range(RUNS):
                run()
            wall = (time.perf_counter() - began) / RUNS
        events = traced(Path(folder))
    names = kinds(program)
    spent: collections.Counter[str] = collections.Counter()
    for name, milliseconds in events.items():
        if name in names:
            spent[names[name]] += milliseconds
    table = {name: round(milliseconds, 1) for name, milliseconds in spent.most_common() if milliseconds >= 0.1}
    print(json.dumps(vars(options) | {"wall_ms": round(1000 * wall, 1), "by_operation_ms": table}))


def training(config: ModelConfig) -> tuple[Any, str]:
    """A function that takes a step, and the program it runs."""
    rng = np.random.default_rng(0)
    batch = {
        "tokens": rng.integers(5, VOCABULARY, (ROWS, LENGTH), np.int32),
        "segments": np.ones((ROWS, LENGTH), np.int32),
        "slots": rng.integers(0, LENGTH, (ROWS, SLOTS), np.int32),
        "targets": rng.integers(5, VOCABULARY, (ROWS, SLOTS), np.int32),
        "weights": np.ones((ROWS, SLOTS), np.float32),
    }
    tx, params = optimizer.make(recipe.Train(steps=1000)), initialise(config, 0)
    states = [TrainState(jnp.int32(0), params, tx.init(params))]
    step = make_train_step(make_update(graphdef(config), Objective(masked_lm), tx))
    compiled = step.lower(states[0], None, batch, np.int32(0), Signals(0.5)).compile()

    def run() -> None:
        state, _ = compiled(states.pop(), None, batch, np.int32(0), Signals(0.5))
        states.append(jax.block_until_ready(state))

    return run, compiled.as_text()


def classifying(config: ModelConfig, kind: str) -> tuple[Any, str]:
    """A function that classifies a batch, and the program it runs."""
    config = config.classifier(2, "mean", 0.0)
    tokens = np.random.default_rng(0).integers(5, VOCABULARY, (ROWS, LENGTH), np.int32)
    batch, structure, fp32 = (
        (tokens, np.ones_like(tokens), np.zeros_like(tokens)),
        graphdef(config),
        initialise(config, 0),
    )
    params = jax.device_put(quantize(fp32) if kind == "int8" else fp32)
    forward = jax.jit(lambda params, batch: nnx.merge(structure, params).classify(*batch))
    compiled = forward.lower(params, batch).compile()
    return lambda: jax.block_until_ready(compiled(params, batch)), compiled.as_text()


def traced(folder: Path) -> dict[str, float]:
    """Milliseconds a run of each traced event, by name."""
    spent: collections.Counter[str] = collections.Counter()
    for plane in jax.profiler.ProfileData.from_file(str(next(folder.rglob("*.xplane.pb")))).planes:
        for line in plane.lines:
            for event in line.events:
                spent[event.name] += event.duration_ns / 1e6 / RUNS
    return spent


def kinds(program: str) -> dict[str, str]:
    """What each operation of the program's entry computes: `library dot`, `loop transpose`, `loop`, `copy`, …"""
    bodies: dict[str, list[str]] = {}
    body: list[str] = []
    for line in program.split("\n"):
        if opened := re.match(r"(?:ENTRY )?%([\w.\-]+) .*\{$", line):
            body = bodies[opened[1]] = []
        body.append(line)
    named = {}
    for line in body:  # the entry comes last
        if operation := re.match(r"\s+(?:ROOT )?%([\w.\-]+) = .*? ([\w\-]+)\(", line):
            name, kind = operation[1], operation[2]
            if called := re.search(r"calls=%([\w.\-]+)", line):
                inside = set(re.findall(r" ([\w\-]+)\(", "\n".join(bodies[called[1]])))
                computed = next((found for found in KINDS if found in inside), "")
                kind = f"{'library' if name.startswith('ynn') else 'loop'} {computed}".strip()
            named[name] = kind
    return named


if __name__ == "__main__":
    main()
