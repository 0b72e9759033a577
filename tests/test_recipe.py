"""Recipes: the shipped ones, what is refused and how, and the way to TOML and back."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flax import nnx

from lsp import Exit, LspError, recipe
from lsp.recipe import together
from lsp.recipe.stages import LARGEST_SEED
from lsp.train.step import raw_key

RECIPES = Path(__file__).parent.parent / "recipes"
STAGES = {"pretrain": recipe.Pretrain, "finetune": recipe.Finetune, "prune": recipe.Prune, "distill": recipe.Distill}


@pytest.mark.parametrize("path", sorted(RECIPES.rglob("*.toml")), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_shipped_recipe_parses_and_opens_with_its_command(path: Path) -> None:
    stage = path.stem if path.parent.name == "compress" else path.parent.name
    recipe.load(STAGES[stage], path)
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# ")
    name = f"compress {stage}" if path.parent.name == "compress" else stage
    assert f"#   lsp {name} " in text
    assert str(path.relative_to(RECIPES.parent)) in text


def test_the_shipped_sizes() -> None:
    sizes = {"tiny": (2, 128), "mini": (4, 256), "base": (12, 768), "large": (24, 1024), "modern-base": (22, 768)}
    for name, size in sizes.items():
        model = recipe.load(recipe.Pretrain, RECIPES / "pretrain" / f"{name}.toml").model
        assert (model.layers, model.width) == size


@pytest.mark.parametrize(
    ("section", "said"),
    [
        (recipe.Pruning(speedup=3.0), "prune.speedup is for prune.what = structure, and that is weights"),
        (
            recipe.Pruning("structure", sparsity=0.9),
            "prune.sparsity is for prune.what = weights, and that is structure",
        ),
        (recipe.Pruning("vocabulary", depth=2), "prune.depth is for prune.what = structure, and that is vocabulary"),
        (recipe.Pruning("vocabulary", hidden=1.0), "prune.hidden is for prune.what = weights, and that is vocabulary"),
        (recipe.Pruning(score="movement", block=4), "prune.block is for prune.score = fisher, and that is movement"),
        (recipe.Pruning(pattern="2:4", sparsity=0.8), "prune.pattern and prune.sparsity both"),
        (recipe.Distillation(match="nearest"), "distill.match is for distill.hidden, which is 0"),
        (recipe.Distillation(relation_layer=2), "distill.relation_layer is for distill.relations, which is 0"),
        (recipe.Quantization(sample=9), "quantize.sample is of the examples that calibrate"),
        (recipe.Quantization(hard=0.5), "quantize.hard is for training, and the method is dynamic"),
    ],
)
def test_what_nothing_would_read_is_refused(section: Any, said: str) -> None:
    with pytest.raises(LspError, match=said):
        if isinstance(section, recipe.Pruning):
            together.prune(recipe.Prune(section))
        elif isinstance(section, recipe.Distillation):
            together.distill(recipe.Distill(distill=section))
        else:
            together.quantize(recipe.Quantize(section))


def test_what_is_named_and_not_read_is_refused_and_may_stand_in_a_file() -> None:
    for changes, said in (
        (["prune.what=vocabulary", "train.epochs=9"], "train.epochs is for training, and pieces that"),
        (["prune.what=vocabulary", "prune.hard=1"], "prune.hard is for training"),
        (["prune.what=structure", "prune.shape=1+64", "prune.speedup=2"], "both say how much goes"),
    ):
        plan = recipe.load(recipe.Prune, None, changes)
        with pytest.raises(LspError, match=said):
            together.prune(plan, changes)
        together.prune(plan, changes[:1])
    changes = ["prune.what=vocabulary", "prune.pieces=9", "train.steps=2"]
    together.prune(recipe.load(recipe.Prune, None, changes), changes)
    for change in ("train.epochs=5", "data.sequence_length=16"):
        with pytest.raises(LspError, match=f"{change.partition('=')[0]} is for training, and the method is dynamic"):
            together.quantize(recipe.load(recipe.Quantize, None, [change]), [change])
        together.quantize(recipe.load(recipe.Quantize, None, [change]))
        together.quantize(recipe.load(recipe.Quantize, None, [change, "quantize.method=trained"]), [change])
    with pytest.raises(LspError, match=r"distill\.hard is for a teacher, and there is none"):
        together.pretrain(["train.steps=2", "distill.hard=0.1"], False)
    together.pretrain(["distill.hard=0.1"], True)


def test_a_speed_is_asked_for_even_where_it_is_the_usual_one() -> None:
    """It would be pruned of weights, and be as slow as before."""
    with pytest.raises(LspError, match=r"prune.speedup is for prune.what = structure, and that is weights"):
        together.prune(recipe.load(recipe.Prune, None, changes := ["prune.speedup=2"]), changes)
    changes = ["prune.what=structure", "prune.speedup=2"]
    together.prune(recipe.load(recipe.Prune, RECIPES / "compress" / "prune.toml", changes), changes)


def test_every_key_of_pruning_belongs_to_a_kind() -> None:
    every = {key for keys in together.PRUNES.values() for key in keys}
    assert every | {"what", "hard"} == {field.name for field in dataclasses.fields(recipe.Pruning)}


@pytest.mark.parametrize("stage", recipe.STAGES)
def test_a_dumped_recipe_loads_as_itself(stage: type, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(recipe.dump(stage()), encoding="utf-8")
    assert recipe.load(stage, tmp_path / "recipe.toml") == stage()


def test_text_of_several_lines_is_dumped_as_toml(tmp_path: Path) -> None:
    spelt = recipe.Prune(recipe.Pruning("structure", shape='12+672\n11+384\t"\\\x7f'))
    (tmp_path / "recipe.toml").write_text(recipe.dump(spelt), encoding="utf-8")
    assert recipe.load(recipe.Prune, tmp_path / "recipe.toml") == spelt


def test_the_file_changes_defaults_and_set_changes_the_file(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text("[train]\nsteps = 7\nlearning_rate = 1\n[model]\npreset = 'bert'\n")
    loaded = recipe.load(recipe.Pretrain, tmp_path / "r.toml", ["train.steps=9", "model.preset=modern"])
    assert (loaded.train.steps, loaded.train.learning_rate, loaded.model.preset) == (9, 1.0, "modern")
    assert loaded.train.batch_size == recipe.Train().batch_size


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("train.step=3", "unknown key 'train.step'. Did you mean 'train.steps'?"),
        ("seed=3", "unknown key 'seed'. Did you mean 'train.seed'?"),
        ("data.seed=3", "unknown key 'data.seed'. Did you mean 'train.seed'?"),
        ("batchsize=3", "unknown key 'batchsize'. Did you mean 'train.batch_size'?"),
        ("trian.steps=3", "unknown key 'trian'. Did you mean 'train'?"),
        ("train=3", "'train' is a section, not a value."),
        ("train.steps=many", "'train.steps' must be a whole number, not 'many'."),
        ("train.steps=1.5", "'train.steps' must be a whole number, not 1.5."),
        ("train.steps=true", "'train.steps' must be a whole number, not True."),
        ("train.batch_size=0", "'train.batch_size' is 0; it must be at least 1."),
        ("data.mask_rate=1.5", "'data.mask_rate' is 1.5; it must be between 0 and 1."),
        ("model.dropout=1", "'model.dropout' is 1.0; it must be at least 0 and under 1."),
        ("train.learning_rate=1" + "0" * 400, "'train.learning_rate' is inf; it must be finite."),
        ("train.learning_rate=nan", "'train.learning_rate' is nan; it must be more than 0."),
        ("train.epochs=inf", "'train.epochs' is inf; it must be at most 1,000,000."),
        ("train.epochs=1e308", "'train.epochs' is 1e+308; it must be at most 1,000,000."),
        ("train.weight_decay=inf", "'train.weight_decay' is inf; it must be finite."),
        ("train.steps=2147483648", "'train.steps' is 2147483648; it must be at most 2,147,483,647."),
        ("train.seed=9223372036854775808", "it must be at most 1,000,000,000,000,000,000."),
        ("train.batch_size=9223372036854775808", "it must be at most 1,000,000."),
        ("model.layers=1000000000", "'model.layers' is 1000000000; it must be at most 1,000."),
        ("model.width=1000000000", "'model.width' is 1000000000; it must be at most 100,000."),
        ("data.vocab_size=9999999999999999999", "it must be at most 10,000,000."),
        pytest.param("train.steps=" + "9" * 5000, "a number in it has thousands of digits", id="digits"),
        pytest.param("train.steps=0x" + "f" * 5000, "a number in it has thousands of digits", id="hexadecimal"),
        pytest.param("data.lowercase=[0x" + "f" * 5000 + "]", "a number in it has thousands of digits", id="list"),
        pytest.param("train.steps=" + "[" * 3000, "--set train.steps has no usable value: lists or", id="nested"),
        ("model.preset=brt", "'model.preset' is 'brt', which is not one of bert, modern, bilstm. Did you mean 'bert'?"),
        (
            "train.best=acuracy",
            "which is not one of accuracy, f1, macro_f1, matthews, pearson, spearman, loss. Did you",
        ),
        ("data.lowercase=1", "'data.lowercase' must be true or false, not 1."),
        ("train.steps", "--set train.steps has no '='."),
    ],
)
def test_a_wrong_setting_is_refused_by_name(change: str, said: str) -> None:
    with pytest.raises(LspError) as raised:
        recipe.load(recipe.Pretrain, None, [change])
    assert said in raised.value.message
    assert raised.value.code == Exit.USAGE


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"[train]\nsteps = " + b"9" * 5000, "a number in it has thousands of digits"),
        (b"[train]\nsteps = 0x" + b"f" * 5000, "a number in it has thousands of digits"),
        (b"[train]\nsteps = " + b"[" * 3000, "nested too deeply"),
        (b"a" + b".a" * 3000 + b" = 1", "nested too deeply"),
        (b"[train]\nsteps = \xff", "can't decode byte"),
    ],
    ids=["digits", "hexadecimal", "lists", "tables", "bytes"],
)
def test_a_file_that_python_cannot_hold_is_no_recipe(text: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_bytes(text)
    with pytest.raises(LspError, match=f"is not TOML: .*{said}") as raised:
        recipe.load(recipe.Pretrain, tmp_path / "r.toml")
    assert raised.value.code == Exit.USAGE


def test_a_byte_order_mark_before_a_recipe_is_no_part_of_it(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text("[train]\nsteps = 7\n", encoding="utf-8-sig")
    assert recipe.load(recipe.Pretrain, tmp_path / "r.toml").train.steps == 7


def test_the_largest_seed_starts_a_model_and_its_batches() -> None:
    change = f"train.seed={LARGEST_SEED}"
    seed = recipe.load(recipe.Pretrain, None, [change]).train.seed + 1000  # as --seeds counts on
    assert nnx.Rngs(seed).params() is not None
    assert np.random.default_rng([seed, 1]).random() < 1
    assert raw_key(seed).dtype == np.uint32


def test_two_recipes_are_compared_key_by_key() -> None:
    old = recipe.dump(recipe.load(recipe.Pretrain))
    new = recipe.dump(recipe.load(recipe.Pretrain, None, ["train.steps=5", "mesh.fsdp=2"]))
    assert recipe.differences(old, new) == ["train.steps: 1000 → 5", "mesh.fsdp: 1 → 2"]
    assert recipe.differences(old, old) == []


@pytest.mark.parametrize("stage", recipe.STAGES)
def test_every_key_is_explained(stage: type) -> None:
    rows = list(recipe.keys(stage))
    assert rows
    assert all(kind and meaning for _, kind, _, meaning in rows)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["prune.begin=0.7", "prune.end=0.2"], r"prune\.begin = 0\.7 is after prune\.end = 0\.2"),
        (["train.epochs=0"], "train.epochs is 0"),
        (["train.best=accuracy"], "train.best might"),
        (["train.average=0.5"], "train.average might"),
    ],
)
def test_pruning_of_weights_that_would_not_end_with_all_zeros_is_refused(changes: list[str], said: str) -> None:
    with pytest.raises(LspError, match=said):
        together.prune(recipe.load(recipe.Prune, None, changes))
    if "prune." not in changes[0]:
        together.prune(recipe.load(recipe.Prune, None, [*changes, "prune.what=structure"]))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        (["chain.shape=4+96"], "chain.shape is for the one chain of chain.depth"),
        (["chain.channels=64"], "chain.channels is for the one chain of chain.depth"),
        (["chain.speedup=2"], "chain.speedup is for the one chain of chain.depth"),
        (["chain.depth=1", "chain.through=4+96"], "half-way to chain.shape"),
        (["chain.pieces=99", "chain.vocabulary=false"], "chain.vocabulary = false that all do"),
    ],
)
def test_half_a_chain_is_refused(changes: list[str], why: str) -> None:
    with pytest.raises(LspError, match=why):
        together.search(recipe.load(recipe.Search, None, changes))
    together.search(recipe.load(recipe.Search, None, ["chain.depth=1", "chain.shape=4+96", "chain.through=8+96"]))
