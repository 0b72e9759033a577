"""`lsp bench`: latency and throughput of a run on this machine, beside its float32 self or other runs, and what takes
its bytes."""

import itertools
import os
import random
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from lsp import Exit, LspError, chart, checkpoint, console, curves, directory, manifest, processor, timing
from lsp.data import tasks
from lsp.data.examples import Examples
from lsp.deploy import bench, exported, faster
from lsp.model import int8
from lsp.model.weightonly import dequantize
from lsp.train import labelled

ROWS = 10  # of the drawing in a terminal
TABLES = ("latency", "throughput", "texts")
READ = 100_000  # rows of a file among which texts are drawn
BUSY = 0.25  # of the processors, by the load average: other programs are felt


class Texts(NamedTuple):
    """A file whose texts are answered as they are, or None for random ones of usual lengths."""

    file: Path | None = None
    columns: labelled.Columns = ((), "")


class Report(NamedTuple):
    """What `--json` prints, what of it is enough for a person, and for stderr a chart and tables as lines."""

    result: dict[str, Any]
    summary: dict[str, Any]
    lines: list[str]


def run(
    runs: Sequence[Path], texts: Texts, shapes: bench.Shapes, limits: timing.Limits, plot: Path | None, progress: Any
) -> Report:
    """The first run, measured in turns with the others and, if it is int8, with its float32 self.

    What all are compared with is the first of the others, or where there is none the float32 self.
    """
    if plot is not None:
        manifest.unsealed(plot, "--plot")
    machine = _machine()
    load, threads = machine["load_averages"][0], machine["threads"]
    if load > BUSY * threads:
        progress.warn(
            f"this machine is busy, or just was (load average {load:.1f}, {threads} processors): believe what is "
            "compared here, and no time by itself"
        )
    models = _models(list({path.resolve(): path for path in runs}.values()), progress)
    most = min(model.max_length for model in models)
    for length in shapes.lengths:
        if length > most:
            progress.say(f"--length {length}: {most} tokens are the most that are read here, and are timed instead")
    examples, texts_from = _examples(models, texts)
    cases = bench.cases(models, shapes, examples)
    tables, compiling = _measured(models, cases, limits, progress)
    result = {
        "command": "bench",
        "run": str(runs[0]),
        "status": "complete",
        **machine,
        "baseline": models[1].name if len(models) > 1 else None,
        "texts_from": texts_from,
        "models": [_size(model) | {"compile_seconds": own} for model, own in zip(models, compiling, strict=True)],
        **tables,
        "parts": [{"model": model.name} | part._asdict() for model in models for part in model.size],
    }
    drawing = _drawing(models, tables["latency"])
    if plot is not None:
        from lsp import picture

        directory.write_atomically(plot, picture.draw(drawing, plot.suffix[1:].lower()))
        result["plot"] = str(plot)
    return Report(result, _summary(result), _lines(result, drawing))


def _measured(
    models: Sequence[bench.Timed], cases: dict[str, list[bench.Case]], limits: timing.Limits, progress: Any
) -> tuple[dict[str, list[dict[str, Any]]], list[float]]:
    """A table for each kind of case, and what compiling took, model by model."""
    tables: dict[str, list[dict[str, Any]]] = {name: [] for name in cases}
    compiling = [0.0] * len(models)
    with progress.task("measuring", sum(map(len, cases.values()))) as task:
        for done, (name, case) in enumerate(((name, case) for name, some in cases.items() for case in some), 1):
            timings = bench.measure(case, limits)
            tables[name] += bench.described(models, case, timings)
            compiling = [sum(pair) for pair in zip(compiling, timings.compile_seconds, strict=True)]
            task.update(done)
    return tables, compiling


def _machine() -> dict[str, Any]:
    """Where this is measured."""
    device = jax.devices()[0]
    return {
        "device": f"{device.platform} ({device.device_kind})",
        "processor": processor.name(),
        "threads": processor.count(),
        "load_averages": os.getloadavg(),  # of 1, 5 and 15 minutes, before anything is measured
    }


