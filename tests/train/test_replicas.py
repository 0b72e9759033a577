"""Copies that train apart, against the same done by hand; in a process of its own for several devices."""

import json
import os
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lsp import LspError, recipe
from lsp.train import mesh as meshes
from lsp.train import replicas
from lsp.train.metrics import Mean
from lsp.train.step import Update

RATE = 0.1


def descend(params: Any, state: Any, frozen: Any, batch: Any, key: jax.Array, progress: jax.Array) -> Any:
    """Plain descent towards the mean of the batch's rows; the state counts."""
    gradient = params - batch["x"].mean(0)
    loss = Mean(jnp.square(gradient).sum(), jnp.float32(1))
    return params - RATE * gradient, state + 1, {"loss": loss}, optax.tree.norm(gradient)


def run(plan: recipe.Replicas, batches: np.ndarray) -> tuple[np.ndarray, Any]:
    mesh = meshes.make(recipe.Mesh(), replicas=plan.count)
    with jax.set_mesh(mesh):
        update = replicas.delayed(Update(lambda params: jnp.int32(0), descend), plan, mesh)
        params = jnp.zeros(batches.shape[-1])
        state = update.init(params)
        step = jax.jit(update.update)
        merged = []
        for batch in batches:
            params, state, *_ = step(params, state, None, {"x": batch}, jax.random.key(0), jnp.float32(0))
            merged.append(np.asarray(params))
    return np.stack(merged), state


def by_hand(plan: recipe.Replicas, batches: np.ndarray) -> np.ndarray:
    outer = np.zeros(batches.shape[-1])
    copies, speed, merged = np.tile(outer, (plan.count, 1)), np.zeros_like(outer), []
    for step, batch in enumerate(batches, 1):
        copies = copies - RATE * (copies - batch.reshape(plan.count, -1, batch.shape[-1]).mean(1))
        if step % plan.every == 0:
            away = outer - copies.mean(0)
            speed = plan.momentum * speed + away
            outer = outer - (plan.rate * (away + plan.momentum * speed) if plan.outer == "nesterov" else away)
            copies = np.tile(outer, (plan.count, 1))
        merged.append(outer)
    return np.stack(merged)


@pytest.mark.parametrize("outer", ["average", "nesterov"])
def test_copies_descend_apart_and_meet_as_by_hand(outer: str):
    plan = recipe.Replicas(4, 3, outer=outer)
    batches = np.random.default_rng(0).standard_normal((9, 8, 5)).astype(np.float32)
    found, state = run(plan, batches)
    np.testing.assert_allclose(found, by_hand(plan, batches), rtol=1e-5, atol=1e-6)
    assert state.local[1].tolist() == [9] * 4, "each copy has an inner state of its own"


def test_copies_send_a_share_of_what_gradients_would():
    # Four copies in a ring: of 100 fp32 values each passes on 600 bytes at a meeting, of which there are 3 in 61 steps.
    made = replicas.traffic(recipe.Replicas(4, 20), 61, 100)
    assert made == {"sent_bytes": 3 * 600, "synchronous_bytes": 61 * 600}


def test_clients_weigh_as_many_examples_as_they_have_and_leave_nothing_behind():
    plan = recipe.Replicas(2, 2, 0.5, "average")
    batches = np.random.default_rng(2).standard_normal((4, 4, 3)).astype(np.float32)
    examples = np.array([[3, 1], [3, 1], [1, 1], [1, 1]], np.float32)
    mesh = meshes.make(recipe.Mesh(), replicas=2)
    params, copies = jnp.zeros(3), np.zeros((2, 3))
    with jax.set_mesh(mesh):
        update = replicas.delayed(Update(lambda params: jnp.int32(0), descend), plan, mesh)
        state, step = update.init(params), jax.jit(update.update)
        for number, (batch, own) in enumerate(zip(batches, examples, strict=True), 1):
            data = {"x": batch, "examples": np.repeat(own, 2)}
            params, state, *_ = step(params, state, None, data, jax.random.key(0), jnp.float32(0))
            copies = copies - RATE * (copies - batch.reshape(2, 2, 3).mean(1))
            if number % 2 == 0:
                copies = np.tile((own[:, None] * copies).sum(0) / own.sum(), (2, 1))
                np.testing.assert_allclose(params, copies[0], rtol=1e-5, atol=1e-6)
                assert state.local[1].tolist() == [0, 0], "the next clients begin with new optimizers"


