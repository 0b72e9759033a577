"""A model measured: what a signal does meanwhile."""

import os
import signal

import numpy as np
import pytest

from lsp import Stopped, interrupt
from lsp.model.config import Layer, ModelConfig
from lsp.model.encoder import initialise
from lsp.train import processes
from lsp.train.evaluate import Forward

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
