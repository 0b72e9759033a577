"""ONNX files against the model they were made of, transformers' answers, NumPy, and a runtime that is not ONNX
Runtime."""

import dataclasses
import functools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from safetensors.numpy import load_file

from lsp import Exit, LspError, cli, directory, recipe
from lsp.checkpoint import Model
from lsp.commands import export, import_, predict
from lsp.compress import calibrated
from lsp.compress.quantize import quantize
from lsp.console import Progress
from lsp.data.examples import Examples
from lsp.data.tasks import Table
from lsp.data.tokenizer import SentencePiece, train
from lsp.deploy import huggingface, parity
from lsp.deploy import onnx as exported
from lsp.deploy.onnx_nodes import FusedGraph, Graph
from lsp.model.config import Layer, ModelConfig, Preset
from lsp.model.encoder import initialise
from lsp.model.int8 import Int8, quantize_array
from lsp.model.weightonly import is_quantized

GOLDEN = Path(__file__).parent / "golden"
FOLDERS = sorted(path.name for path in GOLDEN.iterdir())
QUIET = Progress(quiet=True)
# As pruning leaves layers: no two have the same number of heads or width.
UNEVEN = (Layer(4, 8, 48, window=3), Layer(3, 8, 80, rotary_base=500.0), Layer(2, 8, 24))
CLASSES: dict[str, Any] = {"head": "classes", "classes": 3}


@pytest.fixture(scope="module")
def words() -> SentencePiece:
    lines = [f"the sun and the rain were seen by {number} of us" for number in range(200)]
    made = train(lines, vocab_size=290, kind="unigram", lowercase=False, seed=0)
    assert isinstance(made, SentencePiece)
    return made


def made(words: SentencePiece, preset: Preset, int8: bool = False, **about: Any) -> Model:
    """A model whose every parameter is random, norms and biases too."""
    layers = (Layer(2, 16, 128),) * 2 if preset == "bilstm" else UNEVEN
    if preset == "bert":
        layers = tuple(dataclasses.replace(layer, window=0) for layer in layers)
    config = ModelConfig(preset, words.size + 3, 32, layers, max_length=40, **about)
    random = np.random.default_rng(1)
    params = jax.tree.map(
        lambda leaf: np.asarray(leaf) + 0.1 * random.standard_normal(leaf.shape, np.float32), initialise(config, 0)
    )
    labels = ("a", "b", "c")[: config.classes]
    return Model(config, jax.device_get(quantize(params)) if int8 else params, words, labels)


MEAN, CLS = CLASSES | {"pooling": "mean"}, CLASSES | {"pooling": "cls"}


@pytest.mark.parametrize(
    ("preset", "int8", "about", "runtime"),
    [
        ("bert", False, CLS, "any"),
        ("bert", True, MEAN | {"problem": "regression", "classes": 1, "pooler_activation": "relu"}, "any"),
        ("bert", True, {"head": "none", "activation": "gelu_tanh"}, "onnxruntime"),
        ("modern", True, CLS, "any"),
        ("modern", False, MEAN | {"problem": "multi_label", "types": 2}, "any"),
        ("bilstm", True, CLS, "onnxruntime"),
        ("bilstm", False, MEAN, "any"),
    ],
)
def test_answers_are_the_models_alone_in_batches_and_padded(
    words: SentencePiece, preset: Preset, int8: bool, about: dict[str, Any], runtime: exported.Runtime, tmp_path: Path
) -> None:
    """In ONNX Runtime, and in a runtime that has no operators but the standard's: ONNX's own evaluator."""
    model = made(words, preset, int8, **about)
    assert sorted(exported.write(model, tmp_path, runtime)) == sorted(path.name for path in tmp_path.iterdir())
    found = parity.compare(exported.answerer(tmp_path), model)
    parity.refuse(tmp_path, found)
    assert found["batch_difference"] < 1e-6 and found["flips"] == 0
    assert int8 or found["largest_difference"] < 1e-5
    onnx.checker.check_model(tmp_path / exported.GRAPH, full_check=True)
    graph = onnx.load(tmp_path / exported.GRAPH)
    domains = {each.domain for each in graph.opset_import}
    assert domains == {node.domain for node in graph.graph.node}
    assert domains == ({""} if runtime == "any" else {"", "com.microsoft"})
    if runtime != "any":
        return
    tokens = np.random.default_rng(0).integers(5, 290, (2, 7), dtype=np.int32)
    tokens[1, 4:] = 0
    types = np.arange(7, dtype=np.int32) // 4 * (tokens > 0)
    inputs = {"input_ids": tokens, "attention_mask": tokens > 0, "token_type_ids": types}
    inputs = {each.name: inputs[each.name].astype(np.int64) for each in graph.graph.input}
    plain, fast = ReferenceEvaluator(graph).run(None, inputs)[0], exported.answerer(tmp_path)(tokens, types)
    if about["head"] == "none":
        plain, fast = plain[tokens > 0], fast[tokens > 0]
    np.testing.assert_allclose(plain, fast, atol=found["allowed"] if int8 else 1e-5)


