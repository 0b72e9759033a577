"""The Hugging Face Trainer as the benchmarks of finetuning run it: on two threads of a CPU, nothing saved or logged.

Imported by them in an environment of benchmarks/peers.txt.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"
Rows = Sequence[tuple[Sequence[str], int]]  # the texts of an example, and its class
BATCH = 32


def make(
    start: Path, train: Rows, dev: Rows, *, length: int, out: Path, seed: int = 42, watch: Any = (), **options: Any
) -> Any:
    """A `transformers.Trainer` for a classifier on the folder `start`, batches padded to their longest example.
    `watch` are its callbacks, `options` more of its `TrainingArguments`."""
    import torch
    import transformers

    torch.set_num_threads(2)
    transformers.logging.set_verbosity_error()
    transformers.set_seed(seed)
    words = transformers.AutoTokenizer.from_pretrained(start)
    classes = 1 + max(label for _, label in train)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(start, num_labels=classes)

    def encoded(rows: Rows) -> list[dict[str, Any]]:
        columns = map(list, zip(*(texts for texts, _ in rows), strict=True))
        found = words(*columns, truncation=True, max_length=length)
        return [{key: found[key][i] for key in found} | {"labels": label} for i, (_, label) in enumerate(rows)]

    return transformers.Trainer(
        model=model,
        args=transformers.TrainingArguments(
            output_dir=str(out),
            per_device_train_batch_size=BATCH,
            per_device_eval_batch_size=BATCH,
            seed=seed,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            **options,
        ),
        train_dataset=encoded(train),
        eval_dataset=encoded(dev),
        data_collator=transformers.DataCollatorWithPadding(words),
        compute_metrics=metrics,
        callbacks=list(watch),
    )


def metrics(found: Any) -> dict[str, float]:
    """Accuracy, and of two classes F1 of the second and Matthews' correlation."""
    guesses, labels = found.predictions.argmax(-1), found.label_ids
    a, b, c, d = (int(((guesses == g) & (labels == t)).sum()) for g, t in ((1, 1), (1, 0), (0, 1), (0, 0)))
    spread = ((a + b) * (a + c) * (d + b) * (d + c)) ** 0.5
    return {
        "accuracy": float((guesses == labels).mean()),
        "f1": 2 * a / max(1, 2 * a + b + c),
        "matthews": (a * d - b * c) / spread if spread else 0.0,
    }
