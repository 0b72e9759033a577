"""Checkpoints in the layout of Hugging Face transformers: `config.json`, `model.safetensors`, the tokenizer's files.

Nothing in such a folder is run or unpickled.
"""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError, safe_open

from lsp import Exit, LspError
from lsp.checkpoint import Model
from lsp.data import published
from lsp.data.published import Published
from lsp.data.tokenizer import PAD, SPECIALS
from lsp.deploy import configs
from lsp.deploy.families import BERT, DISTILBERT, Family, Head, Names
from lsp.deploy.layout import (
    BIAS,
    POSITIONS,
    TYPES,
    VOCABULARY,
    Flat,
    Link,
    flattened,
    links,
    nested,
    published_order,
    renumbered,
    shapes_by_name,
    to_ours,
    to_theirs,
)
from lsp.deploy.pieces import converted
from lsp.manifest import write_atomically
from lsp.model.config import ModelConfig
from lsp.model.weightonly import is_quantized

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
FLOATS = ("F64", "F32", "F16", "BF16")
# What checkpoints hold beside their parameters: numbers from 0 on, and the embedding table a second time.
OUTPUT_TABLES = ("decoder.weight", "vocab_projector.weight")
REDUNDANT = ("position_ids", "inv_freq", "decoder.bias", *OUTPUT_TABLES)
ARCHITECTURES = {"bert": "Bert", "distilbert": "DistilBert", "modernbert": "ModernBert"}
SUFFIXES = {
    ("words", True): "ForPreTraining",
    ("words", False): "ForMaskedLM",
    ("classes", False): "ForSequenceClassification",
}
# Heads that are named and shaped like one that lsp has, and are another.
OTHER_HEADS = ("ForTokenClassification", "ForMultipleChoice", "ForQuestionAnswering", "ForNextSentencePrediction")
PROBES = (
    "The quick brown fox jumps over the lazy dog.",
    "  It's  3.14159 o'clock,\tat\nnaïve Café №5 ½ — don't!  ",
    "今天天气很好，我们去北京吧。",
    "Привет, мир! ¿Qué tal? 🙂",
    "",
)


class Imported(NamedTuple):
    """A model of ours, and the names of tensors that no part of it is."""

    model: Model
    extra: list[str]

    def remark(self) -> str:
        """What to tell of tensors that are left over; empty where none are."""
        return f"{len(self.extra)} tensors are no part of the model: {listed(self.extra)}" if self.extra else ""


def recognised(path: Path) -> bool:
    """Whether a folder holds such a checkpoint: no run of ours has a config.json."""
    return (path / CONFIG).is_file()


def digest(path: Path) -> str:
    """SHA-256 of the files that `read` reads."""
    names = [CONFIG, *published.FILES, *(file.name for file in _weight_files(path))]
    total = hashlib.sha256()
    for file in (path / name for name in names):
        if file.is_file():
            with open(file, "rb") as content:
                total.update(file.name.encode() + b"\0" + hashlib.file_digest(content, "sha256").digest())
    return total.hexdigest()


def read(path: Path) -> Imported:
    """The checkpoint in a folder. Raises LspError (exit 4) naming the file, the key or the tensors at fault."""
    table = configs.Table(path / CONFIG, published.read_json(path / CONFIG))
    family = configs.family(table)
    config = configs.read(table, family)
    with ExitStack() as stack:
        tensors = Tensors(path, stack)
        _refuse_shallow(path, family, config, tensors)
        prefix = family.prefix if any(name.startswith(family.prefix) for name in tensors.names) else ""
        head = _head(family, prefix, tensors, table)
        labels = configs.labels(table) if head.kind == "classes" else ()
        config, words = _with_head(config, head, len(labels)), _tokenizer(path, config, family)
        if labels:
            config = dataclasses.replace(config, problem=configs.problem(table, labels))
            labels = () if config.problem == "regression" else labels
        wanted = shapes_by_name(config)
        linked = [*links({ours: prefixed(prefix, theirs) for ours, theirs in family.encoder.items()}, wanted)]
        linked += links(head.names, wanted)
        _refuse_misfit(path, family, linked, tensors, wanted)
        used = {name for link in linked for name in link.theirs}
        flat: Flat = {}
        for link in linked:
            flat |= to_ours(link, [tensors[name] for name in link.theirs], config)
        extra = sorted(name for name in tensors.names.keys() - used if not name.endswith(REDUNDANT))
        if config.head == "words":
            _refuse_untied(path, tensors, flat[VOCABULARY])
    _settle(flat, family, words)
    if config.types == 1 or (config.types and not words.tells_apart):  # one type alone is added to every position
        flat[POSITIONS] = flat[POSITIONS] + flat.pop(TYPES)[:1]
        config = dataclasses.replace(config, types=0)
    return Imported(Model(config, nested(flat), words, labels), extra)


