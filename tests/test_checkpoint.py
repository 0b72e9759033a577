"""Parameters and steps come back bit for bit, and what is damaged or half-written is never used."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lsp import Exit, LspError, arrays, checkpoint, directory, manifest
from lsp.data.tokenizer import Tokenizer, train
from lsp.model.config import ModelConfig
from lsp.model.encoder import initialise
from lsp.model.int8 import Int8
from lsp.steps import Steps

WORDS = ["the cat sat on the mat and looked at the other cats", "a dog ran over the hill to the old mill house"] * 40


def int8(weights: np.ndarray, axis: int) -> Int8:
    scale = np.abs(weights).max(1 - axis).astype(np.float32) / 127
    return Int8.stored(np.round(weights / np.expand_dims(scale, 1 - axis)).astype(np.int8), scale, axis)


def params(width: int = 64) -> dict[str, Any]:
    random = np.random.default_rng(0)
    pruned = random.standard_normal((width, width), np.float32)
    pruned[random.random(pruned.shape) < 0.6] = 0
    layer = {"up": {"kernel": pruned}, "down": {"kernel": int8(pruned, 1)}}
    return {
        "embeddings": {"tokens": {"table": int8(random.standard_normal((100, width)), 0)}},
        "layers": {i: layer | {"norm": {"scale": jnp.ones(width, jnp.bfloat16)}} for i in range(11)},
        "words": {"bias": np.zeros(5000, np.float32)},
    }


def state() -> dict[str, Any]:
    """What a training state holds: float32, bfloat16, int8, integer scalars, raw keys, and optax's empty containers."""
    weights = {
        "a": {0: jnp.arange(12.0).reshape(3, 4)},
        "b": jnp.ones(5, jnp.bfloat16),
        "c": jnp.arange(9, dtype=jnp.int8),
    }
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3, mask=None))
    floats = {"a": weights["a"], "b": weights["b"]}
    key = jax.random.key_data(jax.random.key(3))
    empty = jnp.zeros((0, 4), jnp.float32)
    return {"step": jnp.int32(7), "params": weights, "opt": tx.init(floats), "key": key, "none": None, "empty": empty}


def assert_same(found: Any, expected: Any) -> None:
    assert str(jax.tree.structure(found)) == str(jax.tree.structure(expected))
    for left, right in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert left.dtype == right.dtype and left.shape == right.shape
        assert np.asarray(left).tobytes() == np.asarray(right).tobytes()


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def steps(tmp_path: Path, said: list[str]) -> Steps:
    return Steps(tmp_path / "train", 2, said.append)


def test_parameters_come_back_bit_for_bit_as_numpy(tmp_path: Path) -> None:
    tree = params()
    arrays.save_params(tmp_path / "params", tree)
    arrays.save_params(tmp_path / "params", tree)  # what a killed run left is replaced
    loaded = arrays.load_params(tmp_path / "params")
    assert_same(loaded, tree)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(loaded))
    assert isinstance(loaded["layers"][10]["down"]["kernel"], Int8) and list(loaded["layers"]) == list(range(11))
    assert os.listdir(tmp_path) == ["params"]


@pytest.mark.parametrize("shape", [(3, 5), (1, 5), (5, 1), (4, 4)])
@pytest.mark.parametrize("axis", [0, 1])
def test_the_axis_of_an_int8_matrix_is_found_again(tmp_path: Path, shape: tuple[int, int], axis: int) -> None:
    leaf = int8(np.random.default_rng(0).standard_normal(shape), axis)
    arrays.save_params(tmp_path / "params", {"w": leaf})
    loaded = arrays.load_params(tmp_path / "params")["w"]
    assert_same(loaded, leaf)
    assert loaded.axis == axis


