"""The same step on 1, 2, 4 and 8 devices, in a process of its own, since the number of devices is fixed at start."""

import json
import os
import subprocess
import sys

import jax
import pytest

from lsp import LspError, recipe
from lsp.train import mesh as meshes

SPLITS = [(1, 1, 1), (2, 1, 1), (1, 2, 1), (1, 1, 2), (2, 2, 1), (1, 2, 2), (8, 1, 1), (2, 2, 2)]

STEPS = """
import json, sys
import jax, jax.numpy as jnp, numpy as np, optax
from jax.sharding import Mesh, AxisType
from lsp import recipe
from lsp.model import attention
from lsp.model.config import Layer, ModelConfig
from lsp.model.encoder import graphdef, initialise
from lsp.train import mesh as meshes, optimizer
from lsp.train.objectives import Objective, masked_lm
from lsp.train.step import Signals, TrainState, make_train_step, make_update

if sys.argv[2] == "fused":  # on a GPU; what cuDNN does here jax does, with the shapes that each device has
    shapes = set()
    attention.fuses = lambda q: True
    attention.kernel = lambda q, k, v, meet: (shapes.add(q.shape + meet.shape), attention.plain(q, k, v, meet))[1]

config = ModelConfig("modern", 304, 16, (Layer(2, 8, 24), Layer(2, 8, 24)), max_length=16)
rng = np.random.default_rng(0)
batch = {
    "tokens": rng.integers(5, 300, (8, 16), np.int32), "segments": np.ones((8, 16), np.int32),
    "slots": rng.integers(0, 16, (8, 4), np.int32), "targets": rng.integers(5, 300, (8, 4), np.int32),
    "weights": (rng.random((8, 4)) < 0.7).astype(np.float32),
}
tx = optimizer.make(recipe.Train(steps=10, warmup=0.0))
found = []
for split in json.loads(sys.argv[1]):
    count = split[0] * split[1] * split[2]
    mesh = meshes.make(recipe.Mesh(*split), jax.devices()[:count])
    with jax.set_mesh(mesh):
        params = initialise(config, 0)
        state = TrainState(jnp.int32(0), params, tx.init(params))
        places = meshes.place(state, mesh)
        state = jax.device_put(state, places)
        sent = meshes.send(batch, mesh)
        assert all(np.array_equal(sent[name], batch[name]) for name in batch)
        step = make_train_step(make_update(graphdef(config), Objective(masked_lm), tx))
        state, metrics = step(state, None, sent, np.int32(0), Signals(0.0))
        if sys.argv[2] == "fused":
            rows, heads = 8 // (split[0] * split[1]), 2 // split[2]
            assert shapes == {(rows, heads, 16, 8, rows, 16, 16)}, (split, shapes)
            shapes.clear()
        kernel = state.params["layers"][0]["attention"]["qkv"]["kernel"]
        mu = optax.tree.get(state.opt_state, "mu")
        moments = {path[-1].key: leaf for path, leaf in jax.tree_util.tree_leaves_with_path(mu)
                   if "qkv" in str(path)}
        found.append({
            "loss": float(metrics["loss"].total), "norm": float(metrics["gradient_norm"]),
            "shard": kernel.sharding.shard_shape(kernel.shape),
            "moment": moments["kernel"].sharding.shard_shape(kernel.shape),
            "params": [np.asarray(leaf).ravel().tolist()[:50] for leaf in jax.tree.leaves(state.params)],
        })
print(json.dumps(found))
"""


@pytest.mark.parametrize(("way", "splits"), [("plain", SPLITS), ("fused", [(1, 1, 1), (8, 1, 1), (2, 2, 2)])])
def test_a_step_agrees_on_every_split_of_eight_devices(way: str, splits: list[tuple[int, int, int]]):
    environment = os.environ | {
        "XLA_FLAGS": os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
    }
    done = subprocess.run(
        [sys.executable, "-c", STEPS, json.dumps(splits), way],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    whole, *others = json.loads(done.stdout)
    for split, other in zip(splits[1:], others, strict=True):
        assert other["loss"] == pytest.approx(whole["loss"], rel=1e-5), split
        assert other["norm"] == pytest.approx(whole["norm"], rel=1e-4), split
        for a, b in zip(whole["params"], other["params"], strict=True):
            assert b == pytest.approx(a, abs=3e-5), split
        # A split array takes its share of the memory, and so do its moments.
        assert other["shard"] == other["moment"] == [16 // split[1], 48 // split[2]]


MEASURED = """
import jax, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from lsp.model.config import Layer, ModelConfig
from lsp.model.encoder import initialise
from lsp.train.evaluate import Forward
from lsp.train.evaluate import _classify as classify

config = ModelConfig("bert", 304, 16, (Layer(2, 8, 24),), max_length=64).classifier(3, "mean", 0.0)
tokens = np.random.default_rng(0).integers(5, 300, (4, 64), np.int32)
batch = {"tokens": tokens, "segments": np.ones_like(tokens), "types": np.zeros_like(tokens)}
alone = initialise(config, 0)
mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
spread = jax.device_put(alone, NamedSharding(mesh, PartitionSpec()))
first, second = (Forward(config, classify)(params, batch) for params in (alone, spread))
np.testing.assert_allclose(first, second, atol=1e-6)
"""


def test_a_model_is_measured_on_one_device_and_then_on_several():
    """As where a teacher answers before its student is trained; programs are kept for the whole process."""
    flags = os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=4"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", MEASURED], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_mesh_that_does_not_fit_the_devices_is_refused():
    with pytest.raises(LspError, match="does not make the 1 devices") as caught:
        meshes.make(recipe.Mesh(data=-1, fsdp=3), jax.devices()[:1])
    assert caught.value.code == 5


def test_a_batch_that_does_not_split_is_refused_with_one_that_does():
    mesh = meshes.make(recipe.Mesh(), jax.devices()[:1])
    with pytest.raises(LspError, match="can't be split over 3") as caught:
        meshes.check_batch(32, 3, mesh)
    assert "33" in caught.value.hint