def write(model: Model, out: Path) -> list[str]:
    """A folder that `AutoModel…from_pretrained` loads, into `out`; the names of its files.

    Quantised parameters become float32. Raises LspError (exit 2) where transformers has no such model, and (exit 1)
    where what was written is not, read back, the model bit for bit.
    """
    config = model.config
    words = converted(model.tokenizer, config.types)
    family, table = configs.write(config, words, model.labels)
    head = next((head for head in family.heads if _is_of(config, head)), Head("none", {}))
    prefix = family.prefix if config.head in ("words", "classes") else ""
    flat = {name: _float(leaf) for name, leaf in flattened(model.params).items()}
    for name in {VOCABULARY, BIAS} & flat.keys():
        flat[name] = published_order(flat[name], words)
    if POSITIONS in flat and family is BERT and not config.types:
        flat[TYPES] = np.zeros((1, config.width), np.float32)  # what BERT can't do without
    wanted = {name: leaf.shape for name, leaf in flat.items()}
    encoder = {ours: prefixed(prefix, theirs) for ours, theirs in family.encoder.items()}
    tensors: Flat = {}
    for link in (*links(encoder, wanted), *links(bare(family, head.names, prefix), wanted)):
        tensors |= to_theirs(link, flat, config)
    table |= {"architectures": [ARCHITECTURES[family.model_type] + SUFFIXES.get((head.kind, head.paired), "Model")]}
    files: dict[str, bytes | str] = {
        CONFIG: json.dumps(table, indent=2, ensure_ascii=False) + "\n",
        Published.file: words.model,
        published.SETTINGS: json.dumps(_tokenizer_settings(words, config), indent=2, ensure_ascii=False) + "\n",
    }
    for name, content in files.items():
        write_atomically(out / name, content)
    contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    safetensors.numpy.save_file(contiguous, out / WEIGHTS, {"format": "pt"})
    shutil.copymode(out / CONFIG, out / WEIGHTS)  # the library lets nobody else read its files
    _refuse_loss(model, out)
    return [*files, WEIGHTS]


class Tensors:
    """The tensors of a folder, read one by one. Their headers are checked by the safetensors library."""

    def __init__(self, path: Path, stack: ExitStack) -> None:
        self.path = path
        self.names: dict[str, tuple[Any, str]] = {}
        for file in _weight_files(path):
            try:
                opened = stack.enter_context(safe_open(file, "numpy"))
            except (SafetensorError, OSError, ValueError) as error:
                raise LspError(f"{file} can't be read: {error}.", code=Exit.ARTIFACT) from None
            # Norms had their values under other names once.
            for name in opened.keys():  # noqa: SIM118
                ours = name.removesuffix("gamma") + "weight" if name.endswith("LayerNorm.gamma") else name
                ours = ours.removesuffix("beta") + "bias" if name.endswith("LayerNorm.beta") else ours
                self.names[ours] = (opened, name)

    def __getitem__(self, name: str) -> np.ndarray:
        """As float32. Raises LspError (exit 4) for values that are no numbers, or too large."""
        file, stored = self.names[name]
        with np.errstate(over="ignore"):
            values = np.asarray(file.get_tensor(stored)).astype(np.float32)
        if not np.isfinite(values).all():
            raise LspError(f"{self.path}: {name} holds NaN or infinity.", code=Exit.ARTIFACT)
        return values

    def header(self, name: str) -> tuple[str, list[int]]:
        """Type and shape, without reading the values."""
        file, stored = self.names[name]
        entry = file.get_slice(stored)
        return entry.get_dtype(), entry.get_shape()


def _refuse_shallow(path: Path, family: Family, config: ModelConfig, tensors: Tensors) -> None:
    """Raises LspError (exit 4) where there are fewer layers than the config says, before all are laid out."""
    name = family.encoder["layers.{}.feedforward.down"].format(len(config.layers) - 1) + ".weight"
    if not {name, family.prefix + name} & tensors.names.keys():
        raise LspError(f"{path} is no whole {family.model_type} model: no {name}.", code=Exit.ARTIFACT)


