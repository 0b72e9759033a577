"""Two classifiers timed in a process of their own, as one is that only answers: where models are trained, all threads
share one heap (`lsp/allocator.py`), which costs a small model a seventh of its speed."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import NamedTuple

from lsp import Exit, LspError, checkpoint, timing
from lsp.allocator import keep_freed_memory
from lsp.data.tasks import Table
from lsp.deploy import bench
from lsp.train import labelled

LIMITS = timing.Limits(rounds=9, seconds=30.0)


class Texts(NamedTuple):
    """The first `most` rows of a labelled file, cut to so many tokens."""

    file: str
    columns: labelled.Columns
    length: int
    most: int


def speedup(run: Path, base: Path, texts: Texts) -> float:
    """How many times as fast as `base` a run is, with the texts as each is used with them. Raises LspError (exit 5)
    where the machine ends that process."""
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


def main(run: str, base: str, given: str) -> None:
    keep_freed_memory(one_heap=False)
    file, (names, label), length, most = json.loads(given)
    models = [checkpoint.open(Path(path)) for path in (run, base)]
    timed, calls = [bench.of_run(model, "") for model in models], []
    for model, one in zip(models, timed, strict=True):
        how = labelled.Reading.of(model, length)
        table = labelled.read_table(Path(file), (tuple(names), label), model.labels, how)
        calls.append(partial(one.many, how.examples(Table(table.texts[:most], table.labels[:most], table.names))))
    timings = bench.measure(bench.Case(calls, 1, most, {}), LIMITS)
    print(bench.speedups(timings.seconds_MRE, baseline=1)[0]["speedup"])


if __name__ == "__main__":
    main(*sys.argv[1:])
