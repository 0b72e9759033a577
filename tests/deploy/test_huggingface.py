"""Folders of others against what transformers computed with them (make_golden.py)."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

from lsp import Exit, LspError
from lsp.checkpoint import Model
from lsp.data import published
from lsp.data.examples import Examples
from lsp.data.tasks import Table
from lsp.data.tokenizer import train
from lsp.deploy import configs, huggingface
from lsp.deploy.card import card
from lsp.deploy.pieces import converted
from lsp.model.config import Layer, ModelConfig
from lsp.model.encoder import graphdef

GOLDEN = Path(__file__).parent / "golden"
FOLDERS = sorted(path.name for path in GOLDEN.iterdir())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of a folder to spoil."""
    return Path(shutil.copytree(GOLDEN / "bert-pretraining", tmp_path / "bert"))


def refused(path: Path, *parts: str) -> None:
    with pytest.raises(LspError) as error:
        huggingface.read(path)
    assert error.value.code == Exit.ARTIFACT
    for part in (*parts, str(path)):
        assert part in error.value.message


@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.parametrize("kind", ["single", "pair"])
def test_ids_and_answers_are_those_of_transformers(name: str, kind: str) -> None:
    model, extra = huggingface.read(GOLDEN / name)
    assert not extra
    texts = [tuple(pair) for pair in json.loads((GOLDEN / name / "texts.json").read_text())]
    table = Table([pair[: 1 + (kind == "pair")] for pair in texts], [], ())
    examples = Examples(table, model.tokenizer, model.config.max_length)
    expected = load_file(GOLDEN / name / "expected.safetensors")
    for index, tokens in enumerate(examples.tokens):
        of = f"{kind}.{index}"
        assert model.tokenizer.theirs[tokens].tolist() == expected[f"{of}.ids"].tolist()
        batch = examples.batch(np.array([index]), 1)
        for output, value in answers(model, batch, len(tokens)).items():
            np.testing.assert_allclose(value, expected[f"{of}.{output}"], atol=2e-5, err_msg=output)


def answers(model: Model, batch: dict[str, np.ndarray], length: int) -> dict[str, np.ndarray]:
    """What expected.safetensors holds, by lsp, vocabularies in the published order."""
    built = nnx.merge(graphdef(model.config), model.params)
    inputs = [jnp.asarray(batch[name]) for name in ("tokens", "segments", "types")]
    hidden = built.encode(*inputs)
    found = {"hidden": hidden[0, :length]}
    if model.config.head == "words":
        slots = jnp.arange(length, dtype=jnp.int32)[None]
        logits = huggingface.published_order(np.asarray(built.guess(hidden, slots))[0].T, model.tokenizer).T
        found["prediction_logits" if model.config.classes else "logits"] = logits
        if model.config.classes:
            found["seq_relationship_logits"] = built.follow(hidden)[0]
    elif model.config.head == "classes":
        found["logits"] = built.classify(*inputs)[0]
    return {name: np.asarray(value) for name, value in found.items()}


@pytest.mark.parametrize("name", FOLDERS)
def test_what_is_written_is_what_was_read(name: str, tmp_path: Path) -> None:
    model = huggingface.read(GOLDEN / name).model
    assert sorted(huggingface.write(model, tmp_path)) == sorted(path.name for path in tmp_path.iterdir())
    back = huggingface.read(tmp_path).model
    assert back.config == model.config and back.labels == model.labels and back.tokenizer.hash == model.tokenizer.hash
    for path, value in huggingface.flattened(model.params).items():
        np.testing.assert_array_equal(huggingface.flattened(back.params)[path], value)
    mine, theirs = load_file(tmp_path / "model.safetensors"), load_file(GOLDEN / name / "model.safetensors")
    if not name.startswith("roberta"):  # written as a BERT, which it has become
        for tensor, value in mine.items():
            np.testing.assert_array_equal(value, theirs[tensor], err_msg=tensor)
        config, old = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path, GOLDEN / name))
        apart = {key for key in config.keys() & old.keys() if config[key] != old[key]}
        assert apart <= {"attention_probs_dropout_prob", "attention_dropout", "seq_classif_dropout", "problem_type"}


