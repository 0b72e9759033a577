"""Training a student on what a teacher knows: its answers, and what is inside it where that is wished for. The one plan
of distillation and of what recovers from pruning."""

from dataclasses import replace
from typing import Any

from lsp import recipe as recipes
from lsp.checkpoint import Checkpoint
from lsp.compress import distill, inside
from lsp.model.config import ModelConfig
from lsp.model.weightonly import dequantize
from lsp.train import labelled
from lsp.train.clock import Clock
from lsp.train.loop import Plan
from lsp.train.objectives import Objective


def plan(
    student: tuple[ModelConfig, Any],
    teacher: Checkpoint,
    sets: labelled.Sets,
    wish: recipes.Distillation,
    recipe: recipes.Distill | recipes.Prune,
    clock: Clock,
    progress: Any,
) -> Plan:
    """The plan for a student of floats, of the examples to train on what the teacher said of them (`wanted`). With
    `wish.hidden` or `wish.relations` it reads them too, so they must be in its tokens, and the student is
    `objective.whole` of what is trained."""
    (config, params), problem = student, teacher.config.problem
    if not (wish.hidden or wish.relations):
        objective = Objective(distill.match_teacher(wish.temperature, wish.hard, problem))
        return labelled.plan(config, params, objective, sets, recipe, clock)
    judge = distill.answered(wish.temperature, wish.hard, problem)
    theirs = teacher.config, dequantize(teacher.params)
    batches = inside.sample(sets.train, recipe.train.seed)
    objective, maps, layers = inside.prepared(judge, student, theirs, wish, batches)
    if layers:
        progress.say(f"layers are to be like the teacher's {', '.join(str(layer + 1) for layer in layers)}")
    made = labelled.plan(config, params | maps, objective, sets, recipe, clock)
    return replace(made, teacher=teacher.config)