def _refuse_misfit(
    path: Path, family: Family, linked: Sequence[Link], tensors: Tensors, wanted: dict[str, tuple[int, ...]]
) -> None:
    """Raises LspError (exit 4) for tensors that are missing, or of another type or shape than the config says."""
    theirs = [name for link in linked for name in link.theirs]
    if missing := sorted({*theirs} - tensors.names.keys()):
        raise LspError(f"{path} is no whole {family.model_type} model: no {listed(missing)}.", code=Exit.ARTIFACT)
    for link in linked:
        *inputs, outputs = wanted[link.ours[0]]
        shape = [outputs * len(link.ours) // len(link.theirs), *inputs]
        if link.ours[0].endswith(".table"):
            shape = [*inputs, outputs]
            shape[0] += family.unused if link.ours[0] == POSITIONS else 0
        for name in link.theirs:
            kind, found = tensors.header(name)
            if kind not in FLOATS or found != shape:
                raise LspError(
                    f"{path}: {name} is {kind} {found}, and by {CONFIG} it is one of {', '.join(FLOATS)} {shape}.",
                    code=Exit.ARTIFACT,
                )


def _refuse_untied(path: Path, tensors: Tensors, table: np.ndarray) -> None:
    """Raises LspError (exit 4) for words that are guessed by another table than the one they are read by."""
    for name in tensors.names:
        if name.endswith(OUTPUT_TABLES) and not np.array_equal(tensors[name], table):
            raise LspError(
                f"{path}: {name} is not the table of the embeddings, and in lsp words have one table.",
                hint="An encoder without its words can be taken in: remove that head.",
                code=Exit.ARTIFACT,
            )


def _head(family: Family, prefix: str, tensors: Tensors, table: configs.Table) -> Head:
    """The head that the tensors are of; one of `OTHER_HEADS` is none. Raises LspError (exit 4) for one that guesses
    words as lsp does not."""
    named = table.values.get("architectures")
    architecture = str(named[0]) if isinstance(named, list) and named else ""
    for head in family.heads:
        if architecture.endswith(OTHER_HEADS) and head.kind in ("classes", "words"):
            continue
        names = bare(family, head.names, prefix)
        if f"{[*names.values()][-1]}.weight" in tensors.names:
            if head.kind == "words" and family in (BERT, DISTILBERT):
                configs.exact(table, family)
            return head._replace(names=names)
    return Head("none", {})


def bare(family: Family, names: Names, prefix: str) -> Names:
    """The names of a head; beside an encoder alone, its pooler has no prefix either."""
    return names if prefix else {ours: theirs.removeprefix(family.prefix) for ours, theirs in names.items()}


def _is_of(config: ModelConfig, head: Head) -> bool:
    return head.kind == config.head and head.paired == (config.head == "words" and config.classes > 0)


def _float(leaf: Any) -> np.ndarray:
    return np.asarray(leaf.dequantize() if is_quantized(leaf) else leaf)


def _tokenizer_settings(words: Published, config: ModelConfig) -> dict[str, Any]:
    """`tokenizer_config.json`: what the special pieces are for, and what the model takes."""
    pieces = words.pieces(range(len(SPECIALS)))
    roles = dict(zip(("pad", "unk", "cls", "sep", "mask"), pieces, strict=True))
    inputs = ["input_ids", *(["token_type_ids"] if config.types > 1 else []), "attention_mask"]
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": config.max_length,
        "model_input_names": inputs,
        "clean_up_tokenization_spaces": False,
        **{f"{role}_token": piece for role, piece in roles.items()},
    }


def _refuse_loss(model: Model, out: Path) -> None:
    """Raises LspError (exit 1) unless the folder holds the model: config, parameters bit for bit, labels, and ids."""
    back = read(out).model
    flat, again = flattened(model.params), flattened(back.params)
    lost = [name for name in flat.keys() | again.keys() if name not in flat or name not in again]
    lost += [name for name in flat.keys() & again.keys() if not np.array_equal(_float(flat[name]), again[name])]
    lost += ["config.json"] * (back.config != model.config)
    lost += ["labels"] * (tuple(back.labels) != tuple(model.labels))
    lost += ["tokenizer.json"] * (back.tokenizer.encode(PROBES) != model.tokenizer.encode(PROBES))
    if lost:
        raise LspError(
            f"{out}, read back, is another model: {listed(sorted(lost))}.",
            hint="Please report it, with the recipe that made the model.",
            code=Exit.NO,
        )