@pytest.mark.parametrize("axis", [0, 1])
def test_what_an_int8_matrix_may_have_besides_comes_back(tmp_path: Path, axis: int) -> None:
    plain, random = int8(np.random.default_rng(0).standard_normal((6, 4)), axis), np.random.default_rng(1)
    factor, limit = random.random(plain.shape[1 - axis], np.float32), np.float32(3.5)
    for more in ((factor, None), (None, limit), (factor, limit)):
        leaf = Int8.stored(plain.q, plain.scale, axis, *more)
        arrays.save_params(tmp_path / "params", {"w": leaf})
        loaded = arrays.load_params(tmp_path / "params")["w"]
        assert_same(loaded, leaf)
        assert (loaded.factor is None, loaded.limit is None) == (more[0] is None, more[1] is None)


def test_an_int8_matrix_as_it_always_was_on_disk_loads(tmp_path: Path) -> None:
    leaf = int8(np.random.default_rng(0).standard_normal((6, 4)), 1)
    arrays.save_params(tmp_path / "params", {"w": {"q": leaf.q, "scale": leaf.scale[None]}})
    loaded = arrays.load_params(tmp_path / "params")["w"]
    assert_same(loaded, leaf)
    assert isinstance(loaded, Int8) and loaded.factor is None and loaded.limit is None
    assert arrays._stored(leaf).keys() == {"q", "scale"}


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"zero_point": np.zeros(4, np.int8)}, "zero_point"),
        ({"factor": np.ones(4, np.float32)}, "do not fit factors"),
        ({"limit": np.zeros(1, np.float32)}, "limit"),
        ({"limit": np.ones(2, np.float32)}, "limit"),
    ],
)
def test_what_does_not_belong_to_an_int8_matrix_is_refused(tmp_path: Path, entry: dict, said: str) -> None:
    leaf = int8(np.random.default_rng(0).standard_normal((6, 4)), 1)
    arrays.save_params(tmp_path / "params", {"w": {"q": leaf.q, "scale": leaf.scale[None]} | entry})
    with pytest.raises(LspError, match=said) as caught:
        arrays.load_params(tmp_path / "params")
    assert caught.value.code == Exit.ARTIFACT


def test_small_models_are_small_on_disk(tmp_path: Path) -> None:
    dense = {"kernel": np.random.default_rng(0).standard_normal((512, 512), np.float32)}
    small = {"kernel": int8(dense["kernel"], 1)}
    pruned = {"kernel": np.where(np.abs(dense["kernel"]) < 0.6745, np.float32(0), dense["kernel"])}
    for name, tree, share in (("dense", dense, 1.0), ("int8", small, 0.26), ("pruned", pruned, 0.54)):
        arrays.save_params(tmp_path / name, tree)
        assert manifest.bytes_under(tmp_path / name) < share * dense["kernel"].nbytes
    assert arrays.count(dense) == arrays.count(small) == arrays.count(pruned) == 512 * 512


def test_parameters_that_are_none_get_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "params").mkdir()
    (tmp_path / "params" / "_METADATA").write_text("{")
    for name in ("params", "missing"):
        with pytest.raises(LspError, match="no parameters lsp can read") as caught:
            arrays.load_params(tmp_path / name)
        assert caught.value.code == Exit.ARTIFACT


def test_a_step_comes_back_bit_for_bit(steps: Steps) -> None:
    steps.save(7, state())
    found = steps.latest(state())
    assert found is not None and found[0] == 7
    assert_same(found[1], state())
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state())
    found = steps.latest(shapes)
    assert found is not None
    assert_same(found[1], state())


@pytest.mark.parametrize("name", ["[2026] runs", "a*b?", "\udcff"])
def test_a_folder_may_have_any_name(tmp_path: Path, name: str) -> None:
    """Orbax looks files up by patterns, and can't pass on what is not UTF-8."""
    steps, tree = Steps(tmp_path / name / "train", 2, print), params(8)
    arrays.save_params(tmp_path / name / "params", tree)
    assert_same(arrays.load_params(tmp_path / name / "params"), tree)
    for step in (3, 4):
        steps.save(step, state())
    found = steps.latest(state())
    assert found is not None and found[0] == 4
    assert_same(found[1], state())
    assert sorted(os.listdir(tmp_path / name / "train")) == ["00000003", "00000004"]


