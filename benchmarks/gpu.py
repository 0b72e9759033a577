"""Training steps of BERT-base and modern-base on a GPU, bf16, at several lengths. Prints one JSON object a line.

    python benchmarks/gpu.py --models base,modern-base --lengths 128,512,1024

The first line is a product of two bf16 matrices, the best of many: the peak that utilisation is a share of. Then
attention by itself at each length, forward and backward over packed rows, plain and fused in turn, with the relative
errors of the answer and of the gradients against float32. Then for each model and length the real step of its recipe on
rows without padding, with fused attention and without: useful tokens/s (median), utilisation by needed FLOPs, peak
memory, which kernel does attention, what is computed again, and whether the same step gives the same bits twice. Each
step runs in a process of its own, for memory is counted from a process's start. The last lines are the forward pass of
a classifier: bf16, int8, and int8 with bf16 between its products, in turn. Without a GPU everything runs at toy size,
and says so: it shows that the script works, and no more.
"""

import argparse
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lsp import recipe as recipes
from lsp.compress.quantize import quantize
from lsp.data.masking import slots_for
from lsp.deploy.faster import in_bfloat16
from lsp.model import attention, cost, int8
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
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as of lsp pretrain")
    parser.add_argument("--only", default="attention,steps,forward", help="what is measured, with commas")
    parser.add_argument("--ways", default="fused,plain", help="how a step does its attention, with commas")
    parser.add_argument("--part", default="", help=argparse.SUPPRESS)  # what a child measures
    parser.add_argument("--peak", type=float, default=0.0, help=argparse.SUPPRESS)  # FLOP/s, for a child
    args = parser.parse_args()
    if args.part:
        print(json.dumps(measure(args, jax.default_backend() != "gpu")))
        return
    # The parent never opens the card: a process that does takes three quarters of its memory.
    shared = ["--tokens", str(args.tokens), *(word for change in args.set for word in ("--set", change))]
    peak = child(["--part", "product"])["product_tflops"] * 1e12
    lengths, models, asked = args.lengths, args.models, args.only
    if "attention" in asked:
        for length in lengths.split(","):
            child(["--part", "attention", "--lengths", length, *shared])
    if "steps" in asked:
        for model, length, way in itertools.product(models.split(","), lengths.split(","), args.ways.split(",")):
            words = ["--models", model, "--lengths", length, "--ways", way, "--peak", str(peak)]
            child(["--part", "steps", *words, *shared])
    if "forward" in asked:
        for length in lengths.split(","):
            child(["--part", "forward", "--models", models.split(",")[0], "--lengths", length, *shared])