METHODS = {
    "smooth": ["quantize.smooth=0.5"],
    "static": ["quantize.method=static", "quantize.smooth=0.5"],
    "weights": ["quantize.method=weights", "quantize.bits=4", "quantize.group=8"],
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("preset", "runtime"), [("bert", "any"), ("modern", "onnxruntime"), ("bilstm", "any")])
def test_every_kind_of_int8_is_exported(
    words: SentencePiece, preset: Preset, runtime: exported.Runtime, method: str, tmp_path: Path
) -> None:
    """What SmoothQuant multiplies and static limits cut off is in the file; weights alone are float32 in it."""
    model = made(words, preset, **CLS)
    asked = recipe.load(recipe.Quantize, None, METHODS[method]).quantize
    texts = [("".join(each),) for each in np.random.default_rng(0).choice(list("abcdefgh "), (30, 12))]
    sample = Examples(Table(texts, [], ("a", "b", "c")), words, 32)
    small = model._replace(params=quantize(model.params, calibrated.maker(asked, model.config, model.params, sample)))
    kept = jax.tree.leaves(small.params, is_leaf=is_quantized)
    assert any(getattr(leaf, "factor", None) is not None for leaf in kept) == (method != "weights")
    assert any(getattr(leaf, "limit", None) is not None for leaf in kept) == (method == "static")
    exported.write(small, tmp_path, runtime)
    found = parity.compare(exported.answerer(tmp_path), small)
    parity.refuse(tmp_path, found)
    assert found["batch_difference"] < 1e-6 and found["flips"] == 0


@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.parametrize("kind", ["single", "pair"])
def test_answers_and_ids_are_those_of_transformers(name: str, kind: str, tmp_path: Path) -> None:
    model = huggingface.read(GOLDEN / name).model
    exported.write(model, tmp_path)
    answer, expected = exported.answerer(tmp_path), load_file(GOLDEN / name / "expected.safetensors")
    ours = np.argsort(model.tokenizer.theirs).astype(np.int32)
    output = "logits" if model.config.head == "classes" else "hidden"
    texts = json.loads((GOLDEN / name / "texts.json").read_text())
    for index in range(len(texts)):
        ids_BT = expected[f"{kind}.{index}.ids"][None].astype(np.int32)
        types_BT = np.zeros_like(ids_BT)
        if kind == "pair":
            end = model.tokenizer.theirs[3]
            types_BT[0, 1 + int((ids_BT[0] == end).argmax()) :] = 1
        found = answer(ours[ids_BT], types_BT)[0]
        np.testing.assert_allclose(found, expected[f"{kind}.{index}.{output}"], atol=3e-5)


