"""Recipes as frozen dataclasses: one a stage, made of sections. Every key has a type, a default, a unit and one line of
help, and `docs/recipes.md` is printed from here.
"""

import dataclasses
from typing import Any, Literal, TypeVar

Remat = Literal["auto", "none", "dots", "full"]


def key(default: Any, help: str) -> Any:
    """A recipe key: its default and what it means, with the unit."""
    return dataclasses.field(default=default, metadata={"help": help})


@dataclasses.dataclass(frozen=True)
class Model:
    preset: Literal["bert", "modern", "bilstm"] = key("modern", "architecture: `bert` (learned positions, post-norm, GELU, biases), `modern` (RoPE, pre-norm, GeGLU, no biases) or `bilstm` (LSTMs from both ends, for where a transformer is too slow; `width` is that of both, and `heads` and `feedforward` say nothing)")
    layers: int = key(4, "number of encoder layers")
    width: int = key(256, "size of the hidden vectors")
    heads: int = key(4, "attention heads in each layer; divides `width`")
    feedforward: int = key(0, "inner size of the feed-forward block; 0 means 4·width for `bert`, 8/3·width rounded to 64 for `modern`")
    max_length: int = key(512, "longest sequence the model can read, in tokens")
    dropout: float = key(0.0, "share of hidden values dropped while training, at least 0 and under 1")


@dataclasses.dataclass(frozen=True)
class Text:
    vocab_size: int = key(8192, "pieces in the tokenizer, with the five special ones and 256 bytes")
    tokenizer: Literal["unigram", "bpe"] = key("unigram", "SentencePiece model trained when no tokenizer is given")
    lowercase: bool = key(False, "fold case before tokenizing")
    sequence_length: int = key(128, "length of a packed row, in tokens")
    mask_rate: float = key(0.15, "share of the tokens to guess, 0 to 1; at the first step, if `mask_rate_end` is given")
    mask_rate_end: float = key(0.0, "share of the tokens to guess at the last step, reached in a straight line; 0 means `mask_rate` throughout")
    length_start: int = key(0, "tokens of a row that see one another at first, doubled in equal stages up to `sequence_length` (pretraining only); 0 means all from the start")
    length_warmup: float = key(0.5, "share of the steps over which the length grows from `length_start`")
    masking: Literal["token", "word", "span"] = key("token", "what is hidden together: single tokens, whole words, or spans of 1 to 10 words")
    next_sentence: bool = key(False, "rows are pairs of texts, and the model tells also whether the second follows the first, as in BERT (`bert` only); a line of the text is a sentence")
    text_field: str = key("text", "field of a `.jsonl` line, or column of a table, that holds the text")
    client_field: str = key("", "field of a record, or column of a table, that says whose text it is: a client, for `replicas.clients`; a row then holds text of one")
    deduplicate: bool = key(False, "leave out documents that came before, white space at their ends aside")


@dataclasses.dataclass(frozen=True)
class Labelled:
    sequence_length: int = key(128, "longest example, in tokens; longer ones are cut and counted")


Problem = Literal["single_label", "multi_label", "regression"]


@dataclasses.dataclass(frozen=True)
class Kept:
    """Of a head that the classifier has already."""

    dropout: float = key(0.1, "share of values dropped while training, in the encoder and before the classifier, at least 0 and under 1")


@dataclasses.dataclass(frozen=True)
class Head:
    pooling: Literal["auto", "cls", "mean"] = key("auto", "what the classifier reads: the first token, or the mean of all; `auto` is what the encoder's own pooler reads, and `mean` where it has none")
    dropout: float = key(0.1, "share of values dropped while training, in the encoder and before the classifier, at least 0 and under 1")


@dataclasses.dataclass(frozen=True)
class NewHead(Head):
    problem: Problem = key("single_label", "what a label is: one class, several classes (names with commas between, or a list in `.jsonl`), or a number")
    class_weights: Literal["none", "balanced"] = key("none", "how much an example counts in training: as much as any, or the less the more examples of its class there are (`single_label` only)")
    calibrate: bool = key(False, "probabilities are made as sure as they are right on the `--dev` file: the classifier is divided by a temperature (`single_label` only)")


