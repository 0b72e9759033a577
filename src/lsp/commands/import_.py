"""`lsp import`: a published checkpoint as a run."""

from pathlib import Path
from typing import Any

from lsp import checkpoint, directory
from lsp.deploy import huggingface


def run(start: Path, out: Path, overwrite: bool, progress: Any) -> dict[str, Any]:
    """Writes the encoder or classifier in `start` to `out` and returns its result."""
    inputs = {"from": huggingface.digest(start)}
    with directory.claim(out, command="import", recipe="", inputs=inputs, overwrite=overwrite) as held:
        if held.complete:
            return held.result()
        taken = huggingface.read(start)
        if remark := taken.remark():
            progress.warn(remark)
        return checkpoint.finish(
            held,
            taken.model,
            stage="import",
            step=0,
            metrics={},
            parents=[inputs["from"]],
            result={"head": taken.model.config.head, "labels": list(taken.model.labels), "unused": taken.extra},
        )