def _models(runs: Sequence[Path], progress: Any) -> list[bench.Timed]:
    """Runs and exports by the names of their folders, and the float32 self of the first; on a GPU the one in bfloat16
    too."""
    models: list[bench.Timed] = []
    own: list[bench.Timed] = []
    for path, name in zip(runs, curves.names(runs), strict=True):
        progress.say(f"opening {path}")
        name = console.safe(name)
        if exported.holds(path):
            models.append(bench.of_export(exported.open(path), name))
            continue
        base = checkpoint.open(path)
        models.append(bench.of_run(base, name))
        if path == runs[0] and int8.present(base.params):
            own = [bench.of_params(base, dequantize(base.params), f"{name} in float32")]
            if faster.applies(base.params):
                own.append(bench.of_params(base, faster.in_bfloat16(base.params), f"{name} in bfloat16"))
    return [*models, *own]


def _examples(models: Sequence[bench.Timed], texts: Texts) -> tuple[list[Examples], str]:
    """The texts as tokens of each model, and where they come from. Raises LspError (exit 3)."""
    if texts.file is None:
        return [bench.drawn(model) for model in models], bench.DRAWN
    found = tasks.stream(str(texts.file), texts.columns[0], models[0].columns)
    rows = [row for row, _ in itertools.islice(found, READ)]
    if not rows:
        raise LspError(f"{texts.file} holds no texts.", hint="Give a file with a text in each row.", code=Exit.DATA)
    chosen = random.Random(0).sample(rows, min(bench.TEXTS, len(rows)))
    table = tasks.Table(chosen, [], ())
    examples = [Examples(table, model.tokenizer, model.max_length) for model in models]
    return examples, f"{len(chosen)} of {texts.file}, {examples[0].lengths.mean():.0f} tokens each on average"


def _size(model: bench.Timed) -> dict[str, Any]:
    """Parameters and bytes; none of a model that is not on disk."""
    if not model.size:
        return {"model": model.name, "parameters": None, "bytes": None}
    parameters, size = (sum(getattr(part, name) for part in model.size) for name in ("parameters", "bytes"))
    return {"model": model.name, "parameters": parameters, "bytes": size}


def _drawing(models: Sequence[bench.Timed], latency: Sequence[dict[str, Any]]) -> chart.Chart:
    """Latency over length, a line for each model."""
    lines = [
        curves.Curve(model.name, [(row["tokens"], row["p50_ms"]) for row in latency if row["model"] == model.name], [])
        for model in models
    ]
    return chart.Chart(lines, "milliseconds for one text (p50)", "tokens", 1, log=False)


def _summary(result: dict[str, Any]) -> dict[str, Any]:
    """For stdout: the first run alone, under the names of the result."""
    model = result["models"][0]
    tables = {name: [row for row in result[name] if row["model"] == model["model"]] for name in TABLES}
    latency = {f"{row['tokens']}_tokens": row for row in tables["latency"]}
    rates = {f"{row['batch']}_x_{row['tokens']}_tokens": row for row in tables["throughput"]}
    rates["texts"] = tables["texts"][0]
    found = {"run": result["run"], "parameters": model["parameters"], "bytes": model["bytes"]}
    found["p50_ms"] = {shape: row["p50_ms"] for shape, row in latency.items()}
    found["examples_per_second"] = {shape: row["examples_per_second"] for shape, row in rates.items()}
    if result["baseline"]:
        found["baseline"] = result["baseline"]
        found["speedup"] = {shape: row["speedup"] for shape, row in (latency | rates).items()}
    return found


def _lines(result: dict[str, Any], drawing: chart.Chart) -> list[str]:
    """For stderr: the chart, and every table."""
    columns = max(40, min(shutil.get_terminal_size().columns, 100))
    drawn = len({row["tokens"] for row in result["latency"]}) > 1  # a single point is no curve
    lines = chart.draw(drawing, columns, ROWS, console.colour(sys.stderr)) if drawn else []
    for name in ("models", "parts", *TABLES):
        lines += [
            "",
            f"{name}:" if name != "texts" else f"texts ({result['texts_from']}):",
            *console.table(result[name]),
        ]
    return lines
