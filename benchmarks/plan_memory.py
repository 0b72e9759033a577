"""What `lsp plan` says of memory against what a training process takes on this machine's CPU.

    python benchmarks/plan_memory.py recipes/pretrain/tiny.toml recipes/pretrain/mini.toml

For each recipe two processes: one plans, one trains for a few steps on random batches with the loop of `lsp pretrain`.
Prints a JSON object a line with the resident memory of the second, in bytes: `before` with everything imported, `peak`
the most it ever had (VmHWM), `measured` the growth, and `error`, the plan's share of it that is missing or too much.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lsp import recipe as recipes

STEPS = 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", type=Path, nargs="+")
    parser.add_argument("--set", dest="changes", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--plain-malloc", action="store_true", help="let glibc give freed memory back")
    parser.add_argument("--train", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train:
        print(
            json.dumps(train(recipes.load(recipes.Pretrain, options.recipes[0], options.changes), options.plain_malloc))
        )
        return
    for path in options.recipes:
        changes = [word for change in options.changes for word in ("--set", change)]
        planned = output([sys.executable, "-m", "lsp", "plan", str(path), *changes, "--json", "--quiet"])
        memory = output(
            [sys.executable, __file__, "--train", str(path), *changes, *["--plain-malloc"] * options.plain_malloc]
        )
        error = planned["memory_bytes"] / memory["measured"] - 1
        kinds = {row["kind"]: row["bytes"] for row in planned["memory"]}
        print(
            json.dumps(
                {"recipe": path.name, "planned": planned["memory_bytes"]}
                | memory
                | {"error": round(error, 3), "kinds": kinds}
            )
        )


def output(command: list[str]) -> dict[str, Any]:
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def train(recipe: recipes.Pretrain, plain: bool) -> dict[str, int]:
    """The memory of this process before and after a few steps."""
    from lsp.allocator import keep_freed_memory

    if not plain:
        keep_freed_memory()  # as the command line does, before there are threads
    import dataclasses

    import jax.numpy as jnp
    import numpy as np

    from lsp.console import Progress
    from lsp.model.encoder import initialise
    from lsp.train import forecast
    from lsp.train.clock import Clock
    from lsp.train.loop import Plan, fit
    from lsp.train.objectives import Objective, masked_lm

    jnp.ones(1).block_until_ready()
    before = resident("VmRSS")
    rng = np.random.default_rng(0)
    config, rows = forecast.model(recipe), recipe.train.batch_size
    length, slots = recipe.data.sequence_length, forecast.slots(recipe)

    def batches(start: int, stop: int) -> Iterator[dict[str, np.ndarray]]:
        for _ in range(start, stop):
            yield {
                "tokens": rng.integers(5, config.vocab_size, (rows, length), np.int32),
                "segments": np.ones((rows, length), np.int32),
                "slots": rng.integers(0, length, (rows, slots), np.int32),
                "targets": rng.integers(5, config.vocab_size, (rows, slots), np.int32),
                "weights": np.ones((rows, slots), np.float32),
            }

    marks = {}

    def evaluate(params: Any) -> dict[str, float]:
        marks["peak"] = resident("VmHWM")
        return {}

    with tempfile.TemporaryDirectory() as folder:
        plan = Plan(
            config=config,
            params=initialise(config, 0),
            objective=Objective(masked_lm),
            batches=batches,
            evaluate=evaluate,
            train=dataclasses.replace(recipe.train, steps=STEPS, checkpoint_every=STEPS, log_every=STEPS),
            mesh=recipe.mesh,
            clock=Clock(),
        )
        fit(plan, Path(folder), Progress(quiet=True))
    return {"before": before, "peak": marks["peak"], "measured": marks["peak"] - before}


def resident(kind: str) -> int:
    """VmRSS (now) or VmHWM (the most so far), in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(kind))


if __name__ == "__main__":
    main()