@dataclasses.dataclass(frozen=True)
class Adapt:
    freeze: int = key(0, "layers from below that stay as they are, the embeddings with them; 0 means that all is trained")
    reinitialise: int = key(0, "layers from above that begin at random")
    lora_rank: int = key(0, "rank of what is trained beside each matrix of the layers, which stays as it is (LoRA), as all of the encoder does; the two are one matrix again in the finished run; 0 means that the matrices themselves are trained")
    lora_alpha: float = key(16.0, "weight of what LoRA adds, divided by the rank")
    r_drop: float = key(0.0, "weight of R-Drop: two passes with other dropout should answer alike; 0 means one pass")
    grow: bool = key(False, "a classifier keeps its classes, and learns those of the new examples besides")
    remember: float = key(1.0, "with `grow`, weight of answering for the old classes as before")
    replay: float = key(0.01, "with `grow`, share of the `--old` examples that come again, so often that old classes are as frequent as new ones; a quarter of them is kept apart to balance old and new by where there is no `--old-dev`")
    lose: float = key(2.0, "with `grow`, points of accuracy that the old classes may lose on `--old-dev`, or on what is kept apart: new ones are answered less readily until it is no more, if that is enough; 100 means that old and new count alike")
    fgm: float = key(0.0, "how far FGM moves the token embeddings against the model, as the norm of the step; 0 means not at all")


@dataclasses.dataclass(frozen=True)
class Privacy:
    noise: float = key(0.0, "differentially private SGD: standard deviation of the noise on a step's gradient, in lengths of `clip`; the result says what is spent; 0 means not private")
    clip: float = key(1.0, "longest gradient of an example; `train.clip` then says nothing")
    delta: float = key(0.0, "chance at which the privacy that is said to be spent may be exceeded; 0 means 1 / (10 · examples)")


@dataclasses.dataclass(frozen=True)
class Train:
    steps: int = key(0, "optimizer steps; 0 means `epochs` decides")
    epochs: float = key(1.0, "passes over the training data; used when `steps` is 0; 0 is for pruning and searching, which then train nothing")
    batch_size: int = key(32, "sequences a step, over all devices")
    batch_start: int = key(0, "rows of the first batches, doubled in equal stages up to `batch_size` (pretraining only); 0 means `batch_size` from the start")
    batch_warmup: float = key(0.1, "share of the steps over which the batch grows from `batch_start`")
    accumulate: int = key(1, "parts that a batch is cut into, one after the other, to save memory")
    learning_rate: float = key(1e-3, "peak learning rate")
    warmup: float = key(0.06, "share of the steps over which the learning rate rises from 0")
    schedule: Literal["linear", "cosine", "inverse_sqrt", "wsd"] = key("linear", "the learning rate after the warm-up: falls to 0 on a line or a cosine, with the root of the steps, or (`wsd`) stays and falls over the last `decay`")
    decay: float = key(0.2, "share of the steps over which `wsd` falls to 0")
    restart: float = key(0.0, "share of the steps after which the learning rate begins anew, warm-up and all: at `prune.end`, say, for the recovery; 0 means that it does not")
    optimizer: Literal["sgd", "adagrad", "adam", "adamw", "stableadamw", "lamb", "lion", "muon"] = key("adamw", "how gradients become updates; `muon` is for the layers' matrices and leaves the rest to AdamW")
    weight_decay: float = key(0.01, "decay of matrices a step, times the learning rate; biases and norms have none. Part of the gradient with `sgd`, `adagrad` and `adam`")
    beta1: float = key(0.9, "average of gradients; momentum for `sgd`")
    beta2: float = key(0.98, "average of squared gradients; of gradients for `lion`")
    layer_decay: float = key(1.0, "the learning rate of a layer is this times that of the layer above")
    average: float = key(0.0, "share of the last steps whose weights are averaged into the finished model; 0 means the last weights alone")
    clip: float = key(1.0, "largest global gradient norm; 0 means no clipping")
    precision: Literal["fp32", "bf16"] = key("fp32", "type of the computation; master weights, softmax, norms and loss stay fp32")
    remat: Remat = key("auto", "what of a layer is computed again for its gradients, to save memory: nothing, all but the products with its weights (`dots`), or all (`full`); `auto` is the first of these with which a step fits the device")
    spike: float = key(6.0, "standard deviations above the mean of the last 128 losses, or of the logarithms of gradient norms, from which a step counts as a spike; 0 means that only what is not finite does")
    on_divergence: Literal["stop", "skip", "rewind"] = key("stop", "what follows a spike or a loss that is not finite: `stop` ends the run, at a spike only warns; `skip` leaves the step out; `rewind` goes back to the newest saved step and on behind the batch")
    seed: int = key(0, "decides the start, the order, the masks and the dropout")
    log_every: int = key(20, "steps between two lines of metrics")
    evaluate_every: int = key(0, "steps between two evaluations; 0 means at the end only")
    best: Literal["", "accuracy", "f1", "macro_f1", "matthews", "pearson", "spearman", "loss"] = key("", "metric by which the weights of the best evaluation become the finished model; empty means those of the last step")
    patience: int = key(0, "evaluations in turn that are no better than the best by `best` before the run ends; 0 means that it goes on to the last step")
    checkpoint_every: int = key(200, "steps between two saves")
    keep: int = key(2, "saved steps to keep")


