"""`lsp replay`: a refused step again, as it was and in fp32, and where in the model it goes wrong."""

import dataclasses
import math
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lsp import recipe as recipes
from lsp.model.encoder import graphdef
from lsp.train import blackbox
from lsp.train import mesh as meshes
from lsp.train.blackbox import Box
from lsp.train.compiled import build, policies
from lsp.train.metrics import value
from lsp.train.objectives import Objective
from lsp.train.step import Signals, begin, key_at, raw_key

WORST = 5  # texts that are shown


def run(place: Path, progress: Any) -> dict[str, Any]:
    """What the step of the black box at `place` does. Raises LspError: 4 for a box that is none, 2 for a distillation.

    `exact` says whether loss and gradient norm are those of the run, bit for bit; on other devices they may not be.
    """
    box = blackbox.read(place)
    facts, objective = box.facts, Objective(blackbox.REPLAYED[box.facts["objective"]])
    devices = jax.devices()[: facts["devices"]]
    alike = len(devices) == facts["devices"]
    mesh = meshes.make(box.mesh if alike else recipes.Mesh(), devices if alike else devices[:1])
    recorded = {name: float(facts[name]) for name in ("loss", "gradient_norm")}
    with jax.set_mesh(mesh):
        progress.say(f"step {facts['step']} again, in {box.train.precision}")
        again = plain = _step(box, objective, mesh, box.train)
        if box.train.precision != "fp32":
            progress.say("and in fp32")
            plain = _step(box, objective, mesh, dataclasses.replace(box.train, precision="fp32"))
        progress.say("part by part, in fp32")
        gradients, outputs, losses = jax.device_get(_parts(box, objective))
    names = blackbox.parts(box.params)
    layers: list[dict[str, Any]] = [
        {"part": name, "parameter_norm": float(p), "gradient_norm": float(g)}
        for name, p, g in zip(names, blackbox.norms(box.params), gradients, strict=True)
    ]
    for row, rms in zip(layers, outputs, strict=False):  # the embeddings and the layers come first
        row["output_rms"] = float(rms)
    order = np.argsort(-np.where(np.isnan(losses), np.inf, losses), kind="stable")[:WORST]
    rows, texts = facts["rows"] or range(len(losses)), blackbox.texts(box)
    return {
        "command": "replay",
        "box": str(place),
        "step": facts["step"],
        "precision": box.train.precision,
        "recorded": recorded,
        "replayed": again,
        "exact": all(np.array_equal(again[n], recorded[n], equal_nan=True) for n in recorded),
        "fp32": plain,
        "fp32_diverges": not all(map(math.isfinite, plain.values())),
        "first_output_not_finite": next((r["part"] for r in layers if not math.isfinite(r.get("output_rms", 0))), None),
        "first_gradient_not_finite": next(
            (r["part"] for r in reversed(layers) if not math.isfinite(r["gradient_norm"])), None
        ),
        "layers": layers,
        "texts": [{"row": rows[i], "loss": float(losses[i]), "text": texts[i]} for i in order.tolist()],
    }


def _step(box: Box, objective: Objective, mesh: Any, train: recipes.Train) -> dict[str, float]:
    """Loss and gradient norm of the step that training makes; its update is thrown away."""
    remat = policies(train.remat)[0]
    update, step = build(box.config, objective, train, recipes.Replicas(), mesh, remat)
    index = box.facts["step"] - 1
    start = partial(begin, update, key=raw_key(train.seed), step=index)
    places = meshes.place(jax.eval_shape(start, box.params), mesh)
    state = jax.jit(start, out_shardings=places)(meshes.spread(box.params, places.params))
    signals = meshes.each(Signals(0.0), mesh)
    _, metrics = step(state, None, meshes.send(box.batch, mesh), np.int32(index), signals)
    return {"loss": value(jax.device_get(metrics["loss"])), "gradient_norm": float(metrics["gradient_norm"])}


def _parts(box: Box, objective: Objective) -> Any:
    """In fp32: gradient norms by part; root mean squares of the embeddings' and each layer's output; loss of each row,
    without dropout."""

    def loss(params: Any, batch: Any, key: Any) -> tuple[jax.Array, list[jax.Array]]:
        model = nnx.merge(graphdef(box.config), params)
        seen: list[jax.Array] = []

        def watched(layer: Any) -> Any:
            def call(x: jax.Array, *others: Any) -> jax.Array:
                y = layer(x, *others)
                seen.extend([x, y] if not seen else [y])
                return y

            return call

        object.__setattr__(model, "layers", list(map(watched, model.layers)))
        mean, _ = objective.loss(model, None, batch, key)
        return mean.total / jnp.maximum(mean.count, 1.0), [jnp.sqrt(jnp.mean(jnp.square(x))) for x in seen]

    @jax.jit
    def all_parts(params: Any, batch: Any) -> Any:
        key = key_at(raw_key(box.train.seed), jnp.int32(box.facts["step"] - 1))
        gradients, outputs = jax.grad(loss, has_aux=True)(params, batch, key)
        rows = jax.lax.map(
            lambda row: loss(params, jax.tree.map(lambda x: x[None], row), None)[0],
            batch,
        )
        return blackbox.norms(gradients), outputs, rows

    return all_parts(box.params, box.batch)
