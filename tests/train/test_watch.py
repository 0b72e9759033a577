"""Steps that are refused, and the three answers: by hand, killed and continued, and within bounds."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsp import Exit, LspError, Stopped, recipe
from lsp.commands import replay
from lsp.console import Progress
from lsp.model.config import Layer, ModelConfig
from lsp.model.encoder import graphdef, initialise
from lsp.train import optimizer, watch
from lsp.train.clock import Clock
from lsp.train.loop import ALONE, Fitted, Plan, fit
from lsp.train.objectives import Objective, masked_lm
from lsp.train.step import Signals, TrainState, make_train_step, make_update

Batch = dict[str, np.ndarray]
CONFIG = ModelConfig("modern", 300, 8, (Layer(1, 8, 8),), max_length=16)
TRAIN = recipe.Train(steps=12, batch_size=4, learning_rate=1e-2, log_every=4, checkpoint_every=3, spike=6.0)
LONG = dataclasses.replace(TRAIN, steps=90, checkpoint_every=40, log_every=30)


class Killed(Exception):
    """Stands for a process that ends between two steps."""


class Said:
    """A progress display that keeps its warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def say(self, text: str) -> None: ...

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def task(self, name: str, total: float | None) -> Any:
        return Progress(quiet=True).task(name, total)


def calm(step: int, offset: int = 0) -> Batch:
    """The batch of every step, a little different each time."""
    rng = np.random.default_rng(step)
    tokens = np.tile(np.arange(5, 21, dtype=np.int32), (4, 1))
    slots = rng.integers(0, 16, (4, 3), np.int32)
    return {
        "tokens": tokens,
        "segments": np.ones_like(tokens),
        "slots": slots,
        "targets": slots + np.int32(5 + offset),
        "weights": np.ones((4, 3), np.float32),
    }


def poisoned(step: int) -> Batch:
    """A batch whose loss is not finite."""
    return calm(step) | {"weights": np.full((4, 3), np.inf, np.float32)}


def train(
    path: Path,
    bad: dict[int, Callable[[int], Batch]],
    settings: recipe.Train,
    killed_at: int = 10**9,
    evaluate: Callable[[Any], dict[str, float]] = lambda params: {},
    copies: recipe.Replicas = ALONE,
    **changes: Any,
) -> tuple[Fitted, Said]:
    def batches(start: int, stop: int) -> Iterator[Batch]:
        for step in range(start, stop):
            if step == killed_at:
                raise Killed
            yield bad.get(step, calm)(step)

    plan = Plan(
        config=CONFIG,
        params=initialise(CONFIG, 0),
        objective=Objective(masked_lm),
        batches=batches,
        evaluate=evaluate,
        train=dataclasses.replace(settings, **changes),
        mesh=recipe.Mesh(),
        clock=Clock(),
        replicas=copies,
    )
    path.mkdir(exist_ok=True)
    said = Said()
    return fit(plan, path, said), said


def by_hand(steps: list[int], back_at: int = -1, back_to: int = 0) -> Any:
    """Parameters after the calm batches of these steps; before step `back_at` the state of step `back_to` returns."""
    tx = optimizer.make(TRAIN)
    step = make_train_step(make_update(graphdef(CONFIG), Objective(masked_lm), tx), spike=TRAIN.spike)
    state = TrainState(jnp.int32(0), initialise(CONFIG, 0), tx.init(initialise(CONFIG, 0)))
    kept: dict[int, TrainState] = {}
    for index in steps:
        kept[index] = jax.tree.map(jnp.copy, state)
        state = kept[back_to] if index == back_at else state
        share = np.float32((index + 1) / (TRAIN.steps + 1))
        state, metrics = step(state._replace(step=jnp.int32(index)), None, calm(index), np.int32(index), Signals(share))
        assert metrics["ok"]
    return state.params


def assert_same(found: Any, expected: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(found), jax.device_get(expected))


def test_a_spike_is_what_a_plain_window_says() -> None:
    rng = np.random.default_rng(0)
    losses = np.concatenate([rng.normal(5, 0.3, 200), [5, 9.0, 5.2, 5], rng.normal(3, 0.1, 200)]).astype(np.float32)
    norms = np.exp(rng.normal(0, 0.5, len(losses))).astype(np.float32)
    norms[300] = 40
    judge, note = jax.jit(lambda *a: watch.sound(*a, 4.0)), jax.jit(watch.noted)
    recent, verdicts, expected = watch.FRESH, [], []
    made: list[int] = []
    for i, (loss, norm) in enumerate(zip(losses, norms, strict=True)):
        verdicts.append(bool(judge(recent, loss, norm)))
        window = made[-128:]
        if len(made) < 64:
            expected.append(True)
        else:
            before, logs = losses[window], np.log(norms[window])
            calm_loss = loss <= before.mean() + 4 * max(before.std(), 0.01 * before.mean())
            expected.append(calm_loss and np.log(norm) <= logs.mean() + 4 * max(logs.std(), 0.01))
        if verdicts[-1]:
            recent = note(recent, loss, norm)
            made.append(i)
    assert verdicts == expected
    assert not verdicts[201] and not verdicts[300] and verdicts.count(False) < 20