def _with_head(config: ModelConfig, head: Head, classes: int) -> ModelConfig:
    if config.preset == "bert":
        config = dataclasses.replace(config, pooling="cls" if "pooler" in head.names else "mean")
    return dataclasses.replace(config, head=head.kind, classes=classes or 2 * head.paired)


def prefixed(prefix: str, names: str) -> str:
    return " ".join(prefix + name for name in names.split())


def _settle(flat: Flat, family: Family, words: Published) -> None:
    """Puts the rows of the vocabulary where ours are, and leaves out positions that no token is at."""
    for name in {VOCABULARY, BIAS} & flat.keys():
        flat[name] = renumbered(flat[name], words)
    if POSITIONS in flat:
        flat[POSITIONS] = flat[POSITIONS][family.unused :]


def _weight_files(path: Path) -> list[Path]:
    """The safetensors of a folder. Raises LspError (exit 4)."""
    if not path.is_dir():
        raise LspError(f"{path} is a file, and a published checkpoint is a folder.", code=Exit.ARTIFACT)
    if not recognised(path) and (path / "manifest.json").exists():
        raise LspError(f"{path} is a run of lsp's already.", hint="Use it as it is.", code=Exit.ARTIFACT)
    if (path / WEIGHTS).is_file():
        return [path / WEIGHTS]
    if (path / INDEX).is_file():
        table = published.read_json(path / INDEX).get("weight_map")
        names = sorted({*map(str, table.values())}) if isinstance(table, dict) else []
        if not names or any(Path(name).name != name or len(name.encode()) > 255 for name in names):
            raise LspError(f"{path / INDEX} does not name files beside it.", code=Exit.ARTIFACT)
        return [path / name for name in names]
    pickled = next((name for name in PICKLES if (path / name).exists()), None)
    if pickled:
        raise LspError(
            f"{path} has its weights in {pickled}, a pickle, and those can run anything; lsp reads {WEIGHTS} only.",
            hint="Where you trust it, in a Python with torch: import transformers as t; "
            f"t.{_class(path)}.from_pretrained('{path}').save_pretrained('DIR'); "
            f"t.AutoTokenizer.from_pretrained('{path}').save_pretrained('DIR')",
            code=Exit.ARTIFACT,
        )
    made = (path / "manifest.json").exists()  # an export in another format
    hint = "Give the run that it was exported from." if made else f"Its files: {_files(path) or 'none'}."
    raise LspError(f"{path} holds no {WEIGHTS}.", hint=hint, code=Exit.ARTIFACT)


def _class(path: Path) -> str:
    """The class of transformers that reads a folder with its head."""
    named = published.read_json(path / CONFIG).get("architectures") if recognised(path) else None
    name = named[0] if isinstance(named, list) and named else None
    return name if isinstance(name, str) and name.isidentifier() else "AutoModel"


def _tokenizer(path: Path, config: ModelConfig, family: Family) -> Published:
    words = published.find(path)
    if words is None:
        raise LspError(
            f"{path} holds no tokenizer that lsp reads: no {', '.join(published.FILES[:2])}.",
            hint=f"Put its tokenizer.json beside {CONFIG}. There are: {_files(path)}.",
            code=Exit.ARTIFACT,
        )
    if words.size > config.vocab_size:
        raise LspError(
            f"{path}: its tokenizer has {words.size:,} ids and its model {config.vocab_size:,}.", code=Exit.ARTIFACT
        )
    filler = family.unused - 1  # of RoBERTa: what stands in a text with this id has no position of its own
    if filler >= 0 and filler < words.size and words.theirs[PAD] != filler and "unused" not in words.called(filler):
        raise LspError(
            f"{path}: pad_token_id is {filler} in {CONFIG}, and its tokenizer fills up with {words.theirs[PAD]}; a "
            f"text may hold {words.called(filler)!r}.",
            code=Exit.ARTIFACT,
        )
    return words


def _files(path: Path) -> str:
    return listed(sorted(entry.name for entry in path.iterdir()))


def listed(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
