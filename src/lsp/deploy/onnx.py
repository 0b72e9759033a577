"""A model as an ONNX file with all that is needed to use it: `model.onnx`, `tokenizer.json` and `config.json`.

The file is run by ONNX Runtime and compared with the model before it counts.
"""

import functools
import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from lsp import Exit, LspError
from lsp.checkpoint import Model
from lsp.data import published
from lsp.data.published import Published
from lsp.data.tokenizer import CLS, MASK, PAD, SEP
from lsp.deploy.layout import published_order
from lsp.deploy.pieces import converted
from lsp.manifest import write_atomically
from lsp.model import encoder, int8
from lsp.model.config import ModelConfig
from lsp.model.int8 import Int8
from lsp.train.evaluate import Forward

GRAPH, CONFIG = "model.onnx", "config.json"
LARGEST_FILE = 2**31 - 2**20  # bytes; protobuf writes no message of 2 GiB
EXACT = ("session.x64quantprecision", "1")  # of a session: sums of int8 products that never overflow
LONGEST = 128  # tokens of the longest text that is compared
TEXTS = 12
# What a difference may be, as a share of the largest answer (of 1 where all are smaller): float32 sums in another order
# come to 1e-6. In int8 such a sum may be rounded the other way, and then two programs differ as much as either differs
# from float32, if not more: 1.7 times was seen, and 17 times where a bias was scaled that should not have been.
TOLERANCE, ROUNDINGS = 1e-4, 4
Runtime = Literal["any", "onnxruntime"]
Answers = Callable[[np.ndarray, np.ndarray], np.ndarray]


def write(model: Model, out: Path, runtime: Runtime = "any") -> list[str]:
    """The files of a model, into `out`; their names. `Int8` parameters stay int8. With the `runtime` onnxruntime it has
    operators that no other runs.

    Raises LspError (exit 2) for a model that no ONNX file can hold.
    """
    from lsp.deploy import onnx_graph

    words = converted(model.tokenizer, model.config.types)
    made = onnx_graph.build(model.config, _renumbered(model.params, words), fused=runtime == "onnxruntime")
    if (size := sum(len(array.raw_data) for array in made.graph.initializer)) > LARGEST_FILE:
        raise LspError(
            f"The model takes {size / 2**30:.1f} GiB, and one ONNX file holds less than 2.",
            hint="Make it smaller first: lsp compress quantize.",
        )
    about = {
        "labels": list(model.labels),
        "problem": model.config.problem if model.config.head == "classes" else None,
        "max_length": model.config.max_length,
        "pad_id": int(words.theirs[PAD]),
        "pad_token": words.pieces([PAD])[0],
    }
    files = {
        GRAPH: made.SerializeToString(),
        CONFIG: json.dumps(about, indent=1, ensure_ascii=False) + "\n",
        Published.file: words.model,
    }
    for name, content in files.items():
        write_atomically(out / name, content)
    return [*files]


def answerer(folder: Path, threads: int = 0) -> Answers:
    """`answer(tokens, types)` of what `write` has written, int32 [B, T] each: logits float32 [B, C], or the hidden
    states of an encoder, float32 [B, T, D]. Raises LspError (exit 4) where they can't be used, (exit 5) where onnx and
    onnxruntime are not installed.

    Ids are those of the folder's `tokenizer.json`, and padding, on the right, is its piece for that. `types` are 0 for
    the first text and 1 for the second. It runs on as many `threads`, or one for each core.
    """
    about, exact = published.read_json(folder / CONFIG), _overflows()
    try:
        session = opened(folder / GRAPH, threads, exact)
    except Exception as error:  # the library has no common type for its errors
        raise LspError(f"{folder / GRAPH} can't be run: {error}.", code=Exit.ARTIFACT) from None
    names = {each.name for each in session.get_inputs()}

    def answer(tokens_BT: np.ndarray, types_BT: np.ndarray) -> np.ndarray:
        given = {
            "input_ids": tokens_BT.astype(np.int64),
            "attention_mask": (tokens_BT != about["pad_id"]).astype(np.int64),
            "token_type_ids": types_BT.astype(np.int64),
        }
        return session.run(None, {name: array for name, array in given.items() if name in names})[0]

    return answer


