"""The black box: what is kept of a refused step, enough to do it again exactly (`lsp replay`).

    RUN/blackbox/00001234/box.json    what was trained and how, what went wrong, and the texts
    RUN/blackbox/00001234/arrays.npz  the batch, and the parameters that the step began with

The state is still in memory when the host hears of a refused step, so nothing is kept for it while all goes well. A box
is as large as the parameters; the newest three stay. A loss that reads more than a box can hold, a teacher say, has
no arrays there.
"""

import dataclasses
import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from lsp import Exit, LspError, __version__, manifest
from lsp import recipe as recipes
from lsp.model.config import ModelConfig
from lsp.model.encoder import shapes
from lsp.train import mesh as meshes
from lsp.train import processes
from lsp.train.objectives import LABELS, Loss, masked_lm, masked_lm_of_pairs
from lsp.train.watch import Refused

if TYPE_CHECKING:
    from lsp.train.loop import Plan

FORMAT = 1
KEEP = 3
# The losses that read nothing but the model and the batch, by their names in a box.
REPLAYED: dict[str, Loss] = {loss.__name__: loss for loss in (masked_lm, masked_lm_of_pairs, *LABELS.values())}


@dataclass(frozen=True)
class Box:
    """A box that was read: `facts` is box.json, the rest what a replay needs."""

    facts: dict[str, Any]
    config: ModelConfig
    params: Any
    batch: dict[str, np.ndarray]
    train: recipes.Train
    mesh: recipes.Mesh


def write(run: Path, refused: Refused, params: Any, plan: "Plan", warn: Callable[[str], None]) -> str:
    """Keeps a refused step in `run`/blackbox; the command that replays it, or where its loss reads more than a box
    holds, what it trained on; nothing where the disk did not take it.

    `params` are those that the step began with. All processes come here, and the first one writes.
    """
    host, replays = meshes.gathered(params), plan.objective.loss.__name__ in REPLAYED
    place = run / "blackbox" / f"{refused.step + 1:08d}"
    if processes.first():
        try:
            _write(place, refused, host, plan, replays)
        except OSError as error:
            warn(f"the black box of step {refused.step + 1} could not be written: {error}")
            return ""
    return f"Replay it: lsp replay {place}" if replays else f"What it read is in {place / 'box.json'}."


def _write(place: Path, refused: Refused, params: Any, plan: "Plan", replays: bool) -> None:
    work = place.with_name("tmp")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    if replays:
        arrays: dict[str, Any] = {f"batch/{name}": array for name, array in refused.batch.items()}
        np.savez(work / "arrays.npz", **arrays, **{f"params/{name}": leaf for name, leaf in _named(params).items()})
    facts = {
        "format": FORMAT,
        "lsp": __version__,
        "step": refused.step + 1,
        "loss": _number(refused.loss),
        "gradient_norm": _number(refused.norm),
        "parameter_norms": dict(zip(parts(params), map(_number, norms(params)), strict=True)),
        "objective": plan.objective.loss.__name__,
        "model": plan.config.to_dict(),
        "train": dataclasses.asdict(plan.train),
        "mesh": dataclasses.asdict(plan.mesh),
        "devices": jax.device_count(),
        "rows": np.asarray(plan.rows(refused.step)).tolist() if plan.rows else None,
        "texts": [plan.decode(row) for row in original(refused.batch).tolist()] if plan.decode else None,
        "sha256": manifest.sha256(work / "arrays.npz") if replays else None,
    }
    # Everything that is not ASCII is escaped: these texts are what a trainer stumbled over.
    (work / "box.json").write_text(json.dumps(facts, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    shutil.rmtree(place, ignore_errors=True)
    work.rename(place)
    for old in sorted(place.parent.glob("[0-9]*"))[:-KEEP]:
        shutil.rmtree(old)


def read(place: Path) -> Box:
    """The box at `place`. Nothing in it is believed that does not fit together. Raises LspError: exit 4, or 2 where the
    loss reads more than a box holds."""
    try:
        facts = json.loads((place / "box.json").read_bytes())
        if facts["format"] > FORMAT:
            raise manifest.from_the_future(place / "box.json")
        if facts["objective"] not in REPLAYED:
            raise LspError(
                f"The loss of {place} is {facts['objective']!r}, which needs more than a box holds: a teacher, or "
                "[adapt].",
                hint="Its texts are in box.json.",
            )
        if facts["sha256"] != manifest.sha256(place / "arrays.npz"):
            raise ValueError
        config = ModelConfig.from_dict(facts["model"])
        train, mesh = recipes.Train(**facts["train"]), recipes.Mesh(**facts["mesh"])
        with np.load(place / "arrays.npz", allow_pickle=False) as arrays:
            batch = {name.removeprefix("batch/"): arrays[name] for name in arrays if name.startswith("batch/")}
            found = {name.removeprefix("params/"): arrays[name] for name in arrays if name.startswith("params/")}
        wanted = shapes(config)
        named = _named(wanted)
        whole = {n: a.shape for n, a in found.items()} == {n: s.shape for n, s in named.items()}
    except FileNotFoundError:
        hint = "A run that stumbles writes RUN/blackbox/STEP and prints its name."
        raise LspError(f"{place} is not a black box: it has no box.json.", hint=hint, code=Exit.ARTIFACT) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise manifest.damaged(place, "its files do not fit together")
    params = jax.tree.unflatten(jax.tree.structure(wanted), [found[name] for name in named])
    return Box(facts, config, params, batch, train, mesh)


def parts(params: Any) -> list[str]:
    """The parts of a model by name, from the input to the output: `embeddings`, `layers.0`, …, `norm`, `words`."""
    names = [name for name in params if name != "layers"]
    layers = [f"layers.{index}" for index in params.get("layers", {})]
    return [*(n for n in names if n == "embeddings"), *layers, *(n for n in names if n != "embeddings")]


def norms(tree: Any) -> jax.Array:
    """The norm of each of `parts`, fp32 [parts]."""

    def norm(name: str) -> jax.Array:
        squares = [jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(_part(tree, name))]
        return jnp.sqrt(jnp.stack(squares).sum()).astype(jnp.float32)

    return jnp.stack([norm(name) for name in parts(tree)])


def _part(tree: Any, name: str) -> Any:
    kind, _, index = name.partition(".")
    return tree[kind][int(index)] if index else tree[kind]


def original(batch: dict[str, np.ndarray]) -> np.ndarray:
    """The tokens of a batch [B, T] as they were before any was hidden."""
    tokens = batch["tokens"].copy()
    if "slots" in batch:
        rows, columns = np.nonzero(batch["weights"])
        tokens[rows, batch["slots"][rows, columns]] = batch["targets"][rows, columns]
    return tokens


def _named(params: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    return {"/".join(str(part.key) for part in path): leaf for path, leaf in leaves}


def _number(value: Any) -> float | str:
    """A float as JSON has it; one that is not finite as text, which `float` reads."""
    return float(value) if math.isfinite(value) else str(float(value))


def texts(box: Box) -> Sequence[str]:
    return box.facts["texts"] or [""] * len(box.batch["tokens"])
