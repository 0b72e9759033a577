"""Settings of a stage that say nothing together, or that nothing would read.

Each function raises LspError (exit 2). `changes`, KEY=VALUE, are what a command line asks for: a setting that they name
was asked for even where it is as it would be anyway; what a recipe's file holds may be there for another run.
"""

from collections.abc import Sequence

from lsp import LspError
from lsp.recipe.stages import Distill, Distillation, Prune, Pruning, Quantization, Quantize, Search

PRUNES = {  # the keys that each `prune.what` reads, besides those that all do
    "weights": ("sparsity", "score", "block", "scope", "pattern", "begin", "end", "every", "hidden"),
    "structure": ("speedup", "int8", "depth", "channels", "sample", "shape", "hidden"),
    "vocabulary": ("pieces",),
}


def quantize(plan: Quantize, changes: Sequence[str] = ()) -> None:
    own, plain = plan.quantize, Quantization()
    if own.method != "weights" and (own.bits != 8 or own.group):
        raise LspError(
            f"quantize.bits and quantize.group are for weights alone, and the method is {own.method}.",
            hint="Add --method weights, or leave them out.",
        )
    if own.method == "trained" and (own.smooth or own.rounding != "nearest"):
        raise LspError(
            "quantize.smooth and quantize.rounding are for a model that is not trained.",
            hint="Leave them out, or leave out --method trained.",
        )
    if own.method != "static" and own.calibration != "percentile":
        raise LspError(
            f"quantize.calibration is for static scales, and the method is {own.method}.",
            hint="Add --method static, or leave it out.",
        )
    if (own.method == "trained" or not own.calibrates) and own.sample != plain.sample:
        raise LspError(
            "quantize.sample is of the examples that calibrate, and nothing does.",
            hint="Add --method static, or leave it out.",
        )
    trains = [key for key in _named(changes) if not key.startswith("quantize.")] + ["quantize.hard"] * bool(own.hard)
    if own.method != "trained" and trains:
        raise LspError(
            f"{trains[0]} is for training, and the method is {own.method}.",
            hint="Add --method trained, or leave it out.",
        )
    if own.method == "weights" and own.smooth:
        raise LspError(
            "quantize.smooth is for activations, which --method weights leaves float.",
            hint="Leave quantize.smooth out.",
        )


def prune(plan: Prune, changes: Sequence[str] = ()) -> None:
    own, plain, named = plan.prune, Pruning(), _named(changes)
    for what, keys in PRUNES.items():
        for key in keys:
            asked = getattr(own, key) != getattr(plain, key) or f"prune.{key}" in named
            if asked and key not in PRUNES[own.what]:
                raise LspError(
                    f"prune.{key} is for prune.what = {what}, and that is {own.what}.",
                    hint=f"Add --set prune.what={what}, or leave prune.{key} out.",
                )
    if own.what == "structure" and own.shape and "prune.speedup" in named:
        raise LspError("prune.shape and prune.speedup both say how much goes.", hint="Leave one of them out.")
    trains = [key for key in named if key == "prune.hard" or key.startswith("train.")]
    if own.what == "vocabulary" and not own.pieces and trains:
        raise LspError(
            f"{trains[0]} is for training, and pieces that the examples do not use go without.",
            hint="Leave it out, or say how many pieces stay: --set prune.pieces=N",
        )
    if own.what == "weights":
        _weights(plan)


def _weights(plan: Prune) -> None:
    own, plain = plan.prune, Pruning()
    if own.score != "fisher" and own.block != plain.block:
        raise LspError(
            f"prune.block is for prune.score = fisher, and that is {own.score}.",
            hint="Leave it out, or add --set prune.score=fisher.",
        )
    if own.pattern and own.sparsity != plain.sparsity:
        raise LspError("prune.pattern and prune.sparsity both say how many weights go.", hint="Leave one of them out.")
    if own.begin > own.end:
        raise LspError(f"prune.begin = {own.begin} is after prune.end = {own.end}.", hint="Lower prune.begin.")
    if not plan.train.steps and not plan.train.epochs:
        raise LspError("Weights are pruned while training goes on, and train.epochs is 0.", hint="Leave it out.")
    for key in ("best", "patience", "average"):
        if getattr(plan.train, key):
            raise LspError(
                f"train.{key} might finish with weights from before all zeros were there.",
                hint="Leave it out, or prune structure.",
            )


def distill(plan: Distill) -> None:
    own, plain = plan.distill, Distillation()
    for key, reader in (("match", "hidden"), ("relation_layer", "relations")):
        if getattr(own, key) != getattr(plain, key) and not getattr(own, reader):
            raise LspError(
                f"distill.{key} is for distill.{reader}, which is 0.",
                hint=f"Add --set distill.{reader}=1, or leave it out.",
            )


def search(plan: Search) -> None:
    chain = plan.chain
    for name, plain in (("speedup", 1), ("channels", 0), ("shape", "")):
        if getattr(chain, name) != plain and not chain.depth:
            raise LspError(
                f"chain.{name} is for the one chain of chain.depth, which is not there: a search tries several.",
                hint=f"Give chain.depth too, or leave chain.{name} out.",
            )
    if chain.pieces and not chain.vocabulary:
        raise LspError(
            "chain.pieces says how many pieces stay, and chain.vocabulary = false that all do.",
            hint="Leave one of them out.",
        )
    if chain.through and not chain.shape:
        raise LspError(
            "chain.through is half-way to chain.shape, which is not there.",
            hint="Give chain.shape too, or leave chain.through out.",
        )


def pretrain(changes: Sequence[str], taught: bool) -> None:
    """`taught` is whether there is a teacher."""
    read = [key for key in _named(changes) if key.startswith("distill.")]
    if read and not taught:
        raise LspError(f"{read[0]} is for a teacher, and there is none.", hint="Add --teacher RUN, or leave it out.")


def _named(changes: Sequence[str]) -> list[str]:
    """The keys that the changes name."""
    return [change.partition("=")[0].strip() for change in changes]
