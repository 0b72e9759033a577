"""How fast models answer on this machine: the latency of one text, and examples a second of many.

Models take turns, A B A B …, so that a busy machine troubles all alike; only what was measured in one run is compared.
Whatever answers tokens can be timed. Compiling is never in a timing.

Suffixes: M models, R rounds, E calls of a turn.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from lsp import interrupt, timing
from lsp.checkpoint import Checkpoint
from lsp.data.examples import Examples, alone
from lsp.data.tokenizer import CLS, MASK, SEP, Tokenizer
from lsp.deploy import parity, parts
from lsp.deploy.exported import Exported
from lsp.deploy.parity import Answer
from lsp.train.evaluate import Classifier

IN_A_ROW = 10  # calls of a turn where one call is short
PERCENTILES = (50, 90, 99)
TEXTS = 256  # whose lengths are drawn where no data is given
MEDIAN, SPREAD = 24, 0.7  # tokens, and the standard deviation of their logarithm
DRAWN = f"{TEXTS} random texts, lengths log-normal: half under {MEDIAN} tokens, 90 % under 59, 99 % under 122"


@dataclass(frozen=True)
class Timed:
    """A model to time: `answer` for rows of one length, and `many` for examples as they are, in the batches that the
    model is used with. `columns` are those of the texts that it was trained on, where known. `size` is what it takes on
    disk, part by part; nothing for one that is not there."""

    name: str
    answer: Answer
    many: Callable[[Examples], Any]
    tokenizer: Tokenizer
    max_length: int
    columns: tuple[str, ...] = ()
    size: Sequence[parts.Part] = ()


class Shapes(NamedTuple):
    """Lengths in tokens whose latency is measured, one text at a time, and batches of texts of the longest of them."""

    lengths: Sequence[int] = (16, 64, 128)
    batches: Sequence[int] = (32,)


class Case(NamedTuple):
    """A call of each model, how often a turn repeats it, the examples that it answers, and their shape in words."""

    calls: Sequence[Callable[[], Any]]
    in_a_row: int
    examples: int
    shape: dict[str, int]


class Timings(NamedTuple):
    """Seconds of each call [M, R, E], and what each model's first call took beyond a second one: compiling."""

    seconds_MRE: np.ndarray
    compile_seconds: list[float]


# --- what is timed -------------------------------------------------------------------------------------------------


def of_run(base: Checkpoint, name: str) -> Timed:
    """A run, with its size."""
    return dataclasses.replace(of_params(base, base.params, name), size=parts.of_run(base))


def of_export(model: Exported, name: str) -> Timed:
    """What was exported, with its size."""
    size = parts.of_export(model.path)
    return Timed(name, model.answer, model.logits, model.tokenizer, model.max_length, model.columns, size)


def of_params(base: Checkpoint, params: Any, name: str) -> Timed:
    """A run with these parameters in the place of its own: a classifier's logits, or an encoder's hidden states."""
    config = base.config
    params = jax.device_put(params)
    answer = parity.answerer(config, params)
    classifier = Classifier(config) if config.head == "classes" else None
    many = partial(each_alone, answer) if classifier is None else partial(classifier.logits, params)
    return Timed(name, answer, many, base.tokenizer, config.max_length, base.columns)


def each_alone(answer: Answer, examples: Examples) -> None:
    """All examples, one a row: how a model is used that takes no rows that several share."""
    for _, batch in alone(examples):
        answer(batch["tokens"], batch["types"])


# --- the cases -----------------------------------------------------------------------------------------------------


def cases(models: Sequence[Timed], shapes: Shapes, examples: Sequence[Examples]) -> dict[str, list[Case]]:
    """What is timed, as `latency`, `throughput` and `texts`: rows of one length, and for each model its examples as it
    is used. A length that not all models take becomes the longest that they do."""
    lengths = sorted({min(length, *(model.max_length for model in models)) for length in shapes.lengths})
    calls = [partial(model.many, its) for model, its in zip(models, examples, strict=True)]
    return {
        "latency": [rows(models, 1, length) for length in lengths],
        "throughput": [rows(models, batch, lengths[-1]) for batch in shapes.batches],
        "texts": [Case(calls, 1, len(examples[0]), {"examples": len(examples[0])})],
    }


def rows(models: Sequence[Timed], batch: int, length: int) -> Case:
    """`batch` rows of random pieces, all of them `length` tokens long."""
    calls = []
    for model in models:
        tokens_BT = np.random.default_rng(0).integers(MASK + 1, model.tokenizer.size, (batch, length), np.int32)
        tokens_BT[:, 0], tokens_BT[:, -1] = CLS, SEP
        calls.append(partial(model.answer, tokens_BT, np.zeros_like(tokens_BT)))
    return Case(calls, IN_A_ROW if batch == 1 else 1, batch, {"batch": batch, "tokens": length})


def drawn(model: Timed) -> Examples:
    """Random texts with lengths as short texts have them (`DRAWN`), the same each time."""
    lengths = np.random.default_rng(0).lognormal(np.log(MEDIAN), SPREAD, TEXTS).round().astype(int)
    return Examples.random(model.tokenizer, lengths.tolist(), model.max_length)


# --- timing --------------------------------------------------------------------------------------------------------


def measure(case: Case, limits: timing.Limits) -> Timings:
    """Every model compiled, then timed in turns."""
    compiling = [_compile(call, limits.clock) for call in case.calls]
    return Timings(timing.interleaved(case.calls, limits, case.in_a_row), compiling)


def _compile(call: Callable[[], Any], clock: timing.Clock) -> float:
    began = clock()
    interrupt.apart(call)  # the first call compiles, and a signal is heard meanwhile
    compiled = clock()
    call()
    return max(0.0, 2 * compiled - began - clock())


# --- what it means -------------------------------------------------------------------------------------------------


def described(models: Sequence[Timed], case: Case, timings: Timings) -> list[dict[str, Any]]:
    """A row for each model: `latency` of what a turn repeats, else `rate`, and where there are several models
    `speedups` over the second."""
    many = len(models) > 1
    faster = speedups(timings.seconds_MRE, baseline=1) if many else [{}]
    found = map(latency if case.in_a_row > 1 else partial(rate, case.examples), timings.seconds_MRE)
    return [
        {"model": model.name} | case.shape | own | compared
        for model, own, compared in zip(models, found, faster, strict=True)
    ]


def latency(seconds_RE: np.ndarray) -> dict[str, float]:
    """p50, p90 and p99 of a model's calls in milliseconds, and how many calls there were."""
    values = np.percentile(1e3 * seconds_RE, PERCENTILES).tolist()
    return {f"p{q}_ms": value for q, value in zip(PERCENTILES, values, strict=True)} | {"calls": seconds_RE.size}


def rate(examples: int, seconds_RE: np.ndarray) -> dict[str, float]:
    """Examples a second, of a model's median call and of its best."""
    median, best = float(np.median(seconds_RE)), float(seconds_RE.min())
    return {"examples_per_second": examples / median, "best_per_second": examples / best, "calls": seconds_RE.size}


def speedups(seconds_MRE: np.ndarray, baseline: int) -> list[dict[str, float]]:
    """For each model how many times as fast as the baseline it was: the median over the rounds, in each of which both
    had a turn, and the 10th and 90th percentile of them, which show how much the machine was at rest."""
    turns_MR = np.median(seconds_MRE, axis=2)
    found_M3 = np.percentile(turns_MR[baseline] / turns_MR, (50, 10, 90), axis=1).T
    return [dict(zip(("speedup", "low", "high"), row, strict=True)) for row in found_M3.tolist()]
