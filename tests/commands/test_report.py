"""`lsp report` on runs of every kind that a page has to tell of: random tiny models, and results made by hand."""

import dataclasses
import json
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from lsp import Exit, LspError, checkpoint, cli, directory, lineage, manifest, recipe, report, svg
from lsp.chart import Chart
from lsp.compress import measure
from lsp.curves import Curve
from lsp.data.examples import Examples
from lsp.data.tasks import Table
from lsp.data.tokenizer import Tokenizer, train
from lsp.model.config import Layer, ModelConfig
from lsp.model.encoder import shapes
from lsp.train.evaluate import Scores

EVIL = "<script>alert('x')</script> \x1b[2J \u202e & \"so\""
SVG = "{http://www.w3.org/2000/svg}"
ENCODER = ModelConfig("bert", 300, 16, (Layer(2, 8, 24),), max_length=32, head="words")
PLANS = {"pretrain": recipe.Pretrain(train=recipe.Train(steps=40)), "finetune": recipe.Finetune()}
LOGGED = [{"step": step, "loss": 5 - step / 25, "seconds": step} for step in range(1, 101)]
EVALUATED = [{"step": step, "dev_loss": 4.0, "dev_accuracy": step / 200} for step in (50, 100)]
MEASURED = {
    "before": {"examples_per_second": 200.0, "metrics": {"accuracy": 1.0}},
    "after": {"examples_per_second": 500.0, "metrics": {"accuracy": 0.75}, "speedup": 2.25},
}
TRIED = [
    {"run": "x/candidates/plain-int8", "points_lost": 0.5, "speedup": 1.5, "bytes": 400, "meets": False, "best": True},
    {"run": "x/candidates/slow", "points_lost": 2.0, "speedup": 1.2, "bytes": 900, "meets": False, "best": False},
    {"run": f"x/candidates/{EVIL.replace('/', '')}", "points_lost": 1.0, "speedup": 3.0, "bytes": 100, "best": True},
]


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    lines = ["the cat sat on a mat and ate the rat", "a dog ran to the other cat"] * 40
    return train(iter(lines), vocab_size=290, kind="bpe", lowercase=False, seed=0)


def finished(out: Path, words: Tokenizer, stage: str, parents: list[str], files: dict[str, str], **made: Any) -> Path:
    """A sealed run with random parameters; `made` is its result."""
    plan = recipe.dump(PLANS.get(stage, recipe.Quantize()))
    command = stage if stage in PLANS else f"compress {stage}"
    usual = {"data": "e" * 64} if stage == "pretrain" else {"from": parents[0], "dev": "d" * 64}
    inputs = made.pop("inputs", usual)
    config = dataclasses.replace(ENCODER, vocab_size=words.size)
    labels = []
    if stage != "pretrain":
        config, labels = config.classifier(2, "cls", 0.0, "single_label"), ["calm", EVIL]
    random = np.random.default_rng(0)
    with directory.claim(out, command=command, recipe=plan, inputs=inputs) as held:
        for name, body in files.items():
            (out / name).write_text(body, encoding="utf-8")
        if stage == "quantize":
            made["paired"] = compared(held.path, words)
        metrics = {"accuracy": made["after"]["metrics"]["accuracy"] if made else 1.0} if labels else {"loss": 2.0}
        model = checkpoint.Model(config, _drawn(shapes(config), random), words, labels)
        checkpoint.finish(held, model, stage=stage, step=40, metrics=metrics, parents=parents, result=made)
    return out


def _drawn(tree: Any, random: np.random.Generator) -> Any:
    if isinstance(tree, dict):
        return {name: _drawn(value, random) for name, value in tree.items()}
    return random.standard_normal(tree.shape).astype(np.float32)


def compared(run: Path, words: Tokenizer) -> dict[str, Any]:
    """Four rows, all right before; the second is now taken for class 0, with much certainty."""
    labels = np.array([0, 1, 0, 1])
    texts = [("the cat",), (f"a dog {EVIL}",), ("the mat",), ("a rat",)]
    dev = Examples(Table(texts, labels.tolist(), ("calm", EVIL)), words, 32)
    before = np.eye(2, dtype=np.float32)[labels]
    after = before.copy()
    after[1] = [5.0, 0.0]
    base = checkpoint.Checkpoint(run, {}, ENCODER.classifier(2, "cls", 0.0, "single_label"), {}, words, ("calm", EVIL))
    return measure.beside(run, base, dev, Scores({}, before, 1.0), Scores({}, after, 1.0))