@dataclasses.dataclass(frozen=True)
class Mesh:
    data: int = key(-1, "devices over which the batch is split; -1 means all that are left")
    fsdp: int = key(1, "devices over which parameters and optimizer state are split too")
    tensor: int = key(1, "devices over which the matrices inside a layer are split")


@dataclasses.dataclass(frozen=True)
class Replicas:
    count: int = key(1, "copies of the model that train apart, each on its share of the batch; divides `train.batch_size`")
    every: int = key(20, "steps between two meetings at which the copies are merged")
    clients: float = key(0.0, "share of the clients (`data.client_field`) that train between two meetings, each a copy with a new optimizer that weighs as many rows as it has (federated averaging); sets `count`; 0 means that copies share all rows")
    outer: Literal["average", "nesterov"] = key("nesterov", "what a meeting does: the mean of the copies, or a step of Nesterov's momentum towards it (DiLoCo)")
    rate: float = key(0.7, "learning rate of that step")
    momentum: float = key(0.9, "momentum of that step")


Int8Kind = Literal["none", "dynamic", "static"]


@dataclasses.dataclass(frozen=True)
class Pruning:
    what: Literal["weights", "structure", "vocabulary"] = key("weights", "what is removed: single weights, whose zeros are stored packed (smaller, not faster), the structure, which is layers, hidden width, heads and feed-forward units (smaller and faster), or pieces of the vocabulary that the examples do not use (smaller)")
    sparsity: float = key(0.5, "share of the encoder's matrix weights set to zero, 0 to 1 (`weights`)")
    score: Literal["magnitude", "movement", "fisher"] = key("fisher", "which weights go first: the smallest, those that training moves towards zero, or those without which the loss rises least, as its curvature says (`weights`)")
    block: int = key(1, "weights that make up for each other with `fisher`, which keeps their curvature: 4·`block` bytes for each of the encoder's weights, in memory and in saved steps")
    scope: Literal["global", "layer"] = key("global", "over what that share is counted: all matrices together, where some lose more than others, or each for itself (`weights`)")
    pattern: str = key("", "N:M, `2:4` say: of each M weights along a matrix's input dimension N are left; `sparsity` then follows from it (`weights`)")
    begin: float = key(0.0, "share of the steps after which pruning starts (`weights`)")
    end: float = key(0.6, "share of the steps after which the full sparsity is reached; the rest is recovery (`weights`)")
    every: int = key(20, "steps between two updates of the masks (`weights`)")
    speedup: float = key(2.0, "how many times as fast the model is to be on this machine, measured when it is chosen, to within 3 %; the result has it measured again (`structure`)")
    int8: Int8Kind = key("none", "`speedup` is what such an int8 model gains from it, as which it will be used, with a scale for each token (`dynamic`) or each matrix (`static`); it stays float (`structure`)")
    depth: int = key(0, "layers to keep, those without which answers would change most; 0 means all (`structure`)")
    channels: int = key(0, "channels of the hidden width to keep, everywhere the same; 0 means all (`structure`)")
    sample: int = key(2048, "training examples by which channels, heads and units are judged and what stays is fitted (`structure`)")
    shape: str = key("", "what each layer keeps, `12+672 11+384 …` heads and feed-forward units, instead of what `speedup` makes of it (`structure`)")
    pieces: int = key(0, "pieces to keep at most, the commonest, [CLS] and [SEP] among them; other special ones and single characters stay besides; 0 means all that the training examples have (`vocabulary`)")
    hidden: float = key(0.0, "weight of being as before inside too, in the training that recovers: the states behind each layer, as the share of their square that is missed; the whole model then runs in every step; 0 means answers alone (`weights`, `structure`)")
    hard: float = key(0.0, "weight of the labels in the training that recovers, 0 to 1; answering as before has the rest")


