"""Training steps of BERT-base and modern-base on a GPU, bf16, at several lengths. Prints one JSON object a line.

    python benchmarks/gpu.py --models base,modern-base --lengths 128,512,1024

The first line is a product of two bf16 matrices, the best of many: the peak that utilisation is a share of. Then for
each model and length the real step of its recipe on rows without padding: useful tokens/s (median), utilisation by
needed FLOPs, peak memory, which kernel does attention, what is computed again. Each step runs in a process of its own,
for memory is counted from a process's start. The last lines are the forward pass of a classifier, int8 against bf16 in
turn. Without a GPU everything runs at toy size, and says so: it shows that the script works, and no more.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lsp import recipe as recipes
from lsp.compress.quantize import quantize
from lsp.data.masking import slots_for
from lsp.model import cost
from lsp.model.encoder import graphdef, initialise
from lsp.train import forecast
from lsp.train import mesh as meshes
from lsp.train.compiled import Compiled, build
from lsp.train.log import Meter, peak_memory
from lsp.train.objectives import Objective, pretraining
from lsp.train.step import Signals, begin

RECIPES = Path(__file__).resolve().parent.parent / "recipes" / "pretrain"
TOY = ["model.layers=2", "model.width=64", "model.heads=2", "model.feedforward=128", "data.vocab_size=512"]
REPEATS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="base,modern-base", help="recipes of recipes/pretrain, with commas")
    parser.add_argument("--lengths", default="128,512,1024", help="tokens a row, with commas")
    parser.add_argument("--tokens", type=int, default=65_536, help="tokens a step")
    parser.add_argument("--remat", default="auto", help="as train.remat")
    parser.add_argument("--peak", type=float, default=0.0, help=argparse.SUPPRESS)  # FLOP/s; of one step, in a child
    args = parser.parse_args()
    toy = jax.default_backend() != "gpu"
    if args.peak:
        print(json.dumps(training(args.models, int(args.lengths), args.tokens, args.remat, args.peak, toy)))
        return
    size = 512 if toy else 8192
    a = jnp.ones((size, size), jnp.bfloat16)
    product = jax.jit(jnp.dot)
    peak = 2 * size**3 / min(timed(lambda: product(a, a)))
    device = jax.devices()[0].device_kind
    print(json.dumps({"device": device, "jax": jax.__version__, "toy": toy, "product_tflops": round(peak / 1e12, 2)}))
    for model in args.models.split(","):
        for length in args.lengths.split(","):
            words = ["--models", model, "--lengths", length, "--tokens", str(1024 if toy else args.tokens)]
            words += ["--remat", args.remat, "--peak", str(peak)]
            subprocess.run([sys.executable, __file__, *words], check=True)
    for length in args.lengths.split(","):
        print(json.dumps(answers(args.models.split(",")[0], int(length), toy)), flush=True)


def load(model: str, length: int, toy: bool) -> recipes.Pretrain:
    changes = [f"data.sequence_length={length}", f"model.max_length={max(512, length)}", *(TOY if toy else [])]
    return recipes.load(recipes.Pretrain, RECIPES / f"{model}.toml", changes)


def training(model: str, length: int, tokens: int, remat: str, peak: float, toy: bool) -> dict[str, Any]:
    """The step of a recipe, `tokens` of one text a row."""
    recipe = load(model, length, toy)
    config, train, rows = forecast.model(recipe), recipe.train, max(1, tokens // length)
    mesh, objective = meshes.make(recipes.Mesh(), jax.devices()[:1]), Objective(pretraining(config))
    rng, slots = np.random.default_rng(0), slots_for(recipe.data.mask_rate, length)
    batch = {
        "tokens": rng.integers(5, config.vocab_size, (rows, length), np.int32),
        "segments": np.ones((rows, length), np.int32),
        "slots": np.sort(rng.permuted(np.tile(np.arange(length, dtype=np.int32), (rows, 1)), axis=1)[:, :slots]),
        "targets": rng.integers(5, config.vocab_size, (rows, slots), np.int32),
        "weights": np.ones((rows, slots), np.float32),
    }
    with jax.set_mesh(mesh):
        said: list[str] = []

        def make(policy: str) -> tuple[Any, Any]:
            return build(config, objective, train, recipes.Replicas(), mesh, policy)

        step = Compiled(lambda policy: make(policy)[1], remat, mesh, Meter(), said.append)
        state = begin(make("none")[0], initialise(config, 0))
        state = meshes.spread(state, meshes.place(state, mesh))
        signals = meshes.each(Signals(0.5), mesh)
        index, losses, seconds = 0, [], []
        for index in range(REPEATS + 2):
            began = time.perf_counter()
            state, metrics = step(state, None, batch, np.int32(index), signals)
            losses.append(float(metrics["loss"].total) / float(metrics["loss"].count))
            seconds.append(time.perf_counter() - began)
        assert all(np.isfinite(losses)) and int(state.step) == index + 1
        text = step.text()
    median = statistics.median(seconds[2:])
    return {
        "model": model,
        "length": length,
        "rows": rows,
        "precision": train.precision,
        "remat": step.policies[0],
        "attention": attention(text),
        "best_ms": round(1000 * min(seconds[2:]), 2),
        "median_ms": round(1000 * median, 2),
        "useful_tokens_per_second": round(rows * length / median),
        "mfu_of_product": round(cost.training_flops(config, batch) / median / peak, 4),
        "peak_memory_gb": round(peak_memory() / 1e9, 3),
        "first_and_last_loss": [round(losses[0], 3), round(losses[-1], 3)],
    }


def attention(program: str) -> str:
    """Which kernels a compiled program has for attention: fused ones by their names, else XLA's own products."""
    fused = sorted(
        set(re.findall(r'custom_call_target="([^"]*(?:fmha|attention|flash)[^"]*)"', program, re.IGNORECASE))
    )
    return ", ".join(fused) or "XLA: products and softmax"


def answers(model: str, length: int, toy: bool) -> dict[str, Any]:
    """Examples/s of a classifier's forward pass, 32 rows, int8 and bf16 in turn, and how often both agree."""
    config = forecast.model(load(model, length, toy)).classifier(2, "mean", 0.0)
    params = initialise(config, 0)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    kinds = {"bf16": jax.device_put(half), "int8": jax.device_put(quantize(params))}
    tokens = np.random.default_rng(1).integers(5, config.vocab_size, (32, length), np.int32)
    structure = graphdef(config)
    forward = jax.jit(lambda tree, t: nnx.merge(structure, tree).classify(t, jnp.ones_like(t)))
    found = {name: np.asarray(forward(tree, tokens)) for name, tree in kinds.items()}
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(3):
        for name, tree in kinds.items():
            seconds[name] += timed(lambda tree=tree: forward(tree, tokens))
    rates = {f"{name}_examples_per_second": round(32 / statistics.median(times)) for name, times in seconds.items()}
    agree = float((found["bf16"].argmax(-1) == found["int8"].argmax(-1)).mean())
    return {"model": f"{model}, forward", "length": length} | rates | {"same_label": round(agree, 3)}


def timed(run: Callable[[], Any]) -> list[float]:
    """Seconds of each of the repeats, after one that is not counted."""
    jax.block_until_ready(run())
    seconds = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        jax.block_until_ready(run())
        seconds.append(time.perf_counter() - began)
    return seconds


if __name__ == "__main__":
    main()
