"""Several trainings of one recipe: other seeds, other settings, and which of them can be one program."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

from lsp import LspError
from lsp import recipe as recipes


class Trial(NamedTuple):
    """One of them: its whole recipe, and what in it is this trial's own, by key."""

    recipe: recipes.Finetune
    settings: dict[str, Any]

    def named(self) -> dict[str, Any]:
        return {"seed": self.recipe.train.seed} | self.settings


def expand(recipe: recipes.Finetune, seeds: int = 1, sweeps: Sequence[str] = ()) -> list[Trial]:
    """Every combination of the sweeps' values, `key=1,2,3` each, with the recipe's seed and the next ones: `seeds`
    trials a setting, one setting after another. Raises LspError (exit 2)."""
    axes: dict[str, list[str]] = {}
    for sweep in sweeps:
        key, equals, values = sweep.partition("=")
        key = key.strip()
        if not equals or not all(value.strip() for value in values.split(",")):
            raise LspError(
                f"--sweep {sweep} is not KEY=VALUE,VALUE.", hint="As in --sweep train.learning_rate=1e-5,3e-5."
            )
        if key == "train.seed":
            raise LspError("--sweep train.seed: other seeds are what --seeds is for.", hint="Use --seeds N.")
        if key in axes or len({*values.split(",")}) < len(values.split(",")):
            raise LspError(f"--sweep {sweep} names something twice.", hint="Give each key once, and each value once.")
        axes[key] = values.split(",")
    made = []
    for chosen in itertools.product(*axes.values()):
        changes = [f"{key}={value.strip()}" for key, value in zip(axes, chosen, strict=True)]
        changed = recipes.load(recipes.Finetune, None, changes, recipe, "--sweep")
        settings = {key: _at(changed, key) for key in axes}
        for seed in range(recipe.train.seed, recipe.train.seed + seeds):
            train = dataclasses.replace(changed.train, seed=seed)
            made.append(Trial(dataclasses.replace(changed, train=train), settings))
    return made


def alike(trials: Sequence[Trial]) -> list[list[Trial]]:
    """The trials in groups that differ in nothing but seed and learning rate: each group is one program. Alone is each
    whose best evaluation is kept: that is another one for each."""
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        train = trial.recipe.train
        if not train.best:
            train = dataclasses.replace(train, seed=0, learning_rate=1.0)
        groups.setdefault(recipes.dump(dataclasses.replace(trial.recipe, train=train)), []).append(trial)
    return list(groups.values())


def _at(recipe: recipes.Finetune, key: str) -> Any:
    section, _, name = key.partition(".")
    return getattr(getattr(recipe, section), name)
