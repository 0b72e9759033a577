"""The shape of a model: all that is needed to build its parameters, layer by layer, as pruning makes them differ."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, get_args

from lsp import Exit, LspError
from lsp import recipe as recipes

Preset = Literal["bert", "modern"]
HeadKind = Literal["words", "classes"]
Pooling = Literal["cls", "mean"]


@dataclass(frozen=True)
class Layer:
    """One encoder layer: `heads` of `head_size`, and a feed-forward block `feedforward` wide."""

    heads: int
    head_size: int
    feedforward: int


@dataclass(frozen=True)
class ModelConfig:
    """`head` is `words` (masked LM) or `classes` (a classifier over `classes` labels, reading `pooling`).

    `words` with two classes is BERT's pair of heads: words, and whether the second of two texts is a random one.
    """

    preset: Preset
    vocab_size: int
    width: int
    layers: tuple[Layer, ...]
    max_length: int
    head: HeadKind = "words"
    classes: int = 0
    pooling: Pooling = "mean"
    dropout: float = 0.0

    @classmethod
    def from_recipe(cls, model: recipes.Model, vocab_size: int) -> "ModelConfig":
        """All layers alike. Raises LspError (exit 2) when heads do not divide the width."""
        if model.width % model.heads:
            divisors = [h for h in range(1, model.width + 1) if model.width % h == 0 and h <= 2 * model.heads]
            raise LspError(
                f"model.width = {model.width} can't be split over model.heads = {model.heads}.",
                hint=f"Heads that divide it: {', '.join(map(str, divisors))}.",
            )
        head_size = model.width // model.heads
        if model.preset == "modern" and head_size % 2:
            raise LspError(f"Rotary positions need an even head size, and {model.width}/{model.heads} is {head_size}.")
        inner = 4 * model.width if model.preset == "bert" else max(64, round(model.width * 8 / 3 / 64) * 64)
        layer = Layer(model.heads, head_size, model.feedforward or inner)
        layers = (layer,) * model.layers
        return cls(model.preset, vocab_size, model.width, layers, model.max_length, dropout=model.dropout)

    def paired(self, next_sentence: bool) -> "ModelConfig":
        """The same encoder with `words`, with or without BERT's second head. Raises LspError (exit 2) for `modern`."""
        if next_sentence and self.preset == "modern":
            raise LspError(
                "Next-sentence prediction needs to tell two texts apart, and `modern` has no embeddings for that.",
                hint="Use --set model.preset=bert, or leave out data.next_sentence.",
            )
        pooling: Pooling = "cls" if next_sentence else "mean"
        return dataclasses.replace(self, head="words", classes=2 if next_sentence else 0, pooling=pooling)

    def classifier(self, classes: int, pooling: Pooling, dropout: float) -> "ModelConfig":
        """The same encoder with a classifier head."""
        return dataclasses.replace(self, head="classes", classes=classes, pooling=pooling, dropout=dropout)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"layers": [dataclasses.asdict(layer) for layer in self.layers]}

    @classmethod
    def from_dict(cls, table: Any) -> "ModelConfig":
        """The inverse of `to_dict`. Raises LspError (exit 4) on anything that is not such a table."""
        try:
            config = cls(**table | {"layers": tuple(Layer(**layer) for layer in table["layers"])})
            sizes = [config.vocab_size, config.width, config.max_length]
            sizes += [size for layer in config.layers for size in dataclasses.astuple(layer)]
            known = config.preset in get_args(Preset) and config.head in get_args(HeadKind)
            if not known or config.pooling not in get_args(Pooling) or not isinstance(config.dropout, int | float):
                raise ValueError("an unknown preset, head or pooling")
            if not all(type(size) is int and 0 < size < 2**31 for size in sizes) or type(config.classes) is not int:
                raise ValueError("a size that is not a positive whole number")
        except (TypeError, KeyError, ValueError) as error:
            raise LspError(
                f"The manifest's model is not one this version of lsp knows: {error}.",
                hint="Upgrade lsp, or use the version that wrote the checkpoint.",
                code=Exit.ARTIFACT,
            ) from None
        return config
