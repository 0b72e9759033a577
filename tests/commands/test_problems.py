"""Labels that are several classes, or a number, through finetune, evaluate, predict, distill and export."""

import dataclasses
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lsp import LspError, checkpoint, recipe
from lsp.commands import distill, evaluate, explain, export, finetune, import_, predict, quantize
from lsp.console import Progress
from lsp.data.glue import split, task
from lsp.data.tokenizer import train
from lsp.train.labelled import Files
from lsp.train.options import Options

AUTO: tuple[tuple[str, ...], str] = ((), "")
QUIET = Progress(quiet=True)
OPTIONS = Options(QUIET)
WORDS = ["sun", "rain", "wind", "snow", "the", "day", "was", "and", "we", "saw"]
MODEL = recipe.Model(layers=1, width=32, heads=2, max_length=16, preset="bert")
TRAIN = recipe.Train(steps=60, batch_size=16, learning_rate=5e-3)


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weather: which of three words a text holds, how many of them, in two countries; and a tokenizer."""
    top, random = tmp_path_factory.mktemp("weather"), np.random.default_rng(0)
    for name, count in (("train", 300), ("dev", 80)):
        several, number = ["text\tcountry\tlabel"], ["text\tlabel"]
        for _ in range(count):
            words = random.choice(WORDS, 6).tolist()
            held = sorted({*words} & {"sun", "rain", "wind"})
            several.append(f"{' '.join(words)}\t{random.choice(['at', 'ch'])}\t{','.join(held)}")
            number.append(f"{' '.join(words)}\t{len(held) / 2}")
        (top / f"{name}.tsv").write_text("\n".join(several) + "\n")
        (top / f"{name}-number.tsv").write_text("\n".join(number) + "\n")
    text = [" ".join(random.choice(WORDS, 9)) for _ in range(200)]
    train(text, vocab_size=285, kind="unigram", lowercase=False, seed=0).save(top / "words")
    return top


def made(top: Path, problem: recipe.Problem, ending: str, model: recipe.Model = MODEL, steps: int = 60) -> Path:
    pooling = "cls" if model.preset == "bert" else "mean"
    plan = recipe.Finetune(
        model=model, head=recipe.NewHead(pooling, 0.0, problem), train=dataclasses.replace(TRAIN, steps=steps)
    )
    files = Files(top / f"train{ending}.tsv", top / f"dev{ending}.tsv")
    finetune.run("scratch", top / problem, plan, files, top / "words", OPTIONS)
    return top / problem


def predicted(run: Path, source: Path, as_json: bool = True) -> list[Any]:
    output = io.StringIO()
    predict.run(run, str(source), AUTO, predict.Output(output, as_json), QUIET)
    return [json.loads(line) if as_json else line for line in output.getvalue().splitlines()]


def through_transformers_format(run: Path) -> None:
    """The export, taken in again, answers as the run does."""
    export.run(run, run.with_name(f"{run.name}-out"), "huggingface", False, QUIET)
    import_.run(run.with_name(f"{run.name}-out"), run.with_name(f"{run.name}-in"), False, QUIET)
    card = run.with_name(f"{run.name}-out").joinpath("README.md").read_text()
    assert 'pipeline_tag: "text-classification"' in card and "| loss |" in card
    source = run.parent / "dev.tsv"
    assert predicted(run, source) == predicted(run.with_name(f"{run.name}-in"), source)


@pytest.fixture(scope="module")
def several(tables: Path) -> Path:
    return made(tables, "multi_label", "", dataclasses.replace(MODEL, preset="modern"))


def test_an_example_may_have_several_classes(tables: Path, several: Path) -> None:
    run = several
    errors = tables / "errors.jsonl"
    found = evaluate.run(run, [tables / "dev.tsv"], AUTO, ["f1=0.8"], QUIET, errors, ["country"])
    assert found["gates"][0]["passed"] and found["metrics"]["f1"] > 0.8
    assert [row["class"] for row in found["classes"]] == ["rain", "sun", "wind"] and "confusion" not in found
    assert sorted(row["slice"] for row in found["slices"]) == ["country = at", "country = ch"]
    assert sum(row["examples"] for row in found["slices"]) == 80
    wrong = [json.loads(line) for line in errors.read_text().splitlines()]
    assert len(wrong) == round(80 * (1 - found["metrics"]["accuracy"]))
    rows = predicted(run, tables / "dev.tsv")
    assert {row["columns"]["country"] for row in rows} == {"at", "ch"}
    wanted = [row["columns"]["label"] for row in rows]
    right = np.mean([",".join(row["label"]) == label for row, label in zip(rows, wanted, strict=True)])
    assert right == pytest.approx(found["metrics"]["accuracy"])
    label, probability, text, country, _ = predicted(run, tables / "dev.tsv", as_json=False)[0].split("\t")
    assert label == ",".join(rows[0]["label"]) and country == rows[0]["columns"]["country"]
    assert float(probability) == pytest.approx(rows[0]["probability"], abs=1e-4) and text == rows[0]["text"]
    through_transformers_format(run)


def test_a_label_may_be_a_number(tables: Path) -> None:
    run = made(tables, "regression", "-number", steps=150)
    found = evaluate.run(run, [tables / "dev-number.tsv"], AUTO, [], QUIET)
    assert found["metrics"]["pearson"] > 0.8 and found["metrics"]["spearman"] > 0.7
    rows = predicted(run, tables / "dev-number.tsv")
    apart = [row["label"] - float(row["columns"]["label"]) for row in rows]
    assert np.mean(np.square(apart)) == pytest.approx(found["metrics"]["loss"], rel=1e-3)
    plan = recipe.Distill(model=dataclasses.replace(MODEL, preset="bilstm", width=16), train=TRAIN)
    files = Files(tables / "train-number.tsv", tables / "dev-number.tsv")
    small = distill.run(run, tables / "small", plan, files, OPTIONS)
    assert small["after"]["metrics"]["pearson"] > 0.7 and small["after"]["bytes"] < small["before"]["bytes"]
    through_transformers_format(run)


def test_a_classifier_learns_new_classes_and_keeps_the_old_ones(tables: Path) -> None:
    random = np.random.default_rng(1)
    for part, names in (("old", ("sun", "rain")), ("new", ("wind", "snow"))):
        for name, count in (("train", 200), ("dev", 60)):
            rows = [(str(random.choice(names)), random.choice(WORDS[4:], 5).tolist()) for _ in range(count)]
            lines = [f"{' '.join([*words, label])}\t{label}" for label, words in rows]
            (tables / f"{part}-{name}.tsv").write_text("\n".join(["text\tlabel", *lines]) + "\n")
    modern = dataclasses.replace(MODEL, preset="modern")
    plan = recipe.Finetune(model=modern, head=recipe.NewHead("mean", 0.0), train=TRAIN)
    old = Files(tables / "old-train.tsv", tables / "old-dev.tsv")
    finetune.run("scratch", tables / "two", plan, old, tables / "words", OPTIONS)
    both = Files(tables / "new-train.tsv", tables / "new-dev.tsv", old=old.train, old_dev=old.dev)
    growing = dataclasses.replace(plan, adapt=recipe.Adapt(grow=True, replay=0.05))
    made = finetune.run(str(tables / "two"), tables / "four", growing, both, None, OPTIONS)
    assert made["metrics"]["accuracy"] > 0.9 and made["old"]["before"]["accuracy"] > 0.9
    assert made["old"]["after"]["accuracy"] > 0.9
    assert checkpoint.open(tables / "four").labels == ("rain", "sun", "snow", "wind")
    forgetful = dataclasses.replace(plan, adapt=recipe.Adapt(grow=True), train=dataclasses.replace(TRAIN, steps=2))
    made = finetune.run(str(tables / "two"), tables / "no-old", forgetful, both._replace(old=None), None, OPTIONS)
    assert "shift" in made, "what old classes may lose is kept to by --old-dev alone"
    (tables / "odd.tsv").write_text(old.dev.read_text() + "hail and hail\thail\n")
    for name, files in (("dev", {"dev": tables / "odd.tsv"}), ("old", {"old": tables / "odd.tsv"})):
        with pytest.raises(LspError, match="label 'hail' is unknown"):
            finetune.run(str(tables / "two"), tables / f"odd-{name}", growing, both._replace(**files), None, OPTIONS)
    for start, wrong, says in (
        ("scratch", growing, "for a classifier"),
        (str(tables / "two"), dataclasses.replace(growing, head=recipe.NewHead(problem="multi_label")), "problem"),
    ):
        with pytest.raises(LspError, match=says):
            finetune.run(start, tables / "no-start", wrong, both, tables / "words", OPTIONS)


def test_probabilities_are_made_as_sure_as_they_are_right(tables: Path) -> None:
    rows = [(" ".join(np.random.default_rng(n).choice(WORDS, 5)), "yes" if n % 3 else "no") for n in range(200)]
    (tables / "noise.tsv").write_text("text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in rows))
    head = recipe.NewHead("mean", 0.0, calibrate=True)
    modern = dataclasses.replace(MODEL, preset="modern")
    plan = recipe.Finetune(model=modern, head=head, train=dataclasses.replace(TRAIN, steps=80))
    files = Files(tables / "noise.tsv", tables / "noise.tsv")
    made = finetune.run("scratch", tables / "sure", plan, files, tables / "words", OPTIONS)
    loose = dataclasses.replace(plan, head=dataclasses.replace(head, calibrate=False))
    plain = finetune.run("scratch", tables / "plain", loose, files, tables / "words", OPTIONS)
    assert made["metrics"]["accuracy"] == plain["metrics"]["accuracy"]
    assert made["metrics"]["loss"] <= plain["metrics"]["loss"] and made["temperature"] != 1
    found = evaluate.run(tables / "sure", [tables / "noise.tsv"], AUTO, [], QUIET)
    assert found["metrics"]["loss"] == pytest.approx(made["metrics"]["loss"], rel=1e-4)
    learnt = "text\tlabel\n" + "sun\tyes\nrain\tno\n" * 8
    (tables / "learnt.tsv").write_text(learnt)
    right = Files(tables / "learnt.tsv", tables / "learnt.tsv")
    perfect = finetune.run("scratch", tables / "perfect", plan, right, tables / "words", OPTIONS)
    assert perfect["metrics"]["accuracy"] == perfect["temperature"] == 1.0, "nothing says how sure to be"
    other = dataclasses.replace(plan, head=dataclasses.replace(head, problem="multi_label"))
    with pytest.raises(LspError, match="calibrate"):
        finetune.run("scratch", tables / "no-best", other, files, tables / "words", OPTIONS)


def test_the_best_evaluation_becomes_the_model(tables: Path) -> None:
    wild = dataclasses.replace(TRAIN, steps=160, learning_rate=0.1, evaluate_every=10, best="loss", patience=2)
    plan = recipe.Finetune(model=MODEL, head=recipe.NewHead("cls", 0.0, "regression"), train=wild)
    files = Files(tables / "train-number.tsv", tables / "dev-number.tsv")
    made = finetune.run("scratch", tables / "best", plan, files, tables / "words", OPTIONS)
    lines = [json.loads(line) for line in (tables / "best" / "metrics.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["dev_loss"] for line in lines if "dev_loss" in line}
    assert made["metrics"]["loss"] == min(losses.values()) == losses[made["best_step"]]
    assert made["step"] == max(losses) == made["best_step"] + 20 < 160
    found = evaluate.run(tables / "best", [tables / "dev-number.tsv"], AUTO, [], QUIET)
    assert found["metrics"]["loss"] == pytest.approx(made["metrics"]["loss"], rel=1e-4)
    for change, says in (({"evaluate_every": 0}, "one only"), ({"best": ""}, "patience"), ({"average": 0.5}, "both")):
        other = dataclasses.replace(plan, train=dataclasses.replace(wild, **change))
        with pytest.raises(LspError, match=says):
            finetune.run("scratch", tables / "no-sure", other, files, tables / "words", OPTIONS)


def test_explanations_name_the_words_that_count(tables: Path, several: Path) -> None:
    run = several
    (tables / "few.txt").write_text("the sun and <b> was\nwe saw the day\n")
    page = tables / "why.html"
    found = explain.run(run, str(tables / "few.txt"), AUTO, "sun", page, QUIET)
    first = found["rows"][0]
    weights = {word["word"]: word["weight"] for word in first["words"]}
    assert list(weights) == ["the", "sun", "and", "<b>", "was"]
    assert weights["sun"] > max(abs(weights[word]) for word in ("the", "and", "was"))
    assert first["explained"] == "sun" and "sun" in first["label"]
    assert sum(weights.values()) + first["gap"] == pytest.approx(first["value"] - first["baseline"], abs=1e-3)
    shown = explain.render(found)
    assert "sun(+" in shown and "missed" in shown
    assert "&lt;b&gt;" in page.read_text() and "<b>was" not in page.read_text()
    explain.run(run, str(tables / "few.txt"), AUTO, "", page, QUIET)
    (tables / "long.txt").write_text("the day was " * 9 + "\n")
    cut = explain.run(run, str(tables / "long.txt"), AUTO, "", None, QUIET)
    assert cut["rows"][0]["truncated"] and "cut at what the model reads" in " ".join(explain.render(cut).split())
    (tables / "mine.html").write_text("mine")
    with pytest.raises(LspError, match="is there already"):
        explain.run(run, str(tables / "few.txt"), AUTO, "", tables / "mine.html", QUIET)
    with pytest.raises(LspError, match="no such label"):
        explain.run(run, str(tables / "few.txt"), AUTO, "sunny", None, QUIET)


def test_fields_of_records_stand_in_the_order_of_the_first(several: Path, tables: Path) -> None:
    records = [{"text": "sun", "id": 1, "from": "a"}, {"text": "rain", "from": "b", "id": 2}, {"text": "wind", "x": 0}]
    (tables / "records.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records))
    lines = [line.split("\t")[3:] for line in predicted(several, tables / "records.jsonl", as_json=False)]
    assert lines == [["1", "a"], ["2", "b"], ["", ""]]
    assert predicted(several, tables / "records.jsonl")[2]["columns"] == {"x": 0}
    (tables / "records.jsonl").write_text('{"text": "sun", "odd": NaN, "far": [-Infinity, 1.5]}\n')
    assert predicted(several, tables / "records.jsonl")[0]["columns"] == {"odd": None, "far": [None, 1.5]}, (
        "JSON has none"
    )


def test_a_run_knows_its_columns_and_so_does_what_is_made_of_it(tables: Path) -> None:
    rows = [f"{n}\tno words\t{'sun' if n % 2 else 'rain'}\t{'yes' if n % 2 else 'no'}" for n in range(20)]
    (tables / "bodies.tsv").write_text("\n".join(["id\ttitle\tbody\tlabel", *rows]) + "\n")
    files = Files(tables / "bodies.tsv", tables / "bodies.tsv", (("body",), "label"))
    plan = recipe.Finetune(model=MODEL, head=recipe.NewHead("cls", 0.0), train=dataclasses.replace(TRAIN, steps=2))
    finetune.run("scratch", tables / "bodies", plan, files, tables / "words", OPTIONS)
    quantize.run(tables / "bodies", tables / "bodies8", recipe.Quantize(), tables / "bodies.tsv", AUTO, OPTIONS)
    export.run(tables / "bodies8", tables / "bodies-hlo", "stablehlo", False, QUIET)
    for name in ("bodies", "bodies8", "bodies-hlo"):
        assert predicted(tables / name, tables / "bodies.tsv")[0]["text"] == "rain", name
    (tables / "pairs.tsv").write_text("question\tsentence\nrain\tsun\n")
    with pytest.raises(LspError, match="trained on one text: 'body'"):
        predicted(tables / "bodies8", tables / "pairs.tsv")


def test_classes_can_weigh_the_same(tables: Path) -> None:
    rows = [("sun", "rare")] * 3 + [("rain", "often")] * 27
    table = "text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in rows)
    (tables / "few.tsv").write_text(table)
    head = recipe.NewHead("cls", 0.0, class_weights="balanced")
    plan = recipe.Finetune(model=MODEL, head=head, train=dataclasses.replace(TRAIN, steps=1))
    seen: list[Any] = []
    files = Files(tables / "few.tsv", tables / "few.tsv")

    def look(examples: Any, head: recipe.NewHead) -> None:
        weigh(examples, head)
        seen.append(examples)

    from lsp.train import labelled

    weigh, labelled.weigh = labelled.weigh, look
    try:
        finetune.run("scratch", tables / "few", plan, files, tables / "words", OPTIONS)
    finally:
        labelled.weigh = weigh
    assert seen[0].weights[:3].tolist() == [5.0] * 3
    assert seen[0].weights[3:] == pytest.approx(30 / 54)
    assert sorted(seen[0].batch(np.array([0, 5]), 3)["weights"].tolist()) == pytest.approx([0, 30 / 54, 5])
    several = dataclasses.replace(plan, head=dataclasses.replace(head, problem="multi_label"))
    with pytest.raises(LspError, match="class_weights"):
        finetune.run(
            "scratch", tables / "no-weight", several, Files(*[tables / "few.tsv"] * 2), tables / "words", OPTIONS
        )


def test_tasks_know_their_files(tmp_path: Path) -> None:
    (tmp_path / "dev_matched.tsv.gz").write_bytes(b"")
    assert split(tmp_path, "dev_matched").name == "dev_matched.tsv.gz"
    assert task("SST-2").names == ("negative", "positive") and task("stsb").problem == "regression"
    with pytest.raises(LspError, match=r"no such task. Did you mean 'mnli'") as error:
        task("mlni")
    assert "qnli" in error.value.hint
    with pytest.raises(LspError, match=r"holds no train\.tsv"):
        split(tmp_path, "train")


def test_what_comes_on_stdin_is_answered_as_it_comes(several: Path) -> None:
    command = [sys.executable, "-m", "lsp", "predict", "--from", str(several), "-", "--quiet"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write("text\nthe sun and the rain\nwind\n")
        process.stdin.flush()
        first = [process.stdout.readline() for _ in range(2)]  # while stdin is still open
        assert "the sun and the rain" in first[0] and first[1].endswith("wind\n")
        process.stdin.write("snow and snow\n" * 600)
        process.stdin.close()
        rest = process.stdout.readlines()
    assert len(rest) == 600 and len({*rest}) == 1 and process.returncode == 0
