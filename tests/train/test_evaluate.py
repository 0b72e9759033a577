"""A model measured: what a signal does meanwhile."""

import os
import signal

import numpy as np
import pytest

from lsp import Exit, LspError, Stopped, interrupt
from lsp.model.config import Layer, ModelConfig
from lsp.model.encoder import initialise
from lsp.train import processes
from lsp.train.evaluate import Forward, Scores

CONFIG = ModelConfig("bert", vocab_size=16, width=8, layers=(Layer(1, 8, 16),), max_length=8)


def test_a_signal_ends_a_measurement_but_not_that_of_one_of_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    forward, params = Forward(CONFIG, lambda model, batch: batch["x"].sum()), initialise(CONFIG, 0)
    with interrupt.listening(), interrupt.holding():
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Stopped):
            forward(params, {"x": np.ones(3, np.float32)})
        monkeypatch.setattr(processes, "alone", lambda: False)
        assert forward(params, {"x": np.ones(3, np.float32)}) == 3
        assert interrupt.asked(), "which they agree on before the next step"


def test_answers_that_are_no_numbers_are_no_answers() -> None:
    """The largest of them would be the first class, and a gate could pass."""
    for bad in (np.nan, np.inf):
        with pytest.raises(LspError, match=r"run answers 1 of 2 texts with what is no number") as caught:
            Scores({}, np.array([[0.0, 1.0], [bad, 0.0]]), 1.0).expect_numbers("run")
        assert caught.value.code == Exit.ARTIFACT
    Scores({}, np.zeros((2, 2)), 1.0).expect_numbers("run")