def test_what_no_published_model_is_like_is_refused(tmp_path: Path) -> None:
    model = huggingface.read(GOLDEN / "bert-classes").model
    uneven = (*model.config.layers[:-1], dataclasses.replace(model.config.layers[-1], feedforward=20))
    for change, says in (({"layers": uneven}, "differ in shape"), ({"pooling": "mean"}, "mean of all tokens")):
        with pytest.raises(LspError, match=says) as error:
            huggingface.write(model._replace(config=dataclasses.replace(model.config, **change)), tmp_path)
        assert error.value.code == Exit.USAGE
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("windows", "every"), [((0, 8, 8, 0, 8), 3), ((0, 0), 1), ((0, 8, 8), 3), ((0, 8, 0, 0), None)]
)
def test_an_order_that_older_software_can_not_say_is_not_said_wrongly(
    windows: tuple[int, ...], every: int | None
) -> None:
    layers = tuple(Layer(2, 8, 24, window=window) for window in windows)
    found = configs._write_modern(ModelConfig("modern", 300, 16, layers, max_length=32))
    assert [kind[0] for kind in found["layer_types"]] == ["s" if window else "f" for window in windows]
    assert found.get("global_attn_every_n_layers") == every


def test_labels_come_along() -> None:
    assert huggingface.read(GOLDEN / "roberta-classes").model.labels == ("no", "maybe", "yes")


def test_a_second_text_has_the_second_type_where_a_model_has_two() -> None:
    """A student of BERT's shape with RoBERTa's tokenizer, which gives both texts the first."""
    words = huggingface.read(GOLDEN / "roberta-classes").model.tokenizer
    assert converted(words, 0) is words
    before, after = (
        Tokenizer.from_str(each.model.decode()).encode("the cat", "a cat") for each in (words, converted(words, 2))
    )
    assert after.ids == before.ids and not any(before.type_ids)
    examples = Examples(Table([("the cat", "a cat")], [0], ("a",)), words, 32)
    assert after.type_ids == examples.batch(np.array([0]), 1)["types"][0, : len(after.ids)].tolist()
    bert = huggingface.read(GOLDEN / "bert-classes").model.tokenizer
    assert converted(bert, 2) is bert


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_special_pieces_and_bytes_that_somebody_has_typed_are_cut_as_any_text(kind: str) -> None:
    typed = ["a [SEP] b", "[PAD][MASK]", "x[CLS]y", "[[UNK]]", "<0x41> <0x0A>", "<<0x41>", "[sep] [SE <0x4"]
    words = train([*["the cat sat on the mat"] * 20, *typed] * 5, vocab_size=285, kind=kind, lowercase=False, seed=0)
    same = converted(words, 1)
    for text in typed:
        assert list(same.encode([text])[0]) == list(words.encode([text])[0]), text


def test_no_text_becomes_a_special_piece() -> None:
    words = huggingface.read(GOLDEN / "bert-bare").model.tokenizer
    for text in ("[MASK] [SEP] [CLS] [PAD]", "<mask> </s>"):
        assert min(words.encode([text])[0]) > 0
        assert not {0, 2, 3, 4} & set(words.encode([text])[0])


def test_pieces_are_written_as_ours_are() -> None:
    words = huggingface.read(GOLDEN / "bert-bare").model.tokenizer
    ids = words.encode(["the cats"])[0]
    assert "".join(words.pieces(ids)) == "▁the▁cats"
    assert words.pieces(range(5)) == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert words.decode(ids) == "the cats"
    byte_level = huggingface.read(GOLDEN / "roberta-words").model.tokenizer
    ids = byte_level.encode(["the cat 北"])[0]
    assert "".join(byte_level.pieces(ids)) == "the▁cat▁<0xE5><0x8C><0x97>"
    assert byte_level.decode(ids) == "the cat 北"


