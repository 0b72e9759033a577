"""`config.json` of published encoders as a `ModelConfig`, and the other way round.

What a config may ask for and lsp does not have is refused, not passed over.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lsp import Exit, LspError, nearest
from lsp.data.published import Published
from lsp.deploy.families import BERT, DISTILBERT, FAMILIES, MODERNBERT, Family
from lsp.model.config import Activation, Layer, ModelConfig
from lsp.recipe import Problem

ACTIVATIONS: dict[str, Activation] = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}
PROBLEMS: dict[Problem, str] = {
    "single_label": "single_label_classification",
    "multi_label": "multi_label_classification",
    "regression": "regression",
}
MOST_LAYERS, MOST_LABELS = 1024, 1 << 20
EPSILON = 1e-12  # of DistilBERT's norms, which its config does not say


class Keys(NamedTuple):
    """What a family calls what all have."""

    layers: str
    heads: str
    width: str
    feedforward: str
    activation: str
    dropout: str


_BERT = Keys(
    "num_hidden_layers", "num_attention_heads", "hidden_size", "intermediate_size", "hidden_act", "hidden_dropout_prob"
)
KEYS = {
    "bert": _BERT,
    "roberta": _BERT,
    "distilbert": Keys("n_layers", "n_heads", "dim", "hidden_dim", "activation", "dropout"),
    "modernbert": _BERT._replace(activation="hidden_activation", dropout="mlp_dropout"),
}


class Table:
    """A `config.json`, whose values are asked for with their type. Raises LspError (exit 4) naming the key."""

    def __init__(self, path: Path, values: dict[str, Any]) -> None:
        self.path, self.values = path, values

    def whole(self, key: str, default: int | None = None) -> int:
        value = self.values.get(key, default)
        if type(value) is not int or not 0 <= value < 2**31:
            raise self.wrong(f"{key} is {_shown(value)}, not a whole number" if key in self.values else f"no {key}")
        return value

    def number(self, key: str, default: float) -> float:
        value = self.values.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not -1e30 < value < 1e30:
            raise self.wrong(f"{key} is {_shown(value)}, not a number")
        return float(value)

    def only(self, key: str, *allowed: Any) -> Any:
        """The value of a key, the first of `allowed` where it is missing."""
        value = self.values.get(key, allowed[0])
        if value not in allowed:
            raise self.wrong(f"{key} is {_shown(value)}, and lsp knows {', '.join(map(repr, allowed))}")
        return value

    def wrong(self, what: str) -> LspError:
        return LspError(f"{self.path}: {what}.", code=Exit.ARTIFACT)


def family(table: Table) -> Family:
    """The architecture. Raises LspError (exit 4)."""
    kind = table.values.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise table.wrong(f"model_type is {_shown(kind)}, and lsp reads {known}{nearest(str(kind), FAMILIES)}")
    found = FAMILIES[kind]
    # Positions of RoBERTa follow that of its padding.
    return found._replace(unused=table.whole("pad_token_id", found.unused - 1) + 1) if found.unused else found


def read(table: Table, family: Family) -> ModelConfig:
    """The encoder, without a head. Raises LspError (exit 4)."""
    keys = KEYS[family.model_type]
    shape: dict[str, Any] = {
        "preset": "modern" if family is MODERNBERT else "bert",
        "vocab_size": table.whole("vocab_size"),
        "width": table.whole(keys.width),
        "layers": _layers(table, keys),
        "max_length": table.whole("max_position_embeddings") - family.unused,
        "head": "none",
        "dropout": table.number(keys.dropout, 0.0 if family is MODERNBERT else 0.1),
        "activation": ACTIVATIONS[table.only(keys.activation, *ACTIVATIONS)],
    }
    config = ModelConfig(**shape | OWN[family.model_type](table))
    try:
        config.check()
    except ValueError as error:
        raise table.wrong(f"as a model of lsp's, {error}") from None
    return config


def problem(table: Table, names: Sequence[str]) -> Problem:
    """What the labels are: of one output, numbers, unless the config says otherwise. Raises LspError (exit 4)."""
    kind = table.only("problem_type", None, *PROBLEMS.values())
    found: Problem = next((name for name, theirs in PROBLEMS.items() if theirs == kind), "single_label")
    if kind is None and len(names) == 1:
        found = "regression"
    if (len(names) == 1) != (found == "regression"):
        raise table.wrong(f"{len(names)} labels do not make a {found} problem")
    return found


def exact(table: Table, family: Family) -> None:
    """Raises LspError (exit 4) where the head for words has another activation than the exact GELU."""
    key = KEYS[family.model_type].activation
    if ACTIVATIONS[table.only(key, *ACTIVATIONS)] != "gelu":
        raise table.wrong(f"{key} is {_shown(table.values[key])}, and lsp guesses words through the exact GELU")


def labels(table: Table) -> tuple[str, ...]:
    """The names of the outputs, in order. Raises LspError (exit 4)."""
    names = table.values.get("id2label")
    if names is None:
        if (count := table.whole("num_labels", 2)) > MOST_LABELS:
            raise table.wrong(f"num_labels is {count}")
        return tuple(f"LABEL_{index}" for index in range(count))
    if not isinstance(names, dict) or not names or names.keys() != {*map(str, range(len(names)))}:
        raise table.wrong("id2label is no table of names by their numbers from 0")
    ordered = tuple(names[str(index)] for index in range(len(names)))
    if not all(isinstance(name, str) for name in ordered):
        raise table.wrong("id2label has a name that is no text")
    if len({*ordered}) < len(ordered):
        raise table.wrong("id2label has one name for two classes")
    return ordered


def write(config: ModelConfig, words: Published, labels: Sequence[str]) -> tuple[Family, dict[str, Any]]:
    """The architecture and its `config.json`. Raises LspError (exit 2) where no published one is such a model."""
    one = config.layers[0]
    if config.preset == "bilstm":
        raise _not_theirs("it is a BiLSTM")
    if any((layer.heads, layer.head_size, layer.feedforward) != (one.heads, one.head_size, one.feedforward)
           for layer in config.layers) or one.heads * one.head_size != config.width:  # fmt: skip
        raise _not_theirs("its layers differ in shape, or from its width, as pruning makes them")
    bert = DISTILBERT if config.pooler_activation == "relu" else BERT
    family = MODERNBERT if config.preset == "modern" else bert
    if family is not MODERNBERT and config.head == "words" and config.activation != "gelu":
        raise _not_theirs("its words are guessed through the exact GELU, and its layers have the other")
    keys = KEYS[family.model_type]
    table: dict[str, Any] = {
        "model_type": family.model_type,
        keys.width: config.width,
        keys.layers: len(config.layers),
        keys.heads: one.heads,
        keys.feedforward: one.feedforward,
        keys.activation: "gelu" if config.activation == "gelu" else "gelu_pytorch_tanh",
        keys.dropout: config.dropout,
        "max_position_embeddings": config.max_length,
    }
    table |= WRITE_OWN[family.model_type](config)
    if config.preset == "bert" and config.head == "classes" and config.pooling != "cls":
        raise _not_theirs(
            "its classes read the mean of all tokens", "Train it with --set head.pooling=cls, or use preset `modern`."
        )
    ids = dict(zip(("pad", "unk", "cls", "sep", "mask"), words.theirs.tolist(), strict=False))
    table |= {"pad_token_id": ids["pad"], "vocab_size": config.vocab_size, "dtype": "float32"}
    if config.preset == "modern":
        table |= {f"{name}_token_id": ids[role] for name, role in
                  (("cls", "cls"), ("bos", "cls"), ("sep", "sep"), ("eos", "sep"))}  # fmt: skip
    if config.head == "classes":
        names = labels or ["LABEL_0"]
        table |= {"id2label": {str(index): name for index, name in enumerate(names)}}
        table |= {"label2id": {name: index for index, name in enumerate(names)}}
        table["problem_type"] = PROBLEMS[config.problem]
    return family, table


def _write_bert(config: ModelConfig) -> dict[str, Any]:
    return {
        "position_embedding_type": "absolute",
        "type_vocab_size": max(config.types, 1),
        "layer_norm_eps": config.epsilon,
        "attention_probs_dropout_prob": 0.0,
    }


def _write_distilbert(config: ModelConfig) -> dict[str, Any]:
    if config.epsilon != EPSILON:
        raise _not_theirs(f"DistilBERT's epsilon is {EPSILON}, and this model's {config.epsilon}")
    return {"sinusoidal_pos_embds": False, "attention_dropout": 0.0, "seq_classif_dropout": config.dropout}


def _write_modern(config: ModelConfig) -> dict[str, Any]:
    kinds = ["sliding_attention" if each.window else "full_attention" for each in config.layers]
    seen = {kind: {(each.window, each.rotary_base) for each, k in zip(config.layers, kinds, strict=True) if k == kind}
            for kind in kinds}  # fmt: skip
    if any(len(each) > 1 for each in seen.values()):
        raise _not_theirs("its layers have several windows or rotary bases")
    (_, full), (window, near) = (
        next(iter(seen.get(kind, {default})))
        for kind, default in (("full_attention", (0, 10_000.0)), ("sliding_attention", (64, 10_000.0)))
    )
    # As transformers 4 has it, which knows no other order than every n-th layer.
    order = range(1, len(kinds) + 1)
    every = [n for n in order if all((i % n > 0) == (kind[0] == "s") for i, kind in enumerate(kinds))]
    return {
        "norm_eps": config.epsilon,
        **dict.fromkeys(("norm_bias", "attention_bias", "mlp_bias", "classifier_bias"), False),
        "decoder_bias": True,
        "classifier_activation": "gelu",
        "classifier_pooling": config.pooling,
        **dict.fromkeys(("embedding_dropout", "classifier_dropout"), config.dropout),
        "local_attention": 2 * window,
        "layer_types": kinds,
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": full},
            "sliding_attention": {"rope_type": "default", "rope_theta": near},
        },
        **({"global_attn_every_n_layers": every[0]} if every else {}),
        "global_rope_theta": full,
        "local_rope_theta": near,
    }


WRITE_OWN = {"bert": _write_bert, "distilbert": _write_distilbert, "modernbert": _write_modern}


def _not_theirs(
    why: str, hint: str = "Export it with --format onnx or stablehlo, which take models of any shape."
) -> LspError:
    return LspError(f"No model of Hugging Face transformers is like this one: {why}.", hint=hint)


def _layers(table: Table, keys: Keys) -> tuple[Layer, ...]:
    number, width, heads = (table.whole(key) for key in (keys.layers, keys.width, keys.heads))
    if not 0 < number <= MOST_LAYERS:
        raise table.wrong(f"{keys.layers} is {number}")
    if not heads or width % heads:
        raise table.wrong(f"{keys.width} = {width} can't be split over {keys.heads} = {heads}")
    return (Layer(heads, width // heads, table.whole(keys.feedforward)),) * number


def _own_of_bert(table: Table) -> dict[str, Any]:
    table.only("position_embedding_type", "absolute", None)
    table.only("is_decoder", False, None)
    return {"types": table.whole("type_vocab_size", 2), "epsilon": table.number("layer_norm_eps", 1e-12)}


def _own_of_distilbert(table: Table) -> dict[str, Any]:
    return {"types": 0, "epsilon": EPSILON, "pooler_activation": "relu"}


def _own_of_modernbert(table: Table) -> dict[str, Any]:
    for key in ("norm_bias", "mlp_bias", "attention_bias", "classifier_bias"):
        table.only(key, False)
    table.only("classifier_activation", "gelu")
    table.only("decoder_bias", True)
    table.only("rope_scaling", None)
    if (sees := table.whole("local_attention", 128)) < 2:
        raise table.wrong(f"local_attention is {sees}: its tokens see nobody")
    layers = _layers(table, KEYS["modernbert"])
    every = table.whole("global_attn_every_n_layers", 3) or 1
    kinds = table.values.get("layer_types") or [
        "sliding_attention" if number % every else "full_attention" for number in range(len(layers))
    ]
    bases = {"full_attention": ("global_rope_theta", 160_000.0), "sliding_attention": ("local_rope_theta", 10_000.0)}
    rotary = table.values.get("rope_parameters") or {}
    if not isinstance(kinds, list) or len(kinds) != len(layers) or not isinstance(rotary, dict):
        raise table.wrong("layer_types or rope_parameters do not fit its layers")
    shaped = []
    for layer, kind in zip(layers, kinds, strict=True):
        if not isinstance(kind, str) or kind not in bases:
            raise table.wrong(f"layer_types holds {_shown(kind)}")
        own = Table(table.path, of if isinstance(of := rotary.get(kind), dict) else {})
        own.only("rope_type", "default")
        base = own.number("rope_theta", table.number(*bases[kind]))
        window = sees // 2 if kind == "sliding_attention" else 0
        shaped.append(dataclasses.replace(layer, window=window, rotary_base=base))
    return {
        "layers": tuple(shaped),
        "pooling": table.only("classifier_pooling", "cls", "mean"),
        "epsilon": table.number("norm_eps", 1e-5),
    }


# What a family's config says beside the keys that all have.
OWN = {
    "bert": _own_of_bert,
    "roberta": _own_of_bert,
    "distilbert": _own_of_distilbert,
    "modernbert": _own_of_modernbert,
}


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:59] + "…"
