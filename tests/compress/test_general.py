"""General distillation: the loss against NumPy, and an encoder that learns words from another, through the verb."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.special import log_softmax

from lsp import LspError, checkpoint, directory, recipe
from lsp.commands import pretrain
from lsp.compress import general
from lsp.console import Progress
from lsp.data.tokenizer import train
from lsp.model.config import Layer, ModelConfig
from lsp.model.encoder import graphdef
from lsp.train.objectives import masked_lm
from lsp.train.options import Options

Draw = Callable[[ModelConfig, int], dict]
TEACHER = ModelConfig("bert", 304, 16, (Layer(2, 8, 24),) * 2, 32)
STUDENT = ModelConfig("modern", 300, 8, (Layer(1, 8, 24),), 32)
OPTIONS = Options(Progress(quiet=True))
WORDS = ["sun", "rain", "wind", "snow", "the", "day", "was", "and", "we", "saw"]
PLAN = recipe.Pretrain(
    model=recipe.Model(preset="bert", layers=1, width=8, heads=1, max_length=32),
    data=recipe.Text(vocab_size=285, sequence_length=32),
    train=recipe.Train(steps=30, batch_size=8, learning_rate=1e-2, log_every=5),
)


def batch() -> dict[str, jax.Array]:
    random = np.random.default_rng(0)
    return {
        "tokens": jnp.asarray(random.integers(5, 300, (2, 10)), jnp.int32),
        "segments": jnp.asarray([[1] * 6 + [2] * 4, [1] * 7 + [0] * 3], jnp.int32),
        "slots": jnp.asarray([[1, 4, 8], [2, 0, 0]], jnp.int32),
        "targets": jnp.asarray(random.integers(5, 300, (2, 3)), jnp.int32),
        "weights": jnp.asarray([[1, 1, 1], [1, 0, 0]], jnp.float32),
    }


def test_the_loss_is_of_guesses_and_words_at_the_masked_slots(draw: Draw) -> None:
    wish = recipe.GeneralDistillation(temperature=3.0, hard=0.25)

    @jax.jit
    def run(own: dict, frozen: dict, given: dict) -> tuple:
        model, other = nnx.merge(graphdef(STUDENT), own), nnx.merge(graphdef(TEACHER), frozen)
        logits = [
            each.guess(each.encode(given["tokens"], given["segments"]), given["slots"]) for each in (model, other)
        ]
        wishes = wish, dataclasses.replace(wish, relations=2.0)
        losses = [general.match_words(TEACHER, each)(model, frozen, given, None) for each in wishes]
        return logits, masked_lm(model, None, given, None)[0], losses

    (found, wanted), words, ((mean, metrics), (related, others)) = jax.device_get(
        run(draw(STUDENT, 0), draw(TEACHER, 1), batch())
    )
    used = np.asarray(batch()["weights"]) > 0
    q, p = (log_softmax(each[used].astype(np.float64) / 3, axis=-1) for each in (found, wanted[..., :300]))
    soft = 9 * (np.exp(p) * (p - q)).sum()
    np.testing.assert_allclose(mean.total, 0.75 * soft + 0.25 * words.total, rtol=1e-4)
    assert mean.count == metrics["agreement"].count == 4 and soft > 0.1
    assert others["relations"].total > 1e-4
    np.testing.assert_allclose(related.total, mean.total + 2 * others["relations"].total, rtol=1e-5)


def test_a_copy_of_the_teacher_has_only_words_to_learn(draw: Draw) -> None:
    wish = recipe.GeneralDistillation(hard=0.0, relations=1.0)

    @jax.jit
    def run(params: dict, given: dict) -> tuple:
        return general.match_words(TEACHER, wish)(nnx.merge(graphdef(TEACHER), params), params, given, None)

    mean, metrics = run(draw(TEACHER, 1), batch())
    assert abs(mean.total) < 1e-5 and metrics["agreement"].total == 4


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text, and an encoder that has read it."""
    top, random = tmp_path_factory.mktemp("general"), np.random.default_rng(0)
    (top / "text.txt").write_text("\n\n".join(" ".join(random.choice(WORDS, 12)) for _ in range(400)))
    plan = dataclasses.replace(PLAN, model=dataclasses.replace(PLAN.model, width=16, layers=2))
    pretrain.run([str(top / "text.txt")], top / "teacher", plan, None, None, [], OPTIONS)
    return top


def test_an_encoder_learns_words_from_another(place: Path) -> None:
    wish = recipe.GeneralDistillation(hard=0.0, relations=1.0)
    plan = dataclasses.replace(PLAN, distill=wish)
    text, out = [str(place / "text.txt")], place / "student"
    result = pretrain.run(text, out, plan, None, None, [], OPTIONS, place / "teacher")
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "relations" in line]
    assert steps[-1]["loss"] < 0.8 * steps[0]["loss"]
    teacher, student = checkpoint.open(place / "teacher"), checkpoint.open(out)
    assert student.config.head == "words" and student.tokenizer.hash == teacher.tokenizer.hash
    assert student.manifest["parents"] == [directory.identity(directory.read(place / "teacher"))]
    assert result["parameters"] == sum(leaf.size for leaf in jax.tree.leaves(student.params))
    assert pretrain.run(text, out, plan, None, None, [], OPTIONS, place / "teacher")["status"] == "already complete"


def test_a_teacher_of_other_tokens_or_with_another_task_is_refused(place: Path, tmp_path: Path) -> None:
    words = train([" ".join(WORDS)] * 50, vocab_size=284, kind="bpe", lowercase=False, seed=0)
    words.save(tmp_path / "words")

    def refused(out: str, plan: recipe.Pretrain, words: Any = None) -> LspError:
        with pytest.raises(LspError) as caught:
            text = [str(place / "text.txt")]
            pretrain.run(text, tmp_path / out, plan, words, None, [], OPTIONS, place / "teacher")
        return caught.value

    assert "another tokenizer" in str(error := refused("one", PLAN, tmp_path / "words")) and error.code == 4
    paired = dataclasses.replace(PLAN, data=dataclasses.replace(PLAN.data, next_sentence=True))
    assert "words alone" in str(error := refused("two", paired)) and error.code == 2
    lstm = dataclasses.replace(PLAN, model=dataclasses.replace(PLAN.model, preset="bilstm"))
    related = dataclasses.replace(lstm, distill=recipe.GeneralDistillation(relations=1.0))
    assert "An LSTM has no queries" in str(error := refused("three", related)) and error.code == 2
