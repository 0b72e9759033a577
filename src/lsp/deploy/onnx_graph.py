"""An ONNX graph of an encoder or a classifier, put together node by node from its parameters: nothing is traced.

Operators are those of the ONNX standard (opset 20), which any runtime has. Tokens of all rows lie below each other,
[M, D] with M = B·T, but in attention. Neither the order of texts nor their padding changes an answer: int8 products
have a scale for each token, as ours have (`model/int8.py`).

Dimensions: B rows, T tokens, M = B·T, D width, H heads, S head size, V vocabulary, C classes, Z directions, G gates,
and K inputs and N outputs of a dense layer.
"""

from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
import onnx
from onnx import TensorProto, helper

from lsp.deploy.onnx_nodes import FusedGraph, Graph, Tree, floats, ints
from lsp.model import attention
from lsp.model.bilstm import GATES
from lsp.model.config import Layer, ModelConfig
from lsp.model.int8 import Int8

OPSET, IR = 20, 9  # Gelu is an operator since; the oldest format of a file that may hold it
IDS, MASK, TYPES = "input_ids", "attention_mask", "token_type_ids"
LOGITS, HIDDEN = "logits", "last_hidden_state"


def build(config: ModelConfig, params: Tree, fused: bool = False) -> onnx.ModelProto:
    """The model of `config` with NumPy parameters of ours: float, or `Int8`, which stays int8 in the file.

    Inputs are `input_ids`, `attention_mask` and, where the model has types, `token_type_ids`, each int64 [B, T], padded
    on the right. The output is `logits` float32 [B, C], or `last_hidden_state` float32 [B, T, D] of an encoder.
    With `fused` int8 products are of operators that only ONNX Runtime has.
    """
    graph = FusedGraph() if fused else Graph()
    model = _Model(graph, config)
    given = [IDS, MASK, *([TYPES] if config.types else [])]
    rows: list[str | int | None] = ["batch", "sequence"]
    if config.head == "classes":
        answer, name, shape = model.logits(params), LOGITS, [rows[0], config.classes]
    else:
        answer, name, shape = model.hidden(params), HIDDEN, [*rows, config.width]
    graph.nodes.append(helper.make_node("Identity", [answer], [name]))
    made = helper.make_graph(
        graph.nodes,
        "lsp",
        [helper.make_tensor_value_info(each, TensorProto.INT64, rows) for each in given],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)],
        graph.arrays,
    )
    domains = {"": OPSET} | {node.domain: 1 for node in graph.nodes if node.domain}
    opsets = [helper.make_opsetid(*each) for each in domains.items()]
    return helper.make_model(made, producer_name="lsp", opset_imports=opsets, ir_version=IR)


