"""What a teacher says of examples: computed once, in rows that examples share, and kept between runs."""

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np

from lsp import LspError, cache
from lsp.checkpoint import Checkpoint
from lsp.data.examples import Examples
from lsp.train.evaluate import Classifier


def answers(teacher: Checkpoint, examples: Examples, progress: Any) -> np.ndarray:
    """The teacher's logits, fp32 [N, C], of examples in its own tokens, without dropout."""

    def ask() -> np.ndarray:
        progress.say(f"asking the teacher about {len(examples):,} examples")
        return Classifier(teacher.config).logits(teacher.params, examples)

    like = (np.float32, (len(examples), teacher.config.classes))
    return kept("teacher", _key(teacher, examples), ask, like, progress)


def kept(
    name: str, key: str, make: Callable[[], np.ndarray], like: tuple[Any, tuple[int, ...]], progress: Any
) -> np.ndarray:
    """The array of an entry, of the type and shape that it is to be `like`; else `make` makes it, and it is kept."""
    kind, shape = like
    try:
        if (body := cache.load(name, key)) is not None:
            return np.frombuffer(body, kind).reshape(shape)
    except (ValueError, LspError) as error:
        progress.warn(f"made again, since what was kept can't be used: {error}")
    array = make()
    cache.save(name, key, array.astype(kind).tobytes())
    return array


def _key(teacher: Checkpoint, examples: Examples) -> str:
    """Names teacher, texts and how they were cut, and nothing else."""
    found = hashlib.sha256(teacher.manifest["self"].encode())
    for array in (examples.lengths, examples.seconds, np.concatenate(examples.tokens)):
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()
