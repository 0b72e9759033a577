"""Two classifiers timed in a process of their own, as one is that only answers: where models are trained, all threads
share one heap (`lsp/allocator.py`), which costs a small model a seventh of its speed."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax

from lsp import Exit, LspError, checkpoint, timing
from lsp.allocator import keep_freed_memory
from lsp.data.tasks import Table
from lsp.deploy import bench
from lsp.train import labelled

LIMITS = timing.Limits(rounds=9, seconds=60.0)


class Texts(NamedTuple):
    """The first `most` rows of a labelled file, cut to so many tokens."""

    file: str
    columns: labelled.Columns
    length: int
    most: int


def speedup(run: Path, base: Path, texts: Texts) -> float:
    """How many times as fast as `base` a run is, with the texts as each is used with them. On a graphics card or a TPU,
    which one process holds and no heap slows down, it is timed here. Raises LspError (exit 5) where the machine ends
    the process."""
    if jax.default_backend() != "cpu":
        return timed(run, base, texts)
    line = [sys.executable, "-P", "-m", __name__, str(run), str(base), json.dumps(texts)]
    # A session of its own: a signal is for the caller, who ends it.
    done = subprocess.run(line, stdout=subprocess.PIPE, start_new_session=True)
    if done.returncode:
        raise LspError(
            f"The process that times {run.name} ended with {done.returncode}.",
            hint="If the machine is out of memory, stop what else runs there; then run the command again.",
            code=Exit.MACHINE,
        )
    return float(done.stdout)


def timed(run: Path, base: Path, texts: Texts) -> float:
    """What `speedup` says, measured in this process."""
    models, most = [checkpoint.open(path) for path in (run, base)], texts.most
    ready, calls = [bench.of_run(model, "") for model in models], []
    for model, one in zip(models, ready, strict=True):
        how = labelled.Reading.of(model, texts.length)
        table = labelled.read_table(Path(texts.file), texts.columns, model.labels, how)
        calls.append(partial(one.many, how.examples(Table(table.texts[:most], table.labels[:most], table.names))))
    timings = bench.measure(bench.Case(calls, 1, most, {}), LIMITS)
    return float(bench.speedups(timings.seconds_MRE, baseline=1)[0]["speedup"])


def main(run: str, base: str, given: str) -> None:
    keep_freed_memory(one_heap=False)
    file, (names, label), length, most = json.loads(given)
    print(timed(Path(run), Path(base), Texts(file, (tuple(names), label), length, most)))


if __name__ == "__main__":
    main(*sys.argv[1:])
