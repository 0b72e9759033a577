"""Text to ids and back, with the five special pieces at fixed ids: SentencePiece models, which we train, and the
tokenizers of published checkpoints (`data/published.py`).

No text, not even a literal "[MASK]", is ever encoded to a special piece, but for what is in no vocabulary: [UNK].
"""

import hashlib
import heapq
import io
import random
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import sentencepiece

from lsp import Exit, LspError
from lsp.manifest import read_bounded, write_atomically

PAD, UNK, CLS, SEP, MASK = range(5)
SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
LARGEST_FILE = 256 << 20  # bytes that are read as a tokenizer
SMALLEST = 300  # pieces that a recipe may ask for
LINE = 2048  # characters; longer lines of the sample are cut, or the trainer would pass them over
# Of sample: 8.4 MB for 8,192 pieces. On English Wikipedia three times as much made unseen text 0.7 % shorter, counted
# in tokens, and took twice as long; half as much made it 1.3 % longer.
BYTES_PER_PIECE = 1024


class Tokenizer(ABC):
    """`model` is the bytes of its `file`, `hash` their SHA-256, `size` the number of ids."""

    file: str
    size: int
    between: tuple[int, ...] = (SEP,)  # what stands between the texts of a pair
    theirs: np.ndarray  # int32 [size], the id that each piece has outside of lsp

    def __init__(self, model: bytes) -> None:
        self.model, self.hash = model, hashlib.sha256(model).hexdigest()

    @staticmethod
    def load(directory: Path) -> "Tokenizer":
        """The tokenizer in `directory`, or in `directory/tokenizer`, as in a run. Raises LspError (exit 4)."""
        if found := Tokenizer.find(directory) or Tokenizer.find(directory / "tokenizer"):
            return found
        raise LspError(
            f"{directory} holds no tokenizer: no {SentencePiece.file}, tokenizer.json or vocab.txt.",
            hint="Give a directory made by lsp prepare or lsp pretrain, or a published checkpoint.",
            code=Exit.ARTIFACT,
        )

    @staticmethod
    def find(folder: Path) -> "Tokenizer | None":
        """The tokenizer whose files lie in `folder`, if any. Raises LspError (exit 4)."""
        from lsp.data import published

        if (path := folder / SentencePiece.file).is_file():
            return SentencePiece(read_bounded(path, LARGEST_FILE), str(path))
        return published.find(folder)

    def save(self, directory: Path) -> None:
        """Writes the file into `directory`, whole or not at all."""
        directory.mkdir(parents=True, exist_ok=True)
        write_atomically(directory / self.file, self.model)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, without special pieces; uses all cores."""
        return [ids.tolist() for ids in self.encode_arrays(texts)]

    @abstractmethod
    def encode_arrays(self, texts: Sequence[str]) -> list[np.ndarray]:
        """As `encode`, each text an int32 array [tokens]."""

    @abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, special pieces left out; normalised as it was for encoding."""

    @abstractmethod
    def pieces(self, ids: Iterable[int]) -> list[str]:
        """How each id is written; `▁` stands for a space, and `<0xE4>` for a byte."""


def spelt(pieces: str) -> str:
    """Pieces as they are written, with bytes put together to characters."""

    def characters(match: re.Match[str]) -> str:
        return bytes.fromhex(match[0].replace("<0x", "").replace(">", "")).decode(errors="backslashreplace")

    return re.sub("(<0x[0-9A-F]{2}>)+", characters, pieces)


class SentencePiece(Tokenizer):
    """A trained SentencePiece model."""

    file = "tokenizer.model"

    def __init__(self, model: bytes, name: str = "the tokenizer") -> None:
        super().__init__(model)
        try:
            self._pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
            self.size = self._pieces.vocab_size()
            self.theirs = np.arange(self.size, dtype=np.int32)
            first = tuple(self._pieces.id_to_piece(index) for index in range(min(5, self.size)))
        except (RuntimeError, ValueError, IndexError):
            raise LspError(
                f"{name} is no SentencePiece model, or a damaged one.",
                hint="Give a directory made by lsp.",
                code=Exit.ARTIFACT,
            ) from None
        if first != SPECIALS or not all(self._pieces.is_control(index) for index in (PAD, CLS, SEP, MASK)):
            raise LspError(
                f"{name} has {', '.join(first) or 'nothing'} at ids 0 to 4, not {', '.join(SPECIALS)}.",
                hint="Give a tokenizer trained by lsp.",
                code=Exit.ARTIFACT,
            )

    def encode_arrays(self, texts: Sequence[str]) -> list[np.ndarray]:
        return self._pieces.encode(list(texts), out_type="numpy", num_threads=-1)

    def decode(self, ids: Iterable[int]) -> str:
        return self._pieces.decode([int(index) for index in ids if index > MASK])

    def pieces(self, ids: Iterable[int]) -> list[str]:
        return [self._pieces.id_to_piece(int(index)) for index in ids]