def identity(path: Path) -> str:
    return manifest.identity(manifest.load(path))


@pytest.fixture(scope="module")
def once(words: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder, a classifier whose name is a trap, its int8 form, and a search."""
    top = tmp_path_factory.mktemp("family")
    log = "".join(json.dumps(row) + "\n" for row in LOGGED + EVALUATED)
    encoder = finished(top / "encoder", words, "pretrain", [], {})
    trap = finished(top / "<i>&", words, "finetune", [identity(encoder)], {"metrics.jsonl": log})
    finished(top / "int8", words, "quantize", [identity(trap)], {}, **MEASURED)
    every = json.dumps([{"meets": True} | row | {"taken": row["best"]} for row in TRIED])
    finished(top / "best", words, "search", [identity(trap)], {"pareto.json": every}, **MEASURED)
    return top


@pytest.fixture
def runs(once: Path, tmp_path: Path) -> Path:
    """A copy of them: a manifest does not know where it is."""
    return Path(shutil.copytree(once, tmp_path / "runs"))


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert cli.main(["report", *words, "--json", "--quiet"]) == Exit.DONE
    return json.loads(capsys.readouterr().out)


def fails(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    code = cli.main(["report", *words, "--quiet"])
    return code, capsys.readouterr().err


def tree(page: Path) -> ElementTree.Element:
    """The page as XML: it must be well-formed."""
    return ElementTree.fromstring(page.read_text(encoding="utf-8").removeprefix("<!DOCTYPE html>\n"))


def cells(table: ElementTree.Element) -> list[dict[str, str]]:
    """A table's rows under their titles."""
    titles = ["".join(each.itertext()) for each in table.findall("./thead/tr/th")]
    rows = [["".join(each.itertext()) for each in row.findall("td")] for row in table.findall("./tbody/tr")]
    return [dict(zip(titles, row, strict=True)) for row in rows]


class Tags(HTMLParser):
    """The elements, attributes and text that a browser would make of a page."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs


def test_the_table_has_the_numbers_of_the_results(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = shown(capsys, str(runs / "int8"))
    page = runs / "int8.html"
    assert found["out"] == str(page) and found["status"] == "complete"
    head = cells(tree(page).find(".//table"))
    assert [row["run"] for row in head] == ["encoder", "<i>&", "int8"], "from text to int8"
    result = json.loads((runs / "int8" / "result.json").read_text())
    row, last = head[-1], found["stages"][-1]
    assert (last["parameters"], last["bytes"]) == (result["parameters"], result["bytes"])
    assert row["parameters"] == f"{result['parameters']:,}" and row["metric"] == "accuracy\u00a00.75"
    assert (row["points lost"], row["examples/s"], row["times as fast"]) == ("25.00", "500", "2.25")
    low, high = result["paired"]["interval"]
    assert row["95 % interval"] == f"{low:.2f} … {high:.2f}" and low == 0 and 25 < high <= 100
    assert row["p"] == "1", "a single change has to go one way or the other"
    assert head[1]["examples/s"] == "200", "the classifier was timed beside its child"
    assert found["in_all"] == [
        {"name": "int8", "from": "<i>&", "share_of_bytes": pytest.approx(1, abs=0.1), "points_lost": 25.0}
    ]
    assert sum(part["bytes"] for part in found["parts"] if part["name"] == "int8") == result["bytes"]


def test_what_comes_from_files_is_text_and_nothing_else(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown(capsys, str(runs / "int8"), str(runs / "best"))
    page = runs / "int8.html"
    said, tags = page.read_text(encoding="utf-8"), Tags(page)
    assert not {"script", "i"} & set(tags.tags) and "<i>&" not in said
    assert "\x1b" not in said and "\u202e" not in said, "what a terminal or a reader's eye would obey"
    assert not {name for name, _ in tags.attributes} & {"src", "href", "onclick", "onload", "action"}
    assert not [value for name, value in tags.attributes if value and "://" in value and name != "xmlns"]
    assert "url(" not in said and "@import" not in said
    assert "default-src 'none'" in str(tags.attributes)
    flips = cells(tree(page).findall(".//details//table")[-1])
    assert [row["row"] for row in flips] == ["2"] and flips[0]["after"] == "calm 0.99"
    assert flips[0]["text"] == "a dog <script>alert('x')</script> \\x1b[2J \\u202e & \"so\""
    assert flips[0][""] == "right to wrong"


def test_parents_are_found_by_hash_or_said_to_be_missing(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    away = tmp_path / "away"
    away.mkdir()
    shutil.move(runs / "<i>&", away / "renamed")
    gone = identity(away / "renamed")
    found = shown(capsys, str(runs / "int8"))
    assert [row["name"] for row in found["stages"]] == ["int8"]
    assert found["stages"][0]["missing"] == [gone]
    assert f"a parent that was not found: {gone[:12]}" in (runs / "int8.html").read_text()
    found = shown(capsys, str(runs / "int8"), str(away), "--overwrite")
    assert [row["name"] for row in found["stages"]] == ["encoder", "renamed", "int8"]
    assert found["stages"][2]["parents"] == ["renamed"] and not any(row["missing"] for row in found["stages"])
    shutil.copytree(runs / "encoder", runs / "impostor")
    (runs / "impostor" / "manifest.json").write_text("{}")
    assert len(shown(capsys, str(runs / "int8"), str(away))["stages"]) == 3, "a damaged neighbour is nobody's parent"


def test_prepared_data_is_a_parent_and_an_export_a_child(
    runs: Path, words: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    with directory.claim(runs / "data", command="prepare", recipe="", inputs={"text": "f" * 64}) as held:
        (held.path / "result.json").write_text("{}")
        manifest.seal(held.path, {"stage": "prepare"})
    data = identity(runs / "data")
    finished(runs / "reader", words, "pretrain", [], {}, inputs={"data": data})
    assert (
        cli.main(["export", "--from", str(runs / "int8"), "--format", "huggingface", "--out", str(runs / "hf"), "-q"])
        == 0
    )
    capsys.readouterr()
    found = shown(capsys, str(runs / "reader"), str(runs / "hf"))
    parents = {row["name"]: row["parents"] for row in found["stages"]}
    assert parents == {
        "data": [],
        "reader": ["data"],
        "encoder": [],
        "<i>&": ["encoder"],
        "int8": ["<i>&"],
        "hf": ["int8"],
    }
    said = "".join(tree(runs / "reader.html").itertext())
    assert f"prepare, made of text {'f' * 12}" in said and "lsp prepare \\\n    TEXT" in said
    assert "--from int8 \\\n    --format huggingface \\\n    --out hf-again" in said


def test_a_search_is_a_chart_with_a_point_for_each_model(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown(capsys, str(runs / "best"))
    page = tree(runs / "best.html")
    dots = {circle.find(f"{SVG}title").text: circle for circle in page.iter(f"{SVG}circle") if len(circle)}
    assert len(dots) == len(TRIED) and "plain-int8: 400 B" in dots
    plain, slow = dots["plain-int8: 400 B"], dots["slow: 900 B"]
    fast = next(dot for name, dot in dots.items() if "100 B" in name)
    assert float(slow.get("cx")) < float(plain.get("cx")) < float(fast.get("cx")), "faster is further right"
    assert float(slow.get("cy")) < float(fast.get("cy")) < float(plain.get("cy")), "more lost is higher"
    assert float(slow.get("r")) > float(plain.get("r")) > float(fast.get("r"))
    assert (slow.get("fill"), plain.get("fill")) == ("none", fast.get("fill")), "the best are filled"
    table = next(each for each in map(cells, page.iter("table")) if each and "model" in each[0])
    assert [row[""] for row in table] == ["taken", "", "taken"] and table[1]["times as fast"] == "1.20"


def test_curves_are_drawn_to_scale(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = shown(capsys, str(runs / "<i>&"))
    assert [each["metric"] for each in found["curves"]] == ["loss", "dev_accuracy"]
    assert found["curves"][0]["logged"][-1] == [100, 1.0] and found["curves"][0]["held_out"] == [[50, 4.0], [100, 4.0]]
    every = tree(runs / "<i>&.html").iter(f"{SVG}svg")
    drawn = [drawing for drawing in every if drawing.find(f".//{SVG}polyline") is not None]
    assert len(drawn) == 2 and len(list(drawn[0].iter(f"{SVG}circle"))) == 2


def points(drawing: str) -> np.ndarray:
    line = ElementTree.fromstring(drawing).find(f".//{SVG}polyline").get("points")
    return np.array([[float(value) for value in point.split(",")] for point in line.split()])


def test_a_straight_line_stays_one_and_fills_the_frame() -> None:
    straight = [(float(x), 3 - x / 5) for x in range(11)]
    places = points(svg.curves(Chart([Curve("a", straight, [])], "loss", "step", 1, False)))
    assert len(places) == 11
    np.testing.assert_allclose(np.diff(places, axis=0), np.diff(places, axis=0)[:1].repeat(10, 0), atol=0.11)
    assert places[0, 0] == svg.LEFT and places[-1, 0] == svg.WIDTH - svg.RIGHT
    assert svg.TOP < places[0, 1] < places[-1, 1] < 240 - svg.BOTTOM, "a smaller loss is lower"


def test_long_curves_are_thinned_and_short_or_flat_ones_drawn() -> None:
    many = [(float(x), float(x % 7)) for x in range(100_000)]
    places = points(svg.curves(Chart([Curve("a", many, [])], "loss", "step", 1, False)))
    assert len(places) <= svg.MOST + 1 and places[-1, 0] == svg.WIDTH - svg.RIGHT
    assert np.isfinite(points(svg.curves(Chart([Curve("a", [(3.0, 2.0)], [])], "loss", "step", 1, False)))).all()
    one = svg.scatter([svg.Dot(1.0, 0.0, 1.0, "a", "b", True)], "t", ("x", "y"))
    assert len(list(ElementTree.fromstring(one).iter(f"{SVG}circle"))) == 1


def test_bars_are_as_long_as_their_values() -> None:
    drawing = ElementTree.fromstring(svg.bars([("one", {"a": 30, "b": 10}), ("two", {"a": 10, "b": 0})], "bytes"))
    bars = [float(each.get("width")) for each in drawing.iter(f"{SVG}rect") if len(each)]
    room = svg.WIDTH - 150 - svg.RIGHT
    assert bars == pytest.approx([room * 0.75, room * 0.25, room * 0.25, 0], abs=0.06)


def test_neighbours_that_may_not_be_read_are_passed_by(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may read everything, so the refusal is the system's own, made up."""
    whole = [stage.identity for stage in lineage.traced([runs / "int8"], [])]
    (runs / "theirs").mkdir()
    real = Path.is_file

    def is_file(path: Path) -> bool:
        if path.parent.name == "theirs":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(Path, "is_file", is_file)
    assert [stage.identity for stage in lineage.traced([runs / "int8"], [])] == whole and len(whole) > 1
    monkeypatch.setattr(Path, "iterdir", lambda path: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    assert lineage._listed(runs) == []


def test_curves_that_are_too_long_to_read_at_once_are_no_damage(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = next(each for each in lineage.traced([runs / "int8"], []) if each.file("metrics.jsonl"))
    monkeypatch.setattr(manifest, "MANIFEST_LIMIT", stage.manifest["files"]["metrics.jsonl"]["size"] - 1)
    assert stage.file("metrics.jsonl") is None


def test_the_commands_name_runs_that_are_known_and_hash_files_that_are_not(runs: Path) -> None:
    stages = lineage.traced([runs / "int8"], [])
    names = lineage.names(stages)
    again = [line for stage in stages for line in lineage.again(stage, names)]
    assert again[0] == f"# DATA: {'e' * 64}"
    assert again[1].startswith("lsp pretrain \\\n    --data DATA \\\n    --recipe encoder/recipe.toml")
    assert "--from '<i>&' \\\n    --dev DEV \\\n    --recipe int8/recipe.toml \\\n    --out int8-again" in again[-1]
    assert lineage.changed(stages[0]) == [f"train.steps: {recipe.Pretrain().train.steps} → 40"]
    assert lineage.changed(stages[2]) == []


def test_nothing_is_written_over_or_into_a_run(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = shown(capsys, str(runs / "int8"))
    body = Path(first["out"]).read_bytes()
    assert shown(capsys, str(runs / "int8"))["status"] == "already complete"
    code, said = fails(capsys, str(runs / "best"), "--out", first["out"])
    assert code == Exit.USAGE and "is there already." in said and "--overwrite" in said
    assert cli.main(["report", str(runs / "int8"), "--out", first["out"], "--max-size", "1kB"]) == Exit.NO
    assert "is kept" in capsys.readouterr().err, "a gate is judged whatever becomes of the page"
    assert Path(first["out"]).read_bytes() == body
    mine = runs / "mine.html"
    mine.write_text("mine")
    code, said = fails(capsys, str(runs / "int8"), "--out", str(mine), "--overwrite")
    assert code == Exit.USAGE and "something else" in said and mine.read_text() == "mine"
    for inside in ("report.html", "params/report.html"):
        code, said = fails(capsys, str(runs / "int8"), "--out", str(runs / "int8" / inside))
        assert code == Exit.USAGE and "sealed" in said
    words = [
        ["plot", str(runs / "int8"), "--out"],
        ["bench", str(runs / "int8"), "--plot"],
        ["explain", "--from", str(runs / "int8"), str(mine), "--html"],
        ["evaluate", "--from", str(runs / "int8"), "--data", str(mine), "--errors"],
    ]
    for command, *others in words:
        ending = {"explain": "html", "evaluate": "jsonl"}.get(command, "png")
        assert cli.main([command, *others, str(runs / "int8" / f"mine.{ending}")]) == Exit.USAGE
        assert "is inside a run, which is sealed" in capsys.readouterr().err, command
    monkeypatch.chdir(runs / "int8")
    assert shown(capsys, ".", "--overwrite")["out"] == str(runs.resolve() / "int8.html")


@pytest.mark.parametrize(
    ("asked", "passed"),
    [
        (["--max-drop", "0.1"], [True]),  # 25 points of four examples, but the interval begins at 0
        (["--max-drop", "0.1", "--min-speedup", "2.25", "--max-size", "1GB"], [True, True, True]),
        (["--min-speedup", "2.3", "--max-size", "1kB"], [True, False]),  # a clock can't tell 2.25 from 2.3
        (["--min-speedup", "2.35"], [False]),
    ],
)
def test_gates_are_exit_1_and_on_the_page(
    runs: Path, capsys: pytest.CaptureFixture[str], asked: list[str], passed: list[bool]
) -> None:
    code = cli.main(["report", str(runs / "int8"), *asked, "--json", "--quiet"])
    found = json.loads(capsys.readouterr().out)
    assert code == (Exit.DONE if all(passed) else Exit.NO)
    assert [gate["passed"] for gate in found["gates"]] == passed
    table = next(each for each in map(cells, tree(runs / "int8.html").iter("table")) if "gate" in each[0])
    assert [row["gate"] for row in table] == asked[::2]
    assert [row["passed"] for row in table] == ["yes" if each else "no" for each in passed]


def test_a_drop_beyond_noise_misses_its_gate() -> None:
    row = {"name": "a", "stage": "prune", "points_lost": 2.0, "interval": [1.2, 2.8], "speedup": None, "bytes": 9}
    assert [gate["passed"] for gate in report.gates(row, report.Limits(1.2))] == [True]
    assert [gate["passed"] for gate in report.gates(row, report.Limits(1.1))] == [False]
    assert [gate["passed"] for gate in report.gates(row | {"interval": None}, report.Limits(1.9))] == [False]
    with pytest.raises(LspError, match="did not measure"):
        report.gates(row, report.Limits(speedup=2.0))


def test_what_was_lost_in_all_is_beside_the_first_classifier_of_the_same_line() -> None:
    def row(name: str, parent: str, lost: float | None, size: int, dev: str = "d") -> dict[str, Any]:
        named = {"name": name, "parents": [parent], "metric": "loss" if name == "encoder" else "accuracy"}
        return named | {"points_lost": lost, "bytes": size, "inputs": {"dev": dev}}

    rows = [row("encoder", "", None, 100), row("a", "encoder", None, 100), row("b", "encoder", None, 50)]
    rows += [row("a1", "a", 2.0, 40), row("a2", "a1", 3.0, 10), row("b1", "b", -20.0, 25, dev="other")]
    assert report.in_all(rows) == [
        {"name": "a1", "from": "a", "share_of_bytes": 0.4, "points_lost": pytest.approx(2)},
        {"name": "a2", "from": "a", "share_of_bytes": 0.1, "points_lost": pytest.approx(5)},
        {"name": "b1", "from": "b", "share_of_bytes": 0.5, "points_lost": None},
    ]


def test_mistakes_are_answered(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fails(capsys, str(runs / "int9"))[0] == Exit.ARTIFACT
    code, said = fails(capsys, str(runs))
    assert code == Exit.USAGE and "is no run" in said
    (runs / "int8" / "flips.jsonl").write_text("{}\n")
    code, said = fails(capsys, str(runs / "int8"))
    assert code == Exit.ARTIFACT and "flips.jsonl" in said
    (runs / "best" / "manifest.json").unlink()
    code, said = fails(capsys, str(runs / "best"))
    assert code == Exit.ARTIFACT and "not finished" in said
    with pytest.raises(LspError, match="does not exist"):
        lineage.opened(runs / "nowhere")
