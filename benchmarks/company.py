"""Whether a text has the same logits alone and in company, bit for bit, as `lsp predict` batches texts.

    .venv/bin/python benchmarks/company.py --from RUN --data dev.tsv [--texts 300]

Company is all texts at once, among them longer ones (3, 4, 6, 9, 14, 20 texts joined, up to what the model takes), and
one other text. Prints JSON: of each kind how many texts were asked, how many answers differ, and by how much at most.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from lsp import checkpoint
from lsp.data.examples import Examples
from lsp.data.tasks import Table
from lsp.train import labelled
from lsp.train.evaluate import Classifier

JOINED = (3, 4, 6, 9, 14, 20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="run", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="a labelled file with one text a row")
    parser.add_argument("--texts", type=int, default=300)
    args = parser.parse_args()
    model = checkpoint.open(args.run)
    how = labelled.Reading.of(model, model.config.max_length)
    table = labelled.read_table(args.data, ((), ""), model.labels, how)
    texts, labels = table.texts[: args.texts], table.labels[: args.texts]
    longer = [(" ".join(text[0] for text in texts[10 * n : 10 * n + count]),) for n, count in enumerate(JOINED)]
    examples = how.examples(Table([*longer, *texts], [*labels[: len(longer)], *labels], table.names))
    print(json.dumps(compared(Classifier(model.config), model.params, examples, len(longer)), indent=1))


def compared(classifier: Classifier, params: object, examples: Examples, longer: int) -> dict[str, dict[str, float]]:
    """The answers to all examples, of which so many are long and come first, beside those alone and in pairs."""
    together, random = classifier.logits(params, examples), np.random.default_rng(0)
    away: dict[str, list[float]] = {"alone": [], "beside a long one": []}
    for number in range(len(examples)):
        alone = classifier.logits(params, examples.some(np.array([number])))[0]
        away["alone"].append(float(np.abs(alone - together[number]).max()))
    for number in range(longer, len(examples), 8):
        pair = classifier.logits(params, examples.some(np.array([number, random.integers(longer)])))[0]
        away["beside a long one"].append(float(np.abs(pair - together[number]).max()))
    return {
        kind: {"texts": len(each), "differ": sum(value > 0 for value in each), "largest": max(each)}
        for kind, each in away.items()
    }


if __name__ == "__main__":
    main()