def test_a_vocabulary_alone_is_the_tokenizer(folder: Path) -> None:
    whole = huggingface.read(folder).model.tokenizer
    (folder / "tokenizer.json").unlink()
    pieces = [""] * whole.size
    for index, piece in enumerate(json.loads(whole.model)["model"]["vocab"]):
        pieces[index] = piece
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
    alone = huggingface.read(folder).model.tokenizer
    texts = ["The cat, naïve; 北京 <unseen>", "xyz"]
    assert alone.encode(texts) == whole.encode(texts)


def test_byte_pairs_in_two_files_are_the_tokenizer(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(GOLDEN / "roberta-words", tmp_path / "roberta"))
    whole = huggingface.read(folder).model.tokenizer
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in model["merges"]))
    alone = huggingface.read(folder).model.tokenizer
    texts = ["The cat, naïve; 北京 <unseen>", "xyz"]
    assert alone.encode(texts) == whole.encode(texts)
    assert alone.between == whole.between == (3, 3)


def test_norms_of_old_checkpoints_have_other_names(folder: Path) -> None:
    old = load_file(folder / "model.safetensors")
    old = {name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
           for name, value in old.items()}  # fmt: skip
    save_file(old, folder / "model.safetensors")
    found, expected = huggingface.read(folder), huggingface.read(GOLDEN / "bert-pretraining")
    for name, value in huggingface.flattened(expected.model.params).items():
        np.testing.assert_array_equal(huggingface.flattened(found.model.params)[name], value)


def test_tensors_that_are_missing_or_left_over_are_named(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    lost = "bert.encoder.layer.1.output.dense.bias"
    save_file({name: value for name, value in tensors.items() if name != lost}, folder / "model.safetensors")
    refused(folder, lost)
    save_file(tensors | {"adapter.weight": np.zeros((2, 2), np.float32)}, folder / "model.safetensors")
    assert huggingface.read(folder).extra == ["adapter.weight"]


def test_words_have_one_table(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    table = tensors["bert.embeddings.word_embeddings.weight"]
    save_file(tensors | {"cls.predictions.decoder.weight": table.copy()}, folder / "model.safetensors")
    assert not huggingface.read(folder).extra
    save_file(tensors | {"cls.predictions.decoder.weight": table + 1}, folder / "model.safetensors")
    refused(folder, "cls.predictions.decoder.weight is not the table")


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("model_type", "gpt2", "gpt2"),
        ("model_type", ["bert"], "model_type"),
        ("hidden_size", 15, "num_attention_heads"),
        ("hidden_size", 32, "[120, 32]"),
        ("hidden_size", "16", "hidden_size"),
        ("hidden_size", True, "hidden_size"),
        ("num_hidden_layers", 10**9, "num_hidden_layers"),
        ("num_attention_heads", 0, "num_attention_heads"),
        ("vocab_size", 10, "ids"),
        ("vocab_size", 2**30, "[1073741824, 16]"),
        ("hidden_act", "swish", "hidden_act"),
        ("hidden_act", ["gelu"], "hidden_act"),
        ("position_embedding_type", "relative_key", "position_embedding_type"),
        ("layer_norm_eps", float("nan"), "layer_norm_eps"),
        ("layer_norm_eps", 10**400, "layer_norm_eps"),
        ("num_hidden_layers", 1000, "encoder.layer.999."),
        ("is_decoder", True, "is_decoder"),
        ("hidden_act", "gelu_new", "exact GELU"),
        ("id2label", {"0": "\ud800"}, "surrogates"),
        ("hidden_dropout_prob", {}, "hidden_dropout_prob"),
    ],
)
def test_a_config_that_is_no_encoder_of_ours_is_refused(folder: Path, key: str, value: object, says: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {key: value}))
    refused(folder, says)