@dataclasses.dataclass(frozen=True)
class Chain:
    vocabulary: bool = key(True, "pieces that the training examples do not have are removed")
    pieces: int = key(0, "with `vocabulary`, pieces to keep at most, the commonest; 0 means all that the training examples have or, in a search where the size asked for would take more of the structure than the speed does, those that are 98 % of their tokens, unless that costs half a point")
    depth: int = key(0, "layers to keep; 0 means that depth, channels and speed are searched for")
    channels: int = key(0, "with `depth`, channels of the hidden width to keep; 0 means all")
    speedup: float = key(1.0, "with `depth`, how many times as fast the structure is to be, measured, unless `shape` says it")
    shape: str = key("", "with `depth`, what each layer keeps, `12+672 11+384 …` heads and feed-forward units; nothing is measured then")
    through: str = key("", "with `shape`, what each layer keeps half-way there, where it is trained before the rest goes")
    hidden: float = key(1.0, "`prune.hidden` of the training that recovers: weight of being as before inside too; 0 means answers alone, and the whole model does not run in every step")
    int8: Literal["auto", Int8Kind] = key("auto", "int8 weights and activations at the end: with a scale for each matrix (`static`), for each token (`dynamic`) or none of it (`none`); `auto` is static, which is the fastest, unless in a search that costs the model without pruning half a point more than dynamic")


Calibration = Literal["minmax", "percentile", "mse", "kl"]


@dataclasses.dataclass(frozen=True)
class Quantization:
    method: Literal["dynamic", "static", "weights", "trained"] = key("dynamic", "what is quantised: weights and activations, with a scale for each token (`dynamic`), or one for each matrix that the `--train` file tells (`static`); weights alone (`weights`, weight-only: smaller, not faster); or as `dynamic`, after training in int8 on the `--train` file (`trained`: quantisation-aware training)")
    calibration: Calibration = key("percentile", "the largest activation that `static` keeps: all are kept (`minmax`), all but one in ten thousand (`percentile`), or what makes the squared error (`mse`) or the KL divergence (`kl`) least")
    bits: int = key(8, "bits of a weight; 4 with `weights` only")
    group: int = key(0, "weights of a column that share a scale, with `weights`: 64 say, for 4 bits; 0 means all")
    smooth: float = key(0.0, "SmoothQuant: how much of the outliers of an activation moves into the weights, 0 to 1, by the `--train` file; 0.5 is usual, 0 means nothing")
    rounding: Literal["nearest", "gptq"] = key("nearest", "how weights are rounded: each by itself, or (`gptq`) so that one makes up for the other, by the `--train` file")
    hard: float = key(0.0, "with `trained`, weight of the labels, 0 to 1; the answers of the float model have the rest")
    sample: int = key(256, "examples of the `--train` file that calibrate")
    sensitivity: bool = key(False, "what each part costs when it alone is quantised is measured on the `--dev` file, and outlier channels are named; always done with `max_drop`")
    max_drop: float = key(-1.0, "percent points that the main metric may fall on the `--dev` file: parts that cost most stay float until it holds; -1 means that all are quantised")

    @property
    def calibrates(self) -> bool:
        """Whether the `--train` file is needed."""
        return self.method in ("static", "trained") or self.smooth > 0 or self.rounding == "gptq"

    def applied(self) -> dict[str, Any]:
        """What a manifest says of it: the bits, and what differs from the defaults."""
        plain = Quantization()
        ours = {name: getattr(self, name) for name in ("method", "group", "smooth", "rounding")}
        ours |= {"calibration": self.calibration} if self.method == "static" else {}
        return {"stage": "quantize", "bits": self.bits} | {n: v for n, v in ours.items() if v != getattr(plain, n)}


