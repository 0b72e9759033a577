"""The `README.md` of an exported model: what is known of it, and nothing else."""

import json
from typing import Any

TASKS = {"words": "fill-mask", "classes": "text-classification", "pooler": "feature-extraction"}


def card(manifest: dict[str, Any], name: str, library: str = "transformers") -> str:
    """Metadata as YAML that model hubs read, then the same for people. Licence, languages and data are for the one who
    publishes it to say. `library` is what loads the model."""
    head = manifest["model"]["head"]
    about = {
        "library_name": library,
        # Of an encoder transformers has words to guess, and the other formats hidden states.
        "pipeline_tag": TASKS.get(head if library == "transformers" or head == "classes" else "", "feature-extraction"),
        "tags": ["lsp", manifest["model"]["preset"]],
    }
    # JSON is YAML, and quotes what needs quoting.
    lines = ["---", *(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in about.items()), "---", ""]
    lines += [f"# {name}", "", f"Made by `lsp {manifest['stage']}` in {manifest['step']:,} steps, and exported by lsp."]
    if manifest["labels"]:
        lines += ["", "Labels: " + ", ".join(f"`{label}`" for label in manifest["labels"]) + "."]
    if manifest["metrics"]:
        lines += ["", "| metric | held-out examples |", "|---|---:|"]
        lines += [f"| {metric} | {value:.4g} |" for metric, value in manifest["metrics"].items()]
    lines += ["", f"It was made from `{manifest['self']}` (the identity that `lsp inspect` shows)."]
    return "\n".join(lines) + "\n"
