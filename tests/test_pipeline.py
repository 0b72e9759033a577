"""The whole road on a made-up language, through the verbs: pretrain, finetune, distill, prune, quantize, evaluate."""

import contextlib
import dataclasses
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from lsp import Exit, LspError, checkpoint, recipe
from lsp.commands import (
    distill,
    evaluate,
    explain,
    finetune,
    inspect,
    predict,
    pretrain,
    prune_structure,
    prune_vocabulary,
    prune_weights,
    quantize,
    search,
)
from lsp.compress import inside, latency
from lsp.compress.importance import sizes
from lsp.compress.prune import sparsity
from lsp.compress.search import Goal, Shape, Tried, _unpruned, chains, shapes
from lsp.compress.structure import Chosen
from lsp.console import Progress
from lsp.data.tokenizer import MASK
from lsp.deploy import apart
from lsp.model.int8 import Int8, present
from lsp.model.weightonly import dequantize
from lsp.train import answers, labelled
from lsp.train.evaluate import Classifier, MaskedWords
from lsp.train.labelled import Files
from lsp.train.options import Options

AUTO: tuple[tuple[str, ...], str] = ((), "")
QUIET = Progress(quiet=True)
AGAIN = Options(QUIET)
MODEL = recipe.Model(layers=2, width=32, heads=2, max_length=32)
TRAIN = recipe.Train(steps=40, batch_size=16, learning_rate=3e-3, log_every=10)
ENCODER = recipe.Pretrain(
    model=MODEL,
    data=recipe.Text(vocab_size=320, sequence_length=32),
    train=dataclasses.replace(TRAIN, steps=10, checkpoint_every=5),
)
CLASSIFIER = recipe.Finetune(train=TRAIN, data=recipe.Labelled(sequence_length=32))
STUDENT = recipe.Distill(model=dataclasses.replace(MODEL, layers=1), train=TRAIN)
STAGES = search.Stages(prune_vocabulary.run, prune_structure.run, quantize.run)
PRUNED = recipe.Prune(train=dataclasses.replace(TRAIN, steps=20))


