"""`lsp data peek`: what a step of pretraining reads, as text: documents, masks, and what stands behind them."""

import dataclasses
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lsp import LspError, console
from lsp import recipe as recipes
from lsp.data import pairs, shards
from lsp.data.course import Course
from lsp.data.masking import FIRST_WORD
from lsp.data.tokenizer import CLS, MASK, PAD, SEP, SPECIALS, Tokenizer, spelt
from lsp.train.labelled import counted

if TYPE_CHECKING:
    from rich.text import Text

BORDER, PADDING = "bold cyan", "dim"
MASKED, CHANGED, REPLACED, KEPT = "black on yellow", "white on red", "red", "black on green"


def run(path: Path, recipe: recipes.Pretrain, count: int, step: int) -> dict[str, Any]:
    """The first `count` rows of batch `step`, and of those after it, as a run with this recipe and `--valid` has them.

    A row's `pieces` are the tokens as they were, and `masks` say which are hidden and what is shown instead; of a pair,
    `next` says whether the second text follows the first. Raises LspError (exit 2) when `path` is not prepared data.
    """
    if not shards.prepared([str(path)]):
        raise LspError(f"{path} is not prepared data.", hint=f"Prepare it: lsp prepare {path} --out DATA")
    rows, words, data = shards.Rows.open(path), Tokenizer.load(path), recipe.data
    train = counted(recipe.train, len(rows))
    read = shards.Subset(rows, rows.epoch()) if rows.sources else rows
    course = Course(dataclasses.replace(recipe, train=train), read, words)
    return {
        "command": "data peek",
        "data": str(path),
        "step": step,
        "steps": train.steps,
        "masking": data.masking,
        "mask_rate": round(course.mask_rate(step), 6),
        "sequence_length": rows.sequence_length,
        "seen_at_once": course.seen(step),
        "rows": list(itertools.islice(_rows(course, words, step), count)),
    }


def _rows(course: Course, words: Tokenizer, first: int) -> Iterator[dict[str, Any]]:
    for step, batch in enumerate(course.batches(first, sys.maxsize), first):
        for index, number in enumerate(course.numbers(step).tolist()):
            used = batch["weights"][index] == 1
            slots, seen = batch["slots"][index][used], batch["tokens"][index]
            stood = seen.copy()
            stood[slots] = batch["targets"][index][used]
            pieces, shown = words.pieces(stood), words.pieces(seen[slots])
            paired = "types" in batch
            borders = np.diff(batch["types"][index], prepend=0) > 0 if paired else stood == CLS
            texts = np.split(stood, np.flatnonzero(borders)[0 if paired else 1 :])
            yield {
                "step": step,
                "row": number,
                "texts": [words.decode(text) for text in texts],
                **({"next": bool(batch["labels"][index] == pairs.NEXT)} if paired else {}),
                "padding_share": round(float((stood == PAD).mean()), 4),
                "mask_share": round(len(slots) / max(1, int((stood >= FIRST_WORD).sum())), 4),
                "masks": [
                    {"position": position, "hidden": pieces[position], "shown": piece}
                    for position, piece in zip(slots.tolist(), shown, strict=True)
                ],
                "pieces": pieces,
            }


def render(found: dict[str, Any]) -> str:
    """What `run` found for a person: in colour on a terminal, elsewhere with brackets around what is hidden."""
    from rich.console import Console
    from rich.text import Text

    out = Console(highlight=False)
    colour = out.color_system is not None and not out.no_color
    with out.capture() as captured:
        step = f"step {found['step']:,} of {found['steps']:,}"
        hidden = f"{_percent(found['mask_rate'])} hidden, by {found['masking']}"
        seen, length = found["seen_at_once"], found["sequence_length"]
        cut = "" if seen == length else f" in pieces of {seen:,}"
        out.print(Text.assemble((step, "bold"), f" · rows of {length:,} tokens{cut} · {hidden}"))
        out.print(_legend() if colour else Text("[what stands there←what it was]"))
        for row in found["rows"]:
            step = "" if row["step"] == found["step"] else f"step {row['step']:,} · "
            padding = f"{_percent(row['padding_share'])} padding" if row["padding_share"] else "no padding"
            texts = "1 text" if len(row["texts"]) == 1 else f"{len(row['texts'])} texts"
            if "next" in row:
                texts = "a text and the next" if row["next"] else "a text and a random one"
            out.print(
                Text(f"\n{step}row {row['row']:,} · {texts} · {_percent(row['mask_share'])} hidden · {padding}", "bold")
            )
            for line in _lines(row, colour):
                out.print(line)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def _legend() -> "Text":
    from rich.text import Text

    other = (("other", CHANGED), ("←word", REPLACED), " is another word   ")
    return Text.assemble(("word", MASKED), " is [MASK]   ", *other, ("word", KEPT), " is left as it was")


def _lines(row: dict[str, Any], colour: bool) -> Iterator["Text"]:
    """The texts of a row, each on a line of its own, and its padding on another."""
    from rich.text import Text

    shown = {mask["position"]: mask["shown"] for mask in row["masks"]}
    line, ended = Text(), False

    def kind(place: tuple[int, str]) -> Any:
        position, piece = place
        return (position, piece) if position in shown else piece if piece in SPECIALS else None

    for _, group in itertools.groupby(enumerate(row["pieces"]), kind):
        positions, pieces = zip(*group, strict=True)
        if line and (ended or pieces[0] in (SPECIALS[CLS], SPECIALS[PAD])):
            yield line
            line = Text()
        ended = pieces[0] == SPECIALS[SEP]
        if positions[0] in shown:
            line.append(_hidden(pieces[0], shown[positions[0]], colour))
        elif pieces[0] == SPECIALS[PAD]:
            line = Text(f"[PAD] × {len(pieces)}", PADDING)
        elif pieces[0] in SPECIALS:
            line.append(("" if pieces[0] == SPECIALS[CLS] else " ") + pieces[0], BORDER)
        else:
            line.append(_text("".join(pieces)))
    yield line


def _hidden(piece: str, shown: str, colour: bool) -> "Text":
    from rich.text import Text

    stood, seen = (_text(each.removeprefix("▁")) or "▁" for each in (piece, shown))
    space = " " if piece.startswith("▁") else ""
    if not colour:
        return Text(f"{space}[{'MASK' if shown == SPECIALS[MASK] else seen}←{stood}]")
    if shown == SPECIALS[MASK]:
        return Text.assemble(space, (stood, MASKED))
    if shown == piece:
        return Text.assemble(space, (stood, KEPT))
    return Text.assemble(space, (seen, CHANGED), (f"←{stood}", REPLACED))


def _text(pieces: str) -> str:
    """Pieces as a terminal may have them: bytes put together to characters, and nothing that it would obey."""
    text = spelt(pieces).replace("▁", " ")
    return console.safe(text).replace("\n", "\\n").replace("\t", "\\t")


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