class _Model:
    """The parts of an encoder, as `model/encoder.py` has them."""

    def __init__(self, graph: Graph, config: ModelConfig) -> None:
        self.graph, self.config = graph, config
        self.batch, self.length = graph("Shape", IDS, start=0, end=1), graph("Shape", IDS, start=1, end=2)
        self.mask_BT = graph("Cast", MASK, to=TensorProto.FLOAT)
        self.first = config.head == "classes" and config.pooling == "cls"  # nobody asks for the states of other tokens
        kinds = {(each.head_size, each.rotary_base): None for each in config.layers if config.preset == "modern"}
        self.turns = {
            kind: [graph("Slice", table, ints(0), self.length) for table in _rotary(config.max_length, *kind)]
            for kind in kinds
        }

    def logits(self, params: Tree) -> str:
        """[B, C]."""
        graph, config = self.graph, self.config
        x = self.encoded(params)
        if not self.first:
            # A product adds the tokens up in their order, and zeros of padding leave it as it is; a sum need not.
            total = graph("MatMul", graph("Unsqueeze", self.mask_BT, ints(1)), self.by_row(x))
            count = graph("ReduceSum", self.mask_BT, ints(1), keepdims=1)
            x = graph("Div", graph("Squeeze", total, ints(1)), graph("Max", count, np.float32(1)))
        activation = {"tanh": "Tanh", "relu": "Relu", "gelu": "Gelu"}[config.pooler_activation]
        x = graph(activation, graph.linear(x, params["pooler"]))
        if config.preset == "modern":
            x = graph.norm(x, params["pooler"]["norm"], config.epsilon)
        return graph.linear(x, params["classifier"])

    def hidden(self, params: Tree) -> str:
        """[B, T, D]."""
        return self.by_row(self.encoded(params))

    def encoded(self, params: Tree) -> str:
        """Hidden states [M, D], or [B, D] of the first tokens where those are all that is asked for."""
        x = self.embedded(params["embeddings"])
        for number in range(len(self.config.layers)):
            x = (self.lstm if self.config.preset == "bilstm" else self.layer)(x, params["layers"][number], number)
        if self.config.preset == "bilstm":
            return self.of_first(x) if self.first else x
        return self.graph.norm(x, params["norm"], self.config.epsilon) if self.config.preset == "modern" else x

    def embedded(self, part: Tree) -> str:
        """[M, D]."""
        graph, config = self.graph, self.config
        x = graph.rows(part["tokens"]["table"], graph("Reshape", IDS, ints(-1)))
        if config.preset == "bert":
            places = graph("Range", np.int64(0), graph("Squeeze", self.length), np.int64(1))
            x = graph("Add", self.by_row(x), graph.rows(part["positions"]["table"], places))
            x = graph("Reshape", x, ints(-1, config.width))
        if config.types:
            x = graph("Add", x, graph.rows(part["types"]["table"], graph("Reshape", TYPES, ints(-1))))
        return graph.norm(x, part["norm"], config.epsilon)

    def layer(self, x: str, part: Tree, number: int) -> str:
        """[M, D] → [M, D], or the last one to [B, D] where only the first tokens are asked for."""
        graph, epsilon = self.graph, self.config.epsilon
        ours, theirs = part["attention"], part["feedforward"]
        own = self.of_first(x) if self.is_last(number) else x
        if self.config.preset == "bert":
            own = graph.norm(graph("Add", own, self.attention(x, own, ours, number)), ours["norm"], epsilon)
            return graph.norm(graph("Add", own, self.feedforward(own, theirs)), theirs["norm"], epsilon)
        if number:  # what reaches the first layer is normalised already
            x = graph.norm(x, ours["norm"], epsilon)
        normed = self.of_first(x) if self.is_last(number) else x
        own = graph("Add", own, self.attention(x, normed, ours, number))
        return graph("Add", own, self.feedforward(graph.norm(own, theirs["norm"], epsilon), theirs))

    def attention(self, x: str, own: str, part: Tree, number: int) -> str:
        """What the tokens of `own` [M, D] or [B, D] see of those of x [M, D]."""
        graph, layer, last = self.graph, self.config.layers[number], self.is_last(number)
        q, k, v = (
            self.heads(graph.linear(each, _cut(part["qkv"], layer, place)), layer)
            for place, each in enumerate((own, x, x))
        )
        if self.config.preset == "modern":
            q, k = q if last else self.turned(q, layer), self.turned(k, layer)  # the first token is turned by 0
        scores = graph("MatMul", q, graph("Transpose", k, perm=[0, 1, 3, 2]))
        weights = graph("Softmax", graph("Add", scores, self.blocked(layer.window, last)), axis=-1)
        y = graph("Transpose", graph("MatMul", weights, v), perm=[0, 2, 1, 3])
        return graph.linear(graph("Reshape", y, ints(-1, layer.heads * layer.head_size)), part["out"])

    def heads(self, x: str, layer: Layer) -> str:
        """[M or B, H·S] → [B, H, T or 1, S]."""
        split = self.graph.reshape(x, self.batch, -1, layer.heads, layer.head_size)
        return self.graph("Transpose", split, perm=[0, 2, 1, 3])

    def turned(self, x_BHTS: str, layer: Layer) -> str:
        """Rotary positions, as `attention.rotate`."""
        graph, half = self.graph, layer.head_size // 2
        cos, sin = self.turns[layer.head_size, layer.rotary_base]
        left, right = graph.several("Split", 2, x_BHTS, ints(half, half), axis=-1)
        across = graph("Mul", graph("Concat", right, left, axis=-1), sin)
        return graph("Add", graph("Mul", x_BHTS, cos), across)

    def blocked(self, window: int, first: bool) -> str:
        """What is added to the scores of pairs that must not meet: [B, 1, T or 1, T]."""
        graph, away = self.graph, np.float32(attention.BLOCKED)
        blocked = graph("Mul", graph("Sub", np.float32(1), self.mask_BT), away)
        blocked = graph("Unsqueeze", blocked, ints(1, 2))
        if not window:
            return blocked
        places = graph("Range", np.int64(0), graph("Squeeze", self.length), np.int64(1))
        distance = places if first else graph("Abs", graph("Sub", self.column(places), places))
        far = graph("Cast", graph("Greater", distance, np.int64(window)), to=TensorProto.FLOAT)
        return graph("Add", blocked, graph("Mul", far, away))

    def feedforward(self, x: str, part: Tree) -> str:
        graph, approximate = self.graph, "none" if self.config.activation == "gelu" else "tanh"
        if "gate" not in part:
            return graph.linear(graph("Gelu", graph.linear(x, part["up"]), approximate=approximate), part["down"])
        gate = graph("Gelu", graph.linear(x, part["gate"]), approximate=approximate)
        return graph.linear(graph("Mul", gate, graph.linear(x, part["up"])), part["down"])

    def lstm(self, x: str, part: Tree, number: int) -> str:
        """[M, D] → [M, D], by an operator that has float32 products only: int8 kernels are multiplied out before.

        Backward is forward through texts that are turned round within their lengths: the operator's own second
        direction needs `sequence_lens`, which OpenVINO passes over, and so begins in the padding.
        """
        graph, size = self.graph, self.config.layers[number].head_size
        bias_ZN = _gates(floats(part["below"]["bias"]), size)[..., 0]
        lengths = graph("ReduceSum", MASK, ints(1), keepdims=0)
        x_TBD = graph("Transpose", self.by_row(x), perm=[1, 0, 2])
        turn = {"batch_axis": 1, "time_axis": 0}
        ways = []
        for way, name in enumerate(("forward", "backward")):
            y_T1BS = graph(
                "LSTM",
                graph("ReverseSequence", x_TBD, lengths, **turn) if way else x_TBD,
                self.direction(part["below"]["kernel"], size, way),
                self.direction(part[name]["kernel"], size, 0),
                np.concatenate([bias_ZN[[way]], np.zeros_like(bias_ZN[[way]])], axis=1),
                hidden_size=size,
            )
            y_TBS = graph("Squeeze", y_T1BS, ints(1))
            ways.append(graph("ReverseSequence", y_TBS, lengths, **turn) if way else y_TBS)
        y_BTD = graph("Transpose", graph("Concat", *ways, axis=-1), perm=[1, 0, 2])
        return graph("Reshape", y_BTD, ints(-1, self.config.width))

    def direction(self, kernel: Any, size: int, way: int) -> Any:
        """One direction of a kernel of ours [K, Z·G·S] as ONNX has it: [1, G·S, K]."""
        if not isinstance(kernel, Int8):
            return _gates(floats(kernel), size)[[way]]
        if kernel.factor is not None:
            return _gates(floats(kernel.dequantize()), size)[[way]]
        rows = self.graph("Cast", _gates(kernel.q, size)[[way]], to=TensorProto.FLOAT)
        return self.graph("Mul", rows, _gates(kernel.scale, size)[[way]])

    def is_last(self, number: int) -> bool:
        """Whether a layer has only the first tokens to answer for."""
        return self.first and number == len(self.config.layers) - 1

    def by_row(self, x: str) -> str:
        """[M, D] → [B, T, D]."""
        return self.graph.reshape(x, self.batch, self.length, self.config.width)

    def of_first(self, x: str) -> str:
        """[M, D] → [B, D]."""
        return self.graph("Gather", self.by_row(x), np.int64(0), axis=1)

    def column(self, x: str) -> str:
        return self.graph("Unsqueeze", x, ints(-1))