def child(words: list[str]) -> dict[str, Any]:
    """What a process of its own found, printed too. One that fails ends all: what else it would say is on stderr."""
    done = subprocess.run([sys.executable, __file__, *words], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"failed: {' '.join(words)}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(found), flush=True)
    return found


def measure(args: argparse.Namespace, toy: bool) -> dict[str, Any]:
    """One line."""
    tokens = 1024 if toy else args.tokens
    if args.part == "product":
        return product(toy)
    if args.part == "attention":
        return kernels(int(args.lengths), tokens)
    recipe = load(args.models, int(args.lengths), [*args.set, *(TOY if toy else [])])
    if args.part == "forward":
        return {"model": f"{args.models}, forward"} | answers(recipe, 32) | {"many": answers(recipe, 256)}
    if args.ways == "plain":
        attention.fuses = lambda q: False
    return {"model": args.models, "attention": args.ways} | training(recipe, tokens, args.peak)


def product(toy: bool) -> dict[str, Any]:
    """The best of many products of two bf16 matrices of random numbers."""
    size = 512 if toy else 8192
    a = jax.random.normal(jax.random.key(0), (size, size), jnp.bfloat16)
    dot = jax.jit(jnp.dot)
    peak = 2 * size**3 / min(timed(lambda: dot(a, a)))
    about = {"device": jax.devices()[0].device_kind, "jax": jax.__version__, "toy": toy}
    return about | {"product_tflops": round(peak / 1e12, 4)}


def kernels(length: int, tokens: int) -> dict[str, Any]:
    """Attention with 12 heads of 64 over packed rows, whole and in a window of 64, bf16: milliseconds there and back,
    and ‖error‖ / ‖right‖ of the answer and of the gradient of q, k and v, right being float32 in full."""
    rng, rows = np.random.default_rng(0), max(1, tokens // length)
    exact = [jnp.asarray(rng.normal(size=(rows, 12, length, 64)), jnp.float32) for _ in range(4)]
    half = [x.astype(jnp.bfloat16) for x in exact]
    cuts = np.sort(rng.integers(1, length, (rows, 3)), axis=1)
    segments = jnp.asarray(1 + (np.arange(length) >= cuts[..., None]).sum(1), jnp.int32)
    whole = segments[:, :, None] == segments[:, None, :]
    near = jnp.abs(jnp.arange(length)[:, None] - jnp.arange(length)) <= 64
    ways = [attention.plain, *([attention.fused] if attention.fuses(half[0]) else [])]
    found: dict[str, Any] = {"attention": f"{rows}x{length}, 12 heads of 64"}
    for name, meet in {"": whole, ", window 64": whole & near}.items():
        with jax.default_matmul_precision("highest"):
            right = there_and_back(attention.plain)(*exact, meet)
        calls = [partial(there_and_back(way), *half, meet) for way in ways]
        turns = [[timed(call) for call in calls] for _ in range(3)]
        for way, call, its in zip(ways, calls, zip(*turns, strict=True), strict=True):
            got, again = call(), call()
            found[way.__name__ + name] = {
                "ms": round(1000 * float(np.median(its)), 3),
                "errors": [round(distance(a, b), 5) for a, b in zip(got, right, strict=True)],
                "same_bits_twice": all(bool((a == b).all()) for a, b in zip(got, again, strict=True)),
            }
    return found


def distance(found: jax.Array, right: jax.Array) -> float:
    return float(jnp.linalg.norm(found.astype(jnp.float32) - right) / jnp.linalg.norm(right))


def there_and_back(attend: Callable[..., jax.Array]) -> Callable[..., Any]:
    """The answer and the gradients of q, k and v, compiled."""

    def both(q: jax.Array, k: jax.Array, v: jax.Array, dy: jax.Array, meet: jax.Array) -> tuple[jax.Array, ...]:
        y, back = jax.vjp(lambda *qkv: attend(*qkv, meet), q, k, v)
        return y, *back(dy)

    return jax.jit(both)


def load(model: str, length: int, changes: list[str]) -> recipes.Pretrain:
    changes = [f"data.sequence_length={length}", f"model.max_length={max(512, length)}", *changes]
    return recipes.load(recipes.Pretrain, RECIPES / f"{model}.toml", changes)


def training(recipe: recipes.Pretrain, tokens: int, peak: float) -> dict[str, Any]:
    """The step of a recipe, `tokens` of one text a row."""
    length = recipe.data.sequence_length
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

        step = Compiled(lambda policy: make(policy)[1], train.remat, mesh, Meter(), said.append)

        def fresh() -> Any:
            state = begin(make("none")[0], initialise(config, 0))
            return meshes.spread(state, meshes.place(state, mesh))

        state, signals = fresh(), meshes.each(Signals(0.5), mesh)
        index, losses, seconds = 0, [], []
        for index in range(REPEATS + 2):
            began = time.perf_counter()
            state, metrics = step(state, None, batch, np.int32(index), signals)
            losses.append(float(metrics["loss"].total) / float(metrics["loss"].count))
            if index == 0:
                first = jax.tree.map(np.asarray, state.params)
            seconds.append(time.perf_counter() - began)
        assert all(np.isfinite(losses)) and int(state.step) == index + 1
        text, peak_bytes = step.text(), peak_memory()
        again = step(fresh(), None, batch, np.int32(0), signals)[0].params
        same = jax.tree.map(np.array_equal, first, jax.tree.map(np.asarray, again))
    median = statistics.median(seconds[2:])
    return {
        "length": length,
        "rows": rows,
        "flags": os.environ.get("XLA_FLAGS", ""),
        "precision": train.precision,
        "remat": step.policies[0],
        "kernels": attention_of(text),
        "compile_s": round(step.meter.compile_seconds, 1),
        "best_ms": round(1000 * min(seconds[2:]), 2),
        "median_ms": round(1000 * median, 2),
        "useful_tokens_per_second": round(rows * length / median),
        "mfu_of_product": round(cost.training_flops(config, batch) / median / peak, 4),
        "peak_memory_gb": round(peak_bytes / 1e9, 3),
        "same_bits_twice": all(jax.tree.leaves(same)),
        "first_and_last_loss": [round(losses[0], 3), round(losses[-1], 3)],
    }


def attention_of(program: str) -> str:
    """Which kernels a compiled program has for attention: fused ones by their names, else XLA's own products."""
    fused = sorted(
        set(re.findall(r'custom_call_target="([^"]*(?:fmha|attention|flash)[^"]*)"', program, re.IGNORECASE))
    )
    return ", ".join(fused) or "XLA: products and softmax"


def answers(recipe: recipes.Pretrain, rows: int) -> dict[str, Any]:
    """Examples/s of a classifier's forward pass in turn, and how often each agrees with bf16."""
    config, length = forecast.model(recipe).classifier(2, "mean", 0.0), recipe.data.sequence_length
    params = initialise(config, 0)
    small = quantize(params)
    kinds = {"bf16": in_bfloat16(params), "int8": small, "int8 and bf16": between_in_bfloat16(small)}
    kinds = {name: jax.device_put(tree) for name, tree in kinds.items()}
    tokens = np.random.default_rng(1).integers(5, config.vocab_size, (rows, length), np.int32)
    structure = graphdef(config)
    forward = jax.jit(lambda tree, t: nnx.merge(structure, tree).classify(t, jnp.ones_like(t)))
    found = {name: np.asarray(forward(tree, tokens)) for name, tree in kinds.items()}
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(3):
        for name, tree in kinds.items():
            seconds[name] += timed(lambda tree=tree: forward(tree, tokens))
    rates = {name: round(rows / statistics.median(times)) for name, times in seconds.items()}
    agree = {name: round(float((found["bf16"].argmax(-1) == y.argmax(-1)).mean()), 3) for name, y in found.items()}
    return {"rows": rows, "length": length, "examples_per_second": rates, "same_label": agree}


def between_in_bfloat16(params: Any) -> Any:
    """The same int8 weights, with all that is not int8, and so what goes from product to product, in bfloat16."""

    def half(leaf: Any) -> Any:
        return leaf if isinstance(leaf, int8.Int8) else jnp.asarray(leaf).astype(jnp.bfloat16)

    return jax.tree.map(half, params, is_leaf=lambda leaf: isinstance(leaf, int8.Int8))


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
