"""General distillation: an encoder that learns on raw text to guess masked words as another does (DistilBERT: Sanh et
al., 2019), and if asked for how its tokens relate to one another (MiniLMv2: Wang et al., 2021). The teacher runs in
every step, which costs a forward pass of it.

Dimensions: B rows, P pieces of a row, T tokens, K masked slots, V vocabulary.
"""

from pathlib import Path
from typing import Any

import jax
from flax import nnx

from lsp import Exit, LspError, checkpoint
from lsp.compress import inside
from lsp.data.tokenizer import Tokenizer
from lsp.model.config import ModelConfig
from lsp.model.encoder import Model, graphdef
from lsp.recipe import GeneralDistillation
from lsp.train.metrics import Mean
from lsp.train.objectives import Batch, Loss, divergence, scored


def match_words(teacher: ModelConfig, recipe: GeneralDistillation) -> Loss:
    """The loss `(1 - hard) · T² · KL(teacher ‖ student) + hard · cross-entropy`, the mean over masked slots, of a
    teacher whose parameters are `frozen`; plus `relations` times how unlike the relations are. A row weighs there as
    much as its slots do. Metrics: accuracy, how often the guess is the teacher's, and `relations`."""
    structure = graphdef(teacher)
    related = (recipe.relation_layer or len(teacher.layers)) - 1

    def loss(model: Model, frozen: Any, batch: Batch, key: jax.Array | None) -> tuple[Mean, dict[str, Mean]]:
        inputs, slots_BK = (batch["tokens"], batch["segments"]), batch["slots"]
        other = nnx.merge(structure, frozen)
        mine, theirs = model.states(*inputs, key=key), other.states(*inputs)
        logits_BKV = model.guess(model.norm(mine[-1]), slots_BK)
        wanted_BKV = other.guess(other.norm(theirs[-1]), slots_BK)
        weights_BK, count = batch["weights"], batch["weights"].sum()
        words, metrics = scored(logits_BKV, batch["targets"], weights_BK)
        alike_BK = (logits_BKV.argmax(-1) == wanted_BKV.argmax(-1)).astype(weights_BK.dtype)
        metrics["agreement"] = Mean((alike_BK * weights_BK).sum(), count)
        size = min(wanted_BKV.shape[-1], logits_BKV.shape[-1])  # a published table may have rows that no piece has
        soft_BK = divergence("single_label", wanted_BKV[..., :size], logits_BKV[..., :size], recipe.temperature)
        total = (1 - recipe.hard) * (soft_BK * weights_BK).sum() + recipe.hard * words.total
        if recipe.relations:
            pieces = inputs[1].reshape(-1, inputs[1].shape[-1])
            own, others = inside.projected(model, mine, -1, pieces), inside.projected(other, theirs, related, pieces)
            away_BP = inside.unrelated(own, others, pieces).reshape(len(slots_BK), -1)
            metrics["relations"] = Mean((away_BP.mean(1) * weights_BK.sum(1)).sum(), count)
            total += recipe.relations * metrics["relations"].total
        return Mean(total, count), metrics

    return loss


def open_teacher(path: Path, student: ModelConfig, recipe: GeneralDistillation) -> checkpoint.Checkpoint:
    """The encoder at `path`. Raises LspError (exit 2) if it can't teach words, or the student can't learn from it."""
    found = checkpoint.open(path).expect("words")
    if student.classes or found.config.classes:
        raise LspError("--teacher is for words alone, and not for data.next_sentence.", hint="Leave one of them out.")
    inside.check(student, found.config, recipe)
    return found


def expect_fit(teacher: checkpoint.Checkpoint, words: Tokenizer, length: int) -> None:
    """Raises LspError where the teacher can't read the student's rows: of other tokens (exit 4), or too long (2)."""
    if teacher.tokenizer.hash != words.hash:
        raise LspError(
            f"The text was prepared with another tokenizer ({words.hash[:8]}) than the teacher {teacher.path} uses "
            f"({teacher.tokenizer.hash[:8]}).",
            hint=f"Prepare it again: lsp prepare TEXT --tokenizer {teacher.path} --out DATA",
            code=Exit.ARTIFACT,
        )
    if length > teacher.config.max_length:
        raise LspError(
            f"Rows are {length} tokens long, and the teacher reads {teacher.config.max_length} at most.",
            hint=f"Use --set data.sequence_length={teacher.config.max_length} or shorter rows.",
        )