def _cut(part: Tree, layer: Layer, place: int) -> Tree:
    """The queries (0), keys or values of a layer whose columns go head by head. Queries are scaled here, not scores."""

    def columns(array: Any) -> np.ndarray:
        split = np.asarray(array).reshape(*array.shape[:-1], layer.heads, 3, layer.head_size)
        return split[..., place, :].reshape(*array.shape[:-1], -1)

    factor = np.float32(1 if place else layer.head_size**-0.5)
    kernel = part["kernel"]
    if isinstance(kernel, Int8):
        scale = columns(kernel.scale) * factor
        cut: Any = replace(kernel, q=columns(kernel.q), scale=scale, colsum=columns(kernel.colsum))
    else:
        cut = columns(floats(kernel)) * factor
    return {"kernel": cut} | ({"bias": columns(floats(part["bias"])) * factor} if "bias" in part else {})


def _gates(columns: Any, size: int) -> np.ndarray:
    """[K, Z·G·S] → [Z, G·S, K], and [Z·G·S] → [Z, G·S, 1]; the output gate, our last, is ONNX's second."""
    split_KZGS = np.asarray(columns).reshape(-1, columns.shape[-1] // (GATES * size), GATES, size)
    return split_KZGS[:, :, [0, 3, 1, 2]].reshape(*split_KZGS.shape[:2], -1).transpose(1, 2, 0)


def _rotary(length: int, size: int, base: float) -> list[np.ndarray]:
    """Cosines and signed sines [T, S] of all positions."""
    return [np.asarray(each)[0, 0] for each in attention.rotary(jnp.arange(length, dtype=jnp.int32)[None], size, base)]
