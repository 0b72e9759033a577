"""The encoder and its heads, as Flax modules that hold parameters and nothing else.

Three presets: `bert` (Devlin et al., 2018: learned positions, post-norm, GELU, biases; RoBERTa and DistilBERT are of
its shape), `modern` (rotary positions, pre-norm, GeGLU, no biases), which is ModernBERT (Warner et al., 2024), and
`bilstm` (`model/bilstm.py`), for machines where a transformer is too slow.

Dimensions: B rows, T tokens, K masked slots, V vocabulary, D width, H heads, S head size, F feed-forward, C classes.
The type of the computation is the type of the parameters handed in; norms and softmax are fp32 always, and logits are
given as fp32.
"""

from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lsp import processor
from lsp.model import attention
from lsp.model.bilstm import LSTMLayer
from lsp.model.blocks import PRODUCT, Linear, Table, add_bias, drop, gelu, gelu_tanh, kernel_std, norm, unchanged
from lsp.model.config import Layer, ModelConfig
from lsp.model.int8 import Int8, matmul, present
from lsp.model.sharding import hold
from lsp.recipe import Remat

Tree = dict[Any, Any]
Turn = tuple[jax.Array, jax.Array] | None  # cosines and sines of rotary positions

# What of a layer is kept for its gradients, by `train.remat`; the rest is computed again (Chen et al., 2016).
REMAT: dict[Remat, Any] = {
    "none": None,
    "dots": jax.checkpoint_policies.save_only_these_names(PRODUCT),  # products with weights
    "full": jax.checkpoint_policies.nothing_saveable,  # its input alone
}


class Embeddings(nnx.Module):
    def __init__(self, config: ModelConfig, rngs: nnx.Rngs) -> None:
        self.tokens = Table(config.vocab_size, config.width, rngs)
        self.positions = Table(config.max_length, config.width, rngs) if config.preset == "bert" else None
        self.types = Table(config.types, config.width, rngs) if config.types else None
        self.norm = norm(config)

    def __call__(
        self, tokens_BT: jax.Array, positions_BT: jax.Array, types_BT: jax.Array | None, shift_BTD: jax.Array | None
    ) -> jax.Array:
        x_BTD = self.tokens(tokens_BT)
        if shift_BTD is not None:
            x_BTD = x_BTD + shift_BTD
        if self.positions is not None:
            x_BTD = x_BTD + self.positions(positions_BT)
        if self.types is not None:
            x_BTD = x_BTD + self.types(jnp.int32(0) if types_BT is None else types_BT)
        return self.norm(x_BTD)