def sentences(count: int, seed: int) -> Iterator[tuple[str, str]]:
    """Sentences of two made-up classes that share most of their words."""
    rng = np.random.default_rng(seed)
    letters = np.random.default_rng(99).choice(list("abdegilmnoprstu"), (60, 5))
    shared = ["".join(word) for word in letters]
    own = {"calm": ["vela", "oru"], "wild": ["kraz", "tokk"]}
    for _ in range(count):
        name = str(rng.choice(list(own)))
        words = [str(rng.choice(shared if rng.random() < 0.6 else own[name])) for _ in range(rng.integers(5, 12))]
        yield " ".join([*words, str(rng.choice(own[name]))]), name


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with text, labels, and one run of every stage."""
    top = tmp_path_factory.mktemp("road")
    (top / "text.txt").write_text("\n\n".join(text for text, _ in sentences(1500, 0)))
    for name, count, seed in (("train", 400, 1), ("dev", 100, 2)):
        rows = [f"{text}\t{label}" for text, label in sentences(count, seed)]
        (top / f"{name}.tsv").write_text("\n".join(["sentence\tlabel", *rows]) + "\n")
    files = Files(top / "train.tsv", top / "dev.tsv")
    pretrain.run([str(top / "text.txt")], top / "encoder", ENCODER, None, None, [], AGAIN)
    finetune.run(str(top / "encoder"), top / "classifier", CLASSIFIER, files, None, AGAIN)
    distill.run(top / "classifier", top / "student", STUDENT, files, AGAIN)
    prune_weights.run(top / "student", top / "pruned", PRUNED, files, AGAIN)
    quantize.run(top / "pruned", top / "int8", recipe.Quantize(), top / "dev.tsv", AUTO, AGAIN)
    return top


def result(run: Path) -> dict[str, Any]:
    return json.loads((run / "result.json").read_text())


def test_every_stage_learns_what_it_is_there_for(road: Path):
    assert result(road / "encoder")["metrics"]["loss"] < np.log(320)
    for stage in ("classifier", "student", "pruned", "int8"):
        assert result(road / stage)["metrics"]["accuracy"] > 0.9, stage


def test_compression_is_real(road: Path):
    pruned, int8 = checkpoint.open(road / "pruned").params, checkpoint.open(road / "int8").params
    assert sparsity(pruned) == pytest.approx(0.5, abs=1e-3)
    assert sparsity(int8) >= sparsity(pruned), "int8 keeps the zeros"
    kernel = int8["layers"][0]["attention"]["qkv"]["kernel"]
    assert isinstance(kernel, Int8)
    assert kernel.q.dtype == np.int8
    for stage in ("student", "pruned", "int8"):
        found = result(road / stage)
        assert found["after"]["bytes"] == found["bytes"] < found["before"]["bytes"], stage


def test_curvature_and_a_pattern_go_together_and_the_result_names_the_bound(road: Path, tmp_path: Path):
    asked = recipe.Pruning(score="fisher", block=8, pattern="1:4", every=5)
    files = Files(road / "train.tsv", road / "dev.tsv")
    after = prune_weights.run(
        road / "student", tmp_path / "pruned", dataclasses.replace(PRUNED, prune=asked), files, AGAIN
    )
    after = after["after"]
    assert after["sparsity"] == 0.75 and after["metrics"]["accuracy"] > 0.9
    leaves = jax.tree_util.tree_leaves_with_path(checkpoint.open(tmp_path / "pruned").params["layers"])
    widths = [leaf.size for path, leaf in leaves if path[-1].key == "kernel"]
    bits = 0.25 * 2 + 0.75 * np.log2(4 / 3)  # the entropy of a place
    bound = sum(size // 4 * 4 + size * bits / 8 for size in widths)
    assert after["matrix_bound_bytes"] == pytest.approx(bound, abs=len(widths))
    assert after["matrix_bound_bytes"] < after["matrix_bytes"]


def test_what_is_pruned_stays_as_it_was_inside_where_that_is_asked_for(road: Path, tmp_path: Path) -> None:
    """By the states behind its layers, which are another way to say the same answers without it."""
    files, base = Files(road / "train.tsv", road / "dev.tsv"), checkpoint.open(road / "classifier")
    train = dataclasses.replace(PRUNED.train, steps=40)
    rows = labelled.read_sets(files._replace(names=base.labels), labelled.Reading.of(base, 32), QUIET).dev
    batches = [rows.batch(np.arange(len(rows)), len(rows))]
    whole, away = inside.states(base.config, base.params, batches), {}
    for hidden in (0.0, 1.0):
        asked = recipe.Pruning(sparsity=0.8, hidden=hidden)
        out = tmp_path / f"hidden-{hidden}"
        made = prune_weights.run(
            road / "classifier", out, dataclasses.replace(PRUNED, prune=asked, train=train), files, AGAIN
        )
        assert made["metrics"]["accuracy"] > 0.9
        left = checkpoint.open(out)
        assert sparsity(left.params) == pytest.approx(0.8, abs=1e-3)
        assert jax.tree.structure(left.params) == jax.tree.structure(base.params), "without the maps"
        states = inside.states(left.config, left.params, batches)
        away[hidden] = sum(np.square(a - b).sum() / np.square(b).sum() for a, b in zip(states, whole, strict=True))
    assert away[1.0] < 0.7 * away[0.0]


def test_any_order_of_stages_composes(road: Path, tmp_path: Path):
    files = Files(road / "train.tsv", road / "dev.tsv")
    static = recipe.Quantize(recipe.Quantization("static"))
    quantize.run(road / "classifier", tmp_path / "int8", static, None, AUTO, AGAIN, road / "train.tsv")
    prune_weights.run(tmp_path / "int8", tmp_path / "pruned", PRUNED, files, AGAIN)
    told = [checkpoint.open(tmp_path / name).manifest["compression"][0] for name in ("int8", "pruned")]
    assert told == [
        {"stage": "quantize", "bits": 8, "method": "static"},
        {"stage": "quantize", "bits": 8},
    ]
    params = checkpoint.open(tmp_path / "pruned").params
    assert isinstance(params["layers"][0]["feedforward"]["down"]["kernel"], Int8), "int8 in, int8 out"
    assert sparsity(params) >= 0.5
    distill.run(tmp_path / "pruned", tmp_path / "student", STUDENT, files, AGAIN)
    stages = [each["stage"] for each in checkpoint.open(tmp_path / "student").manifest["compression"]]
    assert stages == ["prune", "distill"], "of the teacher's int8 nothing is left"
    assert result(tmp_path / "student")["metrics"]["accuracy"] > 0.8


@pytest.mark.parametrize("change", [{}, {"freeze": 1}, {"lora_rank": 2}])
def test_what_is_finetuned_again_stays_pruned(
    road: Path, tmp_path: Path, change: dict[str, int], capsys: pytest.CaptureFixture[str]
) -> None:
    files = Files(road / "train.tsv", road / "dev.tsv")
    asked = recipe.Pruning(sparsity=0.8)
    prune_weights.run(road / "classifier", tmp_path / "pruned", dataclasses.replace(PRUNED, prune=asked), files, AGAIN)
    plan = dataclasses.replace(CLASSIFIER, adapt=recipe.Adapt(**change), train=dataclasses.replace(TRAIN, steps=5))
    finetune.run(str(tmp_path / "pruned"), tmp_path / "again", plan, files, None, Options(Progress(quiet=False)))
    before, after = (checkpoint.open(tmp_path / name) for name in ("pruned", "again"))
    assert after.manifest["compression"] == before.manifest["compression"]
    kernels = [run.params["layers"][1]["feedforward"]["down"]["kernel"] for run in (before, after)]
    assert (kernels[0] != kernels[1]).any(), "it was trained"
    lost = "does not stay zero" in capsys.readouterr().err
    assert (sparsity(after.params) < 0.8) == lost == bool(change.get("lora_rank"))


def test_a_classifier_goes_on_whatever_the_order_of_its_classes(
    road: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file's classes are sorted, a published model's are not."""
    files = Files(road / "train.tsv", road / "dev.tsv")
    none = dataclasses.replace(CLASSIFIER, train=dataclasses.replace(TRAIN, steps=1, learning_rate=1e-9))
    finetune.run(
        str(road / "encoder"), tmp_path / "turned", CLASSIFIER, files._replace(names=("wild", "calm")), None, AGAIN
    )
    made = finetune.run(str(tmp_path / "turned"), tmp_path / "again", none, files, None, Options(Progress(quiet=False)))
    assert checkpoint.open(tmp_path / "again").labels == ("wild", "calm")
    assert made["metrics"]["accuracy"] > 0.9 and "new classifier" not in capsys.readouterr().err
    finetune.run(
        str(tmp_path / "turned"),
        tmp_path / "other",
        none,
        files._replace(names=("calm", "wild", "odd")),
        None,
        Options(Progress(quiet=False)),
    )
    assert "a new classifier: that of --from answers 'wild', 'calm'" in capsys.readouterr().err


