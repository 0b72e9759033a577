"""The `README.md` of an exported model: what is known of it, and nothing else."""

import json
from typing import Any

COMPRESS = ("quantize", "prune", "distill", "search")
TRAINING = ("pretrain", "finetune", "distill", "prune")  # stages whose steps are their own
TASKS = {"words": "fill-mask", "classes": "text-classification", "pooler": "feature-extraction"}


def card(manifest: dict[str, Any], name: str, library: str = "transformers", floats: bool = False) -> str:
    """Metadata as YAML that model hubs read, then the same for people. Licence, languages and data are for the one who
    publishes it to say. `library` is what loads the model; `floats` says that weights were written as float32, whatever
    was done to them."""
    head = manifest["model"]["head"]
    about = {
        "library_name": library,
        # Of an encoder transformers has words to guess, and the other formats hidden states.
        "pipeline_tag": TASKS.get(head if library == "transformers" or head == "classes" else "", "feature-extraction"),
        "tags": ["lsp", manifest["model"]["preset"]],
    }
    # JSON is YAML, and quotes what needs quoting.
    lines = ["---", *(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in about.items()), "---", ""]
    stage = manifest["stage"]
    command = f"compress {stage}" if stage in COMPRESS else stage
    steps = f" in {manifest['step']:,} steps" if stage in TRAINING and manifest["step"] else ""
    lines += [f"# {name}", "", f"Made by `lsp {command}`{steps}, and exported by lsp."]
    if manifest["compression"]:
        lines += ["", "Compressed on the way: " + ", then ".join(map(_applied, manifest["compression"])) + "."]
        lines[-1] += " The weights in this folder are float32." if floats else ""
    if manifest["labels"]:
        lines += ["", "Labels: " + ", ".join(f"`{label}`" for label in manifest["labels"]) + "."]
    if manifest["metrics"]:
        lines += ["", "| metric | held-out examples |", "|---|---:|"]
        lines += [f"| {metric} | {value:.4g} |" for metric, value in manifest["metrics"].items()]
    lines += ["", f"It was made from `{manifest['self']}` (the identity that `lsp inspect` shows)."]
    return "\n".join(lines) + "\n"


def _applied(stage: dict[str, Any]) -> str:
    """A stage of compression and what it is known by: `quantize (bits 8, method static)`."""
    single = {key: value for key, value in stage.items() if key != "stage" and isinstance(value, int | float | str)}
    known = [f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}" for key, value in single.items()]
    return stage["stage"] + (f" ({', '.join(known)})" if known else "")
