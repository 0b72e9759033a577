"""The shape of a model: all that is needed to build its parameters, layer by layer, as pruning makes them differ."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, get_args

from lsp import Exit, LspError
from lsp import recipe as recipes

Preset = Literal["bert", "modern", "bilstm"]
HeadKind = Literal["words", "classes", "pooler", "none"]
Pooling = Literal["cls", "mean"]
Activation = Literal["gelu", "gelu_tanh"]
PoolerActivation = Literal["tanh", "relu", "gelu"]

KINDS = {
    "preset": Preset,
    "head": HeadKind,
    "pooling": Pooling,
    "problem": recipes.Problem,
    "activation": Activation,
    "pooler_activation": PoolerActivation,
}
PRESET: Any = None  # a value that is as the preset has it
SIZES = ("vocab_size", "width", "max_length", "classes", "types", "dropout", "epsilon")
MAY_BE_ZERO = ("classes", "types", "window", "dropout", "epsilon")
DEFAULTS: dict[Preset, dict[str, Any]] = {
    # BERT's published weights were trained with this epsilon.
    "bert": {"types": 2, "epsilon": 1e-12, "activation": "gelu", "pooler_activation": "tanh"},
    "bilstm": {"types": 0, "epsilon": 1e-5, "activation": "gelu", "pooler_activation": "tanh"},
    "modern": {"types": 0, "epsilon": 1e-5, "activation": "gelu_tanh", "pooler_activation": "gelu"},
}


@dataclass(frozen=True)
class Layer:
    """One encoder layer: `heads` of `head_size`, and a feed-forward block `feedforward` wide. Of `bilstm` heads are the
    two directions, and the block is their gates.

    A token sees `window` tokens to either side, or all of its text where that is 0. `rotary_base` is for `modern`.
    """

    heads: int
    head_size: int
    feedforward: int
    window: int = 0
    rotary_base: float = 10_000.0


@dataclass(frozen=True)
class ModelConfig:
    """`head` is `words` (masked LM), `classes` (a classifier over `classes` labels, reading `pooling`), or, of
    published encoders, `pooler` (a dense layer that no classifier reads yet) or `none`.

    `words` with two classes is BERT's pair of heads: words, and whether the second of two texts is a random one.
    `types` counts embeddings that tell the texts of a pair apart.
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
    problem: recipes.Problem = "single_label"
    types: int = PRESET
    epsilon: float = PRESET
    activation: Activation = PRESET
    pooler_activation: PoolerActivation = PRESET

    def __post_init__(self) -> None:
        for name, value in DEFAULTS.get(self.preset, {}).items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)  # written out, so that equal models have equal configs

    @property
    def bias(self) -> bool:
        """Whether dense layers and norms have biases."""
        return self.preset != "modern"

    @classmethod
    def from_recipe(cls, model: recipes.Model, vocab_size: int) -> "ModelConfig":
        """All layers alike. Raises LspError (exit 2) when heads do not divide the width."""
        if model.width % model.heads:
            divisors = [h for h in range(1, model.width + 1) if model.width % h == 0 and h <= 2 * model.heads]
            raise LspError(
                f"model.width = {model.width} can't be split over model.heads = {model.heads}.",
                hint=f"Heads that divide it: {', '.join(map(str, divisors))}.",
            )
        if model.preset == "bilstm":
            if model.width % 2:
                raise LspError(f"The two directions of `bilstm` share model.width, and {model.width} is odd.")
            layers = (Layer(2, model.width // 2, 4 * model.width),) * model.layers
            return cls(model.preset, vocab_size, model.width, layers, model.max_length, dropout=model.dropout)
        head_size = model.width // model.heads
        if model.preset == "modern" and head_size % 2:
            raise LspError(f"Rotary positions need an even head size, and {model.width}/{model.heads} is {head_size}.")
        inner = 4 * model.width if model.preset == "bert" else max(64, round(model.width * 8 / 3 / 64) * 64)
        layer = Layer(model.heads, head_size, model.feedforward or inner)
        layers = (layer,) * model.layers
        return cls(model.preset, vocab_size, model.width, layers, model.max_length, dropout=model.dropout)

    def paired(self, next_sentence: bool) -> "ModelConfig":
        """The same encoder with `words`, with or without BERT's second head. Raises LspError (exit 2) for `modern`."""
        if next_sentence and self.types < 2:
            raise LspError(
                "Next-sentence prediction needs to tell two texts apart, and this model has no embeddings for that.",
                hint="Use --set model.preset=bert, or leave out data.next_sentence.",
            )
        pooling: Pooling = "cls" if next_sentence else "mean"
        return dataclasses.replace(self, head="words", classes=2 if next_sentence else 0, pooling=pooling)

    def classifier(
        self,
        classes: int,
        pooling: Pooling | Literal["auto"],
        dropout: float,
        problem: recipes.Problem = "single_label",
    ) -> "ModelConfig":
        """The same encoder with a classifier head. `auto` is what its pooler reads, and the mean if it has none."""
        if pooling == "auto":
            pooling = self.pooling if self.classes or self.head == "pooler" else "mean"
        return dataclasses.replace(
            self, head="classes", classes=classes, pooling=pooling, dropout=dropout, problem=problem
        )

    def check(self) -> None:
        """Raises ValueError for what no model can be."""
        for name, kinds in KINDS.items():
            if getattr(self, name) not in get_args(kinds):
                raise ValueError(f"{name} is {getattr(self, name)!r}")
        values = {key: getattr(self, key) for key in SIZES}
        for number, layer in enumerate(self.layers):
            values |= {f"{key} of layer {number}": value for key, value in dataclasses.asdict(layer).items()}
        for name, value in values.items():
            key = name.split()[0]
            whole = key not in ("dropout", "epsilon", "rotary_base")
            if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
                raise ValueError(f"{name} is {value!r}")
            if not (value >= 0 if key in MAY_BE_ZERO else value > 0) or value >= 2**31:
                raise ValueError(f"{name} is {value!r}")

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"layers": [dataclasses.asdict(layer) for layer in self.layers]}

    @classmethod
    def from_dict(cls, table: Any) -> "ModelConfig":
        """The inverse of `to_dict`. Raises LspError (exit 4) on anything that is not such a table."""
        try:
            config = cls(**table | {"layers": tuple(Layer(**layer) for layer in table["layers"])})
            config.check()
        except (TypeError, KeyError, ValueError) as error:
            raise LspError(
                f"The manifest's model is not one this version of lsp knows: {error}.",
                hint="Upgrade lsp, or use the version that wrote the checkpoint.",
                code=Exit.ARTIFACT,
            ) from None
        return config