def test_meeting_at_every_step_is_synchronous_training():
    batches = np.random.default_rng(1).standard_normal((4, 8, 5)).astype(np.float32)
    params = np.zeros(5)
    found, _ = run(recipe.Replicas(4, 1, outer="average"), batches)
    for merged, batch in zip(found, batches, strict=True):
        params = params - RATE * (params - batch.mean(0))
        np.testing.assert_allclose(merged, params, rtol=1e-5, atol=1e-6)


ENCODERS = """
import json, sys
import jax, jax.numpy as jnp, numpy as np
from lsp import recipe
from lsp.model.config import Layer, ModelConfig
from lsp.model.encoder import graphdef, initialise
from lsp.train import mesh as meshes, optimizer, replicas
from lsp.train.collectives import collectives
from lsp.train.objectives import Objective, masked_lm
from lsp.train.step import Signals, TrainState, make_train_step, make_update

config = ModelConfig("modern", 304, 16, (Layer(2, 8, 24),), max_length=16)
tx = optimizer.make(recipe.Train(steps=10, warmup=0.0))
plan, found = recipe.Replicas(4, 2), []
for devices, tensor in ((1, 1), (4, 1), (8, 2)):
    mesh = meshes.make(recipe.Mesh(tensor=tensor), jax.devices()[:devices], plan.count)
    with jax.set_mesh(mesh):
        update = replicas.delayed(make_update(graphdef(config), Objective(masked_lm), tx), plan, mesh)
        params = initialise(config, 0)
        state = TrainState(jnp.int32(0), params, update.init(params))
        state = jax.device_put(state, meshes.place(state, mesh))
        step, losses, crossing = make_train_step(update), [], []
        for index in range(5):
            rng = np.random.default_rng(index)
            batch = meshes.send({
                "tokens": rng.integers(5, 300, (8, 16), np.int32), "segments": np.ones((8, 16), np.int32),
                "slots": rng.integers(0, 16, (8, 4), np.int32), "targets": rng.integers(5, 300, (8, 4), np.int32),
                "weights": (rng.random((8, 4)) < 0.7).astype(np.float32)}, mesh)
            if not index:
                program = step.lower(state, None, batch, np.int32(0), Signals(0.5)).compile().as_text()
                crossing = [[each.kind, each.group, each.bytes] for each in collectives(program, devices)]
            state, metrics = step(state, None, batch, np.int32(index), Signals(0.5))
            losses.append(float(metrics["loss"].total / metrics["loss"].count))
        kernel = state.opt_state.local[0]["layers"][0]["attention"]["qkv"]["kernel"]
        found.append({"losses": losses, "shard": kernel.sharding.shard_shape(kernel.shape), "crossing": crossing,
                      "bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(state.params)),
                      "embedding": np.asarray(state.params["embeddings"]["tokens"]["table"])[:5].tolist()})
print(json.dumps(found))
"""


def test_copies_agree_on_any_number_of_devices_and_hardly_talk():
    environment = os.environ | {
        "XLA_FLAGS": os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
    }
    done = subprocess.run(
        [sys.executable, "-c", ENCODERS], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    one, four, eight = json.loads(done.stdout)
    for other in (four, eight):
        assert other["losses"] == pytest.approx(one["losses"], rel=1e-4)
        np.testing.assert_allclose(other["embedding"], one["embedding"], atol=1e-4)
    assert [each["shard"] for each in (one, four, eight)] == [[4, 16, 48], [1, 16, 48], [1, 16, 24]]
    # A meeting sends each parameter once (a ring: 2·3/4 of its bytes); the rest, every step, is a handful of numbers.
    sent = [number for _, _, number in four["crossing"]]
    assert sum(sent) == pytest.approx(1.5 * four["bytes"], rel=0.05)


def test_runs_that_would_lose_steps_or_ask_for_too_much_are_refused():
    plan = recipe.Replicas(count=2, every=20)
    replicas.check(plan, recipe.Train(steps=40))
    for train, said in (
        (recipe.Train(steps=30), "no multiple"),
        (recipe.Train(steps=40, average=0.1), "train.average"),
        (recipe.Train(steps=40, on_divergence="skip"), "train.on_divergence"),
    ):
        with pytest.raises(LspError, match=said) as caught:
            replicas.check(plan, train)
        assert caught.value.code == 2
