"""`lsp inspect`: what a run holds, what it can do and what it was made from, without loading an array."""

import json
from pathlib import Path
from typing import Any

from lsp import Exit, LspError, directory


def run(path: Path) -> dict[str, Any]:
    """A summary of the manifest and of result.json. The files' sizes are compared, their bytes are not read."""
    manifest = directory.read(path, verify=False)
    try:
        result = json.loads((path / "result.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        hint = f"lsp verify {path} says which files have changed."
        raise LspError(f"{path}/result.json can't be read: {error}.", hint=hint, code=Exit.ARTIFACT) from None
    summary: dict[str, Any] = {
        "command": "inspect",
        "out": str(path),
        "stage": manifest["stage"],
        "identity": directory.identity(manifest),
        "parents": manifest.get("parents", []),
        "step": manifest.get("step"),
        "parameters": result.get("parameters"),
        "bytes": result.get("bytes"),
        "parts": [{"part": part, "bytes": count} for part, count in sizes(manifest["files"]).items()],
        "metrics": manifest.get("metrics", {}),
        "labels": manifest.get("labels", []),
        "compression": manifest.get("compression", []),
        "tokenizer": manifest.get("tokenizer"),
        "versions": manifest.get("versions", {}),
    }
    if "model" in manifest:
        summary |= {"model": _shape(manifest["model"]), "layers": manifest["model"]["layers"]}
    return {name: value for name, value in summary.items() if value not in (None, [], {})}


def sizes(files: dict[str, Any]) -> dict[str, int]:
    """Bytes by the first part of the path, the largest first."""
    parts: dict[str, int] = {}
    for name, entry in files.items():
        part = name.partition("/")[0]
        parts[part] = parts.get(part, 0) + entry["size"]
    return dict(sorted(parts.items(), key=lambda item: -item[1]))


def _shape(model: dict[str, Any]) -> dict[str, Any]:
    """The model's settings; its layers, which may all differ, are shown below as a table."""
    return {name: value for name, value in model.items() if name != "layers"}
