"""`lsp verify`: read and hash everything in a run, its resumable steps too."""

from pathlib import Path
from typing import Any

from lsp import Exit, LspError, directory


def run(path: Path) -> dict[str, Any]:
    """What was checked. Raises LspError (exit 4) naming every damaged place; steps set aside are only listed."""
    path = Path(path)
    result: dict[str, Any] = {"command": "verify", "from": str(path), "status": "unfinished", "files": 0, "bytes": 0}
    steps: list[int] = []
    faults: list[str] = []
    places = sorted((path / "train").glob("[0-9]*")) if (path / "train").is_dir() else []
    aside = [place.name for place in places if ".damaged" in place.name]
    for place in (path, *(place for place in places if place.name.isdecimal())):
        if place == path and places and not (path / "manifest.json").exists():
            continue  # still training: its steps are what there is
        try:
            manifest = directory.read(place)
        except LspError as error:
            if error.code != Exit.ARTIFACT:
                raise
            faults.append(error.message)
            continue
        result["files"] += len(manifest["files"])
        result["bytes"] += sum(entry["size"] for entry in manifest["files"].values())
        if place == path:
            result |= {"status": "whole", "stage": manifest["stage"], "identity": directory.identity(manifest)}
        else:
            steps.append(manifest["step"])
    if faults:
        hint = "Run the command that made it again: it uses an older step, or takes --overwrite to start over."
        if not places and not any((path / name).exists() for name in ("run.json", "manifest.json")):
            hint = "Give the --out of a command."
        raise LspError(" ".join(faults), hint=hint, code=Exit.ARTIFACT)
    return result | {"steps": steps, "set_aside": aside}
