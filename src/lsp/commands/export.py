"""`lsp export`: a run as files for other software, compared with the run before they count."""

import json
from pathlib import Path
from typing import Any

from lsp import checkpoint, directory
from lsp.deploy import huggingface, onnx
from lsp.deploy.card import card

README = "README.md"


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
        model = checkpoint.Model(base.config, base.params, base.tokenizer, base.labels)
        found: dict[str, Any] = {}
        if kind == "onnx":
            files = onnx.write(model, out, runtime)
            found = {"runtime": runtime, "check": onnx.check(model, out)}
            readme = card(base.manifest, start.name, "onnx") + onnx.usage(model.config)
        else:
            if base.manifest["compression"]:
                progress.warn("what was compressed is written as float32: that format holds nothing smaller")
            files = huggingface.write(model, out)
            readme = card(base.manifest, start.name)
        directory.write_atomically(out / README, readme)
        files.append(README)
        size = {"parameters": base.size()["parameters"], "bytes": sum((out / name).stat().st_size for name in files)}
        result = {"command": "export", "out": str(out), "status": "complete", "format": kind, "files": files}
        result |= found | size
        directory.write_atomically(out / "result.json", json.dumps(result, indent=1, ensure_ascii=False) + "\n")
        about = {"stage": "export", "step": base.manifest["step"], "parents": [inputs["from"]], **found}
        directory.seal(out, about)
        return result
