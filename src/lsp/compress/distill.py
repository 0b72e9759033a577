"""Distillation: a small student learns a teacher's answers (Hinton et al., 2015), started from the teacher's layers
where shapes allow (Sanh et al., 2019, "DistilBERT").

Dimensions: B rows, C classes, V pieces, D width, E the teacher's width.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lsp.model.config import ModelConfig
from lsp.model.encoder import Model
from lsp.model.weightonly import dequantize
from lsp.recipe import Problem
from lsp.train import answers
from lsp.train.metrics import Mean
from lsp.train.objectives import JUDGES, Batch, Loss, divergence

Tree = dict[Any, Any]
Judge = Callable[[jax.Array, Batch], tuple[Mean, dict[str, Mean]]]


def match_teacher(temperature: float, hard: float, problem: Problem = "single_label") -> Loss:
    """The loss of the student's answers alone, as `answered` has it."""
    judge = answered(temperature, hard, problem)

    def loss(model: Model, frozen: Any, batch: Batch, key: jax.Array | None) -> tuple[Mean, dict[str, Mean]]:
        return judge(model.classify(batch["tokens"], batch["segments"], batch["types"], key=key), batch)

    return loss


def answered(temperature: float, hard: float, problem: Problem = "single_label") -> Judge:
    """The loss `(1 - hard) · T² · KL(teacher ‖ student) + hard · cross-entropy`, both softened by T = `temperature`
    in the first part; T² keeps its gradients at the size they have for T = 1.

    Where an example may have several classes, both parts are of each class by itself, the mean over classes; of
    numbers they are squared errors, from the teacher's number and from the label, and nothing is softened.

    What the teacher says of an example comes with it, as `wanted` [B, C], and as `known` [B] whether its label is its
    own: a text of which words were replaced may no longer be what it was, and learns from the teacher alone. Rows of
    weight 0 count nothing. Metrics, of classes: accuracy where labels are known, and how often the student's guess is
    the teacher's.
    """

    def judge(logits_BC: jax.Array, batch: Batch) -> tuple[Mean, dict[str, Mean]]:
        teacher_BC, known_B = batch["wanted"], batch["known"]
        soft_B = divergence(problem, teacher_BC, logits_BC, temperature)
        weights_B, count = batch["weights"], batch["weights"].sum()
        labelled, metrics = JUDGES[problem](logits_BC, batch["labels"], weights_B * known_B)
        if problem != "regression":
            alike_B = answers.alike(problem, logits_BC, teacher_BC).astype(weights_B.dtype)
            metrics["agreement"] = Mean((alike_B * weights_B).sum(), count)
        soft = ((1 - hard * known_B) * soft_B * weights_B).sum()
        return Mean(soft + hard * labelled.total, count), metrics

    return judge


def student(
    fresh: Tree, teacher: Tree, configs: tuple[ModelConfig, ModelConfig] | None = None
) -> tuple[Tree, list[str]]:
    """`fresh` with the teacher's weights wherever a part has the same names and shapes, and what was copied.

    Parts are each embedding table and norm, each layer's attention and feed-forward block, the last norm and the heads.
    A narrower table of the same pieces begins with what `narrowed` leaves of the teacher's.
    Student layers take evenly spaced teacher layers, the first and the last among them. `Int8` parts are copied
    as float32. `configs`, the student's and the teacher's, keep attention apart that has the same shapes but cuts them
    into other heads.
    """
    teacher = dequantize(teacher)
    copied: list[str] = []

    def part(own: Any, other: Any, name: str, source: str = "") -> Any:
        if not _alike(own, other):
            return own
        copied.append(name + (f" ← {source}" if source else ""))
        return jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32), other)  # a copy: training donates its start

    def layer(own: Tree, index: int, origin: int) -> Tree:
        other = dict(teacher["layers"][origin])
        if configs is not None and _heads(configs[0], index) != _heads(configs[1], origin):
            other.pop("attention", None)  # an LSTM has none
        return {
            name: part(block, other.get(name), f"layers.{index}.{name}", f"layers.{origin}")
            for name, block in own.items()
        }

    made: Tree = {}
    for name, own in fresh.items():
        if name == "layers":
            origins = evenly(len(own), len(teacher["layers"]))
            made[name] = {i: layer(block, i, origins[i]) for i, block in own.items()}
        elif name == "embeddings":
            made[name] = {table: part(leaf, teacher[name].get(table), f"{name}.{table}") for table, leaf in own.items()}
            wide_VE, own_VD = (tree["tokens"]["table"] for tree in (teacher[name], own))
            if len(own_VD) == len(wide_VE) and own_VD.shape[1] < wide_VE.shape[1]:
                made[name]["tokens"] = {"table": jnp.asarray(narrowed(np.asarray(wide_VE), own_VD.shape[1]))}
                copied.append(f"{name}.tokens in its {own_VD.shape[1]} main directions")
        else:
            made[name] = part(own, teacher.get(name), name)
    return made, copied


def evenly(own: int, theirs: int) -> list[int]:
    """For each of the student's layers one of the teacher's, the first and the last among them."""
    return np.linspace(0, theirs - 1, own).round().astype(int).tolist()


def narrowed(table_VE: np.ndarray, width: int) -> np.ndarray:
    """float32 [V, D]: a table less its mean row, in its first `width` principal directions, where the pieces keep
    their distances as well as D numbers can (Eckart and Young, 1936)."""
    away_VE = table_VE.astype(np.float64) - table_VE.mean(0, dtype=np.float64)
    _, directions_EE = np.linalg.eigh(away_VE.T @ away_VE)  # the largest last
    return (away_VE @ directions_EE[:, ::-1][:, :width]).astype(np.float32)


def _heads(config: ModelConfig, index: int) -> tuple[int, int]:
    return config.layers[index].heads, config.layers[index].head_size


def _alike(one: Any, other: Any) -> bool:
    """The same names, and the same shape at each."""
    return _shapes(one) == _shapes(other)


def _shapes(tree: Any) -> Any:
    return [(path, leaf.shape) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]
