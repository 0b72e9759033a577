"""`lsp export`: a run as files for other software, compared with the run before they count."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lsp import checkpoint, directory
from lsp.compress.prune import pruned
from lsp.deploy import huggingface, onnx, parity, stablehlo
from lsp.deploy.card import card
from lsp.model.weightonly import any_quantized, any_weight_only

README = "README.md"
Made = tuple[list[str], dict[str, Any]]  # the names of the files, and what a comparison with the run found


def run(
    start: Path, out: Path, kind: str, overwrite: bool, progress: Any, runtime: onnx.Runtime = "any"
) -> dict[str, Any]:
    """Writes the model of `start` to `out` in the format `kind`, for a `runtime` of ONNX, and returns its result."""
    inputs = {"from": directory.identity(directory.read(start)), "format": kind}
    if kind == "onnx":
        inputs["runtime"] = runtime
    with directory.claim(out, command="export", recipe="", inputs=inputs, overwrite=overwrite) as held:
        if held.complete:
            return held.result()
        base = checkpoint.open(start)
        if kind == "onnx":
            files, compared = _to_onnx(base, out, progress, runtime)
        else:
            files, compared = (_to_stablehlo if kind == "stablehlo" else _to_huggingface)(base, out, progress)
        size = {"parameters": base.size()["parameters"], "bytes": sum((out / name).stat().st_size for name in files)}
        result = {"command": "export", "out": str(out), "status": "complete", "format": kind, "files": files, **size}
        result |= {"compared": compared} if compared else {}
        directory.write_atomically(out / "result.json", json.dumps(result, indent=1, ensure_ascii=False) + "\n")
        manifest = {"stage": "export", "step": base.manifest["step"], "parents": [inputs["from"]]}
        if compared and base.config.head == "classes":  # what `lsp predict`, `evaluate` and `bench` open
            manifest |= {
                "exported": kind,
                "labels": list(base.labels),
                "columns": list(base.columns),
                "problem": base.config.problem,
                "max_length": base.config.max_length,
                "compared": compared,
            }
        directory.seal(out, manifest)
        return result


def _to_huggingface(base: checkpoint.Checkpoint, out: Path, progress: Any) -> Made:
    if floats := any_quantized(base.params) or pruned(base.manifest):
        progress.warn("what was compressed is written as float32: that format holds nothing smaller")
    files = [*huggingface.write(base.model, out), README]
    directory.write_atomically(out / README, card(base.manifest, base.path.name, floats=floats))
    return files, {}


def _to_onnx(base: checkpoint.Checkpoint, out: Path, progress: Any, runtime: onnx.Runtime) -> Made:
    files = [*onnx.write(base.model, out, runtime), README]
    about = card(base.manifest, base.path.name, "onnx", floats=any_weight_only(base.params))
    directory.write_atomically(out / README, about + onnx.usage(base.config))
    return files, {"runtime": runtime} | _compared(onnx.answerer, base.model, out, progress)


def _to_stablehlo(base: checkpoint.Checkpoint, out: Path, progress: Any) -> Made:
    files = stablehlo.write(base.model, out)
    return files, _compared(stablehlo.answerer, base.model, out, progress)


def _compared(
    opened: Callable[[Path], parity.Answer], model: checkpoint.Model, out: Path, progress: Any
) -> dict[str, Any]:
    progress.say("comparing it with the run")
    with parity.exact():
        compared = parity.compare(opened(out), model)
    parity.refuse(out, compared)
    return compared
