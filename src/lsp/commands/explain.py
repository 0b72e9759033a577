"""`lsp explain`: which words drove each answer, in the terminal and as a page."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lsp import LspError, checkpoint, console, directory, manifest, nearest
from lsp import page as pages
from lsp.data import tasks
from lsp.data.examples import Examples
from lsp.model.int8 import present
from lsp.model.weightonly import dequantize
from lsp.train import answers, labelled
from lsp.train.attribution import CLOSE, Explainer, by_word
from lsp.train.evaluate import Classifier

MOST = 100  # texts
TITLE = "lsp explain"
STYLE = "p{border-top:1px solid #ccc;padding-top:.6em}span{border-radius:.2em;padding:.1em .15em}"
HEAD = """<p><b>{title}</b><br/><small>Integrated gradients from a text of [MASK]s. Green speaks for the label, red
against it. The numbers are log odds (of a regression, the value), and what the weights miss of their
difference.</small></p>"""


def run(
    start: Path, source: str, columns: labelled.Columns, label: str, page: Path | None, progress: Any
) -> dict[str, Any]:
    """For each of the first texts its answer and the weight of each word for it, or for `label`; `page` is for HTML.

    Raises LspError (exit 2) for a label that is none, or a page that is there and none of ours.
    """
    base = checkpoint.open(start).expect("classes")
    if label and base.config.problem == "regression":
        raise LspError("--label is for a classifier, and this model answers with a number.", hint="Leave it out.")
    if label and label not in base.labels:
        hint = f"The labels are: {', '.join(base.labels)}."
        raise LspError(f"--label {label}: no such label.{nearest(label, base.labels)}", hint=hint)
    if page is not None:
        manifest.unsealed(page, "--html")
        if page.exists() and not pages.ours(page, TITLE):
            raise LspError(f"--html {page} is there already, and something else.", hint="Give another name.")
    rows = list(_rows(base, source, columns, label, progress))
    if page is not None:
        body = [HEAD.format(title=pages.text(start)), *map(_paragraph, rows)]
        directory.write_atomically(page, pages.page(TITLE, body, STYLE))
    loose = sum(abs(row["gap"]) > CLOSE * abs(row["value"] - row["baseline"]) for row in rows)
    if loose:
        progress.warn(f"of {loose} texts the weights miss more than {CLOSE:.0%} of what they should add up to")
    return {"command": "explain", "from": str(start), "status": "complete", "examples": len(rows), "rows": rows}


def _rows(
    base: checkpoint.Checkpoint, source: str, columns: labelled.Columns, label: str, progress: Any
) -> Iterator[dict[str, Any]]:
    config, own = base.config, jax.device_put(base.params)
    explainer, classifier = Explainer(config, dequantize(base.params)), Classifier(config)
    if present(base.params):
        progress.say("answers are those of the int8 model; weights of words, of what its numbers stand for in float32")
    texts = [texts for texts, _ in itertools.islice(tasks.stream(source, columns[0], base.columns), MOST + 1)]
    if len(texts) > MOST:
        progress.warn(f"explaining the first {MOST} texts; there are more")
    with progress.task("explaining", min(len(texts), MOST)) as task:
        for number, text in enumerate(texts[:MOST]):
            examples = Examples(tasks.Table([text], [], base.labels), base.tokenizer, config.max_length)
            logits = classifier.logits(own, examples)
            (answer,) = answers.of(config.problem, base.labels, logits)
            output = base.labels.index(label) if label else int(np.argmax(logits[0]))
            tokens = examples.tokens[0]
            types = (np.arange(len(tokens)) >= examples.seconds[0]).astype(np.int32) * (len(text) > 1)
            found = explainer(tokens, types, output)
            words = by_word(tokens, base.tokenizer.pieces(tokens), found.weights)
            yield {
                "label": answer["label"],
                **({"probability": answer["probability"]} if "probability" in answer else {}),
                "explained": base.labels[output] if base.labels else "value",
                "words": [{"word": word, "weight": round(weight, 4)} for word, weight in words],
                "value": round(found.value, 4),
                "baseline": round(found.baseline, 4),
                "gap": round(found.gap, 4),
                "points": found.points,
                **({"truncated": True} if examples.too_long[0] else {}),
            }
            task.update(number + 1)


def render(found: dict[str, Any]) -> str:
    """The rows for a person: words in colour on a terminal, elsewhere with their weights behind those that matter."""
    from rich.console import Console
    from rich.text import Text

    out = Console(highlight=False)
    colour = out.color_system is not None and not out.no_color
    with out.capture() as captured:
        for row in found["rows"]:
            largest = max((abs(word["weight"]) for word in row["words"]), default=0.0) or 1.0
            line = Text()
            for word in row["words"]:
                share = word["weight"] / largest
                shown = console.safe(word["word"])
                if colour and abs(share) >= 0.1:
                    strength = round(80 + 140 * abs(share))
                    tint = f"rgb({0 if share > 0 else strength},{strength if share > 0 else 0},0)"
                    line.append(shown, f"white on {tint}")
                else:
                    line.append(shown if abs(share) < 0.1 else f"{shown}({word['weight']:+.2f})")
                line.append(" ")
            sure = f" {row['probability']:.3f}" if "probability" in row else ""
            out.print(Text(f"{_label(row)}{sure}", "bold"), Text(_sum(row)))
            out.print(line, "\n")
    return "\n".join(line.rstrip() for line in captured.get().splitlines()).rstrip()


def _label(row: dict[str, Any]) -> str:
    return (", ".join(row["label"]) or "none") if isinstance(row["label"], list) else str(row["label"])


def _sum(row: dict[str, Any]) -> str:
    cut = ", cut at what the model reads" if "truncated" in row else ""
    return f"· {row['explained']}: {row['baseline']:+.2f} → {row['value']:+.2f}, {row['gap']:+.3f} missed{cut}"


def _paragraph(row: dict[str, Any]) -> str:
    largest = max((abs(word["weight"]) for word in row["words"]), default=0.0) or 1.0
    words = []
    for word in row["words"]:
        share = word["weight"] / largest
        tint = f"rgba({'0,160,60' if share > 0 else '210,40,40'},{abs(share) * 0.75:.2f})"
        title = f"{word['weight']:+.3f}"
        words.append(f'<span style="background:{tint}" title="{title}">{pages.text(word["word"])}</span>')
    sure = f" {row['probability']:.3f}" if "probability" in row else ""
    answer = f"<b>{pages.text(_label(row))}{sure}</b>"
    return f"<p>{answer}<br/>{' '.join(words)}<br/><small>{pages.text(_sum(row))}</small></p>"
