"""Nodes of an ONNX graph, and those that a dense layer, an embedding table and a norm of ours become.

Dimensions: M tokens of all rows, D width, and K inputs and N outputs of a dense layer.
"""

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from lsp.model.int8 import LARGEST, SMALLEST, Int8

TINY = np.float32(SMALLEST)
FUSED = "com.microsoft"  # the domain of such operators
SMALL = 16  # arrays up to this size are written once, however often they are used
Tree = dict[Any, Any]


class Graph:
    """Nodes in the order in which they run, and the arrays that they read. What is there already is used again."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.arrays: list[onnx.TensorProto] = []
        self._known: dict[Any, Any] = {}

    def __call__(self, operator: str, *operands: Any, **attributes: Any) -> str:
        """The output of a node. Operands are names and arrays."""
        return self.several(operator, 1, *operands, **attributes)[0]

    def several(self, operator: str, count: int, *operands: Any, **attributes: Any) -> list[str]:
        """The same of a node with `count` outputs."""
        names = [each if isinstance(each, str) else self._array(each) for each in operands]
        key = (operator, *names, str(attributes))
        if key not in self._known:
            self._known[key] = [f"{operator.lower()}_{len(self.nodes)}_{number}" for number in range(count)]
            self.nodes.append(helper.make_node(operator, names, self._known[key], **attributes))
        return self._known[key]

    def _array(self, array: np.ndarray) -> str:
        name = f"array_{len(self.arrays)}"
        # ONNX Runtime 1.32, told to be exact, can't open a file where it makes uint8 of an int8 array for two nodes.
        if (array.size <= SMALL or array.ndim == 1) and array.dtype != np.int8:
            known = self._known.setdefault((array.dtype.str, array.shape, array.tobytes()), name)
            if known != name:
                return known
        self.arrays.append(numpy_helper.from_array(np.asarray(array, order="C"), name))
        return name

    def linear(self, x: str, part: Tree) -> str:
        """x [M, K] by a dense layer of ours: [M, N]."""
        kernel, bias = part["kernel"], floats(part["bias"]) if "bias" in part else None
        if not isinstance(kernel, Int8):
            return self.plus(self("MatMul", x, floats(kernel)), bias)
        if kernel.factor is not None:  # SmoothQuant
            x = self("Mul", x, floats(kernel.factor))
        return self.plus(self.dynamic(x, kernel), bias) if kernel.limit is None else self.static(x, kernel, bias)

    def plus(self, y: str, bias: np.ndarray | None) -> str:
        """With a bias of [1, N] and not [N]: what ONNX Runtime makes of that and a GELU takes longer than the two."""
        return y if bias is None else self("Add", y, bias[None])

    def dynamic(self, x: str, kernel: Int8) -> str:
        """x [M, K] by an int8 kernel, each row rounded to int8 by its own scale, as `int8.matmul` does it.

        Runtimes are fast at uint8 times int8, so q + 128 is what is multiplied. The columns are scaled before the rows:
        ONNX Runtime 1.31 makes one operator of the other order and the bias, and scales the bias by the row with it.
        """
        largest = self.largest(x)
        q = self("Round", self("Mul", x, self("Div", np.float32(LARGEST), largest)))
        q = self("Cast", self("Add", q, np.float32(128)), to=TensorProto.UINT8)
        y = self("Cast", self("MatMulInteger", q, kernel.q, np.uint8(128)), to=TensorProto.FLOAT)
        return self("Mul", self("Mul", y, kernel.scale / np.float32(LARGEST)), largest)

    def static(self, x: str, kernel: Int8, bias: np.ndarray | None) -> str:
        """The same with one scale that is known before, and the bias.

        Pairs of quantising and multiplying out are how ONNX says so: runtimes that are fast at int8 multiply whole
        numbers then, and others are right without. A bias that is added makes ONNX Runtime multiply floats, as long as
        it isn't rounded as well, which moves answers by as much as all other rounding; so one is subtracted.
        """
        step, middle = floats(kernel.limit / LARGEST).reshape(()), np.uint8(128)
        rounded = self("DequantizeLinear", self("QuantizeLinear", x, step, middle), step, middle)
        zeros = np.zeros(kernel.shape[1], np.int8)
        y = self("MatMul", rounded, self("DequantizeLinear", kernel.q, floats(kernel.scale), zeros, axis=1))
        return y if bias is None else self("Sub", y, -bias)

    def largest(self, x: str) -> str:
        """The largest magnitude of each row [M, 1]."""
        return self("Max", self("ReduceMax", x, ints(-1)), self("Neg", self("ReduceMin", x, ints(-1))), TINY)

    def rows(self, table: Any, ids: str) -> str:
        """Rows of an embedding table of ours, float32 [M, D]."""
        if not isinstance(table, Int8):
            return self("Gather", floats(table), ids)
        rows = self("Cast", self("Gather", table.q, ids), to=TensorProto.FLOAT)
        return self("Mul", rows, self("Gather", table.scale[:, None], ids))

    def norm(self, x: str, part: Tree, epsilon: float) -> str:
        bias = [floats(part["bias"])] if "bias" in part else []
        return self("LayerNormalization", x, floats(part["scale"]), *bias, axis=-1, epsilon=epsilon)

    def reshape(self, x: str, *shape: int | str) -> str:
        """A size is a number, or the name of an int64 [1]; -1 is what is left."""
        return self(
            "Reshape", x, self("Concat", *(each if isinstance(each, str) else ints(each) for each in shape), axis=0)
        )


class FusedGraph(Graph):
    """With int8 products of operators that ONNX Runtime has beyond the standard: the same numbers, sooner.

    What it also has is not for us. DynamicQuantizeMatMul rounds all tokens of a batch by one scale, and answers depend
    on it. MatMulNBits, MultiHeadAttention and SkipLayerNormalization take longer on a CPU than what they replace, in
    version 1.31.
    """

    def dynamic(self, x: str, kernel: Int8) -> str:
        """One operator rounds; one multiplies, casts and scales. It would scale a bias as well, so it gets none."""
        largest = self.largest(x)
        scale = self("Squeeze", self("Div", largest, np.float32(LARGEST)), ints(-1))
        middle = helper.make_tensor("middle", TensorProto.UINT8, [1], [128])
        q = self("QuantizeLinear", x, scale, self("ConstantOfShape", self("Shape", scale), value=middle), axis=0)
        columns = kernel.scale / np.float32(LARGEST)
        return self("MatMulIntegerToFloat", q, kernel.q, largest, columns, np.uint8(128), domain=FUSED)

    def static(self, x: str, kernel: Int8, bias: np.ndarray | None) -> str:
        """One operator rounds, and one does all the rest, the bias included."""
        step, middle = floats(kernel.limit / LARGEST).reshape(()), np.uint8(128)
        q = self("QuantizeLinear", x, step, middle)
        after = [] if bias is None else ["", bias]  # no middle of the weights
        return self("MatMulIntegerToFloat", q, kernel.q, step, floats(kernel.scale), middle, *after, domain=FUSED)


def floats(array: Any) -> np.ndarray:
    return np.asarray(array).astype(np.float32)


def ints(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)
