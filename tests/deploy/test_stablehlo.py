"""A classifier as a StableHLO program answers as its run does, from disk, whatever the shape of the batch."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax import nnx
from jax import export

from lsp import Exit, LspError, checkpoint, cli
from lsp.checkpoint import Model
from lsp.data.examples import Examples
from lsp.data.tasks import Table
from lsp.deploy import exported, huggingface, parity, stablehlo
from lsp.model.encoder import graphdef
from lsp.train.evaluate import Classifier

pytest.importorskip("flatbuffers")

Build = Callable[..., Model]
Store = Callable[[Model, Path], Path]
TEXTS = ["the cat sat", "", "a dog ran over the hill to the old mill house and the cats", "mat " * 40, "old"]


def own(model: Model, *batches: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Logits of the rows of all batches, by the model itself, in one shape: each padded to what it takes."""
    structure, longest = graphdef(model.config), model.config.max_length
    padded = [[np.pad(each, ((0, 0), (0, longest - each.shape[1]))) for each in batch] for batch in batches]
    tokens, types = (np.concatenate(each) for each in zip(*padded, strict=True))
    classify = jax.jit(lambda params, *inputs: nnx.merge(structure, params).classify(*inputs))
    return np.asarray(classify(model.params, tokens, (tokens != 0).astype(np.int32), types))


def ragged(rows: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(rows)
    tokens = draw.integers(5, 285, (rows, length)).astype(np.int32)
    tokens[draw.integers(2, length + 1, rows)[:, None] <= np.arange(length)] = 0
    return tokens, ((np.arange(length) > 4) & (tokens != 0)).astype(np.int32)


@pytest.mark.parametrize("int8", [False, True], ids=["float32", "int8"])
@pytest.mark.parametrize("preset", ["bert", "modern", "bilstm"])
def test_answers_are_the_runs_for_ragged_lengths_batches_and_padding(
    build: Build, tmp_path: Path, preset: str, int8: bool
) -> None:
    model = build(preset, int8, pooling="cls" if preset == "bert" else "mean")
    stablehlo.write(model, tmp_path)
    assert json.loads((tmp_path / stablehlo.CONFIG).read_text())["int8"] == int8
    answer = stablehlo.answerer(tmp_path)
    batches = [ragged(1, 5), ragged(4, 17)]
    found = np.concatenate([answer(*batch) for batch in batches])
    assert found.shape == (5, 3) and found.dtype == np.float32
    np.testing.assert_allclose(found, own(model, *batches), atol=2e-2 if int8 else 2e-5)


def test_an_int8_program_has_int8_inside_and_no_program_takes_longer_rows(build: Build, tmp_path: Path) -> None:
    programs = [stablehlo.program(build("bert", int8)) for int8 in (False, True)]
    weights = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(build("bert").params) if leaf.ndim == 2)
    assert len(programs[0]) - len(programs[1]) > 1.5 * weights  # 3 bytes a weight, less scales, sums and the rounding
    texts = [export.deserialize(bytearray(program)).mlir_module() for program in programs]
    assert ["xui8>" in text for text in texts] == [False, True]
    (tmp_path / stablehlo.FILE).write_bytes(programs[0])
    (tmp_path / stablehlo.CONFIG).write_text("{}")  # of a version that did not say whether there is int8
    answer = stablehlo.answerer(tmp_path)
    with pytest.raises(ValueError):
        answer(np.ones((1, 33), np.int32), np.zeros((1, 33), np.int32))


