"""How published encoders name what they are made of: their modules by ours, a table for each family.

`{}` stands for the number of a layer. Several names on one side are modules whose outputs lie side by side in the one
module of the other side: query, key and value; the gate of a GeGLU and what it lets pass.
"""

from typing import NamedTuple

from lsp.model.config import HeadKind

Names = dict[str, str]


class Head(NamedTuple):
    """A checkpoint that has the last module of `names` has this head."""

    kind: HeadKind
    names: Names
    paired: bool = False  # with BERT's second head beside `words`


class Family(NamedTuple):
    """`prefix` stands before the names of an encoder that has a head. A checkpoint has the first of `heads` that it
    can have, or none. `unused` counts rows of the table of positions that no token is at."""

    model_type: str
    prefix: str
    encoder: Names
    heads: tuple[Head, ...]
    unused: int = 0


_BERT = {
    "embeddings.tokens": "embeddings.word_embeddings",
    "embeddings.positions": "embeddings.position_embeddings",
    "embeddings.types": "embeddings.token_type_embeddings",
    "embeddings.norm": "embeddings.LayerNorm",
    "layers.{}.attention.qkv": " ".join(
        f"encoder.layer.{{}}.attention.self.{name}" for name in ("query", "key", "value")
    ),
    "layers.{}.attention.out": "encoder.layer.{}.attention.output.dense",
    "layers.{}.attention.norm": "encoder.layer.{}.attention.output.LayerNorm",
    "layers.{}.feedforward.up": "encoder.layer.{}.intermediate.dense",
    "layers.{}.feedforward.down": "encoder.layer.{}.output.dense",
    "layers.{}.feedforward.norm": "encoder.layer.{}.output.LayerNorm",
}
_BERT_WORDS = {
    "words": "cls.predictions",
    "words.norm": "cls.predictions.transform.LayerNorm",
    "words.transform": "cls.predictions.transform.dense",
}
BERT = Family(
    "bert",
    "bert.",
    _BERT,
    (
        Head("classes", {"pooler": "bert.pooler.dense", "classifier": "classifier"}),
        Head("words", _BERT_WORDS | {"pooler": "bert.pooler.dense", "classifier": "cls.seq_relationship"}, paired=True),
        Head("words", _BERT_WORDS),
        Head("pooler", {"pooler": "bert.pooler.dense"}),
    ),
)
ROBERTA = Family(
    "roberta",
    "roberta.",
    _BERT,
    (
        Head("classes", {"pooler": "classifier.dense", "classifier": "classifier.out_proj"}),
        Head("words", {"words": "lm_head", "words.norm": "lm_head.layer_norm", "words.transform": "lm_head.dense"}),
        Head("pooler", {"pooler": "roberta.pooler.dense"}),
    ),
    unused=2,
)
DISTILBERT = Family(
    "distilbert",
    "distilbert.",
    {
        "embeddings.tokens": "embeddings.word_embeddings",
        "embeddings.positions": "embeddings.position_embeddings",
        "embeddings.norm": "embeddings.LayerNorm",
        "layers.{}.attention.qkv": " ".join(f"transformer.layer.{{}}.attention.{name}_lin" for name in "qkv"),
        "layers.{}.attention.out": "transformer.layer.{}.attention.out_lin",
        "layers.{}.attention.norm": "transformer.layer.{}.sa_layer_norm",
        "layers.{}.feedforward.up": "transformer.layer.{}.ffn.lin1",
        "layers.{}.feedforward.down": "transformer.layer.{}.ffn.lin2",
        "layers.{}.feedforward.norm": "transformer.layer.{}.output_layer_norm",
    },
    (
        Head("classes", {"pooler": "pre_classifier", "classifier": "classifier"}),
        Head(
            "words",
            {"words": "vocab_projector", "words.norm": "vocab_layer_norm", "words.transform": "vocab_transform"},
        ),
    ),
)
MODERNBERT = Family(
    "modernbert",
    "model.",
    {
        "embeddings.tokens": "embeddings.tok_embeddings",
        "embeddings.norm": "embeddings.norm",
        "layers.{}.attention.qkv": "layers.{}.attn.Wqkv",
        "layers.{}.attention.out": "layers.{}.attn.Wo",
        "layers.{}.attention.norm": "layers.{}.attn_norm",
        "layers.{}.feedforward.gate layers.{}.feedforward.up": "layers.{}.mlp.Wi",
        "layers.{}.feedforward.down": "layers.{}.mlp.Wo",
        "layers.{}.feedforward.norm": "layers.{}.mlp_norm",
        "norm": "final_norm",
    },
    (
        Head("classes", {"pooler": "head.dense", "pooler.norm": "head.norm", "classifier": "classifier"}),
        Head("words", {"words": "decoder", "words.norm": "head.norm", "words.transform": "head.dense"}),
    ),
)
FAMILIES = {
    "bert": BERT,
    "roberta": ROBERTA,
    "xlm-roberta": ROBERTA,
    "camembert": ROBERTA,
    "distilbert": DISTILBERT,
    "modernbert": MODERNBERT,
}
