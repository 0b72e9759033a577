"""Training that makes up for what pruning took: the pruned model learns to answer as the one it was."""

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import optax

from lsp import recipe as recipes
from lsp.compress.distill import match_teacher
from lsp.model.config import ModelConfig
from lsp.train import labelled, trackers
from lsp.train.clock import Clock
from lsp.train.loop import Fitted, fit
from lsp.train.objectives import Objective
from lsp.train.options import Options

TEMPERATURE = 2.0  # as `distill.temperature` has it


class Recovery(NamedTuple):
    """How a pruned model is trained: on what, with the answers `wanted` of its former self, and where its steps go."""

    sets: labelled.Sets
    recipe: recipes.Prune
    path: Path
    clock: Clock
    options: Options

    @property
    def steps(self) -> int:
        """0 where there is to be no training."""
        return labelled.counted(self.recipe.train, len(self.sets.train)).steps

    def fit(self, config: ModelConfig, params: Any, transform: optax.GradientTransformation | None = None) -> Fitted:
        """`params`, floats, trained; `transform` is chained after the optimizer. Raises as `loop.fit`."""
        objective = Objective(match_teacher(TEMPERATURE, self.recipe.prune.hard, config.problem))
        plan = labelled.plan(config, params, objective, self.sets, self.recipe, self.clock)
        plan = replace(plan, transform=transform)
        with trackers.opened(self.options.track, self.path, self.options.progress) as followers:
            return fit(plan, self.path, self.options.progress, followers)
