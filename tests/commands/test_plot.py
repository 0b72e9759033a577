"""`lsp plot` as people and scripts meet it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lsp import Exit, cli


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A finished run and a longer one that is not, whose name a terminal and matplotlib would obey."""
    monkeypatch.setenv("COLUMNS", "80")
    paths = tmp_path / "done", tmp_path / "$\\x$\x1b[31m"
    for path, steps in zip(paths, (100, 150), strict=True):
        path.mkdir()
        rows = [{"step": step, "loss": 5 - step / 50, "seconds": step / 2} for step in range(1, steps + 1)]
        rows.append({"step": steps, "dev_loss": 4.0, "seconds": steps / 2})
        (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (paths[0] / "manifest.json").write_text("{}")
    return [str(path) for path in paths]


def test_a_chart_and_a_table_fit_a_terminal_and_a_pipe(runs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plot", *runs, runs[0] + "/"]) == Exit.DONE
    printed = capsys.readouterr().out
    chart, table = printed.split("\n\n")
    assert "\x1b" not in printed and "\\x1b[31m" in printed
    assert chart.startswith("loss by step, smoothed over 3 lines, points: held out (dev_loss)\n")
    assert max(map(len, chart.splitlines())) <= 80
    rows = [line.split()[1:] for line in table.splitlines()[2:]]
    assert rows == [["complete", "100", "3", "4"], ["unfinished", "150", "2", "4"]]


def test_with_json_the_points_are_those_of_the_file(runs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plot", *runs, "--x", "seconds", "--smooth", "4", "--json"]) == Exit.DONE
    result = json.loads(capsys.readouterr().out)
    assert {key: result[key] for key in ("metric", "x", "smoothing", "scale")} == {
        **{"metric": "loss", "x": "seconds", "smoothing": 5, "scale": "linear"},
    }
    assert [each["status"] for each in result["runs"]] == ["complete", "unfinished"]
    assert result["runs"][0]["logged"][-1] == [50.0, 3.0]
    assert result["runs"][1]["held_out"] == [[75.0, 4.0]]


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_pictures_are_the_same_for_the_same_runs(
    runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    pytest.importorskip("matplotlib")
    pictures = []
    for _ in range(2):
        out = tmp_path / f"curves.{kind}"
        assert cli.main(["plot", *runs, "--log", "--out", str(out)]) == Exit.DONE
        pictures.append(out.read_bytes())
    assert pictures[0] == pictures[1]
    assert pictures[0].startswith({"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[kind])
    assert capsys.readouterr().err == ""


def test_no_jax_is_loaded_and_matplotlib_only_for_a_picture(runs: list[str]) -> None:
    program = (
        "import sys; from lsp import cli; cli.main(sys.argv[1:]);"
        "print([name for name in ('jax', 'numpy', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program, "plot", *runs], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--metric", "lss"], Exit.USAGE, "Did you mean 'loss'?"),
        (["--out", "curves.jpg"], Exit.USAGE, "no kind of picture"),
        (["--out", "/nowhere/curves.png"], Exit.USAGE, "/nowhere does not exist"),
        (["--x", "tokens"], Exit.USAGE, "can't be drawn over tokens"),
    ],
)
def test_mistakes_are_named(
    runs: list[str], capsys: pytest.CaptureFixture[str], words: list[str], code: Exit, said: str
) -> None:
    assert cli.main(["plot", *runs, *words]) == code
    printed = capsys.readouterr()
    assert printed.out == "" and said in printed.err and "fix: " in printed.err


def test_a_missing_matplotlib_is_named_with_its_extra(
    runs: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert cli.main(["plot", *runs, "--out", "curves.png"]) == Exit.MACHINE
    assert "bash scripts/setup.sh plots" in capsys.readouterr().err


def test_a_log_scale_needs_something_above_zero(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": -1.0}\n')
    assert cli.main(["plot", str(tmp_path), "--log"]) == Exit.USAGE
    assert "above 0" in capsys.readouterr().err