def test_a_gradient_that_grows_as_finetuning_takes_hold_is_no_spike() -> None:
    """Norms like those of a pretrained model on SST-2: steady for 80 steps, then six times as high within forty."""
    rng = np.random.default_rng(0)
    risen = np.concatenate([np.ones(80), np.geomspace(1, 6, 40), np.full(80, 6)])
    norms = (0.6 * risen * np.exp(rng.normal(0, 0.3, risen.size))).astype(np.float32)
    recent, judge, note = watch.FRESH, jax.jit(lambda *a: watch.sound(*a, 6.0)), jax.jit(watch.noted)
    for norm in norms:
        assert judge(recent, jnp.float32(0.5), norm)
        recent = note(recent, jnp.float32(0.5), norm)
    assert not judge(recent, jnp.float32(0.5), jnp.float32(2000))


def test_only_what_is_not_finite_counts_when_spike_is_0_or_the_window_is_young() -> None:
    loss = jnp.float32(1e9)
    full = watch.FRESH._replace(updates=np.int32(200), losses=np.ones(128, np.float32))
    assert watch.sound(full, loss, loss, 0.0) and watch.sound(watch.FRESH, loss, loss, 6.0)
    assert not watch.sound(full, loss, loss, 6.0)
    assert watch.sound(full._replace(warned=np.bool_(True)), loss, loss, 6.0)
    for spike in (0.0, 6.0):
        assert not watch.sound(watch.FRESH, jnp.float32(jnp.nan), loss, spike)
        assert not watch.sound(watch.FRESH, loss, jnp.float32(jnp.inf), spike)


def test_a_loss_that_stands_still_has_no_spikes() -> None:
    still = watch.FRESH._replace(
        updates=np.int32(128), losses=np.full(128, 2, np.float32), norms=np.ones(128, np.float32)
    )
    assert watch.sound(still, jnp.float32(2.1), jnp.float32(1.05), 6.0)
    assert not watch.sound(still, jnp.float32(2.13), jnp.float32(1.0), 6.0)


def test_stop_ends_before_the_update(tmp_path: Path) -> None:
    with pytest.raises(LspError, match=r"diverged at step 6: loss nan.*The update was not made") as caught:
        train(tmp_path / "run", {5: poisoned}, TRAIN)
    assert caught.value.code == Exit.DIVERGED


def test_a_skipped_step_leaves_all_but_the_counters(tmp_path: Path) -> None:
    fitted, said = train(tmp_path / "run", {5: poisoned, 11: poisoned}, TRAIN, on_divergence="skip")
    assert_same(fitted.params, by_hand([0, 1, 2, 3, 4, 6, 7, 8, 9, 10]))
    assert (fitted.step, fitted.skipped, fitted.summary()["skipped_steps"]) == (12, 2, 2)
    assert [line.split(":")[0] for line in said.warnings] == ["step 6", "step 12"]
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    trained = [(row["step"], row.get("skipped_steps")) for row in rows if "loss" in row]
    assert trained == [(4, None), (8, 1), (12, 2)]


def test_a_run_goes_back_and_on_behind_the_batch_even_when_killed_there(tmp_path: Path) -> None:
    expected = by_hand([0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11], back_at=9, back_to=6)
    fitted, said = train(tmp_path / "whole", {8: poisoned}, TRAIN, on_divergence="rewind")
    assert_same(fitted.params, expected)
    assert fitted.skipped == 3 and "going back to step 6" in said.warnings[0]
    with pytest.raises(Killed):
        train(tmp_path / "killed", {8: poisoned}, TRAIN, killed_at=10, on_divergence="rewind")
    assert (tmp_path / "killed" / "train" / "00000009").is_dir()
    fitted, said = train(tmp_path / "killed", {}, TRAIN, on_divergence="rewind")
    assert_same(fitted.params, expected)
    assert fitted.skipped == 3 and not said.warnings


def test_going_back_is_bounded_and_knows_the_first_state(tmp_path: Path) -> None:
    with pytest.raises(LspError, match="went back 3 times already") as caught:
        train(tmp_path / "run", dict.fromkeys((1, 2, 5, 7), poisoned), TRAIN, on_divergence="rewind")
    assert caught.value.code == Exit.DIVERGED and "at step 8" in caught.value.message


def test_skipping_is_bounded(tmp_path: Path) -> None:
    with pytest.raises(LspError, match="12 of the last 128 steps were skipped already") as caught:
        train(tmp_path / "run", dict.fromkeys(range(20, 60), poisoned), LONG, on_divergence="skip")
    assert caught.value.code == Exit.DIVERGED and "at step 33" in caught.value.message


def spiking(step: int) -> Batch:
    return calm(step, offset=100)


