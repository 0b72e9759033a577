"""The demo's own part: its texts, its table and its script. The stages it runs have tests of their own."""

import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest

from lsp import console
from lsp.commands import demo
from lsp.data import docstrings
from lsp.data.docstrings import Harvest

HARVEST = Harvest(
    corpus=["A text with a \u2028 line separator", 'and "quotes"'],
    train=[("shapes of arrays", "numpy"), ("sums of arrays", "numpy"), ("a socket and its peers", "python")],
    dev=[("more arrays", "numpy"), ("one socket", "python")],
    packages=["numpy", "python"],
    files=3,
)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the stages in the order they were run; nothing is trained."""
    called: list[str] = []

    def stage(name: str, **more: Any) -> None:
        def run(*arguments: Any, **options: Any) -> dict[str, Any]:
            called.append(name)
            status = "already complete" if called.count(name) > 1 else "complete"
            result = {"status": status, "parameters": 10, "bytes": 40, "metrics": {"accuracy": 0.5, "loss": 1.0}}
            return result | more

        monkeypatch.setattr(getattr(demo, name), "run", run)

    measured = {"metrics": {"accuracy": 0.75}, "examples_per_second": 100.0}
    for name in ("pretrain", "finetune"):
        stage(name)
    for name in ("distill", "prune_weights", "quantize"):
        stage(name, before=measured | {"examples_per_second": 50.0}, after=measured)
    return called


def test_the_table_has_both_baselines_and_every_stage(
    calls: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(docstrings, "harvest", lambda: HARVEST)
    result = demo.run(tmp_path / "demo", False, console.Progress(quiet=True))
    assert calls == ["pretrain", "finetune", "distill", "prune_weights", "quantize"]
    table = [(row["stage"], row["accuracy"], row["examples_per_second"]) for row in result["stages"]]
    assert table == [
        ("majority class", 0.5, None),
        ("bag of words", 1.0, None),
        ("encoder", None, None),
        ("classifier", 0.75, 50.0),
        ("student", 0.75, 100.0),
        ("pruned", 0.75, 100.0),
        ("int8", 0.75, 100.0),
    ]
    assert max(len(line) for key in ("stages", "commands") for line in console.table(result[key])) <= 80


def test_run_again_it_harvests_nothing_and_is_already_complete(
    calls: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    harvests = [HARVEST]
    monkeypatch.setattr(docstrings, "harvest", harvests.pop)
    first, second = (demo.run(tmp_path, False, console.Progress(quiet=True)) for _ in range(2))
    assert (first["status"], second["status"]) == ("complete", "already complete")


def test_what_was_written_is_what_is_read(tmp_path: Path) -> None:
    demo.write(tmp_path / "text", HARVEST)
    assert demo.read(tmp_path / "text" / "train.tsv") == HARVEST.train
    assert demo.read(tmp_path / "text" / "dev.tsv") == HARVEST.dev


def test_the_script_quotes_its_folder_and_names_every_stage(tmp_path: Path) -> None:
    lines = demo.commands(Path("my demo"))
    assert shlex.split(lines[0]) == ["cd", "my demo"]
    made = [word for line in lines for word in shlex.split(line.removesuffix("\\")) if word in demo.RECIPES]
    assert set(made) == set(demo.RECIPES)


def test_the_recipes_of_all_stages_are_one_toml_file(calls: list[str], monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setattr(docstrings, "harvest", lambda: HARVEST)
    demo.run(tmp_path, False, console.Progress(quiet=True))
    recipe = tomllib.loads((tmp_path / "recipe.toml").read_text())
    assert list(recipe) == list(demo.RECIPES)
    assert recipe["student"]["model"]["layers"] < recipe["encoder"]["model"]["layers"]