@pytest.mark.parametrize("kind", ["stablehlo", "onnx"])
def test_an_export_is_predicted_with_as_its_run_is(
    build: Build, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    model = build("bert", int8=True)
    run, out = store(model, tmp_path / "run"), tmp_path / "out"
    words = ["export", "--from", str(run), "--format", kind, "--out", str(out), "--json", "--quiet"]
    assert cli.main(words) == Exit.DONE
    result = json.loads(capsys.readouterr().out)
    if kind == "stablehlo":
        assert result["compared"]["flips"] == 0 and result["compared"]["largest_difference"] <= 1e-5
    assert result["bytes"] == sum((out / name).stat().st_size for name in result["files"])
    assert cli.main(words) == Exit.DONE
    assert json.loads(capsys.readouterr().out)["status"] == "already complete"

    data = tmp_path / "texts.jsonl"
    data.write_text("".join(json.dumps({"text": text, "id": n}) + "\n" for n, text in enumerate(TEXTS * 30)))
    rows = []
    for start in (run, out):
        assert cli.main(["predict", "--from", str(start), str(data), "--json", "--quiet"]) == Exit.DONE
        rows.append([json.loads(line) for line in capsys.readouterr().out.splitlines()])
    assert len(rows[0]) == len(rows[1]) == 150
    for own, theirs in zip(*rows, strict=True):
        near = own.pop("probabilities"), theirs.pop("probabilities")
        assert near[0] == pytest.approx(near[1], abs=5e-3)
        assert own.pop("probability") == pytest.approx(theirs.pop("probability"), abs=5e-3)
        assert own == theirs

    assert (
        cli.main(["bench", str(out), "--against", str(run), "--length", "8", "--seconds", "0", "--json"]) == Exit.DONE
    )
    timed = json.loads(capsys.readouterr().out)
    assert [row["model"] for row in timed["models"]] == ["out", "run"] and timed["baseline"] == "run"
    assert timed["models"][0]["bytes"] == result["bytes"]

    assert cli.main(["verify", str(out)]) == Exit.DONE
    labelled = tmp_path / "labelled.jsonl"  # the answers of the run; the last is made wrong
    labels = [row["label"] for row in rows[0]]
    labels[-1] = next(label for label in ("bad", "good") if label != labels[-1])
    lines = [json.dumps({"text": row["text"], "label": label}) for row, label in zip(rows[0], labels, strict=True)]
    labelled.write_text("".join(line + "\n" for line in lines))
    gate = ["evaluate", "--from", str(out), "--data", str(labelled), "--json", "--quiet"]
    capsys.readouterr()
    assert cli.main([*gate, "--min", "accuracy=1", "--errors", str(tmp_path / "wrong.jsonl")]) == Exit.NO
    found = json.loads(capsys.readouterr().out)
    assert found["metrics"]["accuracy"] == pytest.approx(149 / 150) and found["examples_per_second"] > 0
    assert json.loads((tmp_path / "wrong.jsonl").read_text())["row"] == 150
    assert cli.main([*gate, "--min", "accuracy=0.99"]) == Exit.DONE
    capsys.readouterr()
    assert cli.main(["explain", "--from", str(out), str(data)]) == Exit.ARTIFACT
    said = capsys.readouterr().err
    assert "Give the run it was made from." in said and "import" not in said

    program = bytearray((out / f"model.{kind}").read_bytes())
    program[len(program) // 2] ^= 1
    (out / f"model.{kind}").write_bytes(program)
    for command in (["predict", "--from", str(out), str(data)], ["bench", str(out)]):
        assert cli.main(command) == Exit.ARTIFACT
        assert f"model.{kind}" in capsys.readouterr().err


def test_logits_come_in_the_examples_order(
    build: Build, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against rows that examples share, as `lsp evaluate` reads them."""
    monkeypatch.setattr(parity, "TEXTS", 2)
    run = store(build("modern", problem="regression", classes=1), tmp_path / "run")
    cli.main(["export", "--from", str(run), "--format", "stablehlo", "--out", str(tmp_path / "out"), "--quiet"])
    opened, base = exported.open(tmp_path / "out"), checkpoint.open(run)
    assert (opened.problem, opened.labels, opened.max_length) == ("regression", (), 32)
    texts = [(a, b) for a in TEXTS for b in TEXTS]
    examples = Examples(Table(texts, [], ()), opened.tokenizer, opened.max_length)
    expected = Classifier(base.config).logits(base.params, examples)
    np.testing.assert_allclose(opened.logits(examples), expected, atol=2e-5)


@pytest.mark.parametrize("kind", ["ours", "published"])
def test_the_readme_runs_without_lsp(build: Build, store: Store, tmp_path: Path, kind: str) -> None:
    if kind == "published":
        found = huggingface.read(Path(__file__).parent / "golden" / "bert-classes").model
        model = found._replace(labels=("no", "yes", "maybe")[: found.config.classes])
    else:
        model = build("bert")
    stablehlo.write(model, tmp_path)
    if kind == "published":  # many bring what would pad and cut here
        words = json.loads((tmp_path / "tokenizer" / "tokenizer.json").read_text())
        words["padding"] = {"strategy": {"Fixed": 16}, "direction": "Right", "pad_to_multiple_of": None}
        words["padding"] |= {"pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"}
        words["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
        (tmp_path / "tokenizer" / "tokenizer.json").write_text(json.dumps(words))
    readme = (tmp_path / "README.md").read_text()
    assert len(readme.split("```")[1].splitlines()) <= 20
    program = re.search(r"```python\n(.*)```", readme, re.S)
    assert program is not None
    script = program[1].replace("A text to classify.", "the cat sat, [MASK] naïve")
    checked = script + "\nimport sys; assert 'lsp' not in sys.modules and 'flax' not in sys.modules\n"
    done = subprocess.run([sys.executable, "-c", checked], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    shown = dict(re.findall(r"'(\w+)': ([-.\de]+)", done.stdout))
    examples = Examples(Table([("the cat sat, [MASK] naïve",)], [], ()), model.tokenizer, model.config.max_length)
    tokens = examples.tokens[0][None]
    expected = own(model, (tokens, np.zeros_like(tokens)))[0]
    assert list(shown) == list(model.labels)
    np.testing.assert_allclose([float(value) for value in shown.values()], expected, atol=2e-5)


def test_an_export_that_differs_is_not_finished(
    build: Build, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = store(build("bert"), tmp_path / "run")
    real = stablehlo.program
    other = build("bert", int8=True)
    monkeypatch.setattr(stablehlo, "program", lambda model: real(other))
    monkeypatch.setattr(parity, "TEXTS", 2)
    words = ["export", "--from", str(run), "--format", "stablehlo", "--out", str(tmp_path / "out")]
    assert cli.main(words) == Exit.NO
    assert "read back, differ by up to" in capsys.readouterr().err
    assert not (tmp_path / "out" / "manifest.json").exists()
    with pytest.raises(LspError):
        exported.open(tmp_path / "out")


@pytest.mark.parametrize(("problem", "flipped"), [("single_label", 1), ("multi_label", 2), ("regression", 0)])
def test_labels_that_flip_are_counted(problem: str, flipped: int) -> None:
    before = np.array([[1.0, 2.0], [3.0, -1.0], [0.5, 0.6]])
    after = np.array([[1.0, 2.1], [3.0, 1.0], [0.7, -0.6]])
    config = SimpleNamespace(head="classes", problem=problem)
    assert parity.flips(config, after, before) == flipped


def test_what_can_not_be_exported_is_said(
    build: Build, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", "--format", "stablehlo", "--out", str(tmp_path / "out"), "--from"]
    encoder = store(build("bert", head="words"), tmp_path / "encoder")
    assert cli.main([*words, str(encoder)]) == Exit.USAGE
    assert "writes classifiers" in capsys.readouterr().err
    run = store(build("bert"), tmp_path / "run")
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    assert cli.main([*words, str(run)]) == Exit.MACHINE
    assert "bash scripts/setup.sh stablehlo" in capsys.readouterr().err


def test_a_file_that_is_no_program_is_refused(tmp_path: Path) -> None:
    (tmp_path / stablehlo.CONFIG).write_text("{}")
    for content in (b"", b"\0" * 64, b"lsp" * 100):
        (tmp_path / stablehlo.FILE).write_bytes(content)
        with pytest.raises(LspError, match="no program") as error:
            stablehlo.answerer(tmp_path)
        assert error.value.code == Exit.ARTIFACT