def test_a_run_resumed_in_the_middle_of_the_window_decides_as_the_whole_one(tmp_path: Path) -> None:
    whole, said = train(tmp_path / "whole", {80: spiking}, LONG, on_divergence="skip")
    assert whole.skipped == 1 and "mean of the last 80" in said.warnings[0]
    with pytest.raises(Killed):
        train(tmp_path / "halves", {80: spiking}, LONG, killed_at=45, on_divergence="skip")
    halves, said = train(tmp_path / "halves", {80: spiking}, LONG, on_divergence="skip")
    assert halves.skipped == 1 and "mean of the last 80" in said.warnings[0]
    assert_same(halves.params, whole.params)


def test_the_newest_three_boxes_stay_and_their_loss_and_norm_are_replayed_exactly(tmp_path: Path) -> None:
    bad = {3: poisoned, 5: poisoned, 70: spiking, 80: spiking}
    fitted, said = train(tmp_path / "run", bad, LONG, on_divergence="skip")
    places = sorted((tmp_path / "run" / "blackbox").iterdir())
    assert fitted.skipped == 4 and [place.name for place in places] == ["00000006", "00000071", "00000081"]
    for place, line in zip(places, said.warnings[1:], strict=True):
        assert line.endswith(f"Replay it: lsp replay {place}")
        found = replay.run(place, Progress(quiet=True))
        assert found["exact"] and found["recorded"] == pytest.approx(found["replayed"], abs=0, rel=0, nan_ok=True)
        assert found["fp32_diverges"] == (place == places[0])
    again = max(found["texts"], key=lambda row: row["loss"])
    assert found["texts"][0] == again and found["replayed"]["loss"] > 5
    assert sum(row["gradient_norm"] ** 2 for row in found["layers"]) ** 0.5 == pytest.approx(
        found["recorded"]["gradient_norm"], rel=1e-5
    )


def test_stop_only_warns_once_of_spikes_and_changes_nothing(tmp_path: Path) -> None:
    blind, _ = train(tmp_path / "blind", {80: spiking, 85: spiking}, LONG, spike=1e9)
    fitted, said = train(tmp_path / "run", {80: spiking, 85: spiking}, LONG)
    assert len(said.warnings) == 1 and said.warnings[0].startswith("step 81: loss ")
    assert_same(fitted.params, blind.params)
    assert fitted.skipped == 0


def test_a_run_whose_time_is_up_when_it_is_resumed_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Killed):
        train(tmp_path / "run", {}, TRAIN, killed_at=10)
    over = Clock(1e-6)
    monkeypatch.setitem(train.__globals__, "Clock", lambda: over)
    fitted, _ = train(tmp_path / "run", {}, TRAIN)
    assert 9 < fitted.step <= 11, "time is looked at with a step, and read one step late"
    assert_same(fitted.params, by_hand([*range(9)]))  # at a learning rate of 0
    with pytest.raises(LspError, match="used up after"):
        train(tmp_path / "new", {}, TRAIN)


def test_copies_whose_time_is_up_go_on_until_they_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copies, longer = recipe.Replicas(count=2, every=8), dataclasses.replace(TRAIN, steps=40)
    with pytest.raises(Killed):
        train(tmp_path, {}, longer, killed_at=10, copies=copies)
    over = Clock(1e-6)
    monkeypatch.setitem(train.__globals__, "Clock", lambda: over)
    assert train(tmp_path, {}, longer, copies=copies)[0].step == 16


def test_an_evaluation_that_was_cut_short_is_made_when_the_run_goes_on(tmp_path: Path) -> None:
    """By a signal, which saves the step that was to be evaluated; the lines of the file are then the same."""
    lines = []
    for cut in (0, 2):
        calls = []

        def evaluate(params: Any, cut: int = cut, calls: list[int] = calls) -> dict[str, float]:
            calls.append(1)
            if len(calls) == cut:
                raise Stopped(Exit.STOPPED)
            return {"loss": float(np.square(params["layers"][0]["attention"]["qkv"]["kernel"]).sum())}

        out, how = tmp_path / str(cut), {"evaluate": evaluate, "evaluate_every": 4, "best": "loss"}
        if cut:
            with pytest.raises(Stopped):
                train(out, {}, TRAIN, **how)
            assert (out / "train" / "00000008").is_dir()
        fitted, _ = train(out, {}, TRAIN, **how)
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        timed = ("seconds", "useful_tokens_per_second")
        lines.append([{name: row[name] for name in row if name not in timed} for row in rows])
        assert [row["step"] for row in rows if "dev_loss" in row] == [4, 8, 12] and fitted.step == 12
        train(out, {}, TRAIN, **how)  # all is done, but for the end
        again = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        assert [row["step"] for row in again] == [row["step"] for row in rows]
    assert lines[0] == lines[1]


def test_half_a_line_that_a_full_disk_left_is_dropped(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        train(tmp_path, {}, TRAIN, killed_at=10)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "lo')
    train(tmp_path, {}, TRAIN)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [4, 8, 12, 12]
