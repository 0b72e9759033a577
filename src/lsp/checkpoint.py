"""A finished model on disk: opened when every byte is confirmed, sealed when every byte is written."""

import importlib.metadata
import json
import platform
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax

from lsp import Exit, LspError, directory
from lsp.arrays import Tree, count, load_params, save_params
from lsp.manifest import bytes_under
from lsp.model.config import HeadKind, ModelConfig
from lsp.model.encoder import shapes
from lsp.model.weightonly import any_quantized, is_quantized

if TYPE_CHECKING:
    from lsp.data.tokenizer import Tokenizer


@dataclass(frozen=True)
class Checkpoint:
    """A finished model: NumPy parameters (and Int8 and WeightOnly of NumPy), and everything needed to use them."""

    path: Path
    manifest: dict[str, Any]
    config: ModelConfig
    params: Tree
    tokenizer: "Tokenizer"
    labels: tuple[str, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """What the columns of the texts that a classifier was trained on are called; nothing where nobody knows."""
        return tuple(self.manifest.get("task", {}).get("columns", ()))

    @property
    def model(self) -> "Model":
        """What a stage begins with, to `_replace` what it makes another."""
        return Model(self.config, self.params, self.tokenizer, self.labels, self.columns)

    def size(self) -> dict[str, int]:
        """Bytes needed to use the model (params/ and tokenizer/) and its parameters."""
        return {"parameters": count(self.params), "bytes": _used(self.path)}

    def expect(self, *heads: HeadKind) -> "Checkpoint":
        """Itself, if its model has one of these heads. Raises LspError (exit 2)."""
        if self.config.head not in heads:
            words = dict.fromkeys(("pooler", "none"), "an encoder without a head")
            words |= {"words": "an encoder with a masked-word head", "classes": "a classifier"}
            hints = {"words": "Give the --out of lsp pretrain.", "classes": "Make one of it first: lsp finetune."}
            raise LspError(f"{self.path} is {words[self.config.head]}, not {words[heads[0]]}.", hint=hints[heads[0]])
        return self


def open(path: Path, verify: bool = True) -> Checkpoint:
    """The finished model at `path`. Raises LspError (exit 4) if it is none, is damaged, or has another's tokenizer."""
    from lsp.data.tokenizer import Tokenizer

    path = Path(path)
    manifest = directory.read(path, verify)
    if "model" not in manifest:
        hint = "Give the --out of pretrain, finetune or compress; prepared data goes to lsp pretrain --data."
        if manifest.get("stage") == "export":
            takes = f", or take it in: lsp import {path} --out RUN" if (path / "model.safetensors").exists() else ""
            hint = f"Give the run it was made from{takes}."
        raise LspError(
            f"{path} holds no model of lsp's: `{manifest.get('stage')}` made it.",
            hint=hint,
            code=Exit.ARTIFACT,
        )
    config = ModelConfig.from_dict(manifest["model"])
    tokenizer = Tokenizer.load(path / "tokenizer")
    if tokenizer.hash != manifest.get("tokenizer") or tokenizer.size > config.vocab_size:
        raise LspError(
            f"The tokenizer in {path} ({tokenizer.size} pieces, {tokenizer.hash[:8]}) does not belong to its model "
            f"({config.vocab_size} pieces, {str(manifest.get('tokenizer'))[:8]}).",
            hint="Put back the tokenizer/ it was trained with, or run the stage again with --overwrite.",
            code=Exit.ARTIFACT,
        )
    params = load_params(path / "params")
    _refuse_misfit(path, params, config)
    return Checkpoint(path, manifest, config, params, tokenizer, tuple(manifest.get("labels", ())))


def _refuse_misfit(path: Path, params: Tree, config: ModelConfig) -> None:
    """Raises LspError (exit 4) unless the parameters are those that a model of this config has."""
    found, expected = (
        {jax.tree_util.keystr(place, simple=True, separator="."): leaf.shape for place, leaf in leaves}
        for leaves in (
            jax.tree_util.tree_leaves_with_path(params, is_leaf=is_quantized),
            jax.tree_util.tree_leaves_with_path(shapes(config)),
        )
    )
    if found != expected:
        names = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
        name = names[0]
        raise LspError(
            f"The parameters in {path} are not those of its model: {name} is {found.get(name, 'missing')} and should "
            f"be {expected.get(name, 'left out')}; {len(names)} differ.",
            hint="Use the version of lsp that wrote it, or run the stage again with --overwrite.",
            code=Exit.ARTIFACT,
        )


class Model(NamedTuple):
    """What a stage has made: parameters, and what is needed to use them."""

    config: ModelConfig
    params: Tree
    tokenizer: "Tokenizer"
    labels: Sequence[str] = ()
    columns: tuple[str, ...] = ()  # what the columns of its texts are called


def finish(
    run: directory.Run,
    model: Model | Checkpoint,
    *,
    stage: str,
    step: int,
    metrics: dict[str, Any],
    result: dict[str, Any],
    compression: Sequence[dict[str, Any]] = (),
    parents: Sequence[str] = (),
) -> dict[str, Any]:
    """Writes the finished model, seals the run and removes its steps. Returns what `--json` prints. A model that is a
    run already, a `Checkpoint`, is copied byte for byte.

    That is command, out, status, step and metrics, then `result`, then parameters and bytes.
    Killed anywhere, the run is either still to be continued from its steps, or complete.
    """
    if isinstance(model, Checkpoint):
        for name in ("params", "tokenizer"):
            _copy(model.path / name, run.path / name)
        layout = model.manifest["format"]
    else:
        layout = save_params(run.path / "params", model.params)
        model.tokenizer.save(run.path / "tokenizer")
    size = {"parameters": count(model.params), "bytes": _used(run.path)}
    if "after" in result:  # a compress stage compares itself with what it came from
        result = result | {"after": size | result["after"]}
    first = {"command": run.command, "out": str(run.path), "status": "complete", "step": step, "metrics": metrics}
    result = {**first, **result, **size}
    directory.write_atomically(run.path / "result.json", json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    manifest = {
        "format": layout,
        "stage": stage,
        "model": model.config.to_dict(),
        "task": {"columns": list(model.columns)} if model.columns else {},
        "labels": list(model.labels),
        "tokenizer": model.tokenizer.hash,
        "step": step,
        "metrics": metrics,
        # Training in floats leaves nothing of a teacher's int8, or of a start's.
        "compression": [each for each in compression if each["stage"] != "quantize" or any_quantized(model.params)],
        "parents": list(parents),
        "versions": _versions(),
    }
    directory.seal(run.path, manifest)
    shutil.rmtree(run.path / "train", ignore_errors=True)
    return result


def _copy(folder: Path, to: Path) -> None:
    """The files of a folder in another, which is made anew. `shutil.copytree` would hide why it can't."""
    shutil.rmtree(to, ignore_errors=True)
    for path in folder.rglob("*"):
        if path.is_file():
            (to / path.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, to / path.relative_to(folder))


def _used(path: Path) -> int:
    return bytes_under(path / "params") + bytes_under(path / "tokenizer")


def _versions() -> dict[str, str]:
    packages = ("lsp", "jax", "flax", "optax", "orbax-checkpoint", "numpy")
    found = {distribution.name: distribution.version for distribution in importlib.metadata.distributions()}
    return {"python": platform.python_version()} | {name: found[name] for name in packages if name in found}
