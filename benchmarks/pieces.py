"""What rare pieces are worth to a classifier: its accuracy without them, untrained, and what is saved.

    .venv/bin/python benchmarks/pieces.py RUN --train train.tsv --dev dev.tsv [--dev test.tsv]…

The commonest pieces stay, which make up a share of the training file's tokens. Prints a JSON object a line: the share,
pieces, bytes of their table in int8, and of each file accuracy and how many times as many tokens it has.
"""

import argparse
import json
from pathlib import Path

from lsp import checkpoint
from lsp.compress import vocabulary
from lsp.train import labelled
from lsp.train.evaluate import Classifier

SHARES = (1.0, 0.998, 0.995, 0.99, 0.98, 0.97, 0.95, 0.9)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--dev", type=Path, action="append", required=True)
    parser.add_argument("--text-column", action="append", default=[])
    parser.add_argument("--label-column", default="")
    args = parser.parse_args()
    columns = (tuple(args.text_column), args.label_column)
    base = checkpoint.open(args.run)
    how = labelled.Reading.of(base)
    counts = vocabulary.counted(labelled.read(args.train, columns, base.labels, how), base.config.vocab_size)
    tokens: list[int] = []
    for share in (None, *SHARES):
        kept = 0 if share in (None, 1.0) else vocabulary.commonest(counts, share)
        model = base.model if share is None else vocabulary.smaller(base.model, counts, kept)[0]
        files = [labelled.read(path, columns, base.labels, how._replace(words=model.tokenizer)) for path in args.dev]
        tokens = tokens or [int(some.lengths.sum()) for some in files]
        scores = [Classifier(model.config).score(model.params, some) for some in files]
        told = {
            "share": share,
            "pieces": model.tokenizer.size,
            "table_bytes": model.tokenizer.size * (model.config.width + 4),
            "accuracy": [round(100 * one.metrics["accuracy"], 2) for one in scores],
            "tokens": [round(int(some.lengths.sum()) / before, 4) for some, before in zip(files, tokens, strict=True)],
        }
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