@dataclasses.dataclass(frozen=True)
class Distillation:
    temperature: float = key(2.0, "softens teacher and student before they are compared")
    hard: float = key(0.0, "weight of the labels, 0 to 1, often called alpha; the teacher has the rest")
    start: Literal["teacher", "random"] = key("teacher", "first weights of the student: evenly spaced teacher layers where the shapes allow, and the teacher's words in their main directions where it is narrower; or random")
    augment: int = key(0, "copies of each training text with other words in some places, for which the teacher answers too and labels count nothing: words that the `--augmenter` proposes, or hidden ones; an epoch is then so many times longer, plus one")
    hidden: float = key(0.0, "weight of being like the teacher inside: the states behind each layer, through a linear map that is dropped in the end, as the share of the teacher's square that is missed; 0 means answers alone")
    match: Literal["even", "nearest"] = key("even", "with `hidden`, which of the teacher's layers each layer is to be like: evenly spaced ones, or at the start nearest ones, in order; the last is always matched with the last")
    relations: float = key(0.0, "weight of the tokens' relations to one another in the last layer, among queries, keys and values (MiniLMv2); 0 means answers alone")
    relation_layer: int = key(0, "with `relations`, the teacher's layer that has them, from 1; 0 means the last")
    compare: bool = key(False, "the student is trained a second time, from the same first weights and for as many steps, on the labels alone; a warning says if that does as well. With `--budget` each of the two has that time")


@dataclasses.dataclass(frozen=True)
class GeneralDistillation:
    temperature: float = key(2.0, "with `--teacher`, softens teacher and student before they are compared")
    hard: float = key(0.5, "with `--teacher`, weight of the words that stood there, 0 to 1; the teacher's guesses have the rest")
    relations: float = key(0.0, "with `--teacher`, weight of the tokens' relations to one another in the last layer, among queries, keys and values (MiniLMv2); 0 means words alone")
    relation_layer: int = key(0, "with `relations`, the teacher's layer that has them, from 1; 0 means the last")
    start: Literal["teacher", "random"] = key("teacher", "with `--teacher`, first weights: evenly spaced teacher layers where the shapes allow, and the teacher's words in their main directions where the model is narrower; or random")


@dataclasses.dataclass(frozen=True)
class Prepare:
    """Raw text to packed rows of tokens."""

    data: Text = Text()
    seed: int = key(0, "decides which lines train the tokenizer, and the pairs of `data.next_sentence`")


@dataclasses.dataclass(frozen=True)
class Pretrain:
    """Masked language modelling."""

    model: Model = Model()
    data: Text = Text()
    distill: GeneralDistillation = GeneralDistillation()
    train: Train = Train(steps=1000)
    mesh: Mesh = Mesh()
    replicas: Replicas = Replicas()


@dataclasses.dataclass(frozen=True)
class Finetune:
    """A classifier on an encoder. `model` is read only with `--from scratch`; else the encoder brings its own."""

    model: Model = Model()
    head: NewHead = NewHead()
    adapt: Adapt = Adapt()
    privacy: Privacy = Privacy()
    data: Labelled = Labelled()
    train: Train = Train(epochs=3.0, learning_rate=2e-4, beta2=0.999)
    mesh: Mesh = Mesh()


@dataclasses.dataclass(frozen=True)
class Quantize:
    """Int8 weights and activations, or weights alone. `head`, `data`, `train` and `mesh` are for `quantize.method =
    "trained"`."""

    quantize: Quantization = Quantization()
    head: Kept = Kept()
    data: Labelled = Labelled()
    train: Train = Train(epochs=1.0, learning_rate=2e-5, beta2=0.999)
    mesh: Mesh = Mesh()


