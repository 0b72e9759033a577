"""Labelled files, folders of others and recipes with bytes changed, cut, doubled and made up: always a sentence."""

import json
import random
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lsp import LspError, recipe
from lsp.data import tasks
from lsp.deploy import huggingface

GOLDEN = Path(__file__).parent / "deploy" / "golden"
ROUNDS = 150
MEMORY = 3 << 30  # bytes of address space that reading a spoilt folder may take, jax and its threads included
TABLES = {
    "a.tsv": 'sentence\tlabel\nthe cat\t1\na "dog"\t0\n',
    "a.csv": 'text,label\n"the, cat",1\n"a ""dog""",0\n',
    "a.jsonl": '{"text": "the cat", "label": 1}\n{"text": ["x"], "label": "no"}\n',
    "a.txt": "a line\n\nanother\n",
}
RECIPE = Path(__file__).parent.parent / "recipes" / "finetune" / "default.toml"


def spoil(data: bytes, draw: random.Random) -> bytes:
    """The bytes with something wrong."""
    at = draw.randrange(len(data) + 1)
    odd = [
        b"\0",
        b"\xff\xfe",
        b"\t" * 9,
        b"\n\n",
        b'"',
        b"{",
        b"9" * 400,
        b"-1e999",
        "\u2028\U0001f642".encode(),
        b"nan",
    ]
    wrong: list[Callable[[], bytes]] = [
        lambda: data[:at],
        lambda: data[:at] + draw.randbytes(draw.randrange(1, 20)) + data[at:],
        lambda: data[:at] + draw.choice(odd) + data[at:],
        lambda: data[:at] + draw.choice(odd) + data[at + draw.randrange(1, 30) :],
        lambda: data[:at] + data,
        lambda: bytes(byte ^ (draw.random() < 0.02) * draw.randrange(256) for byte in data),
    ]
    return draw.choice(wrong)()


@pytest.mark.parametrize("name", TABLES)
def test_labelled_files(tmp_path: Path, name: str) -> None:
    draw, path, refused = random.Random(name), tmp_path / name, 0
    for number in range(ROUNDS):
        path.write_bytes(spoil(TABLES[name].encode(), draw))
        problem = draw.choice(["single_label", "multi_label", "regression"])
        try:
            if number % 3:
                table = tasks.read(path, problem=problem)
                assert len(table.texts) == len(table.labels)
            else:
                list(tasks.stream(str(path)))
        except LspError as error:
            assert error.message and error.code in (2, 3), error.message
            refused += 1
    assert refused > ROUNDS / 10


@pytest.mark.parametrize("name", ["bert-pretraining", "roberta-classes", "modernbert-words"])
def test_folders_of_others(tmp_path: Path, name: str) -> None:
    folder, draw, refused = Path(shutil.copytree(GOLDEN / name, tmp_path / name)), random.Random(name), 0
    for _ in range(ROUNDS):
        file = folder / draw.choice(["config.json", "tokenizer.json", "model.safetensors", "tokenizer_config.json"])
        whole = file.read_bytes()
        file.write_bytes(spoil(whole, draw))
        try:
            model = huggingface.read(folder).model
            model.tokenizer.encode(["a text, to be sure"])
        except LspError as error:
            assert str(folder) in error.message, error.message
            refused += 1
        file.write_bytes(whole)
    assert refused > ROUNDS / 3


def test_values_of_a_config(tmp_path: Path) -> None:
    folder, draw = Path(shutil.copytree(GOLDEN / "modernbert-classes", tmp_path / "x")), random.Random(0)
    config = json.loads((folder / "config.json").read_text())
    values = [None, True, -1, 0, 10**30, 1.5, float("inf"), "", "x" * 1000, [], [1], {}, {"a": []}, [[]] * 3, {"0": 3}]
    for key in [*config, "num_labels", "global_attn_every_n_layers", "problem_type"]:
        for value in draw.sample(values, 6):
            (folder / "config.json").write_text(json.dumps(config | {key: value}))
            try:
                huggingface.read(folder)
            except LspError as error:
                assert str(folder) in error.message, error.message


def test_recipes(tmp_path: Path) -> None:
    draw, path, refused = random.Random(0), tmp_path / "recipe.toml", 0
    for _ in range(2 * ROUNDS):
        path.write_bytes(spoil(RECIPE.read_bytes(), draw))
        try:
            recipe.load(recipe.Finetune, path, [])
        except LspError as error:
            assert error.code == 2 and error.message
            refused += 1
    assert refused > ROUNDS / 4


def test_absurd_sizes_take_no_memory(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(GOLDEN / "bert-classes", tmp_path / "big"))
    shapes = [([2**40, 16], [0, 2**46]), ([2**63, 2**63], [0, 4]), ([120, 16], [0, 2**40])]
    entries = [{"dtype": "F32", "shape": shape, "data_offsets": offsets} for shape, offsets in shapes]
    headers = [json.dumps({"bert.embeddings.word_embeddings.weight": entry}).encode() for entry in entries]
    files = [struct.pack("<Q", len(header)) + header + b"\0" * 64 for header in headers]
    files += [struct.pack("<Q", 2**63 - 1) + b"{}", struct.pack("<Q", 90 << 20) + b"{" * 100]
    program = (
        "import sys; from pathlib import Path; from lsp import LspError; from lsp.deploy import huggingface\n"
        "try: huggingface.read(Path(sys.argv[1]))\n"
        "except LspError as error: sys.exit(int(error.code))"
    )
    limited = ["bash", "-c", f'ulimit -v {MEMORY >> 10}; exec "$@"', "bash", sys.executable, "-c", program, str(folder)]
    for content in files:
        (folder / "model.safetensors").write_bytes(content)
        done = subprocess.run(limited, capture_output=True, text=True, timeout=60)
        assert done.returncode == 4, done.stderr[-500:]
