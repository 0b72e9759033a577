"""A model as an ONNX file with all that is needed to use it: `model.onnx`, `tokenizer.json` and `config.json`.

The file is run by ONNX Runtime and compared with the model before it counts.
"""

import functools
import importlib
import json
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from lsp import Exit, LspError, lacking, processor
from lsp.checkpoint import Model
from lsp.data import published
from lsp.data.published import Published
from lsp.data.tokenizer import PAD, Tokenizer
from lsp.deploy.layout import published_order
from lsp.deploy.parity import Answer, fits_one_file
from lsp.deploy.pieces import converted
from lsp.manifest import write_atomically
from lsp.model.config import ModelConfig
from lsp.model.int8 import Int8
from lsp.model.weightonly import WeightOnly, is_quantized

GRAPH, CONFIG = "model.onnx", "config.json"
EXACT = ("session.x64quantprecision", "1")  # of a session: sums of int8 products that never overflow
Runtime = Literal["any", "onnxruntime"]


def write(model: Model, out: Path, runtime: Runtime = "any") -> list[str]:
    """The files of a model, into `out`; their names. `Int8` parameters stay int8, weights alone that were made smaller
    become float32. With the `runtime` onnxruntime it has operators that no other runs.

    Raises LspError (exit 2) for a model that no ONNX file can hold.
    """
    from lsp.deploy import onnx_graph

    words = converted(model.tokenizer, model.config.types)
    params = jax.tree.map(_held, model.params, is_leaf=is_quantized)
    fits_one_file(params)
    made = onnx_graph.build(model.config, _renumbered(params, words), fused=runtime == "onnxruntime")
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


def answerer(folder: Path) -> Answer:
    """What the file in a folder answers; tokens are ours. It runs on the processors that this process may use.

    Raises LspError: 4 where it can't be used, 5 where onnx and onnxruntime are not installed.
    """
    about, exact = published.read_json(folder / CONFIG), _overflows()
    words = Tokenizer.load(folder)
    try:
        session = opened(folder / GRAPH, processor.count(), exact)  # left to itself it takes others too
    except LspError:
        raise
    except Exception as error:  # the library has no common type for its errors
        raise LspError(f"{folder / GRAPH} can't be run: {error}.", code=Exit.ARTIFACT) from None
    names = {each.name for each in session.get_inputs()}

    def answer(tokens_BT: np.ndarray, types_BT: np.ndarray) -> np.ndarray:
        ids_BT = words.theirs[tokens_BT].astype(np.int64)
        given = {
            "input_ids": ids_BT,
            "attention_mask": (ids_BT != about["pad_id"]).astype(np.int64),
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
        raise lacking(f"ONNX files need the Python package {name}.", "onnx") from None


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


def _held(leaf: Any) -> Any:
    """A parameter as the file has it."""
    return np.asarray(leaf.dequantize()) if isinstance(leaf, WeightOnly) else leaf


def _renumbered(params: Any, words: Published) -> Any:
    """The parameters with the rows of the vocabulary by published ids."""
    table = params["embeddings"]["tokens"]["table"]
    if isinstance(table, Int8):
        q, scale = (published_order(np.asarray(part), words) for part in (table.q, table.scale))
        moved: Any = Int8.stored(q, scale, table.axis, table.factor, table.limit)
    else:
        moved = published_order(np.asarray(table), words)
    return params | {"embeddings": params["embeddings"] | {"tokens": {"table": moved}}}
