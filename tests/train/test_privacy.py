"""DP-SGD: what a step takes from each example by hand, and what is spent against integrals and published numbers."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import integrate, stats

from lsp import Exit, LspError, checkpoint, recipe
from lsp.commands import finetune
from lsp.console import Progress
from lsp.data.examples import Examples, sampled
from lsp.data.tasks import Table
from lsp.data.tokenizer import train
from lsp.model.config import ModelConfig
from lsp.model.encoder import graphdef, initialise
from lsp.train import privacy
from lsp.train.labelled import Files
from lsp.train.objectives import Objective, classification
from lsp.train.options import Options
from lsp.train.step import make_update

Capture = Any


def seen(config: ModelConfig, params: Any, batch: Any, noise: float, **more: Any) -> Any:
    """The gradient that reaches the optimizer, flat, float64."""
    import optax

    caught: list[Any] = []

    def update(updates: Any, state: Any, params: Any = None, **_: Any) -> Any:
        caught.append(updates)
        return updates, state

    tx = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
    private = recipe.Privacy(noise=noise, clip=0.05)
    made = make_update(graphdef(config), Objective(classification, private=private), tx, expected=2, **more)

    def run(params: Any) -> Any:
        made.update(params, made.init(params), None, batch, jax.random.key(3), 0.1)
        return caught[-1]

    return flat(jax.jit(run)(params))


def flat(tree: Any) -> np.ndarray:
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]).astype(np.float64)


def by_hand(config: ModelConfig, params: Any, batch: Any) -> np.ndarray:
    """[B, P]: the gradient of each example, clipped to 0.05."""
    found = []

    @jax.jit
    @jax.grad
    def slope(params: Any, one: Any) -> Any:
        return classification(nnx.merge(graphdef(config), params), None, one, None)[0].total

    for row in range(len(batch["labels"])):
        gradient = flat(slope(params, {name: array[row : row + 1] for name, array in batch.items()}))
        found.append(gradient * min(1.0, 0.05 / max(np.linalg.norm(gradient), 1e-30)))
    return np.array(found)


@pytest.fixture
def small(config: ModelConfig, examples: dict[str, jax.Array]) -> tuple[ModelConfig, Any, dict[str, jax.Array]]:
    config = config.classifier(3, "cls", 0.0)
    return config, initialise(config, 0), examples


def test_a_step_sums_clipped_gradients(small: Any) -> None:
    config, params, batch = small
    expected = by_hand(config, params, batch)
    np.testing.assert_allclose(seen(config, params, batch, 1e-9), expected.sum(0) / 2, atol=1e-6)
    np.testing.assert_allclose(seen(config, params, batch, 1e-9, accumulate=2), expected.sum(0) / 2, atol=1e-6)
    norms = np.linalg.norm(expected, axis=1)
    assert norms.max() == pytest.approx(0.05) and norms[np.asarray(batch["weights"]) == 0].max() == 0


def test_noise_has_its_deviation_and_differs_everywhere(small: Any) -> None:
    config, params, batch = small
    noise = (seen(config, params, batch, 4.0) - seen(config, params, batch, 1e-9)) / (4.0 * 0.05 / 2)
    assert stats.kstest(noise, "norm").pvalue > 0.01 and len(np.unique(noise)) > 0.99 * len(noise)


@pytest.mark.parametrize(("noise", "share"), [(1.1, 256 / 60000), (0.8, 0.05), (2.0, 0.3)])
@pytest.mark.parametrize("order", [2, 5, 16])
def test_divergence_is_the_integral_of_its_definition(noise: float, share: float, order: int) -> None:
    without, with_it = stats.norm(0, noise), stats.norm(1, noise)

    def integrand(x: float) -> float:
        ratio = (1 - share) + share * np.exp(with_it.logpdf(x) - without.logpdf(x))
        return float(np.exp(without.logpdf(x) + order * np.log(ratio)))

    total, _ = integrate.quad(integrand, -15 * noise, order + 15 * noise, limit=500, points=[0, 1, order])
    assert privacy.divergence(noise, share, order) == pytest.approx(np.log(total) / (order - 1), rel=1e-5)


def test_what_is_spent() -> None:
    """TensorFlow Privacy's tutorial: 60,000 digits, 60 epochs of 256, noise 1.1, delta 1e-5: 3.0 by a looser
    conversion. Without sampling the Gaussian mechanism itself is a bound from below (Balle and Wang, 2018)."""
    found = privacy.spent(1.1, 256 / 60000, round(60 * 60000 / 256), 1e-5)
    assert 2.3 < found < 3.01
    epsilon = privacy.spent(4.0, 1.0, 1, 1e-5)
    exact = stats.norm.cdf(1 / 8 - 4 * epsilon) - np.exp(epsilon) * stats.norm.cdf(-1 / 8 - 4 * epsilon)
    assert exact < 1e-5
    tighter = 0.8 * epsilon
    assert stats.norm.cdf(1 / 8 - 4 * tighter) - np.exp(tighter) * stats.norm.cdf(-1 / 8 - 4 * tighter) > 1e-5
    rising = [privacy.spent(1.0, 0.01, steps, 1e-5) for steps in (1, 10, 100, 1000)]
    assert rising == sorted(rising) and privacy.spent(2.0, 0.01, 100, 1e-5) < rising[2]


@pytest.mark.parametrize(("examples", "size"), [(1000, 10), (60000, 256), (40, 40), (500, 250), (60000, 4096)])
def test_hardly_ever_a_batch_has_no_room(examples: int, size: int) -> None:
    rows = privacy.room(examples, size, 1)
    assert stats.binom.sf(rows, examples, size / examples) <= 1.1e-12
    assert rows == examples or stats.binom.sf(rows - 2, examples, size / examples) > 0.9e-12
    assert privacy.room(examples, size, 8) % 8 == 0
    with pytest.raises(LspError, match="more than"):
        privacy.room(examples, examples + 1, 1)


def test_each_example_is_drawn_by_itself(tmp_path: Path) -> None:
    words = train(["a b c d"] * 50, vocab_size=266, kind="unigram", lowercase=False, seed=0)
    table = Table([("a " * (1 + number % 7),) for number in range(60)], [number for number in range(60)], ("",) * 60)
    examples = Examples(table, words, 16)
    dataset = sampled(examples, rows=60, share=0.25, seed=7)
    drawn = np.zeros((400, 60))
    for step in range(400):
        batch = dataset[step]
        there = batch["labels"][batch["weights"] > 0]
        assert batch["tokens"].shape[0] == 60 and len({*there.tolist()}) == len(there)
        drawn[step, there] = 1
    assert stats.chisquare(drawn.sum(0), ddof=0).pvalue > 0.001
    assert drawn.sum(1).mean() == pytest.approx(15, abs=0.6) and drawn.sum(1).var() == pytest.approx(11.25, rel=0.2)
    assert np.abs(np.corrcoef(drawn.T) - np.eye(60)).max() < 0.25
    cut = sampled(examples, rows=4, share=0.25, seed=7)[0]
    assert cut["tokens"].shape[0] == 4 and cut["weights"].sum() == 4


def test_a_private_run_says_what_it_spent_and_keeps_no_secret(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    words = ["sun", "rain", "wind", "snow", "the", "day"]
    for name, count in (("train", 60), ("dev", 20)):
        rows = ["text\tlabel"]
        for _ in range(count):
            texts = random.choice(words, 6).tolist()
            rows.append(f"{' '.join(texts)}\t{'wet' if 'rain' in texts else 'dry'}")
        (tmp_path / f"{name}.tsv").write_text("\n".join(rows) + "\n")
    text = [" ".join(random.choice(words, 9)) for _ in range(100)]
    train(text, vocab_size=275, kind="unigram", lowercase=False, seed=0).save(tmp_path / "words")
    plan = recipe.Finetune(
        model=recipe.Model(layers=1, width=16, heads=2, max_length=16),
        privacy=recipe.Privacy(noise=1.0),
        train=recipe.Train(steps=4, batch_size=6, seed=1, checkpoint_every=2, accumulate=2),
    )
    files, options = Files(tmp_path / "train.tsv", tmp_path / "dev.tsv"), Options(Progress(quiet=True))
    made = finetune.run("scratch", tmp_path / "one", plan, files, tmp_path / "words", options)
    found = made["privacy"]
    assert found["epsilon"] == pytest.approx(privacy.spent(1.0, 0.1, 4, 1 / 600)) and found["steps"] == 4
    assert not [*(tmp_path / "one").rglob("secret")]
    finetune.run("scratch", tmp_path / "two", plan, files, tmp_path / "words", options)
    kernels = [checkpoint.open(tmp_path / name).params["classifier"]["kernel"] for name in ("one", "two")]
    assert (kernels[0] != kernels[1]).all(), "noise that follows from the recipe could be taken off again"
    for change, says in (
        ({"adapt": recipe.Adapt(grow=True)}, "adapt.grow"),
        ({"train": dataclasses.replace(plan.train, on_divergence="skip")}, "on_divergence"),
        ({"privacy": recipe.Privacy(noise=1.0, clip=0.0)}, "nothing would be learnt"),
    ):
        with pytest.raises(LspError, match=says):
            finetune.run(
                "scratch", tmp_path / "no", dataclasses.replace(plan, **change), files, tmp_path / "words", options
            )


def test_a_secret_is_kept_until_the_run_is_over(tmp_path: Path) -> None:
    first = privacy.secret(tmp_path / "train")
    assert privacy.secret(tmp_path / "train") == first < 2**64
    assert privacy.secret(tmp_path / "other") != first
    assert (tmp_path / "train" / "secret").stat().st_mode & 0o077 == 0


def test_gradients_that_do_not_fit_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    words = train(["a b c d"] * 50, vocab_size=266, kind="unigram", lowercase=False, seed=0)
    examples = Examples(Table([("a",)] * 60, [0] * 60, ("x",)), words, 16)
    monkeypatch.setattr(privacy.memory, "usable", lambda: 1_000_000)
    small, large = {"kernel": jnp.zeros((10, 10))}, {"kernel": jnp.zeros((100, 100))}
    plan = recipe.Train(batch_size=6)
    assert privacy.drawn(examples, plan, 1, small)[0]["tokens"].shape[0] > 6
    with pytest.raises(LspError, match="The gradients of") as raised:
        privacy.drawn(examples, plan, 1, large)
    assert raised.value.code == Exit.MACHINE and "lora_rank" in raised.value.hint
