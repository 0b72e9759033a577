"""`lsp pretrain`: masked language modelling on raw or prepared text, with next-sentence prediction if asked for."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lsp import Exit, LspError, checkpoint, directory
from lsp import recipe as recipes
from lsp.compress import distill, general
from lsp.data import batches, parts, shards, text
from lsp.data.course import Course
from lsp.data.tokenizer import Tokenizer
from lsp.model.config import ModelConfig
from lsp.model.encoder import initialise
from lsp.model.weightonly import dequantize
from lsp.train import best, processes, trackers
from lsp.train.clock import Clock
from lsp.train.evaluate import Pretraining
from lsp.train.labelled import counted
from lsp.train.loop import Plan, fit
from lsp.train.objectives import Objective, pretraining
from lsp.train.options import Options

# Rows kept back to measure on when --valid is not given: one in a hundred, at most this many.
HELD_OUT = 1024


def run(
    data: list[str],
    out: Path,
    recipe: recipes.Pretrain,
    tokenizer: Path | None,
    start: Path | None,
    valid: list[str],
    options: Options,
    teacher: Path | None = None,
) -> dict[str, Any]:
    """Trains an encoder into `out` and returns its result, which is empty for all but the first of several processes.
    A `teacher` is an encoder whose guesses it learns.

    With a budget 0 steps mean no end but that.
    """
    clock, progress = Clock(options.budget), options.progress
    _check(recipe, endless=bool(options.budget))
    with text.spooled(data, out.parent) as readable, text.spooled(valid, out.parent) as held_out:
        prepared = shards.prepared(readable)
        if prepared:
            recipe = _as_prepared(recipe, Path(readable[0]), progress)
        _refuse_second(tokenizer, readable[0] if prepared else "", start)
        inputs = {
            "data": prepared or text.digest(readable),
            "valid": text.digest(held_out) if held_out else "",
            "from": directory.identity(directory.read(start)) if start else "",
            **({"tokenizer": Tokenizer.load(tokenizer).hash} if tokenizer else {}),
            **({"teacher": directory.identity(directory.read(teacher))} if teacher else {}),
        }
        with processes.claim(
            out, command="pretrain", recipe=recipes.dump(recipe), inputs=inputs, overwrite=options.overwrite
        ) as held:
            if held.complete:
                return held.result() if processes.first() else {}
            base = checkpoint.open(start).expect("words", "pooler", "none") if start else None
            config = base.config if base else ModelConfig.from_recipe(recipe.model, recipe.data.vocab_size)
            config = config.paired(recipe.data.next_sentence)
            guide = general.open_teacher(teacher, config, recipe.distill) if teacher else None
            rows = _rows(readable, held.path, recipe, start or tokenizer or teacher, progress)
            words = Tokenizer.load(rows.path)
            _refuse_misfit(rows, words, config, base, guide)
            config = config if base else dataclasses.replace(config, vocab_size=words.size)
            params = _first(config, recipe, base, guide, progress)
            train_rows, measured = _split(rows, held_out, held.path, recipe, progress)
            train = recipe.train if options.budget else counted(recipe.train, len(train_rows))
            timed = dataclasses.replace(recipe, train=train)
            plan = _plan(timed, config, params, words, train_rows, measured, clock, guide)
            with trackers.opened(options.track, held.path, progress) as followers:
                fitted = fit(plan, held.path, progress, followers)
            if not processes.first():
                return {}
            return checkpoint.finish(
                held,
                checkpoint.Model(config, fitted.params, words),
                stage="pretrain",
                step=fitted.step,
                metrics=fitted.metrics,
                parents=[inputs[name] for name in ("from", "teacher") if inputs.get(name)],
                result=fitted.summary(),
            )


def _first(
    config: ModelConfig,
    recipe: recipes.Pretrain,
    base: checkpoint.Checkpoint | None,
    guide: checkpoint.Checkpoint | None,
    progress: Any,
) -> Any:
    """The first parameters: random, but for what a run that goes on has, or a teacher. On the host, since the plan
    holds on to them, and a device's memory is for what it trains."""
    params = initialise(config, recipe.train.seed)
    if base:
        if recipe.model != recipes.Model():
            progress.warn(f"[model] is not read: the encoder is that of {base.path}")
        params |= {part: tree for part, tree in dequantize(base.params).items() if part in params}
    elif guide and recipe.distill.start == "teacher":
        params, copied = distill.student(params, guide.params, (config, guide.config))
        progress.say(f"from the teacher: {', '.join(copied) or 'nothing, the shapes differ'}")
    return jax.device_get(params)


def _check(recipe: recipes.Pretrain, endless: bool) -> None:
    """Raises LspError (exit 2), before any text is read, for a metric that is none, and where something follows steps
    that are `endless` but for a budget of time."""
    data, train = recipe.data, recipe.train
    following = {
        "data.mask_rate_end": data.mask_rate_end not in (0, data.mask_rate),
        "data.length_start": bool(data.length_start),
        "train.batch_start": bool(train.batch_start),
    }
    key = next((key for key, asked in following.items() if asked), None)
    if endless and key and not train.steps:
        raise LspError(
            f"{key} follows the steps, and with --budget alone no step is known to be the last.",
            hint=f"Add --set train.steps=N, or leave out {key}.",
        )
    if train.best:
        best.known(train.best, ("accuracy", "loss"))


def _refuse_second(tokenizer: Path | None, prepared: str, start: Path | None) -> None:
    """Raises LspError (exit 2) for a tokenizer beside something that has one."""
    if tokenizer and (other := prepared or start):
        raise LspError(
            f"{other} has a tokenizer, which its tokens are of: --tokenizer {tokenizer} would not be read.",
            hint="Leave --tokenizer out.",
        )