def train(
    documents: Iterable[str], *, vocab_size: int, kind: str, lowercase: bool, seed: int, sample_bytes: int = 0
) -> Tokenizer:
    """A tokenizer `learn`t from a `sample` of the documents' lines."""
    return learn(
        sample(documents, vocab_size, seed, sample_bytes), vocab_size=vocab_size, kind=kind, lowercase=lowercase
    )


def learn(lines: Sequence[str], *, vocab_size: int, kind: str, lowercase: bool) -> Tokenizer:
    """A tokenizer of `vocab_size` ids learnt from `lines`, usually a `sample` of documents.

    `kind` is "unigram" or "bpe". Text is normalised to NFKC (case folded too when `lowercase`), and characters outside
    the vocabulary become bytes. The same lines give the same bytes on any machine. Raises LspError (exit 3) when the
    text is too little, saying what would work.
    """
    if not lines:
        raise LspError(
            "The input holds no text to train a tokenizer on.", hint="Give files with text in them.", code=Exit.DATA
        )
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            model_type=kind,
            vocab_size=vocab_size,
            normalization_rule_name="nmt_nfkc_cf" if lowercase else "nmt_nfkc",
            byte_fallback=True,
            pad_id=PAD,
            unk_id=UNK,
            bos_id=CLS,
            eos_id=SEP,
            pad_piece=SPECIALS[PAD],
            unk_piece=SPECIALS[UNK],
            bos_piece=SPECIALS[CLS],
            eos_piece=SPECIALS[SEP],
            control_symbols=[SPECIALS[MASK]],
            max_sentence_length=8 * LINE,
            shuffle_input_sentence=False,
            num_threads=16,  # the sums of unigram training are grouped by thread, so the number decides their last bits
            minloglevel=2,
        )
    except RuntimeError as error:
        raise _unfit(str(error), vocab_size) from None
    return SentencePiece(model.getvalue())


def sample(documents: Iterable[str], vocab_size: int, seed: int, size: int = 0) -> list[str]:
    """A random sample of the documents' lines, in their order, of at most `size` bytes of UTF-8: 1 KiB a piece when 0.

    Every line draws a number, and those with the smallest are kept (reservoir sampling by keys, Efraimidis and
    Spirakis, 2006), so each line has the same chance wherever it stands, and memory is bounded by `size`.
    """
    size = size or BYTES_PER_PIECE * vocab_size
    draw = random.Random(seed).random
    kept: list[tuple[float, int, str]] = []  # a heap, the largest number first out
    held, limit = 0, 1.0
    for index, line in enumerate(_lines(documents)):
        number = draw()
        if number >= limit:
            continue
        heapq.heappush(kept, (-number, index, line))
        held += len(line.encode())
        while held > size and len(kept) > 1:
            dropped, _, line = heapq.heappop(kept)
            held, limit = held - len(line.encode()), -dropped
    return [line for _, _, line in sorted(kept, key=lambda entry: entry[1])]


def _lines(documents: Iterable[str]) -> Iterator[str]:
    for document in documents:
        for line in document.split("\n"):
            if not line or line.isspace():
                continue
            for start in range(0, len(line), LINE):
                yield line[start : start + LINE]


def _unfit(message: str, vocab_size: int) -> LspError:
    if high := re.search(r"too high.*<= (\d+)", message):
        smaller = f", or --set data.vocab_size={high[1]}" if int(high[1]) >= SMALLEST else ""
        return LspError(
            f"The text is too little for {vocab_size} pieces; it supports at most {high[1]}.",
            hint=f"Give more text{smaller}.",
            code=Exit.DATA,
        )
    if low := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        return LspError(
            f"{vocab_size} pieces can't hold the characters of this text.",
            hint=f"Use --set data.vocab_size={low[1]} or more.",
            code=Exit.DATA,
        )
    return LspError(
        f"No tokenizer of {vocab_size} pieces can be trained on this text: {message}",
        hint="Give more text, or a smaller data.vocab_size.",
        code=Exit.DATA,
    )