class Attention(nnx.Module):
    """`qkv` holds each head's query, key and value side by side, so splitting its columns splits heads."""

    def __init__(self, config: ModelConfig, layer: Layer, out_std: float, first: bool, rngs: nnx.Rngs) -> None:
        inner = layer.heads * layer.head_size
        std = kernel_std(config, config.width)
        # What reaches the first layer of `modern` is normalised already.
        self.norm = unchanged if first and config.preset == "modern" else norm(config)
        self.qkv = Linear(config.width, 3 * inner, bias=config.bias, std=std, rngs=rngs)
        self.out = Linear(inner, config.width, bias=config.bias, std=out_std, rngs=rngs)
        self.heads, self.head_size, self.window = layer.heads, layer.head_size, layer.window

    def __call__(
        self, x_BTD: jax.Array, segments_BT: jax.Array, turn: Turn, at_BQ: jax.Array | None = None
    ) -> jax.Array:
        return self.out(self.gather(x_BTD, segments_BT, turn, at_BQ))

    def gather(self, x_BTD: jax.Array, segments_BT: jax.Array, turn: Turn, at_BQ: jax.Array | None = None) -> jax.Array:
        """What the heads found, side by side [B, T, H·S]."""
        q, k, v = self.project(x_BTD, segments_BT)
        if turn is not None:
            q, k = attention.rotate(q, *turn), attention.rotate(k, *turn)
        if at_BQ is not None:
            q = attention.pick(q, at_BQ)
        y_BHQS = attention.attend(q, k, v, segments_BT, self.window, at_BQ)
        rows = x_BTD.shape[:2] if at_BQ is None else at_BQ.shape
        return y_BHQS.transpose(0, 2, 1, 3).reshape(*rows, -1)

    def project(self, x_BTD: jax.Array, segments_BT: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries, keys and values, each [B, H, T, S], without their positions."""
        # Attention's rows are those of the segments: pieces of x's, where long rows are cut.
        qkv = self.qkv(x_BTD).reshape(*segments_BT.shape, self.heads, 3, self.head_size)
        q, k, v = qkv.transpose(3, 0, 2, 1, 4)
        return q, k, v


class FeedForward(nnx.Module):
    """GELU(x·up)·down, or GeGLU (Shazeer, 2020): (GELU(x·gate) ⊙ x·up)·down."""

    def __init__(self, config: ModelConfig, layer: Layer, out_std: float, rngs: nnx.Rngs) -> None:
        std = kernel_std(config, config.width)
        self.norm = norm(config)
        self.up = Linear(config.width, layer.feedforward, bias=config.bias, std=std, rngs=rngs)
        gated = config.preset == "modern"
        self.gate = Linear(config.width, layer.feedforward, bias=False, std=std, rngs=rngs) if gated else None
        self.down = Linear(layer.feedforward, config.width, bias=config.bias, std=out_std, rngs=rngs)
        self.gelu = gelu if config.activation == "gelu" else gelu_tanh

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        return self.down(self.units(x_BTD))

    def units(self, x_BTD: jax.Array) -> jax.Array:
        """The inner values [B, T, F]."""
        up_BTF = self.up(x_BTD)
        return self.gelu(up_BTF) if self.gate is None else self.gelu(self.gate(x_BTD)) * up_BTF


class EncoderLayer(nnx.Module):
    def __init__(self, config: ModelConfig, layer: Layer, first: bool, rngs: nnx.Rngs) -> None:
        # Matrices that write to the residual stream start smaller, so that its variance does not grow with depth.
        shrink = 1.0 if config.preset == "bert" else (2 * len(config.layers)) ** -0.5
        out_stds = [kernel_std(config, size) * shrink for size in (layer.heads * layer.head_size, layer.feedforward)]
        self.attention = Attention(config, layer, out_stds[0], first, rngs)
        self.feedforward = FeedForward(config, layer, out_stds[1], rngs)
        self.post_norm = config.preset == "bert"
        self.dropout = config.dropout

    def __call__(
        self,
        x_BTD: jax.Array,
        segments_BT: jax.Array,
        turn: Turn,
        key: jax.Array | None,
        at_BQ: jax.Array | None = None,
    ) -> jax.Array:
        """[B, T, D], or [B, Q, D] of the tokens `at` alone."""
        keys = (None, None) if key is None else jax.random.split(key)
        own = x_BTD if at_BQ is None else attention.pick(x_BTD, at_BQ)
        y = self.attention(self.before(self.attention, x_BTD), segments_BT, turn, at_BQ)
        own = self.after(self.attention, own + drop(y, self.dropout, keys[0]))
        y = self.feedforward(self.before(self.feedforward, own))
        return self.after(self.feedforward, own + drop(y, self.dropout, keys[1]))

    def before(self, block: Attention | FeedForward, x_BTD: jax.Array) -> jax.Array:
        """What a block reads of the stream."""
        return x_BTD if self.post_norm else block.norm(x_BTD)

    def after(self, block: Attention | FeedForward, x_BTD: jax.Array) -> jax.Array:
        """What the stream becomes when the block's answer is added."""
        return block.norm(x_BTD) if self.post_norm else x_BTD


class Words(nnx.Module):
    """BERT's masked-LM head: a dense layer, GELU and a norm, then the embedding table as the projection."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs) -> None:
        std = kernel_std(config, config.width)
        self.transform = Linear(config.width, config.width, bias=config.bias, std=std, rngs=rngs)
        self.norm = norm(config)
        self.bias = nnx.Param(jnp.zeros(config.vocab_size))

    def __call__(self, hidden_BKD: jax.Array, table_VD: jax.Array | Int8) -> jax.Array:
        x_BKD = self.norm(gelu(self.transform(hidden_BKD)))
        logits_BKV = matmul(x_BKD, table_VD, transpose=True)
        return add_bias(logits_BKV.astype(jnp.float32), self.bias[...].astype(jnp.float32))


class Pooler(Linear):
    """What reads a pooled state [B, D] before the classes do: a dense layer and tanh (BERT), relu (DistilBERT), or GELU
    and a norm (ModernBERT)."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs) -> None:
        std = kernel_std(config, config.width)
        super().__init__(config.width, config.width, bias=config.bias, std=std, rngs=rngs)
        self.activation = {"tanh": jnp.tanh, "relu": jax.nn.relu, "gelu": gelu}[config.pooler_activation]
        self.norm = norm(config) if config.preset == "modern" else unchanged

    def __call__(self, x_BD: jax.Array) -> jax.Array:
        return self.norm(self.activation(super().__call__(x_BD)))


class Model(nnx.Module):
    """An encoder with the heads its config names. `remat` is one of REMAT."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, remat: Remat = "none") -> None:
        self.config, self.remat = config, remat
        self.embeddings = Embeddings(config, rngs)
        kind = LSTMLayer if config.preset == "bilstm" else EncoderLayer
        layers = enumerate(config.layers)
        self.layers = nnx.List([kind(config, layer, index == 0, rngs) for index, layer in layers])
        self.norm = norm(config) if config.preset == "modern" else unchanged
        if config.head == "words":
            self.words = Words(config, rngs)
        if config.classes or config.head == "pooler":
            self.pooler = Pooler(config, rngs)
        if config.classes:
            std = kernel_std(config, config.width)
            self.classifier = Linear(config.width, config.classes, bias=True, std=std, rngs=rngs)

    def encode(
        self,
        tokens_BT: jax.Array,
        segments_BT: jax.Array,
        types_BT: jax.Array | None = None,
        key: jax.Array | None = None,
        shift_BTD: jax.Array | None = None,
        at_BQ: jax.Array | None = None,
    ) -> jax.Array:
        """Hidden states [B, T, D]; or [B, Q, D] of the tokens `at`: the last layer makes no others. `segments` is 0 on
        padding; `types` tells the texts of a pair apart (`bert`); `shift` is added to the embeddings of the tokens.

        `segments` [B, P, T / P] cut the rows into P pieces that neither see one another nor count on.
        """
        return self.norm(self.states(tokens_BT, segments_BT, types_BT, key, shift_BTD, at_BQ)[-1])

    def states(
        self,
        tokens_BT: jax.Array,
        segments_BT: jax.Array,
        types_BT: jax.Array | None = None,
        key: jax.Array | None = None,
        shift_BTD: jax.Array | None = None,
        at_BQ: jax.Array | None = None,
    ) -> list[jax.Array]:
        """What each layer reads, and what the last one makes, [B, T, D] each: one more than there are layers. The last
        are those that `encode` gives, without its norm."""
        segments_BT = segments_BT.reshape(-1, segments_BT.shape[-1])
        keys = [None] * (len(self.layers) + 1) if key is None else list(jax.random.split(key, len(self.layers) + 1))
        positions_BT = attention.positions(segments_BT)
        x_BTD = self.embed(tokens_BT, positions_BT, types_BT, shift_BTD)
        x_BTD = hold(drop(x_BTD, self.config.dropout, keys[-1]), "BTD")
        states, last = [x_BTD], len(self.layers) - 1
        for number, (layer, turn) in enumerate(zip(self.layers, self.turns(positions_BT), strict=True)):
            run = layer if self.remat == "none" else jax.checkpoint(layer, policy=REMAT[self.remat])
            at = at_BQ if number == last else None
            states.append(hold(run(states[-1], segments_BT, turn, keys[number], at), "BTD"))
        return states

    def embed(
        self,
        tokens_BT: jax.Array,
        positions_BT: jax.Array,
        types_BT: jax.Array | None = None,
        shift_BTD: jax.Array | None = None,
    ) -> jax.Array:
        """What the first layer reads [B, T, D]."""
        places_BT = positions_BT.reshape(tokens_BT.shape)
        x_BTD = self.embeddings(tokens_BT, places_BT, types_BT, shift_BTD)
        return x_BTD.astype(self.embeddings.norm.scale[...].dtype)

    def turns(self, positions_BT: jax.Array) -> list[Turn]:
        """How each layer turns queries and keys."""
        if self.config.preset != "modern":
            return [None] * len(self.layers)
        kinds = [(layer.head_size, layer.rotary_base) for layer in self.config.layers]
        found = {kind: attention.rotary(positions_BT, *kind) for kind in kinds}
        return [found[kind] for kind in kinds]

    def guess(self, hidden_BTD: jax.Array, slots_BK: jax.Array) -> jax.Array:
        """Logits over the vocabulary [B, K, V], fp32, at the given positions only."""
        # A product with one-hot rows is exact, and so is its gradient, which is a product too and no scatter.
        onehot_BKT = jax.nn.one_hot(slots_BK, hidden_BTD.shape[1], dtype=hidden_BTD.dtype)
        hidden_BKD = hold(jnp.einsum("bkt,btd->bkd", onehot_BKT, hidden_BTD), "BKD")
        # As a matrix, since XLA's CPU computes the gradient of the logits anew for each shape that it is read in.
        logits = self.words(hidden_BKD.reshape(-1, hidden_BTD.shape[-1]), self.embeddings.tokens.table.get_value())
        return hold(logits.reshape(*slots_BK.shape, -1), "BKV")

    def follow(self, hidden_BTD: jax.Array) -> jax.Array:
        """Logits [B, 2], fp32, of rows that hold a pair each: the second text follows the first, or is a random one."""
        return self.classifier(self.pooler(hidden_BTD[:, 0])).astype(jnp.float32)

    def classify(
        self,
        tokens_BT: jax.Array,
        segments_BT: jax.Array,
        types_BT: jax.Array | None = None,
        key: jax.Array | None = None,
        shift_BTD: jax.Array | None = None,
        shared: int = 0,
    ) -> jax.Array:
        """Logits over the classes [B, C], fp32, of rows that hold one example each; or [B, E, C] of rows that are
        `shared` by up to E of them, which are segments 1, 2, …, E."""
        keys = (None, None) if key is None else jax.random.split(key)
        of_BTE = segments_BT[..., None] == jnp.arange(1, max(1, shared) + 1)
        if self.config.pooling == "cls":
            # The first token of each, and where there is no such example any: nobody asks for its logits.
            first_BE = of_BTE.argmax(1) if shared else jnp.zeros((tokens_BT.shape[0], 1), jnp.int32)
            pooled_BED = self.encode(tokens_BT, segments_BT, types_BT, keys[0], shift_BTD, first_BE)
        else:
            pooled_BED = average(self.encode(tokens_BT, segments_BT, types_BT, keys[0], shift_BTD), of_BTE)
        logits_BEC = self.decide(pooled_BED, keys[1])
        return logits_BEC if shared else logits_BEC[:, 0]

    def decide(self, pooled: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Logits over the classes [..., C], fp32, of pooled states [..., D]."""
        return self.classifier(drop(self.pooler(pooled), self.config.dropout, key)).astype(jnp.float32)


def average(hidden_BTD: jax.Array, of_BTE: jax.Array) -> jax.Array:
    """The mean state [B, E, D] of the tokens of each example, bool [B, T, E]; 0 where there are none."""
    weights_BTE = of_BTE.astype(jnp.float32)
    total_BED = jnp.einsum("bte,btd->bed", weights_BTE, hidden_BTD.astype(jnp.float32))
    return (total_BED / jnp.maximum(weights_BTE.sum(1)[..., None], 1.0)).astype(hidden_BTD.dtype)


def initialise(config: ModelConfig, seed: int) -> Tree:
    """Fresh fp32 parameters, the same for the same seed."""
    return nnx.to_pure_dict(nnx.state(Model(config, nnx.Rngs(seed)), nnx.Param))


@lru_cache
def graphdef(config: ModelConfig, remat: Remat = "none") -> Any:
    """The structure that `nnx.merge(graphdef, params)` turns parameters into a model with."""
    return nnx.split(nnx.eval_shape(lambda: Model(config, nnx.Rngs(0), remat)))[0]


def compiler_options(params: Tree) -> dict[str, Any]:
    """XLA's options for a program that answers with these parameters."""
    return options_of(present(params))


def options_of(int8: bool) -> dict[str, Any]:
    """XLA's options for a program that answers, in int8 or float, on a CPU: attention's barriers stay; and int8 has all
    of a register of 512 bits. XLA leaves half of one unused, lest an older processor lower its clock, as it does for
    int8 products anyway."""
    if jax.default_backend() != "cpu":
        return {}
    wide = int8 and processor.multiplies_int8_by_512_bits()
    return attention.KEPT_BARRIERS | ({"xla_cpu_prefer_vector_width": 512} if wide else {})


def shapes(config: ModelConfig) -> Tree:
    """The parameters as `jax.ShapeDtypeStruct`, nothing allocated."""
    return nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: Model(config, nnx.Rngs(0))), nnx.Param))