def edited(name: str, tmp_path: Path, file: str, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of a folder in which a JSON file is another."""
    folder = Path(shutil.copytree(GOLDEN / name, tmp_path / name, dirs_exist_ok=True))
    table = json.loads((folder / file).read_text())
    change(table)
    (folder / file).write_text(json.dumps(table))
    return folder


def test_a_marker_that_was_added_is_found_in_a_text(tmp_path: Path) -> None:
    def mark(table: dict[str, Any]) -> None:
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        table["added_tokens"].append({"id": table["model"]["vocab"]["the"], "content": "the"} | flags)

    folder = edited("bert-classes", tmp_path, "tokenizer.json", mark)
    theirs = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ours = huggingface.read(folder).model.tokenizer
    for text in ("[SEP] a", "xthex the"):
        typed = text.replace("[SEP]", "")
        expected = theirs.encode(typed, add_special_tokens=False).ids
        assert ours.theirs[ours.encode([typed])[0]].tolist() == expected
    assert ours.encode(["[SEP]"])[0] != [3], "but what ends a text is text in it"


def test_settings_count_more_than_the_tokenizers_file(tmp_path: Path) -> None:
    words = huggingface.read(GOLDEN / "bert-classes").model.tokenizer
    assert words.encode(["THE CAT"]) == words.encode(["the cat"])

    def cased(table: dict[str, Any]) -> None:
        table |= {"tokenizer_class": "BertTokenizer", "do_lower_case": False}

    folder = edited("bert-classes", tmp_path, "tokenizer_config.json", cased)
    words = huggingface.read(folder).model.tokenizer
    assert words.encode(["THE CAT"]) != words.encode(["the cat"])


def test_positions_of_roberta_follow_its_padding(tmp_path: Path) -> None:
    folder = edited("roberta-classes", tmp_path, "config.json", lambda table: table.update(pad_token_id=0))
    refused(folder, "pad_token_id is 0")
    table = configs.Table(folder / "config.json", json.loads((folder / "config.json").read_text()))
    assert configs.family(table).unused == 1


def test_a_head_for_tokens_is_no_head_for_texts(tmp_path: Path) -> None:
    def tokens(table: dict[str, Any]) -> None:
        table["architectures"] = ["ModernBertForTokenClassification"]

    model, extra = huggingface.read(edited("modernbert-classes", tmp_path, "config.json", tokens))
    assert model.config.head == "none" and "classifier.weight" in extra


def test_values_that_are_no_numbers_are_refused(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if name.endswith("query.weight"))
    tensors[name] = tensors[name].copy()
    tensors[name][0, 0] = np.nan
    save_file(tensors, folder / "model.safetensors")
    refused(folder, f"{name} holds NaN")


def test_types_that_a_tokenizer_never_gives_are_not_learnt(tmp_path: Path) -> None:
    def alike(table: dict[str, Any]) -> None:
        for part in table["post_processor"]["pair"]:
            for piece in part.values():
                piece["type_id"] = 0

    folder = edited("bert-classes", tmp_path, "tokenizer.json", alike)
    plain, model = (huggingface.read(each).model for each in (GOLDEN / "bert-classes", folder))
    assert (plain.config.types, model.config.types) == (2, 0)
    table = plain.params["embeddings"]["positions"]["table"] + plain.params["embeddings"]["types"]["table"][0]
    np.testing.assert_array_equal(model.params["embeddings"]["positions"]["table"], table)


def test_older_files_say_what_was_added_and_who_wrote_them(tmp_path: Path) -> None:
    words = json.loads((GOLDEN / "bert-classes" / "tokenizer.json").read_text())["model"]["vocab"]
    lines = sorted(words, key=words.__getitem__)
    (tmp_path / "vocab.txt").write_text("\n".join(lines) + "\n")
    plain = published.find(tmp_path)
    assert plain is not None and plain.size == len(words)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"covid19": len(words)}))
    found = published.find(tmp_path)
    assert found is not None and found.theirs[found.encode(["a covid19"])[0]].tolist()[-1] == len(words)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"covid19": len(words) + 7}))
    with pytest.raises(LspError, match="was added as number"):
        published.find(tmp_path)
    (tmp_path / "added_tokens.json").unlink()
    for number in ("9" * 5000, "x", "-1"):
        (tmp_path / "tokenizer_config.json").write_text(
            json.dumps({"added_tokens_decoder": {number: {"content": "a"}}})
        )
        with pytest.raises(LspError, match="no numbers"):
            published.find(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertJapaneseTokenizer"}')
    with pytest.raises(LspError, match="BertJapaneseTokenizer"):
        published.find(tmp_path)


def test_two_classes_have_two_names(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(GOLDEN / "bert-classes", tmp_path / "bert"))
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = dict.fromkeys(config["id2label"], "yes")
    (folder / "config.json").write_text(json.dumps(config))
    refused(folder, "one name for two classes")


@pytest.mark.usefixtures("uncollected")
def test_files_that_are_none_are_refused(folder: Path) -> None:
    weights = (folder / "model.safetensors").read_bytes()
    for spoilt in (b"", weights[:100], weights[:-1], (2**62).to_bytes(8, "little") + weights[8:], b"\0" * 64):
        (folder / "model.safetensors").write_bytes(spoilt)
        refused(folder, "model.safetensors")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    refused(folder, "pickle")
    with pytest.raises(LspError) as told:
        huggingface.read(folder)
    assert "t.BertForPreTraining.from_pretrained" in told.value.hint and "AutoTokenizer" in told.value.hint
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../../etc/passwd"}}')
    refused(folder, "does not name files beside it")
    (folder / "model.safetensors.index.json").unlink()
    (folder / "model.safetensors").write_bytes(weights)
    tokenizer = (folder / "tokenizer.json").read_bytes()
    for spoilt in (b"", b"{}", b"[1]", b"\xff", tokenizer[: len(tokenizer) // 2]):
        (folder / "tokenizer.json").write_bytes(spoilt)
        refused(folder, "tokenizer.json")
    (folder / "tokenizer.json").unlink()
    refused(folder, "no tokenizer")
    with pytest.raises(LspError, match="a published checkpoint is a folder"):
        huggingface.digest(folder / "config.json")
    (folder / "config.json").write_bytes(b"[" * 100_000)
    refused(folder, "config.json")


@pytest.mark.parametrize(("files", "hint"), [({}, "Its files: none."), ({"x.onnx": "", "config.json": "{}"}, "x.onnx")])
def test_a_folder_without_weights_says_what_it_has(tmp_path: Path, files: dict[str, str], hint: str) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(LspError, match=r"holds no model\.safetensors") as told:
        huggingface.digest(tmp_path)
    assert hint in told.value.hint
    if files:
        (tmp_path / "manifest.json").write_text("{}")
        with pytest.raises(LspError) as told:
            huggingface.digest(tmp_path)
        assert told.value.hint == "Give the run that it was exported from."


def test_a_card_names_commands_that_there_are_and_what_was_compressed() -> None:
    applied = [{"stage": "prune", "speedup": 2.0064}, {"stage": "quantize", "bits": 8, "kept_float": ["classifier"]}]
    model = {"head": "classes", "preset": "bert"}
    manifest = {"model": model, "step": 2105, "labels": [], "metrics": {}, "self": "ab", "compression": applied}
    small = card(manifest | {"stage": "quantize"}, "small", "onnx")
    assert "float32" not in small and "float32." in card(manifest | {"stage": "quantize"}, "small", floats=True)
    assert "Made by `lsp compress quantize`, and exported by lsp." in small
    assert "Compressed on the way: prune (speedup 2.01), then quantize (bits 8)." in small
    whole = card(manifest | {"stage": "finetune", "compression": []}, "whole")
    assert "Made by `lsp finetune` in 2,105 steps, and exported by lsp." in whole and "Compressed" not in whole