def product_by_hand(x_MK: np.ndarray, kernel: Int8, divided: bool) -> np.ndarray:
    """One number at a time, in whole numbers as far as they go. `divided` is how the rounding operator has x."""
    most = np.float32(127)
    y_MN = np.zeros((len(x_MK), len(kernel.scale)), np.float32)
    for row, x_K in enumerate(x_MK):
        largest = max(np.float32(1e-30), *np.abs(x_K))
        scaled_K = x_K / (largest / most) if divided else x_K * (most / largest)
        whole_K = [round(float(value)) for value in scaled_K]  # Python rounds half to even
        for column, scale in enumerate(kernel.scale):
            total = sum(value * int(weight) for value, weight in zip(whole_K, kernel.q[:, column], strict=True))
            y_MN[row, column] = np.float32(total) * (scale / most) * largest
    return y_MN


def around(graph: Graph, y: str) -> onnx.ModelProto:
    """The file of a graph from x to y."""
    shapes = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["m", None]) for name in ("x", y)]
    return helper.make_model(
        helper.make_graph(graph.nodes, "product", shapes[:1], shapes[1:], graph.arrays),
        opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)],
        ir_version=9,
    )


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", [Graph, FusedGraph])
def test_static_products_are_those_by_hand_and_of_whole_numbers(kind: type[Graph], bias: bool, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    x_MK = random.standard_normal((5, 24), np.float32)
    x_MK[1] = np.linspace(-11.5, 11.5, 24) / 64  # between two steps
    x_MK[2] *= 100  # cut off
    kernel = dataclasses.replace(
        jax.device_get(quantize_array(random.standard_normal((24, 6), np.float32), 1)), limit=127 / 64
    )
    b_N = random.standard_normal(6, np.float32)
    graph = kind()
    model = around(graph, graph.linear("x", {"kernel": kernel} | ({"bias": b_N} if bias else {})))
    whole_MK = np.clip(np.round(x_MK * 64), -128, 127)  # a step is a 64th: nothing but the last product is rounded
    expected = whole_MK @ kernel.q.astype(np.float64) * (kernel.scale / 64.0) + bias * b_N
    near = functools.partial(np.testing.assert_allclose, desired=expected, rtol=1e-6, atol=1e-6)
    if kind is Graph:
        near(ReferenceEvaluator(model).run(None, {"x": x_MK})[0])
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "made.onnx")
    options.log_severity_level = 3
    options.add_session_config_entry(*exported.EXACT)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    near(session.run(None, {"x": x_MK})[0])
    operators = [node.op_type for node in onnx.load(tmp_path / "made.onnx").graph.node]
    assert operators == ["QuantizeLinear", "MatMulIntegerToFloat"] + ["Sub"] * (bias and kind is Graph)


@pytest.mark.parametrize("kind", [Graph, FusedGraph])
def test_int8_products_are_those_by_hand_bit_for_bit(kind: type[Graph]) -> None:
    random = np.random.default_rng(0)
    x_MK = random.standard_normal((7, 24), np.float32)
    x_MK[1] = 0
    x_MK[2] = np.linspace(-11.5, 11.5, 24)  # at a scale of 1: between two whole numbers
    x_MK[2, 0] = 127
    x_MK[3] *= np.float32(1e20)
    x_MK[4] *= np.float32(1e-20)
    x_MK[5] = 1
    w_KN = random.standard_normal((24, 5), np.float32)
    w_KN[:, 0] = 1  # with the row of ones the largest sum there is: 16 bits are too few for two of its products
    kernel = jax.device_get(quantize_array(w_KN, 1))
    graph = kind()
    y = graph.dynamic("x", kernel)
    model = around(graph, y)
    expected = product_by_hand(x_MK, kernel, divided=kind is FusedGraph)
    for exact in {True, exported._overflows()}:
        session = exported.opened(model.SerializeToString(), threads=1, exact=exact)
        np.testing.assert_array_equal(session.run(None, {"x": x_MK})[0], expected)
    if kind is Graph:
        np.testing.assert_array_equal(ReferenceEvaluator(model).run(None, {"x": x_MK})[0], expected)


