"""A classifier as one StableHLO program (`jax.export`), weights included, that jax alone runs: any number of texts of
any length, int8 inside where the run is int8.

The folder: the program, the tokenizer's own file, labels and the like in `config.json`, a README that loads it.
"""

import importlib.util
import json
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import export

from lsp import Exit, LspError, interrupt, lacking
from lsp.checkpoint import Model
from lsp.data.tokenizer import SEP, SPECIALS, SentencePiece
from lsp.deploy.parity import Answer, fits_one_file
from lsp.manifest import write_atomically
from lsp.model.encoder import graphdef, options_of
from lsp.model.int8 import present

FILE, CONFIG, README = "model.stablehlo", "config.json", "README.md"
# Lowering for those that are not there costs a few kilobytes, and nothing when it runs.
PLATFORMS = ("cpu", "cuda", "tpu")


def write(model: Model, out: Path) -> list[str]:
    """The folder's files, by name. Raises LspError: 2 for what is no classifier, 5 without flatbuffers."""
    if model.config.head != "classes":
        raise LspError("--format stablehlo writes classifiers.", hint="Make one of the encoder: lsp finetune.")
    fits_one_file(model.params)
    write_atomically(out / FILE, program(model))
    model.tokenizer.save(out / "tokenizer")
    write_atomically(out / CONFIG, json.dumps(_config(model), indent=1, ensure_ascii=False) + "\n")
    write_atomically(out / README, _readme(model))
    return [FILE, f"tokenizer/{model.tokenizer.file}", CONFIG, README]


def program(model: Model) -> bytes:
    """(tokens int32 [B, T], types int32 [B, T]) → logits fp32 [B, C] of any B and T ≤ `max_length`, serialised.

    Tokens are 0 on padding. No safety check of jax's is off: the integer products are plain StableHLO.
    """
    need_flatbuffers()
    structure, params = graphdef(model.config), model.params

    def answer(tokens_BT: jax.Array, types_BT: jax.Array) -> jax.Array:
        return nnx.merge(structure, params).classify(tokens_BT, (tokens_BT != 0).astype(jnp.int32), types_BT)

    sizes = export.symbolic_shape("batch, tokens", constraints=[f"tokens <= {model.config.max_length}"])
    shape = jax.ShapeDtypeStruct(sizes, jnp.int32)
    return bytes(export.export(jax.jit(answer), platforms=PLATFORMS)(shape, shape).serialize())


def answerer(folder: Path) -> Answer:
    """What the program in a folder answers; compiled for each shape when that first comes, as for a run.

    Bytes are trusted: whoever calls has compared them with a manifest. Raises LspError: 4 for what is no such program,
    5 without flatbuffers.
    """
    need_flatbuffers()
    options = options_of(json.loads((folder / CONFIG).read_bytes()).get("int8", False))
    try:
        exported = export.deserialize(bytearray((folder / FILE).read_bytes()))
        takes = [(aval.ndim, aval.dtype) for aval in exported.in_avals]
    except Exception as error:  # flatbuffers and MLIR raise whatever they stumble over
        raise LspError(
            f"{folder / FILE} is no program that this version of jax reads: {(str(error).splitlines() or ['?'])[0]}",
            hint="Export it again, with the version of lsp that is to use it.",
            code=Exit.ARTIFACT,
        ) from None
    if takes != [(2, jnp.int32)] * 2:
        raise LspError(f"{folder / FILE} does not take tokens and types.", hint="Export it again.", code=Exit.ARTIFACT)
    call, compiled = jax.jit(exported.call), {}

    def answer(tokens_BT: np.ndarray, types_BT: np.ndarray) -> np.ndarray:
        if tokens_BT.shape not in compiled:
            lowered = call.lower(tokens_BT, types_BT)
            compiled[tokens_BT.shape] = interrupt.apart(partial(lowered.compile, options))
        return jax.device_get(compiled[tokens_BT.shape](tokens_BT, types_BT))

    return answer


def need_flatbuffers() -> None:
    """Raises LspError (exit 5) without the package that jax writes programs with."""
    if importlib.util.find_spec("flatbuffers") is None:
        raise lacking("StableHLO files need the Python package flatbuffers.", "stablehlo")


def _config(model: Model) -> dict[str, Any]:
    """What one needs to know beside the program. `special_pieces` are the tokenizer's own ids of the five pieces that
    have the ids 0 to 4 here."""
    return {
        "labels": list(model.labels),
        "problem": model.config.problem,
        "max_length": model.config.max_length,
        "special_pieces": dict(zip(SPECIALS, model.tokenizer.theirs[: len(SPECIALS)].tolist(), strict=True)),
        "between_texts": [SPECIALS[index] for index in model.tokenizer.between],
        "platforms": list(PLATFORMS),
        "int8": present(model.params),
    }


SENTENCE_PIECE = """from sentencepiece import SentencePieceProcessor

pieces = SentencePieceProcessor(model_file="tokenizer/tokenizer.model").encode(text)"""
PUBLISHED = """import tokenizers

words = tokenizers.Tokenizer.from_file("tokenizer/tokenizer.json")
words.encode_special_tokens = True
words.no_padding(), words.no_truncation()
special = list(config["special_pieces"].values())  # they come first here, the others follow in their order
pieces = [i + sum(s > i for s in special) if i not in special else special.index(i)
          for i in words.encode(text, add_special_tokens=False).ids]"""


def _readme(model: Model) -> str:
    """How jax runs it, to paste."""
    ours = model.tokenizer.file == SentencePiece.file
    package, encode = ("sentencepiece", SENTENCE_PIECE) if ours else ("tokenizers", PUBLISHED)
    return f"""# A text classifier as StableHLO

`pip install jax=={jax.__version__} flatbuffers {package}`. The file is a program: run it only if you trust its source.

```python
import json
import jax, jax.export, numpy as np
{encode.partition(chr(10) * 2)[0]}

config, text = json.load(open("{CONFIG}")), "A text to classify."
{encode.partition(chr(10) * 2)[2]}
tokens = np.array([[2, *pieces[: config["max_length"] - 2], {SEP}]], np.int32)  # pad rows of a batch with 0
model = jax.jit(jax.export.deserialize(bytearray(open("{FILE}", "rb").read())).call)
logits = model(tokens, np.zeros_like(tokens))  # the second argument is 1 on the second text of a pair
print(dict(zip(config["labels"] or ["value"], np.asarray(logits[0]).tolist())))
```
"""