def _plan(
    recipe: recipes.Pretrain,
    config: ModelConfig,
    params: Any,
    words: Tokenizer,
    rows: shards.Rows | shards.Subset,
    measured: batches.FixedBatches,
    clock: Clock,
    guide: checkpoint.Checkpoint | None,
) -> Plan:
    """Batches of the rows as the recipe masks them and lets them grow, what measures them, and whose guesses are
    learnt."""
    course, meter, objective = Course(recipe, rows, words), Pretraining(config), Objective(pretraining(config))
    if guide:
        objective = Objective(general.match_words(guide.config, recipe.distill), dequantize(guide.params))
    rounds = course.rounds
    return Plan(
        config=config,
        params=params,
        objective=objective,
        batches=course.batches,
        evaluate=lambda params: meter.score(params, measured),
        train=recipe.train,
        mesh=recipe.mesh,
        clock=clock,
        replicas=dataclasses.replace(recipe.replicas, count=rounds.copies) if rounds else recipe.replicas,
        teacher=guide.config if guide else None,
        rows=course.numbers,
        decode=words.decode,
    )


def _as_prepared(recipe: recipes.Pretrain, data: Path, progress: Any) -> recipes.Pretrain:
    """The recipe with the pieces and the length of rows that prepared data has. Warns where it asks for others."""
    own, plain = recipe.data, recipes.Text()
    rows = shards.Rows.open(data)
    found = {"vocab_size": Tokenizer.load(data).size, "sequence_length": rows.sequence_length}
    for key, value in found.items():
        if getattr(own, key) not in (value, getattr(plain, key)):
            progress.warn(
                f"{data} was prepared with data.{key} = {value}, so the recipe's {getattr(own, key)} is not read"
            )
    return dataclasses.replace(recipe, data=dataclasses.replace(own, **found))


def _rows(data: list[str], out: Path, recipe: recipes.Pretrain, words: Path | None, progress: Any) -> shards.Rows:
    """The packed rows: those of a prepared directory, or raw text packed into RUN/train, once."""
    if shards.prepared(data):
        return shards.Rows.open(Path(data[0]))
    packed = out / "train" / "data"
    processes.first_alone(lambda: parts.prepare(data, packed, recipe.data, words, recipe.train.seed, progress))
    return shards.Rows.open(packed)


def _refuse_misfit(
    rows: shards.Rows,
    words: Tokenizer,
    config: ModelConfig,
    base: checkpoint.Checkpoint | None,
    guide: checkpoint.Checkpoint | None,
) -> None:
    """Raises LspError when the rows were made for another model (exit 4) or are not what it reads (exit 2)."""
    if base is not None and base.tokenizer.hash != words.hash:
        raise LspError(
            f"{rows.path} was prepared with another tokenizer ({words.hash[:8]}) than {base.path} uses "
            f"({base.tokenizer.hash[:8]}).",
            hint=f"Prepare it again: lsp prepare TEXT --tokenizer {base.path} --out DATA",
            code=Exit.ARTIFACT,
        )
    if guide:
        general.expect_fit(guide, words, rows.sequence_length)
    if rows.sequence_length > config.max_length:
        raise LspError(
            f"Rows are {rows.sequence_length} tokens long, and the model reads {config.max_length} at most.",
            hint=f"Use --set model.max_length={rows.sequence_length} or shorter rows.",
        )
    if rows.pairs != bool(config.classes):
        kinds = ["packed rows", "pairs of texts"]
        raise LspError(
            f"{rows.path} holds {kinds[rows.pairs]}, and data.next_sentence = {str(not rows.pairs).lower()} reads "
            f"{kinds[not rows.pairs]}.",
            hint=f"Use --set data.next_sentence={str(rows.pairs).lower()}, or prepare the text again.",
        )


def _split(
    rows: shards.Rows, valid: list[str], out: Path, recipe: recipes.Pretrain, progress: Any
) -> tuple[shards.Rows | shards.Subset, batches.FixedBatches]:
    """Rows to train on, and fixed-mask batches to measure on. Raises LspError (exit 3) where these mask nothing."""
    size = recipe.train.batch_size
    kept = min(HELD_OUT, len(rows) // 100)
    train_rows = shards.Subset(rows, rows.epoch()) if rows.sources else rows
    if rows.pairs and not valid:
        progress.warn("random texts of pairs come from everywhere: --valid PATH measures on text that was not read")
    if valid:
        place = out / "train" / "valid"
        prepare = partial(parts.prepare, valid, place, recipe.data, rows.path, recipe.train.seed, progress)
        processes.first_alone(prepare)
        measured = batches.evaluation(shards.Rows.open(place), size)
    elif kept:
        progress.say(f"holding back {kept} of {len(rows)} rows to measure on (--valid PATH to choose the text)")
        spread = np.linspace(0, len(rows) - 1, kept).round().astype(np.int64)
        train_rows = shards.Subset(rows, rows.epoch(without=spread))
        measured = batches.evaluation(shards.Subset(rows, spread), size)
    else:
        progress.warn("there is too little text to hold any back: the metrics are those of the training text")
        measured = batches.evaluation(rows, size)
    if not any(batch["weights"].any() for batch in measured):
        raise LspError(
            f"{' '.join(valid) or 'The text'} is so short that no token of it is masked: there is nothing to measure.",
            hint=f"Give more text to {'--valid' if valid else '--data'}.",
            code=Exit.DATA,
        )
    return train_rows, measured