def priced(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that does not depend on the machine: seconds are parameters of layers."""

    def seconds(models: dict[str, Any], batch: Any) -> dict[str, float]:
        def one(config: Any, params: Any) -> float:
            return float(sum(layer.heads * 1000 + layer.feedforward * 20 for layer in config.layers))

        return {name: one(*model) for name, model in models.items()}

    def saved(config: Any, batch: Any, form: Any, task: Any) -> dict[Any, dict[int, float]]:
        price = {"attention": 1000.0, "feedforward": 20.0}
        return {
            block: {n: price[block[1]] * (size - n) for n in latency.counts(size, block[1])}
            for block, size in sizes(config).items()
        }

    monkeypatch.setattr(latency, "seconds", seconds)
    monkeypatch.setattr(latency, "saved", saved)


@pytest.mark.parametrize("epochs", [0.0, 1.0])
def test_structure_is_removed_and_int8_and_predict_take_what_is_left(
    road: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epochs: float
) -> None:
    priced(monkeypatch)
    files = Files(road / "train.tsv", road / "dev.tsv")
    at_end: dict[str, Any] = {"channels": 28, "hidden": 1.0} if epochs else {"int8": "static"}
    asked = dataclasses.replace(
        PRUNED,
        prune=recipe.Pruning("structure", speedup=1.4, sample=64, **at_end),
        train=dataclasses.replace(PRUNED.train, steps=0, epochs=epochs),
    )
    made = prune_structure.run(road / "classifier", tmp_path / "fast", asked, files, AGAIN)
    before, after = (checkpoint.open(path).config for path in (road / "classifier", tmp_path / "fast"))
    parts = [sum(layer.heads * 1000 + layer.feedforward * 20 for layer in config.layers) for config in (before, after)]
    assert parts[0] / parts[1] >= 1.4
    assert made["after"]["speedup"] == pytest.approx(parts[0] / parts[1])
    assert made["after"]["parameters"] < made["before"]["parameters"] and made["bytes"] < made["before"]["bytes"]
    assert made["metrics"]["accuracy"] > 0.9 and made["untrained"]["accuracy"] > 0.8
    assert (made["step"] > 0) == (epochs > 0)
    assert after.width == (28 if epochs else before.width)
    assert not present(checkpoint.open(tmp_path / "fast").params), "float, whatever it was timed as"
    quantize.run(tmp_path / "fast", tmp_path / "int8", recipe.Quantize(), road / "dev.tsv", AUTO, AGAIN)
    assert result(tmp_path / "int8")["metrics"]["accuracy"] > 0.9


def test_a_speed_that_nothing_reaches_is_said_so(road: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    priced(monkeypatch)
    asked = dataclasses.replace(PRUNED, prune=recipe.Pruning(what="structure", speedup=50.0, sample=32))
    with pytest.raises(LspError, match=r"times as fast on this machine, not 50") as refused:
        prune_structure.run(
            road / "classifier", tmp_path / "fast", asked, Files(road / "train.tsv", road / "dev.tsv"), AGAIN
        )
    assert refused.value.code == 1


@pytest.mark.parametrize("pieces", [0, 25, 10_000])
def test_pieces_that_no_example_has_are_removed(road: Path, tmp_path: Path, pieces: int) -> None:
    files = Files(road / "train.tsv", road / "dev.tsv")
    asked = dataclasses.replace(PRUNED, prune=recipe.Pruning(what="vocabulary", pieces=pieces))
    made = prune_vocabulary.run(road / "classifier", tmp_path / "few", asked, files, AGAIN)
    before, after = (checkpoint.open(path) for path in (road / "classifier", tmp_path / "few"))
    assert after.tokenizer.size == after.config.vocab_size == len(after.params["embeddings"]["tokens"]["table"])
    assert made["metrics"]["accuracy"] > 0.9
    assert (made["step"] > 0) == (pieces == 25), "what is answered as before is not trained"
    if pieces == 25:
        assert after.config.vocab_size < before.config.vocab_size and made["bytes"] < made["before"]["bytes"]
        assert 0.5 < made["after"]["vocabulary"]["covered"] < 1
    else:
        assert made["after"]["metrics"] == made["before"]["metrics"]
        assert sum(made["paired"]["flips"].values()) == 0
        assert made["after"]["vocabulary"]["covered"] > 0.99


def begun(road: Path, place: Path, int8: Any = "auto", budget: float = 0.0) -> search._Trial:
    """The chains of a search from the classifier, none made yet."""
    files, asked = Files(road / "train.tsv", road / "dev.tsv"), recipe.Search(chain=recipe.Chain(int8=int8))
    base = checkpoint.open(road / "classifier")
    return search._Trial(base, place, asked, files, AGAIN._replace(budget=budget), STAGES)


@pytest.mark.parametrize(
    ("lost", "most", "taken"),
    [
        ((0.4, 0.0), 1.0, "static"),
        ((1.5, 1.2), 1.0, "static"),
        ((1.5, 0.9), 1.0, "dynamic"),
        ((0.4, 0.0), 0.1, "dynamic"),
    ],
)
def test_one_scale_for_all_tokens_unless_that_costs_too_much(
    road: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: tuple[float, float], most: float, taken: str
) -> None:
    trial = begun(road, tmp_path)

    def tried(shape: Any, trained: bool) -> Tried:
        return Tried(trial.int8, None, False, lost[trial.int8 == "dynamic"], 2.0, 9, trial.int8)

    monkeypatch.setattr(trial, "tried", tried)
    found = list(chains(trial, Goal(most, 1.5)))
    assert trial.int8 == taken
    assert [one.int8 for one in found] == ["static"] + ["dynamic"] * (lost[0] > min(0.5, most))


@pytest.mark.parametrize(
    ("goal", "costs", "pieces", "tries"),
    [
        (Goal(1.0, 1.5, 8), 0.5, 77, 2),
        (Goal(1.0, 1.5, 8), 0.6, 0, 2),
        (Goal(0.4, 1.5, 8), 0.4, 0, 2),  # more than the goal has
        (Goal(1.0, 1.5, 9), 0.0, 0, 1),  # small enough
        (Goal(1.0, 1.5), 0.0, 0, 1),  # asks for no size
        (Goal(1.0, 4.0, 8), 0.0, 0, 1),  # half of the structure goes anyway
    ],
)
def test_rare_pieces_go_where_size_is_missed_unless_that_costs_too_much(
    road: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, goal: Goal, costs: float, pieces: int, tries: int
) -> None:
    trial = begun(road, tmp_path, "static")

    def tried(shape: Any, trained: bool) -> Tried:
        return Tried("x", None, False, 0.1 + costs * bool(trial.pieces), 2.0, 9, "static", 1, trial.pieces)

    monkeypatch.setattr(trial, "tried", tried)
    monkeypatch.setattr(trial, "common", lambda: 77)
    found = list(_unpruned(trial, goal))
    assert trial.pieces == pieces and [one.pieces for one in found] == [0, 77][:tries]


def test_a_chain_with_fewer_pieces_is_named_and_spelt(
    road: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apart, "speedup", lambda run, base, texts: 1.0)
    trial = begun(road, tmp_path, "none")
    every = trial.tried(None, trained=False)
    trial.pieces = trial.common()
    fewer = trial.tried(None, trained=False)
    monkeypatch.setattr(trial, "_made", lambda start, name, *rest: tmp_path / name)
    pruned = trial._pruned(road / "classifier", Shape(2, 1.5), trained=False)
    models = [checkpoint.open(Path(one.run)) for one in (every, fewer)]
    assert [model.path.name for model in models] == ["pieces", f"pieces-{trial.pieces}"]
    assert [run.name for run in pruned] == [f"2-layers-{trial.pieces}-pieces-1.5x"]
    rows = models[0].config.vocab_size - models[1].config.vocab_size
    # Not bytes on disk: those of the same parameters vary by a hundredth from run to run.
    parameters = [model.size()["parameters"] for model in models]
    assert rows > 0 and parameters[0] - parameters[1] == rows * models[0].config.width
    for one, model in zip((every, fewer), models, strict=True):
        (tmp_path / "chain.toml").write_text(search._chain(trial.recipe, one, model))
        assert recipe.load(recipe.Search, tmp_path / "chain.toml", []).chain.pieces == one.pieces


def test_a_chain_that_is_not_as_fast_as_asked_leaves_the_others(
    road: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = begun(road, tmp_path, "none")
    asked: list[tuple[int, bool]] = []

    def tried(shape: Shape | None, trained: bool) -> Tried:
        asked.append((shape.depth if shape else 0, trained))
        if asked[-1] == (2, True):
            raise LspError("too slow", code=Exit.NO)
        return Tried(str(asked[-1]), shape, trained, 9.0 - 9.0 * trained, 2.0 if shape else 1.0, 9)

    monkeypatch.setattr(trial, "tried", tried)
    found = list(chains(trial, Goal(1.0, 2.0)))
    assert asked == [(0, False), (2, False), (2, False), (1, False), (2, True), (2, True), (1, True)], "2 also narrower"
    assert [one.run for one in found] == [str(each) for each in asked if each != (2, True)]


def test_a_search_stops_where_more_speed_would_only_lose_more(
    road: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = begun(road, tmp_path, "none")
    asked: list[tuple[float, bool]] = []

    def tried(shape: Shape | None, trained: bool) -> Tried:
        asked.append((shape.speedup if shape else 1.0, trained))
        shape = shape and dataclasses.replace(shape, spelt=str(shape.speedup))
        return Tried(str(asked[-1]), shape, trained, 9.0, shape.speedup + 0.4 * trained - 0.2 if shape else 1.0, 9)

    monkeypatch.setattr(trial, "tried", tried)
    list(chains(trial, Goal(1.0, 2.0)))  # with two layers, narrower and not, and with one
    free, aimed = [(2.1, False)] * 3, [(2.28, True), (1.89, True)]  # 2 for 1.9, then 2 for 2.48; each and 3 %
    assert asked == [(1.0, False), *free, *aimed, *aimed, *aimed], "and 2.5 is not tried"


def test_what_meets_the_goal_without_training_is_trained_before_others_are_tried(
    road: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = begun(road, tmp_path, "none")
    asked: list[tuple[int, int, bool]] = []

    def tried(shape: Shape | None, trained: bool) -> Tried:
        asked.append((shape.depth, shape.channels, trained) if shape else (0, 0, trained))
        return Tried(str(asked[-1]), shape, trained, 0.9 - 0.5 * trained, 2.0 if shape else 1.0, 9)

    monkeypatch.setattr(trial, "tried", tried)
    found = list(chains(trial, Goal(1.0, 2.0)))
    narrow = shapes(2, trial.base.config.width, 2.0)[0].channels
    assert asked == [(0, 0, False), (2, narrow, False), (2, narrow, True)] and len(found) == 3


@pytest.mark.parametrize(("lost", "free"), [(0.9, 1), (9.0, 3)])
def test_a_search_that_may_not_train_ends_where_structures_are_fast_enough(
    road: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: float, free: int
) -> None:
    trial = begun(road, tmp_path, "none")
    trial.recipe = dataclasses.replace(trial.recipe, train=recipe.Train(epochs=0.0))
    asked: list[bool] = []

    def tried(shape: Shape | None, trained: bool) -> Tried:
        asked.append(trained)
        return Tried("x", shape, trained, lost, 2.0 if shape else 1.0, 9)

    monkeypatch.setattr(trial, "tried", tried)
    assert len(list(chains(trial, Goal(1.0, 2.0)))) == 1 + free and not any(asked)


def test_a_search_does_not_train_again_what_it_aimed_at_before(
    road: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = begun(road, tmp_path, "none")
    asked: list[float] = []

    def tried(shape: Shape | None, trained: bool) -> Tried:
        asked.extend([shape.speedup] * trained if shape else [])
        return Tried("x", shape, trained, 9.0, shape.speedup - 0.2 * trained if shape else 1.0, 9)

    monkeypatch.setattr(trial, "tried", tried)
    found = list(chains(trial, Goal(1.0, 2.0)))
    assert len(found) == 1 + 3 * 3 + 3, "three speeds of three structures"
    assert asked == [2.1] * 3, "and with training 1.9 and too bad; of 2.5 and 3 not what would be 2.06"


def test_what_was_pruned_for_one_kind_of_int8_is_not_taken_for_another(
    road: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search that missed its goal and is asked again for less may settle on the other kind."""
    trial = begun(road, tmp_path)
    monkeypatch.setattr(trial, "_made", lambda start, name, *rest: tmp_path / name)
    names = []
    for trial.int8 in ("static", "dynamic", "none"):
        names += [run.name for run in trial._pruned(road / "classifier", Shape(2, 1.5), trained=False)]
    found = [trial._pruned(road / "classifier", Shape(2, 1.5, spelt), True)[0].name for spelt in ("2+64 2+32", "")]
    assert names == ["2-layers-1.5x-for-static", "2-layers-1.5x-for-dynamic", "2-layers-1.5x"]
    assert found == ["2-layers-1.5x-as-found-trained", "2-layers-1.5x-trained"], "what was measured, or is to be"
    far = Shape(2, 2.5)
    assert len(trial._pruned(road / "classifier", far, True)) == 2
    trial.recipe = dataclasses.replace(trial.recipe, chain=recipe.Chain(depth=2, speedup=2.5, shape="2+64 2+32"))
    assert len(trial._pruned(road / "classifier", far, True)) == 1, "what is spelt is not measured half-way"


def test_a_search_that_misses_says_what_may_help(road: Path, tmp_path: Path) -> None:
    trial = begun(road, tmp_path, budget=3600.0)
    wrong, slow = Tried("x", None, False, 3.0, 2.0, 9), Tried("x", None, False, 0.5, 1.0, 9)
    assert not trial.over() and "--budget" not in trial.hint(wrong, Goal(1.0, 1.5))
    assert "chain.int8=none" in trial.hint(wrong, Goal(1.0, 1.5)), "what loses less"
    assert "chain.pieces" in trial.hint(slow, Goal(1.0, 1.5, 8))
    said = trial.hint(slow, Goal(1.0, 1.5))
    assert said == "Ask for less or distil to a narrower model first; all that was tried is in candidates/."
    assert trial.over(3700.0) and "more --budget" in trial.hint(slow, Goal(1.0, 1.5))


@pytest.mark.parametrize(("key", "there"), [("depth", 2), ("channels", 32)])
def test_a_chain_can_not_keep_more_than_there_is(road: Path, tmp_path: Path, key: str, there: int) -> None:
    files, chain = Files(road / "train.tsv", road / "dev.tsv"), {"depth": 1, key: 99}
    asked = recipe.Search(chain=recipe.Chain(**chain))
    with pytest.raises(LspError, match=f"chain.{key} = 99, and the model has {there}"):
        search.run(road / "classifier", tmp_path / "out", asked, files, Goal(1.0), AGAIN, STAGES)


def test_an_lstm_has_no_structure_to_search_for() -> None:
    lstm: Any = SimpleNamespace(config=SimpleNamespace(preset="bilstm", layers=(1, 2), width=32), params={}, path="x")
    search._check(lstm, recipe.Chain())
    search._check(lstm, recipe.Chain(depth=2))
    for chain in (recipe.Chain(depth=1), recipe.Chain(depth=2, speedup=2.0), recipe.Chain(depth=2, shape="1+8 1+8")):
        with pytest.raises(LspError, match="an LSTM has none"):
            search._check(lstm, chain)


def test_what_is_in_int8_is_not_pruned_as_a_float_model_for_int8(road: Path, tmp_path: Path) -> None:
    asked = dataclasses.replace(PRUNED, prune=recipe.Pruning(what="structure", speedup=1.5, int8="static"))
    with pytest.raises(LspError, match="is in int8"):
        prune_structure.run(road / "int8", tmp_path / "out", asked, Files(road / "train.tsv", road / "dev.tsv"), AGAIN)


def test_a_search_does_not_begin_with_int8(road: Path, tmp_path: Path) -> None:
    files = Files(road / "train.tsv", road / "dev.tsv")
    with pytest.raises(LspError, match="is quantised already") as refused:
        search.run(road / "int8", tmp_path / "out", recipe.Search(), files, Goal(1.0), AGAIN, STAGES)
    assert "chain.int8=none" in refused.value.hint and not (tmp_path / "out" / "candidates").exists()


@pytest.mark.slow
def test_what_is_far_away_is_reached_in_two_steps(road: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is trained to answer as the whole model does, and a recipe that says both ends with the same bits."""
    priced(monkeypatch)
    monkeypatch.setattr(apart, "speedup", lambda run, base, texts: 2.0)
    base, files = checkpoint.open(road / "classifier"), Files(road / "train.tsv", road / "dev.tsv")
    asked = recipe.Search(
        chain=recipe.Chain(vocabulary=False, int8="none"),
        train=dataclasses.replace(PRUNED.train, steps=0, epochs=0.5),
        data=recipe.Labelled(sequence_length=32),
    )
    made = search._Trial(base, tmp_path / "one", asked, files, AGAIN, STAGES).tried(Shape(2, 2.2, channels=28), True)
    half, last = (checkpoint.open(tmp_path / "one" / f"2-layers-28-wide-{n}-trained") for n in ("half-way", "2.2x"))
    assert made.run == str(last.path) and made.shape.through == search._spelt(half) != search._spelt(last)
    assert last.manifest["parents"] == [half.manifest["self"], base.manifest["self"]], "and what it learnt from"
    assert half.manifest["parents"] == [base.manifest["self"]] and half.config.width == last.config.width == 28
    assert sum(p.size for p in jax.tree.leaves(last.params)) < sum(p.size for p in jax.tree.leaves(half.params))
    (tmp_path / "chain.toml").write_text(search._chain(asked, made, last))
    spelt = recipe.load(recipe.Search, tmp_path / "chain.toml", [])
    again = search._Trial(base, tmp_path / "two", spelt, files, AGAIN, STAGES).given()
    jax.tree.map(np.testing.assert_array_equal, last.params, checkpoint.open(Path(again.run)).params)


def test_a_search_takes_a_chain_and_its_recipe_makes_it_again(
    road: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    priced(monkeypatch)

    def faster(run: Path, base: Path, texts: apart.Texts) -> float:
        """Seconds are parameters of what is timed, and int8 is twice as fast."""
        seconds = []
        for path in (run, base):
            params = checkpoint.open(path).params
            kinds = jax.tree.leaves(params, is_leaf=lambda leaf: isinstance(leaf, Int8))
            size = sum(int(np.prod(leaf.shape)) for leaf in kinds)
            seconds.append(size / (1 + any(isinstance(leaf, Int8) for leaf in kinds)))
        return seconds[1] / seconds[0]

    monkeypatch.setattr(apart, "speedup", faster)
    files = Files(road / "train.tsv", road / "dev.tsv")
    train = dataclasses.replace(PRUNED.train, steps=0, epochs=1.0)
    asked = recipe.Search(train=train, data=recipe.Labelled(sequence_length=32))
    made = search.run(road / "classifier", tmp_path / "best", asked, files, Goal(5.0, 2.5), AGAIN, STAGES)
    assert made["after"]["speedup"] >= 2.5 and made["after"]["points_lost"] <= 5
    assert made["bytes"] < made["before"]["bytes"]
    taken = next(row for row in json.loads((tmp_path / "best" / "pareto.json").read_text()) if row["taken"])
    assert made["bytes"] == taken["bytes"], "what was judged by its size is what is sealed"
    assert made["paired"]["points_lost"] == pytest.approx(made["after"]["points_lost"])
    tried = json.loads((tmp_path / "best" / "pareto.json").read_text())
    assert len(tried) == made["tried"] and [row["taken"] for row in tried].count(True) == 1
    assert all(Path(row["run"]).is_dir() for row in made["front"])
    assert (tmp_path / "best" / "pareto.png").read_bytes().startswith(b"\x89PNG\r\n")
    again = recipe.load(recipe.Search, tmp_path / "best" / "chain.toml", [])
    assert again.chain.depth and again.chain.shape and again.chain.int8 in ("static", "dynamic")
    second = search.run(road / "classifier", tmp_path / "again", again, files, Goal(5.0, 2.5), AGAIN, STAGES)
    first, other = (checkpoint.open(tmp_path / name) for name in ("best", "again"))
    jax.tree.map(np.testing.assert_array_equal, first.params, other.params)
    assert second["metrics"] == made["metrics"]
    untrained = dataclasses.replace(again, train=dataclasses.replace(train, epochs=0.0))
    for out, how, said in (("none", untrained, "the closest is"), ("again", again, "is complete, for another goal")):
        with pytest.raises(LspError, match=said) as missed:
            search.run(road / "classifier", tmp_path / out, how, files, Goal(0.0, 99.0), AGAIN, STAGES)
        assert missed.value.code == 1


def test_a_search_without_matplotlib_ends_without_a_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"run": "a", "points_lost": 0.5, "speedup": 2.0, "bytes": 9, "best": True}] * 2
    search._chart(tmp_path, rows, Progress())
    assert json.loads((tmp_path / "pareto.json").read_text()) == rows and (tmp_path / "pareto.png").exists()
    (tmp_path / "pareto.png").unlink()
    capsys.readouterr()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    search._chart(tmp_path, rows, Progress())
    said = capsys.readouterr().err
    assert said.startswith("points lost by times as fast\n") and "bash scripts/setup.sh plots" in said
    assert not (tmp_path / "pareto.png").exists()


@pytest.mark.parametrize(
    ("goal", "said"),
    [
        (
            Goal(1.0, 1.5),
            "small/candidates/exact, which it tried, meets this one: +0.50 points lost, 2.00 times as fast",
        ),
        (Goal(1.0, 9.0), "Give another --out, or --overwrite."),
    ],
)
def test_a_search_for_one_goal_names_what_meets_another(goal: Goal, said: str, tmp_path: Path) -> None:
    """Though the folder was moved since."""
    (tmp_path / "small" / "candidates" / "exact").mkdir(parents=True)
    rows = [dict(zip(search.MEASURED, row, strict=True)) for row in ((0.5, 2.0, 9_000), (3.0, 4.0, 5_000))]
    front = [row | {"run": f"old/candidates/{name}"} for row, name in zip(rows, ("exact", "fast"), strict=True)]
    result = {"after": rows[1], "bytes": 5_000, "front": front}
    held = SimpleNamespace(path=tmp_path / "small", result=lambda: result)
    assert search._still(held, Goal(3.0, 4.0)) is result
    with pytest.raises(LspError, match=r"small is complete, for another goal. It loses 3\.00 points") as missed:
        search._still(held, goal)
    assert said in missed.value.hint and missed.value.code == Exit.NO


def test_every_small_model_can_name_what_it_came_from(road: Path):
    for child, parent in (("classifier", "encoder"), ("student", "classifier"), ("int8", "pruned")):
        assert checkpoint.open(road / child).manifest["parents"] == [checkpoint.open(road / parent).manifest["self"]]
    assert inspect.run(road / "int8")["stage"] == "quantize"


def test_a_finished_run_does_nothing_again(road: Path):
    before = {path: path.read_bytes() for path in (road / "encoder").rglob("*") if path.is_file()}
    again = pretrain.run([str(road / "text.txt")], road / "encoder", ENCODER, None, None, [], AGAIN)
    assert again["status"] == "already complete"
    assert before == {path: path.read_bytes() for path in (road / "encoder").rglob("*") if path.is_file()}
    other = dataclasses.replace(ENCODER, train=dataclasses.replace(ENCODER.train, steps=11))
    with pytest.raises(LspError, match=r"train\.steps"):
        pretrain.run([str(road / "text.txt")], road / "encoder", other, None, None, [], AGAIN)


def test_evaluate_gates_and_predict_agree(road: Path):
    errors = road / "errors.jsonl"
    found = evaluate.run(road / "int8", [road / "dev.tsv"], AUTO, ["accuracy=0.5", "f1=1"], QUIET, errors)
    assert [gate["passed"] for gate in found["gates"]] == [True, False]
    rows = [json.loads(line) for line in errors.read_text().splitlines()]
    table = (road / "dev.tsv").read_text().splitlines()
    assert len(rows) == round(100 * (1 - found["metrics"]["accuracy"]))
    assert [f"{row['text']}\t{row['label']}" for row in rows] == [table[row["row"]] for row in rows]
    assert all(row["guess"] != row["label"] for row in rows)
    assert sorted((row["probability"] for row in rows), reverse=True) == [row["probability"] for row in rows]
    low, high = found["intervals"]["accuracy"]
    assert low <= found["metrics"]["accuracy"] <= high and sum(row["examples"] for row in found["classes"]) == 100
    before = errors.read_bytes()
    evaluate.run(road / "int8", [road / "dev.tsv"], AUTO, [], QUIET, errors)
    assert errors.read_bytes() == before
    for mine in ("dev.tsv", "encoder"):
        with pytest.raises(LspError, match="is there already"):
            evaluate.run(road / "int8", [road / "dev.tsv"], AUTO, [], QUIET, road / mine)
    output = io.StringIO()
    predict.run(road / "int8", str(road / "dev.tsv"), AUTO, predict.Output(output, True), QUIET)
    rows = [json.loads(line) for line in output.getvalue().splitlines()]
    labels = [line.split("\t")[1] for line in (road / "dev.tsv").read_text().splitlines()[1:]]
    right = [row["label"] == label for row, label in zip(rows, labels, strict=True)]
    assert np.mean(right) == pytest.approx(found["metrics"]["accuracy"])
    with pytest.raises(LspError, match="no such metric") as caught:
        evaluate.run(road / "int8", [road / "dev.tsv"], AUTO, ["acuracy=0.5"], QUIET)
    assert "'accuracy'" in caught.value.message
    for gate, said in (("loss=0.1", "a loss is better where it is lower"), ("accuracy=90", "accuracy is 1 at most")):
        with pytest.raises(LspError, match=said):
            evaluate.run(road / "int8", [road / "dev.tsv"], AUTO, [gate], QUIET)


def test_a_damaged_record_is_no_bug(road: Path, tmp_path: Path) -> None:
    """What was measured is measured again; what was chosen can't be known any more."""
    base, path = checkpoint.open(road / "classifier"), tmp_path / "record.json"
    measured = {"self": base.manifest["self"], "speedup": 2.0, "metrics": {"accuracy": 0.9}}
    every = {block: np.arange(size) for block, size in sizes(base.config).items()}
    prune_structure._record(path, Chosen([0, 1], every, 2.0))
    again = prune_structure._recorded(path, base.config)
    assert again is not None and again.layers == [0, 1] and again.kept.keys() == every.keys()
    elsewhere = path.read_text().replace('"layers": [0, 1]', '"layers": [0, 7]')
    outside = path.read_text().replace('"kept": [0, 1]', '"kept": [0, 2]')
    for damage in ("", "{", "{}", "[]", "[" * 9999, elsewhere, outside, path.read_text()[:-9]):
        path.write_text(damage)
        with pytest.raises(LspError, match=r"record\.json is damaged") as caught:
            prune_structure._recorded(path, base.config)
        assert caught.value.code == Exit.ARTIFACT and search._kept(path, base, "accuracy") is None
    for damage in (measured | {"self": "other"}, measured | {"speedup": "2"}, measured | {"metrics": {}}, measured):
        path.write_text(json.dumps(damage))
        assert (search._kept(path, base, "accuracy") == measured) == (damage is measured)
    assert search._kept(tmp_path / "none.json", base, "accuracy") is None


def test_what_is_explained_is_what_the_int8_model_answers(road: Path, tmp_path: Path) -> None:
    base = checkpoint.open(road / "int8")
    examples = labelled.read(road / "dev.tsv", AUTO, base.labels, labelled.Reading.of(base))
    logits = Classifier(base.config).logits(base.params, examples)
    assert np.abs(logits - Classifier(base.config).logits(dequantize(base.params), examples)).max() > 1e-5
    lines = (road / "dev.tsv").read_text().splitlines()[1:6]
    (tmp_path / "few.txt").write_text("".join(line.split("\t")[0] + "\n" for line in lines))
    rows = explain.run(road / "int8", str(tmp_path / "few.txt"), AUTO, "", None, QUIET)["rows"]
    wanted = list(answers.of("single_label", base.labels, logits[:5]))
    assert [row["label"] for row in rows] == [each["label"] for each in wanted]
    np.testing.assert_allclose([r["probability"] for r in rows], [w["probability"] for w in wanted], atol=1e-6)


def test_every_stage_says_which_labels_flipped(road: Path) -> None:
    def answers(stage: str) -> list[str]:
        output = io.StringIO()
        predict.run(road / stage, str(road / "dev.tsv"), AUTO, predict.Output(output, True), QUIET)
        return [json.loads(line)["label"] for line in output.getvalue().splitlines()]

    for child, parent in (("student", "classifier"), ("pruned", "student"), ("int8", "pruned")):
        found, pairs = result(road / child), zip(answers(parent), answers(child), strict=True)
        rows = [json.loads(line) for line in (road / child / "flips.jsonl").read_text().splitlines()]
        expected = {row: pair for row, pair in enumerate(pairs, 1) if pair[0] != pair[1]}
        assert {row["row"]: (row["before"], row["after"]) for row in rows} == expected, child
        paired, flips = found["paired"], found["paired"]["flips"]
        before, after = (found[when]["metrics"]["accuracy"] for when in ("before", "after"))
        assert paired["points_lost"] == pytest.approx(100 * (before - after))
        assert flips["right_to_wrong"] - flips["wrong_to_right"] == pytest.approx(paired["points_lost"]), "of 100"
        assert sum(flips.values()) == len(rows) and paired["examples"] == 100


@pytest.mark.parametrize("stage", ["classifier", "int8"])
def test_an_answer_does_not_depend_on_its_batch(road: Path, tmp_path: Path, stage: str):
    lines = [line.split("\t")[0] for line in (road / "dev.tsv").read_text().splitlines()[1:6]]
    answers = []
    for texts in (lines, lines[2:3], [*lines[2:3], "ma " * 25]):
        (tmp_path / "in.txt").write_text("\n".join(texts) + "\n")
        output = io.StringIO()
        predict.run(road / stage, str(tmp_path / "in.txt"), AUTO, predict.Output(output, True), QUIET)
        answers.append(json.loads(output.getvalue().splitlines()[2 if texts is lines else 0])["probabilities"])
    assert answers[0] == pytest.approx(answers[1], abs=1e-5)
    assert answers[0] == pytest.approx(answers[2], abs=1e-5)


def test_an_encoder_guesses_masked_words(road: Path, tmp_path: Path):
    (tmp_path / "in.txt").write_text("lo [MASK] ri [MASK]\n")
    output = io.StringIO()
    predict.run(road / "encoder", str(tmp_path / "in.txt"), AUTO, predict.Output(output, True), QUIET)
    row = json.loads(output.getvalue())
    assert len(row["guesses"]) == 2
    assert all(len(mask) == 5 and sum(mask.values()) <= 1 for mask in row["guesses"])


def test_around_a_mask_the_text_is_cut_as_in_training(road: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, asked = checkpoint.open(road / "encoder"), []

    def guess(self: Any, params: Any, tokens: np.ndarray, masks: np.ndarray) -> Any:
        asked.append(tokens.tolist())
        return np.zeros((len(masks), 1), int), np.ones((len(masks), 1))

    monkeypatch.setattr(predict.MaskedWords, "__call__", guess)
    list(predict._words(base, 9999)([("vela [MASK], oru [MASK].",)]))
    whole = base.tokenizer.encode(["vela, oru."])[0]
    assert [token for token in asked[0][1:-1] if token != MASK] == whole


def test_a_model_may_have_more_rows_than_its_tokenizer(road: Path) -> None:
    base = checkpoint.open(road / "encoder")
    table = base.params["embeddings"]["tokens"]["table"]
    padded = jax.tree.map(lambda leaf: leaf, base.params)
    padded["embeddings"]["tokens"]["table"] = np.pad(table, ((0, 8), (0, 0)), constant_values=9.0)
    padded["words"]["bias"] = np.pad(base.params["words"]["bias"], (0, 8), constant_values=99.0)
    config = dataclasses.replace(base.config, vocab_size=base.config.vocab_size + 8)
    tokens, masks = np.array([2, 9, MASK, 3], np.int32), np.array([2])
    found = MaskedWords(config, 5, base.tokenizer.size)(padded, tokens, masks)
    expected = MaskedWords(base.config, 5, base.tokenizer.size)(base.params, tokens, masks)
    np.testing.assert_array_equal(found[0], expected[0])


def test_how_many_classes_are_told_is_for_json(road: Path, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("vela\n")
    with pytest.raises(LspError, match="--top-k is for the probabilities of classes") as refused:
        predict.run(road / "classifier", str(tmp_path / "in.txt"), AUTO, predict.Output(io.StringIO(), False, 1), QUIET)
    assert refused.value.code == 2 and "--json" in refused.value.hint


class Killed(Exception):
    """Stands for a process that ends between two steps."""


def test_a_resumed_run_equals_an_uninterrupted_one(road: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from lsp.train import loop

    calls = iter(range(100))

    def dying(self: Any, *arguments: Any) -> Any:
        if next(calls) == 7:
            raise Killed
        return whole(self, *arguments)

    whole = loop.Compiled.__call__
    monkeypatch.setattr(loop.Compiled, "__call__", dying)
    out = tmp_path / "encoder"
    with contextlib.suppress(Killed):
        pretrain.run([str(road / "text.txt")], out, ENCODER, None, None, [], AGAIN)
    assert (out / "train" / "00000005").is_dir()
    assert not (out / "manifest.json").exists()
    pretrain.run([str(road / "text.txt")], out, ENCODER, None, None, [], AGAIN)
    assert next(calls) == 8 + 5, "five steps were left to do"
    jax.tree.map(np.testing.assert_array_equal, checkpoint.open(out).params, checkpoint.open(road / "encoder").params)


def test_a_budget_of_time_ends_the_run_with_the_rate_landed(road: Path, tmp_path: Path) -> None:
    out, endless = tmp_path / "out", dataclasses.replace(ENCODER, train=dataclasses.replace(ENCODER.train, steps=0))
    made = pretrain.run([str(road / "text.txt")], out, endless, None, road / "encoder", [], AGAIN._replace(budget=14.0))
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert made["status"] == "complete" and made["step"] == rows[-1]["step"] > 10
    assert rows[-1]["dev_loss"] == made["metrics"]["loss"], "the last evaluation is a line too"
    rates = [row["learning_rate"] for row in rows if "learning_rate" in row]
    assert rates[-1] < 0.1 * ENCODER.train.learning_rate < max(rates)