def opened(graph: Path | bytes, threads: int = 0, exact: bool = False) -> Any:
    """ONNX Runtime's session of a graph, on the CPU. Raises LspError (exit 5) where that is not installed."""
    onnxruntime = _package("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors; its warnings are about its own rewriting of graphs
    if exact:
        options.add_session_config_entry(*EXACT)
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def check(model: Model, folder: Path) -> dict[str, Any]:
    """How far the answers of a folder are from the model's, over texts of several lengths, alone, in batches of several
    sizes and padded; to be kept with the files.

    Raises LspError (exit 1) where they are too far, from the model's or from each other's.
    """
    tokens_NT, types_NT = _texts(model)
    ours = _answers(model, tokens_NT, types_NT)
    theirs = _variants(converted(model.tokenizer, model.config.types), folder, tokens_NT, types_NT)
    allowed = TOLERANCE * max(1.0, float(np.abs(ours).max()))
    if int8.present(model.params):
        exact = _answers(model._replace(params=_unrounded(model.params)), tokens_NT, types_NT)
        allowed += ROUNDINGS * _furthest(ours, exact, tokens_NT)
    found = {
        "texts": len(tokens_NT),
        "largest_difference": _furthest(theirs, ours, tokens_NT),
        "label_flips": int((_labels(model.config, theirs[0]) != _labels(model.config, ours)).sum()),
        "batch_difference": _furthest(theirs.max(0), theirs.min(0), tokens_NT),
        "tolerance": allowed,
        "onnxruntime": _package("onnxruntime").__version__,
    }
    for key, what in (("largest_difference", "the model's"), ("batch_difference", "each other's, batched or alone")):
        if not found[key] <= allowed:
            raise LspError(
                f"The answers of {folder / GRAPH} differ by {found[key]:.3g} from {what}; {allowed:.3g} is allowed.",
                hint="Please report it, with the recipe that made the model and the version of onnxruntime.",
                code=Exit.NO,
            )
    return found


def usage(config: ModelConfig) -> str:
    """How to use the folder, for its README.md."""
    types = ', "token_type_ids": [each.type_ids for each in rows]' if config.types else ""
    tell = 'print([about["labels"][best] for best in answers.argmax(-1)])'
    if config.head != "classes":
        tell = "print(answers.shape)  # hidden states: texts, tokens, width"
    elif config.problem == "multi_label":
        tell = 'print([[about["labels"][place] for place in (row > 0).nonzero()[0]] for row in answers])'
    elif config.problem == "regression":
        tell = "print(answers[:, 0])"
    return f"""
With `pip install "onnxruntime>=1.30" tokenizers`, in this folder:

```python
import json, numpy, onnxruntime, tokenizers
about = json.load(open("{CONFIG}"))
words = tokenizers.Tokenizer.from_file("{Published.file}")
words.encode_special_tokens = True  # a [SEP] that somebody has typed is text
words.enable_truncation(about["max_length"])
words.enable_padding(pad_id=about["pad_id"], pad_token=about["pad_token"])
rows = words.encode_batch(["The first text.", "Another one."])  # a pair of texts is a tuple
inputs = {{"input_ids": [each.ids for each in rows], "attention_mask": [each.attention_mask for each in rows]{types}}}
session = onnxruntime.InferenceSession("{GRAPH}")
answers = session.run(None, {{name: numpy.array(values) for name, values in inputs.items()}})[0]
{tell}
```

An int8 model's sums overflow on x86 processors that have no dot product of int8 (VNNI), unless the session gets the
option `{EXACT[0]}` = `{EXACT[1]}`.
"""


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        raise LspError(
            f"ONNX files need the Python package {name}.",
            hint="Install it: pip install 'lsp[onnx]'",
            code=Exit.MACHINE,
        ) from None


@functools.cache
def _overflows() -> bool:
    """Whether ONNX Runtime's products of uint8 and int8 overflow here: where a processor has no instruction for them,
    two are added in 16 bits, unless a session is told not to. Being told takes twice as long where nothing overflows.
    """
    _package("onnx")
    from onnx import TensorProto, helper, numpy_helper

    rows, columns = np.full((1, 64), 255, np.uint8), np.full((64, 16), 127, np.int8)
    shapes = [("x", TensorProto.UINT8, rows.shape), ("y", TensorProto.INT32, (1, 16))]
    given, answer = ([helper.make_tensor_value_info(*each)] for each in shapes)
    node = helper.make_node("MatMulInteger", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "probe", given, answer, [numpy_helper.from_array(columns, "w")])
    probe = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    found = opened(probe.SerializeToString(), threads=1).run(None, {"x": rows})[0]
    return bool((found != 64 * 255 * 127).any())


def _renumbered(params: Any, words: Published) -> Any:
    """The parameters with the rows of the vocabulary by published ids."""
    table = params["embeddings"]["tokens"]["table"]
    if isinstance(table, Int8):
        moved: Any = Int8.stored(published_order(table.q, words), published_order(table.scale, words), table.axis)
    else:
        moved = published_order(np.asarray(table), words)
    return params | {"embeddings": params["embeddings"] | {"tokens": {"table": moved}}}


def _texts(model: Model) -> tuple[np.ndarray, np.ndarray]:
    """Random texts of two to many tokens, ids of ours: tokens, and types with a second text in every other one; int32
    [N, T] each."""
    random, longest = np.random.default_rng(0), min(LONGEST, model.config.max_length)
    lengths_N = np.geomspace(2, longest, TEXTS).round().astype(int)
    tokens_NT = random.integers(MASK + 1, model.tokenizer.size, (TEXTS, longest), dtype=np.int32)
    place_T = np.arange(longest)
    tokens_NT[place_T >= lengths_N[:, None]] = PAD
    tokens_NT[:, 0], tokens_NT[np.arange(TEXTS), lengths_N - 1] = CLS, SEP
    second_NT = (place_T >= lengths_N[:, None] // 2) & (tokens_NT != PAD) & (np.arange(TEXTS)[:, None] % 2 == 1)
    return tokens_NT, second_NT.astype(np.int32) * (model.config.types > 1)


def _answers(model: Model, tokens_NT: np.ndarray, types_NT: np.ndarray) -> np.ndarray:
    """Of the model: [N, C] or [N, T, D]."""

    def compute(built: encoder.Model, batch: dict[str, jax.Array]) -> jax.Array:
        ask = built.classify if model.config.head == "classes" else built.encode
        return ask(batch["tokens"], batch["segments"], batch["types"])

    batch = {"tokens": tokens_NT, "segments": (tokens_NT != PAD).astype(np.int32), "types": types_NT}
    return np.asarray(Forward(model.config, compute)(model.params, batch))


def _variants(words: Published, folder: Path, tokens_NT: np.ndarray, types_NT: np.ndarray) -> np.ndarray:
    """Of the file: all texts together, three at a time and so padded less, and alone without padding; [3, N, …]."""
    answer, found = answerer(folder), []
    for rows in (len(tokens_NT), 3, 1):
        parts = []
        for at in range(0, len(tokens_NT), rows):
            tokens, types = tokens_NT[at : at + rows], types_NT[at : at + rows]
            longest = (tokens != PAD).sum(1).max()
            made = answer(words.theirs[tokens[:, :longest]], types[:, :longest])
            missing = [(0, 0), (0, tokens.shape[1] - longest), (0, 0)] if made.ndim == 3 else 0
            parts.append(np.pad(made, missing))
        found.append(np.concatenate(parts))
    return np.stack(found)


def _furthest(some: np.ndarray, others: np.ndarray, tokens_NT: np.ndarray) -> float:
    """The largest difference of answers; of hidden states those of padding are nobody's."""
    apart = np.abs(some - others)
    return float((apart if apart.shape[-2:-1] != tokens_NT.shape[1:] else apart[..., tokens_NT != PAD, :]).max())


def _unrounded(params: Any) -> Any:
    """With float32 in place of `Int8`."""
    return jax.tree.map(
        lambda leaf: leaf.dequantize() if isinstance(leaf, Int8) else leaf,
        params,
        is_leaf=lambda leaf: isinstance(leaf, Int8),
    )


def _labels(config: ModelConfig, answers: np.ndarray) -> np.ndarray:
    """What is told of answers, where they are classes."""
    if config.head != "classes" or config.problem == "regression":
        return np.zeros(0)
    return answers > 0 if config.problem == "multi_label" else answers.argmax(-1)
