"""Int8 or bfloat16 on a GPU, which is a matter of time there. Here a processor stands in for the card."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsp import Exit, checkpoint, cli, timing
from lsp.commands import bench as bench_verb
from lsp.console import Progress
from lsp.deploy import bench, faster, parity
from lsp.model import int8
from lsp.model.weightonly import dequantize

Build = Callable[..., checkpoint.Model]
Store = Callable[[checkpoint.Model, Path], Path]
TOKENS = np.array([[2, 9, 30, 31, 3], [2, 40, 41, 42, 3]], np.int32)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Callable[[float, float], None]:
    """`card(a, b)`: a card on which 32 texts take `a` seconds in int8 and `b` in bfloat16."""

    def of(in_int8: float, in_bfloat16: float) -> None:
        monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
        seconds = np.array([in_int8, in_bfloat16])[:, None, None] * [[[9.0], [1.0], [1.0]]]
        monkeypatch.setattr(bench, "measure", lambda case, limits: bench.Timings(seconds, [0.0, 0.0]))

    return of


@pytest.mark.parametrize(("seconds", "taken"), [((2.0, 1.0), "bfloat16"), ((1.0, 2.0), "int8")])
def test_the_faster_one_answers(
    build: Build, store: Store, tmp_path: Path, card: Any, seconds: tuple[float, float], taken: str
) -> None:
    base = checkpoint.open(store(build("bert", int8=True), tmp_path / "small"))
    card(*seconds)
    found = faster.choose(base)
    rates = {"int8": 32 / seconds[0], "bfloat16": 32 / seconds[1]}
    assert found.why == (
        f"answering in {taken}, the faster on this {jax.devices()[0].device_kind}: "
        f"int8 {rates['int8']:.0f}, bfloat16 {rates['bfloat16']:.0f} texts/s"
    )
    assert int8.present(found.params) == (taken == "int8")


def test_a_processor_keeps_to_int8_and_floats_to_what_they_are(build: Build, store: Store, tmp_path: Path, card: Any):
    small, whole = (checkpoint.open(store(build("bert", int8=i), tmp_path / f"run{i}")) for i in (True, False))
    assert faster.choose(small) == (small.params, "")
    card(2.0, 1.0)
    assert faster.choose(whole) == (whole.params, "")


@pytest.mark.parametrize("preset", ["bert", "modern", "bilstm"])
def test_bfloat16_has_the_weights_that_int8_stands_for(build: Build, store: Store, tmp_path: Path, preset: str) -> None:
    base = checkpoint.open(store(build(preset, int8=True), tmp_path / "small"))
    half, whole = faster.in_bfloat16(base.params), dequantize(base.params)
    assert {leaf.dtype for leaf in jax.tree.leaves(half)} == {jnp.bfloat16.dtype}
    found, expected = (parity.answerer(base.config, params)(TOKENS, TOKENS * 0) for params in (half, whole))
    assert found.dtype == expected.dtype == np.float32
    assert 0 < np.abs(found - expected).max() < 0.03 * np.abs(expected).max()


def test_both_are_really_timed(build: Build, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = checkpoint.open(store(build("bert", int8=True), tmp_path / "small"))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert faster.choose(base, timing.Limits(rounds=3, seconds=0.0)).why.startswith("answering in ")


def test_predict_says_which_and_bench_times_the_other(
    build: Build, store: Store, tmp_path: Path, card: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    run = store(build("bert", int8=True), tmp_path / "small")
    (tmp_path / "new.txt").write_text("the cat\na dog ran\n")
    predict = ["predict", "--from", str(run), str(tmp_path / "new.txt")]
    assert cli.main(predict) == Exit.DONE
    before = capsys.readouterr()
    card(2.0, 1.0)
    assert cli.main(predict) == Exit.DONE
    after = capsys.readouterr()
    assert "answering in" not in before.err and "answering in bfloat16" in after.err
    assert before.out != after.out, "other roundings"
    models = [model.name for model in bench_verb._models([run], Progress(quiet=True))]
    assert models == ["small", "small in float32", "small in bfloat16"]