@pytest.mark.parametrize("preset", ["bert", "modern", "bilstm"])
def test_int8_stays_int8_in_the_file(words: SentencePiece, preset: Preset, tmp_path: Path) -> None:
    model = made(words, preset, int8=True, **CLASSES)
    exported.write(model, tmp_path)
    arrays = onnx.load(tmp_path / exported.GRAPH).graph.initializer
    held = sum(int(np.prod(array.dims)) for array in arrays if array.data_type == TensorProto.INT8)
    leaves = jax.tree.leaves(model.params, is_leaf=lambda leaf: isinstance(leaf, Int8))
    assert held == sum(leaf.q.size for leaf in leaves if isinstance(leaf, Int8))
    assert all(np.prod(array.dims) <= 320 for array in arrays if array.data_type == TensorProto.FLOAT)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose vocabulary is numbered in another way than the published one that it was made from."""
    out = tmp_path_factory.mktemp("runs") / "bert"
    import_.run(GOLDEN / "bert-classes", out, False, QUIET)
    return out


def test_the_folder_is_all_that_is_needed(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The lines of its README, run there, give the labels that `lsp predict` gives."""
    out = tmp_path / "out"
    assert cli.main(["export", "--from", str(run), "--format", "onnx", "--out", str(out), "--json", "-q"]) == Exit.DONE
    result = json.loads(capsys.readouterr().out)
    assert result == json.loads((out / "result.json").read_text())
    assert result["files"] == ["model.onnx", "config.json", "tokenizer.json", "README.md"]
    assert result["bytes"] == sum((out / name).stat().st_size for name in result["files"])
    assert directory.read(out)["compared"] == result["compared"]
    text = (out / "README.md").read_text()
    code = text.split("```python\n")[1].split("```")[0]
    done = subprocess.run([sys.executable, "-c", code], cwd=out, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    texts = tmp_path / "texts.tsv"
    texts.write_text("text\nThe first text.\nAnother one.\n")
    with open(tmp_path / "answers", "w+") as output:
        predict.run(run, str(texts), ((), ""), predict.Output(output, True), QUIET)
        output.seek(0)
        expected = [json.loads(line)["label"] for line in output]
    assert done.stdout == f"{expected}\n"
    assert export.run(run, out, "onnx", False, QUIET)["status"] == "already complete"
    with pytest.raises(LspError, match="runtime: any → onnxruntime"):
        export.run(run, out, "onnx", False, QUIET, "onnxruntime")
    capsys.readouterr()
    words = ["export", "--from", str(run), "--format", "huggingface", "--runtime", "onnxruntime", "--out", str(out)]
    assert cli.main(words) == Exit.USAGE
    assert "--runtime is for ONNX files, and --format is huggingface." in capsys.readouterr().err


@pytest.mark.parametrize(
    "change", [{"problem": "multi_label"}, {"head": "none", "classes": 0}, {"problem": "regression"}]
)
def test_every_readme_runs(words: SentencePiece, change: dict[str, Any], tmp_path: Path) -> None:
    about = CLASSES | change | ({"classes": 1} if change.get("problem") == "regression" else {})
    model = made(words, "modern", **about)
    exported.write(model, tmp_path)
    code = exported.usage(model.config).split("```python\n")[1].split("```")[0]
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout, done.stderr


def test_a_file_that_answers_otherwise_does_not_count(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = exported.write

    def spoilt(model: Model, out: Path, runtime: exported.Runtime) -> list[str]:
        bias = model.params["classifier"]["bias"] + np.float32(1e-3)
        return whole(
            model._replace(params=model.params | {"classifier": model.params["classifier"] | {"bias": bias}}), out
        )

    monkeypatch.setattr(exported, "write", spoilt)
    with pytest.raises(LspError, match=r"differ by up to 0\.001 from the run's; 0\.0001 is allowed") as error:
        export.run(run, tmp_path / "out", "onnx", False, QUIET)
    assert error.value.code == Exit.NO
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert json.loads((tmp_path / "out" / "result.json").read_text())["status"] == "failed"


def test_answers_that_depend_on_the_batch_do_not_count(
    words: SentencePiece, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = made(words, "bert", **CLASSES)
    exported.write(model, tmp_path)
    whole = exported.answerer(tmp_path)

    def leaning(tokens_BT: np.ndarray, types_BT: np.ndarray) -> np.ndarray:
        return whole(tokens_BT, types_BT) + np.float32(1e-3 if len(tokens_BT) == 1 else -1e-3)

    monkeypatch.setattr(parity, "TOLERANCE", 1.5e-3)
    with pytest.raises(LspError, match=r"differ by up to 0\.002 from each other, batched or alone; 0\.0015") as error:
        parity.refuse(tmp_path, parity.compare(leaning, model))
    assert error.value.code == Exit.NO


@pytest.mark.parametrize("about", [CLASSES, {}])
def test_as_many_texts_as_a_text_has_tokens_are_compared_as_ever(words: SentencePiece, about: dict[str, Any]) -> None:
    """Logits [6, C] of texts of up to 6 tokens are no hidden states, of which those of padding are passed over."""
    model = made(words, "modern", **about)
    model = model._replace(config=dataclasses.replace(model.config, max_length=parity.TEXTS))
    found = parity.compare(parity.answerer(model.config, model.params), model)
    assert found["lengths"][-1] == parity.TEXTS and found["largest_difference"] < 1e-5


def test_what_static_limits_cut_off_does_not_excuse_another_answer(words: SentencePiece, tmp_path: Path) -> None:
    model = made(words, "modern", **CLS)
    asked = recipe.load(recipe.Quantize, None, ["quantize.method=static"]).quantize
    sample = Examples(Table([("a b",)] * 4, [], ("a", "b", "c")), words, 32)
    small = model._replace(params=quantize(model.params, calibrated.maker(asked, model.config, model.params, sample)))

    def narrow(leaf: Any) -> Any:  # random texts go far beyond
        given = isinstance(leaf, Int8) and leaf.limit is not None
        return Int8(leaf.q, leaf.scale, leaf.colsum, leaf.axis, leaf.factor, leaf.limit / 20) if given else leaf

    small = small._replace(params=jax.tree.map(narrow, small.params, is_leaf=is_quantized))
    head = small.params["classifier"]
    largest = np.abs(parity.answerer(small.config, small.params)(*parity.texts(small))).max()
    wrong = head | {"bias": head["bias"] + np.float32(0.5 * largest)}
    exported.write(small._replace(params=small.params | {"classifier": wrong}), tmp_path)
    with pytest.raises(LspError, match="differ by up to"):
        parity.refuse(tmp_path, parity.compare(exported.answerer(tmp_path), small))


def test_an_int8_model_may_differ_more_from_another_program_than_from_itself_in_company(tmp_path: Path) -> None:
    found = {"largest_difference": 0.3, "batch_difference": 0.09, "allowed": 0.4, "batch_allowed": 0.1, "flips": 0}
    parity.refuse(tmp_path, found | {"lengths": [2]})
    with pytest.raises(LspError, match=r"0\.3 from each other, batched or alone; 0\.1 is allowed"):
        parity.refuse(tmp_path, found | {"lengths": [2], "batch_difference": 0.3})


def test_what_is_no_file_of_ours_is_refused(
    words: SentencePiece, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = made(words, "bert", **CLASSES)
    exported.write(model, tmp_path)
    whole = (tmp_path / exported.GRAPH).read_bytes()
    (tmp_path / exported.GRAPH).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(LspError, match=r"model\.onnx can't be run") as error:
        exported.answerer(tmp_path)
    assert error.value.code == Exit.ARTIFACT
    monkeypatch.setattr(parity, "LARGEST_FILE", 1000)
    with pytest.raises(LspError, match="holds less than 2") as error:
        exported.write(model, tmp_path)
    assert error.value.code == Exit.USAGE


def test_what_is_not_installed_is_named(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    code = cli.main(["export", "--from", str(run), "--format", "onnx", "--out", str(tmp_path / "out")])
    assert code == Exit.MACHINE
    assert "bash scripts/setup.sh onnx" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(LspError, match="need the Python package onnxruntime") as error:
        exported.opened(b"")
    assert error.value.code == Exit.MACHINE
