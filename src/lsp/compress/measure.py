"""A stage's model beside the one it came from, example by example."""

import json
from pathlib import Path
from typing import Any

from lsp import directory
from lsp.checkpoint import Checkpoint
from lsp.data.examples import Examples
from lsp.train import paired
from lsp.train.evaluate import Scores

FLIPS = "flips.jsonl"


def beside(run: Path, base: Checkpoint, dev: Examples, before: Scores, after: Scores) -> dict[str, Any]:
    """`paired` of a result (`paired.compared`), and in `run` the rows whose label flipped, a JSON object a line.

    `before` are the scores of `base`, and `dev` the examples of either: a stage may cut texts into other pieces, but it
    measures both models on the same rows. Raises LspError (exit 4) where either answers what is no number.
    """
    before.expect_numbers(str(base.path))
    after.expect_numbers(str(run))
    pair = paired.Pair(base.config.problem, before.logits, after.logits, dev.labels)
    rows = paired.flips(pair, base.labels, dev.texts)
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    directory.write_atomically(run / FLIPS, "".join(lines))
    return paired.compared(pair)