@dataclasses.dataclass(frozen=True)
class Prune:
    """What a classifier can do without, and training that recovers what that costs; with `train.epochs = 0` none, but
    for `weights`. A loss that jumps counts as no spike: that is what weights do when they go."""

    prune: Pruning = Pruning()
    head: Kept = Kept()
    data: Labelled = Labelled()
    train: Train = Train(epochs=1.0, learning_rate=1e-4, beta2=0.999, spike=0.0)
    mesh: Mesh = Mesh()


@dataclasses.dataclass(frozen=True)
class Distill:
    """A smaller student that learns a teacher's answers. `model` is the student."""

    model: Model = Model(layers=2, width=128, heads=2)
    distill: Distillation = Distillation()
    head: Head = Head()
    data: Labelled = Labelled()
    train: Train = Train(epochs=3.0, learning_rate=5e-4, beta2=0.999)
    mesh: Mesh = Mesh()


@dataclasses.dataclass(frozen=True)
class Search:
    """Chains of compress stages, of which one is taken; or the one chain of `chain.depth` layers. `train` is how a
    pruned model recovers."""

    chain: Chain = Chain()
    head: Kept = Kept()
    data: Labelled = Labelled()
    train: Train = Train(epochs=2.0, learning_rate=1e-4, beta2=0.999, spike=0.0)
    mesh: Mesh = Mesh()


ENDLESS = Pretrain(train=Train())  # no number of steps: a budget of time ends it

STAGES = (Prepare, Pretrain, Finetune, Quantize, Prune, Distill, Search)
Stage = TypeVar("Stage", Prepare, Pretrain, Finetune, Quantize, Prune, Distill, Search)

LARGEST = 2**31 - 1  # of whole numbers but seeds: a device counts steps and sizes in 32 bits
LARGEST_SEED = 10**18  # fits 64 bits, with room for those that follow it

# What a value must satisfy besides its type: key, test, and how a person would say it. Nobody means more than the upper
# bounds on sizes, which are far above any model or batch there is; what is more takes all memory without a word.
LIMITS = (
    (("mask_rate", "mask_rate_end", "smooth", "warmup", "begin", "end", "hard", "average", "batch_warmup", "length_warmup", "clients", "replay"), lambda v: 0 <= v <= 1, "between 0 and 1"),
    (("sparsity", "restart", "dropout", "beta1", "beta2", "momentum", "delta"), lambda v: 0 <= v < 1, "at least 0 and under 1"),
    (("decay", "layer_decay"), lambda v: 0 < v <= 1, "more than 0 and at most 1"),
    (("layers", "width", "heads", "batch_size", "accumulate", "log_every", "checkpoint_every", "keep", "every", "count", "fsdp", "tensor", "sample", "speedup", "block"), lambda v: v >= 1, "at least 1"),
    (("steps", "epochs", "pieces", "depth", "channels", "augment", "hidden", "relations", "relation_layer", "patience", "freeze", "reinitialise", "lora_rank", "r_drop", "fgm", "remember", "batch_start", "length_start", "feedforward", "evaluate_every", "seed", "weight_decay", "clip", "spike", "noise"), lambda v: v >= 0, "0 or more"),
    (("learning_rate", "temperature", "rate", "lora_alpha"), lambda v: v > 0, "more than 0"),
    (("sequence_length", "max_length"), lambda v: v >= 8, "at least 8 tokens"),
    (("vocab_size",), lambda v: v >= 300, "at least 300: five special pieces, 256 bytes and some words"),
    (("group",), lambda v: v == 0 or v > 1, "0 or at least 2"),
    (("bits",), lambda v: v in (4, 8), "4 or 8"),
    (("max_drop",), lambda v: v == -1 or v >= 0, "-1 or at least 0"),
    (("lose",), lambda v: 0 <= v <= 100, "between 0 and 100"),
    (("layers", "augment"), lambda v: v <= 1_000, "at most 1,000"),
    (("width", "heads"), lambda v: v <= 100_000, "at most 100,000"),
    (("feedforward", "batch_size", "batch_start", "epochs", "sequence_length", "max_length"), lambda v: v <= 1_000_000, "at most 1,000,000"),
    (("vocab_size",), lambda v: v <= 10_000_000, "at most 10,000,000"),
    (("data",), lambda v: not isinstance(v, int) or v == -1 or v >= 1, "-1 or at least 1"),
)