def test_only_the_newest_steps_are_kept_by_number(steps: Steps, tmp_path: Path) -> None:
    assert steps.latest({"x": jnp.zeros(3)}) is None
    for step in (9, 10, 99999999, 100000000):
        steps.save(step, {"x": jnp.full(3, step, jnp.float32)})
    steps.wait()
    assert sorted(os.listdir(tmp_path / "train")) == ["100000000", "99999999"]
    os.utime(tmp_path / "train" / "99999999")  # a newer file time means nothing
    found = steps.latest({"x": jnp.zeros(3)})
    assert found is not None and found[0] == 100000000


def test_buffers_may_be_donated_while_they_are_being_saved(steps: Steps) -> None:
    add = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    tree = {"x": jnp.zeros(1_000_000), "key": jnp.zeros(2, jnp.uint32)}
    for step in range(1, 4):
        tree = add(tree)
        steps.save(step, tree)
        for _ in range(3):
            tree = add(tree)
        found = steps.latest({"x": jnp.zeros(1_000_000), "key": np.zeros(2, np.uint32)})
        assert found is not None and (found[1]["x"] == float(4 * step - 3)).all()
        assert isinstance(found[1]["key"], np.ndarray)


def test_a_step_moves_between_devices(tmp_path: Path) -> None:
    code = """
import sys; from pathlib import Path; import jax, numpy as np; from jax.sharding import *
from lsp.steps import Steps
split, whole = (NamedSharding(jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,)), PartitionSpec(*axes))
    for axes in (["data"], []))
one = SingleDeviceSharding(jax.devices()[0])
value = np.arange(32, dtype=np.float32).reshape(8, 4)
steps = Steps(Path(sys.argv[1]), 2, print)
for step, (source, target) in enumerate(((one, split), (split, one), (whole, split), (split, whole)), 1):
    steps.save(step, {"x": jax.device_put(value, source)})
    number, state = steps.latest({"x": jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=target)})
    assert number == step and state["x"].sharding == target and (np.asarray(state["x"]) == value).all()
"""
    devices = {
        "XLA_FLAGS": os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=4",
        "JAX_PLATFORMS": "cpu",
    }
    ran = subprocess.run(
        [sys.executable, "-c", code, tmp_path], env=os.environ | devices, capture_output=True, text=True
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")  # and Orbax keeps quiet


def flip(folder: Path) -> None:
    file = max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)


def cut(folder: Path) -> None:
    os.truncate(next(p for p in folder.rglob("_METADATA")), 10)


def misname(folder: Path) -> None:
    (folder.parent / "00000001").rename(folder.parent / "0")
    shutil.rmtree(folder)
    shutil.copytree(folder.parent / "0", folder)
    (folder.parent / "0").rename(folder.parent / "00000001")


