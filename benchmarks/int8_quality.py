"""What int8 costs classifiers, by several ways of rounding: points lost on labelled files, and how far logits move.

    .venv/bin/python benchmarks/int8_quality.py --train mrpc/train.tsv --dev mrpc/dev.tsv --dev mrpc/test.tsv \\
        --text-column "#1 String" --text-column "#2 String" --label-column Quality RUN [RUN]…

Each RUN is a float classifier, one of several seeds say. Prints JSON: of each run and way the points of accuracy lost
on each file, the labels that flip on all of them, and the root mean square of what the largest logit moves by.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from lsp import checkpoint
from lsp.compress import calibrate, calibrated
from lsp.compress.quantize import quantize
from lsp.recipe import Quantization
from lsp.train import labelled
from lsp.train.evaluate import Classifier

WAYS = {
    "dynamic": Quantization(),
    "smooth=0.25": Quantization(smooth=0.25),
    "smooth=0.5": Quantization(smooth=0.5),
    "smooth=0.75": Quantization(smooth=0.75),
    "gptq": Quantization(rounding="gptq"),
    "gptq, smooth=0.5": Quantization(rounding="gptq", smooth=0.5),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--train", type=Path, required=True, help="what calibrates")
    parser.add_argument("--dev", type=Path, action="append", required=True)
    parser.add_argument("--text-column", action="append", default=[])
    parser.add_argument("--label-column", default="")
    args = parser.parse_args()
    columns = (tuple(args.text_column), args.label_column)
    print(json.dumps({run.name: measured(checkpoint.open(run), args, columns) for run in args.runs}, indent=1))


def measured(model: checkpoint.Checkpoint, args: argparse.Namespace, columns: labelled.Columns) -> dict[str, Any]:
    how, classifier = labelled.Reading.of(model, model.config.max_length), Classifier(model.config)
    files = [labelled.read(path, columns, model.labels, how) for path in args.dev]
    sample = how.examples(calibrate.sample(labelled.read_table(args.train, columns, model.labels, how), 256))

    def answers(params: Any) -> tuple[list[float], np.ndarray]:
        logits = [classifier.logits(params, examples) for examples in files]
        right = [100 * (found.argmax(1) == some.labels).mean() for found, some in zip(logits, files, strict=True)]
        return right, np.concatenate(logits)

    before, floats = answers(model.params)
    rows = np.arange(len(floats)), floats.argmax(1)
    table: dict[str, Any] = {"float": before}
    for name, way in WAYS.items():
        after, found = answers(quantize(model.params, calibrated.maker(way, model.config, model.params, sample)))
        table[name] = {
            "points_lost": [was - now for was, now in zip(before, after, strict=True)],
            "flips": int((found.argmax(1) != rows[1]).sum()),
            "moved": float(np.sqrt(np.square((found - floats)[rows]).mean())),
        }
    return table


if __name__ == "__main__":
    main()