@pytest.mark.parametrize("damage", [flip, cut, misname, lambda folder: (folder / "manifest.json").unlink()])
def test_a_damaged_newest_step_is_set_aside_and_said(
    steps: Steps, said: list[str], tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    tree = {"x": jnp.arange(100.0)}
    for step in (1, 2):
        steps.save(step, tree)
        steps.wait()
    damage(tmp_path / "train" / "00000002")
    for _ in range(2):  # the second time there is nothing left to say
        found = steps.latest(tree)
        assert found is not None and found[0] == 1
        assert len(said) == 1 and "00000002.damaged" in said[0]
    for step in (1, 2):
        if step == 2:
            steps.save(step, tree)
            steps.wait()
        flip(tmp_path / "train" / f"{step:08d}")
    assert steps.latest(tree) is None
    assert sorted(os.listdir(tmp_path / "train")) == ["00000001.damaged", "00000002.damaged", "00000002.damaged.2"]


def test_another_models_state_is_refused_by_leaf(steps: Steps) -> None:
    steps.save(1, {"params": {"kernel": jnp.zeros((3, 4))}})
    others = [{"params": {"kernel": jnp.zeros((3, 5))}}, {"params": {"bias": jnp.zeros(3)}}]
    for like, leaf in zip(others, ("kernel", "bias"), strict=True):
        with pytest.raises(LspError, match=leaf) as caught:
            steps.latest(like)
        assert caught.value.code == Exit.ARTIFACT


@pytest.mark.parametrize("place", ["lsp.directory.seal", "pathlib.Path.rename", "lsp.steps.sync"])
def test_a_failed_save_surfaces_once_and_poisons_nothing(
    steps: Steps, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    tree = {"x": jnp.arange(100_000.0)}
    steps.save(1, tree)
    steps.wait()

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(place, full)
        steps.save(2, tree)
        with pytest.raises(LspError, match=r"MB are free and 0\.4 MB are needed") as caught:
            steps.wait()
    assert caught.value.code == Exit.MACHINE
    assert not list((tmp_path / "train").glob("tmp.*"))
    directory.read(tmp_path / "train" / "00000001")
    steps.wait()
    steps.save(3, tree)
    found = steps.latest(tree)
    assert found is not None and found[0] == 3


def test_a_disk_too_small_says_so(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; import numpy as np; from lsp.steps import Steps\n"
        "steps = Steps(Path(sys.argv[1]) / 'train', 2, print)\n"
        "steps.save(1, {'x': np.zeros(1000)}); steps.wait(); steps.save(2, {'x': np.random.random(1_000_000)})\n"
        "try: steps.wait()\n"
        "except Exception as error: print(error.message, int(error.code), [p.name for p in steps._path.iterdir()])\n"
    )
    script = f'mount -t tmpfs -o size=4m none "{tmp_path}" && "{sys.executable}" -c "$1" "{tmp_path}"'
    ran = subprocess.run(["unshare", "-rm", "sh", "-c", script, "sh", code], capture_output=True, text=True)
    if ran.returncode and ("unshare" in ran.stderr or "mount" in ran.stderr):
        pytest.skip("this machine lets nobody mount a small disk")
    assert "the disk is full" in ran.stdout and "8.0 MB are needed. 5 ['00000001']" in ran.stdout, ran.stderr


def test_a_step_that_exists_is_not_written_again(steps: Steps, tmp_path: Path) -> None:
    steps.save(1, {"x": jnp.zeros(3)})
    steps.wait()
    before = (tmp_path / "train/00000001/manifest.json").read_bytes()
    steps.save(1, {"x": jnp.zeros(3)})
    steps.wait()
    assert (tmp_path / "train/00000001/manifest.json").read_bytes() == before


def test_sigkill_in_the_middle_of_a_save_leaves_the_newest_whole_step(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; import jax.numpy as jnp; from lsp.steps import Steps\n"
        "steps = Steps(Path(sys.argv[1]), 2, print)\n"
        "found = steps.latest({'x': jnp.zeros(500_000)})\n"
        "first = found[0] + 1 if found else 1\n"
        "assert not found or (found[1]['x'] == found[0]).all()\n"
        "for step in range(first, 10**6):\n"
        "    steps.save(step, {'x': jnp.full(500_000, step, jnp.float32)}); steps.wait(); print(step, flush=True)\n"
    )
    last = 0
    for wait in (0.011, 0.033):
        with subprocess.Popen(
            [sys.executable, "-c", code, tmp_path / "train"], stdout=subprocess.PIPE, text=True
        ) as run:
            assert run.stdout
            lines = [run.stdout.readline() for _ in range(3)]
            time.sleep(wait)
            run.send_signal(signal.SIGKILL)
            acknowledged = int([*lines, *run.stdout.read().splitlines()][-1])
        steps = Steps(tmp_path / "train", 2, pytest.fail)
        found = steps.latest({"x": jnp.zeros(500_000)})
        assert found is not None and found[0] in (acknowledged, acknowledged + 1) and found[0] > last
        assert (found[1]["x"] == found[0]).all() and not list((tmp_path / "train").glob("tmp.*"))
        last = found[0]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train(iter(WORDS), vocab_size=320, kind="bpe", lowercase=False, seed=0)


def complete(out: Path, tokenizer: Tokenizer, config: ModelConfig) -> dict[str, Any]:
    with directory.claim(out, command="pretrain", recipe="", inputs={}) as run:
        (out / "train").mkdir(exist_ok=True)
        return checkpoint.finish(
            run,
            checkpoint.Model(config, initialise(config, 0), tokenizer, ("no", "yes")),
            stage="pretrain",
            step=5,
            metrics={"loss": 1.5},
            parents=["f" * 64],
            result={"seconds": 2.5},
        )


def test_a_finished_model_opens_and_its_run_cannot_be_run_again(
    tmp_path: Path, tokenizer: Tokenizer, config: ModelConfig
) -> None:
    config = ModelConfig.from_dict(config.to_dict() | {"vocab_size": 320})
    out = tmp_path / "run"
    result = complete(out, tokenizer, config)
    model = checkpoint.open(out)
    assert model.config == config and model.labels == ("no", "yes") and model.tokenizer.hash == tokenizer.hash
    assert_same(model.params, initialise(config, 0))
    assert model.manifest["parents"] == ["f" * 64] and model.manifest["versions"]["jax"] == jax.__version__
    assert result["bytes"] == sum(
        entry["size"] for name, entry in model.manifest["files"].items() if name.startswith(("params/", "tokenizer/"))
    )
    assert model.expect("words") is model
    with pytest.raises(LspError, match="not a classifier"):
        model.expect("classes")
    assert list(result) == ["command", "out", "status", "step", "metrics", "seconds", "parameters", "bytes"]
    assert result["parameters"] == arrays.count(model.params) and not (out / "train").exists()
    with directory.claim(out, command="pretrain", recipe="", inputs={}) as run:
        assert run.result() == result | {"status": "already complete"}


def test_packed_places_make_a_run_of_format_2_and_dense_arrays_one_of_format_1(
    tmp_path: Path, tokenizer: Tokenizer, config: ModelConfig
) -> None:
    config = ModelConfig.from_dict(config.to_dict() | {"vocab_size": 320})
    dense = jax.tree.map(np.ones_like, initialise(config, 0))
    table = np.where(np.arange(320) < 300, 0, 1).astype(np.float32)[:, None] * dense["embeddings"]["tokens"]["table"]
    sparse = dense | {"embeddings": dense["embeddings"] | {"tokens": {"table": table}}}
    for name, params, layout in (("dense", dense, 1), ("sparse", sparse, 2)):
        with directory.claim(tmp_path / name, command="pretrain", recipe="", inputs={}) as run:
            made = checkpoint.Model(config, params, tokenizer, ("no", "yes"))
            checkpoint.finish(run, made, stage="pretrain", step=1, metrics={}, result={})
        assert directory.read(tmp_path / name)["format"] == layout
        assert_same(checkpoint.open(tmp_path / name).params, params)


def test_what_does_not_belong_together_is_refused(tmp_path: Path, tokenizer: Tokenizer, config: ModelConfig) -> None:
    out = tmp_path / "run"
    complete(out, tokenizer, ModelConfig.from_dict(config.to_dict() | {"vocab_size": 320}))
    stored = directory.read(out)
    directory.seal(out, {**stored, "model": stored["model"] | {"width": 24}})
    with pytest.raises(LspError, match=r"not those of its model: embeddings\.norm\.\w+ is \(16,\)") as caught:
        checkpoint.open(out)
    assert caught.value.code == Exit.ARTIFACT
    directory.seal(out, {**stored, "tokenizer": "0" * 64})
    with pytest.raises(LspError, match="does not belong") as caught:
        checkpoint.open(out)
    assert caught.value.code == Exit.ARTIFACT
    directory.seal(out, {"stage": "prepare"})
    with pytest.raises(LspError, match="holds no model"):
        checkpoint.open(out)
