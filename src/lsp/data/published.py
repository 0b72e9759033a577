"""The tokenizers of published checkpoints: `tokenizer.json`, as the `tokenizers` library reads it, or older files.

Those are BERT's `vocab.txt`, and RoBERTa's `vocab.json` with `merges.txt`.

A published vocabulary has its special pieces anywhere. Here they come first, as everywhere in lsp, and the other pieces
follow in their order: `Published.theirs` is the way back, for what leaves lsp.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from lsp import Exit, LspError
from lsp.data.tokenizer import LARGEST_FILE, MASK, SEP, SPECIALS, Tokenizer
from lsp.manifest import read_bounded

SETTINGS, ADDED = "tokenizer_config.json", "added_tokens.json"
FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "merges.txt", SETTINGS, ADDED)  # all that is read
# Who may have written the older files so that they say all there is to know; of other languages some cut words first.
_ANY = ("PreTrainedTokenizer", "TokenizersBackend")
WORD_PIECES = (*_ANY, "BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer")
BYTE_PAIRS = (*_ANY, "RobertaTokenizer")
# How the special pieces are written, by role; the first that a vocabulary has is the one.
PADS, UNKNOWNS, MASKS = ("[PAD]", "<pad>"), ("[UNK]", "<unk>"), ("[MASK]", "<mask>")
ENDS = ("[CLS]", "[SEP]", "<s>", "</s>")
MOST_PIECES = 1 << 24
LONGEST_WORD = 100  # characters; BERT's tokenizer takes longer words for unknown ones


class Published(Tokenizer):
    """A `tokenizer.json`. `theirs` int32 [size] are the published ids, in the order of ours."""

    file = "tokenizer.json"

    def __init__(self, model: bytes, name: str = "the tokenizer") -> None:
        super().__init__(model)
        self._tokens = _parsed(model, name)
        self._tokens.encode_special_tokens = True  # text is text: a literal [SEP] in it is not the special piece
        self._tokens.no_truncation()
        self._tokens.no_padding()
        vocabulary = self._tokens.get_vocab(with_added_tokens=True)
        self.size = 1 + max(vocabulary.values(), default=-1)
        if not 5 <= self.size <= MOST_PIECES:
            raise _unusable(name, f"it has {self.size:,} ids")
        try:
            pair = self._tokens.encode("", "")
            self._tokens.encode("\U00016800")  # a letter of Bamum, which is in no vocabulary
        except BaseException as error:
            raise _refused(name, error) from None
        self.tells_apart = any(pair.type_ids)  # the second text of a pair from the first, by its type
        ends = pair.ids  # [CLS] [SEP] [SEP], of RoBERTa <s> </s> </s> </s>
        if not 3 <= len(ends) <= 5 or len({*ends[1:]}) != 1 or not 0 <= min(ends) <= max(ends) < self.size:
            raise _unusable(name, "it does not put one piece before a text and another behind it")
        self.between = (SEP,) * (len(ends) - 2)
        first = [_named(vocabulary, PADS, name), _unknown(model, vocabulary, name), *ends[:2]]
        first.append(_named(vocabulary, MASKS, name))
        if len({*first}) != len(first):
            raise _unusable(name, "two of its special pieces have the same id")
        others = np.setdiff1d(np.arange(self.size, dtype=np.int32), first)
        self.theirs = np.concatenate([np.array(first, np.int32), others])
        self._ours = np.empty(self.size, np.int32)
        self._ours[self.theirs] = np.arange(self.size, dtype=np.int32)
        self._written = _writing(self._tokens.to_str())

    def encode_arrays(self, texts: Sequence[str]) -> list[np.ndarray]:
        encoded = self._tokens.encode_batch_fast(list(texts), add_special_tokens=False)
        return [self._ours[np.array(each.ids, np.int64)] for each in encoded]

    def decode(self, ids: Iterable[int]) -> str:
        return self._tokens.decode([int(self.theirs[index]) for index in ids if index > MASK])

    def pieces(self, ids: Iterable[int]) -> list[str]:
        found = ((int(index), self._tokens.id_to_token(int(self.theirs[index]))) for index in ids)
        return [(piece or "") if index <= MASK else self._written(piece or "") or "▁" for index, piece in found]

    def called(self, published: int) -> str:
        """The piece with a published id, as its makers write it."""
        return self._tokens.id_to_token(published) or ""


def find(folder: Path) -> Published | None:
    """The tokenizer whose files lie in `folder`, if any. Raises LspError (exit 4)."""
    settings = read_json(folder / SETTINGS) if (folder / SETTINGS).is_file() else {}
    if (path := folder / Published.file).is_file():
        if not settings:  # as lsp saves it, and then it is to be what it was
            return Published(read_bounded(path, LARGEST_FILE), str(path))
        made = _as_set(read_bounded(path, LARGEST_FILE), settings, str(path))
    elif (path := folder / "vocab.txt").is_file():
        _refuse_others(path, settings, WORD_PIECES)
        made = _word_pieces(path, settings)
    elif (path := folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        _refuse_others(path, settings, BYTE_PAIRS)
        made = _byte_pairs(path, folder / "merges.txt", settings)
    else:
        return None
    return _markers_kept(Published(made, str(path)), str(path))


def _markers_kept(words: Published, name: str) -> Published:
    """The same tokenizer, that finds in a text all added pieces but those that begin, end, fill and hide: a marker like
    `[E1]`, which is a special piece too, is there to be written."""
    table = json.loads(words.model)
    roles, changed = {*words.theirs[: len(SPECIALS)].tolist()}, False
    for each in table.get("added_tokens") or []:
        if each.get("special") and each["id"] not in roles:
            each["special"], changed = False, True
    return Published(_dumped(table), name) if changed else words


def _as_set(model: bytes, settings: dict[str, Any], name: str) -> bytes:
    """A `tokenizer.json` as transformers has it once it has read `tokenizer_config.json`, which counts more."""
    _parsed(model, name)
    table = json.loads(model)
    kind, changed = str(settings.get("tokenizer_class") or ""), False
    wishes = [("pre_tokenizer", "ByteLevel", "add_prefix_space", "add_prefix_space")]
    if not kind.startswith(_ANY):
        names = {"do_lower_case": "lowercase", "tokenize_chinese_chars": "handle_chinese_chars"}
        names |= {"strip_accents": "strip_accents"}
        wishes += [("normalizer", "BertNormalizer", theirs, own) for theirs, own in names.items()]
    for part, of, theirs, own in wishes:
        found = table.get(part)
        if isinstance(found, dict) and found.get("type") == of and theirs in settings:
            wanted = settings[theirs] if settings[theirs] is None else bool(settings[theirs])
            changed |= found.get(own) != wanted
            found[own] = wanted
    return _dumped(table) if changed else model


def _dumped(table: Any) -> bytes:
    return json.dumps(table, ensure_ascii=False).encode()


def _refuse_others(path: Path, settings: dict[str, Any], known: Sequence[str]) -> None:
    """Raises LspError (exit 4) for the files of a tokenizer that does more than they say."""
    kind = str(settings.get("tokenizer_class") or known[-1])
    own = settings.get("auto_map") or settings.get("word_tokenizer_type")
    if own or kind.removesuffix("Fast") not in known:
        raise LspError(
            f"{path} is of a {kind}, which lsp can't follow by that file alone.",
            hint="Put its tokenizer.json beside it, where there is one.",
            code=Exit.ARTIFACT,
        )


def read_json(path: Path) -> dict[str, Any]:
    """An object in a small file. Raises LspError (exit 4)."""
    try:
        table = json.loads(read_bounded(path, 64 << 20))
        _dumped(table)  # half of a surrogate pair is no text
    except (ValueError, RecursionError) as error:
        raise LspError(f"{path} is not JSON: {error}.", code=Exit.ARTIFACT) from None
    if not isinstance(table, dict):
        raise LspError(f"{path} holds no JSON object.", code=Exit.ARTIFACT)
    return table


def _parsed(model: bytes, name: str) -> Any:
    try:
        return tokenizers.Tokenizer.from_buffer(model)
    except BaseException as error:
        raise _refused(name, error) from None


def _refused(name: str, error: BaseException) -> BaseException:
    """What the tokenizers library says of a file. It panics over some, which is no Exception."""
    if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError):
        return error
    return _unusable(name, (str(error).splitlines() or ["?"])[0])


def _unusable(name: str, why: str) -> LspError:
    return LspError(
        f"{name} is no tokenizer that lsp can use: {why}.",
        hint="BERT, RoBERTa, DistilBERT and ModernBERT have such ones.",
        code=Exit.ARTIFACT,
    )


def _named(vocabulary: dict[str, int], names: Sequence[str], where: str) -> int:
    found = next((vocabulary[name] for name in names if name in vocabulary), None)
    if found is None:
        raise _unusable(where, f"it has no {' or '.join(names)}")
    return found


def _unknown(model: bytes, vocabulary: dict[str, int], where: str) -> int:
    """The id of what is in no vocabulary, as the model says, or else by its name."""
    unknown = json.loads(model)["model"]
    declared = unknown.get("unk_token")
    if declared is None and isinstance(unknown.get("unk_id"), int):
        return int(unknown["unk_id"])
    return _named(vocabulary, (declared,) if isinstance(declared, str) else UNKNOWNS, where)


def _word_pieces(path: Path, settings: dict[str, Any]) -> bytes:
    """BERT's `vocab.txt` as a `tokenizer.json`: a piece a line, its number the id."""
    vocabulary = {line: number for number, line in enumerate(_lines(path))}
    cls, sep = (_named(vocabulary, (name,), str(path)) for name in ("[CLS]", "[SEP]"))
    made = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=LONGEST_WORD))
    accents = settings.get("strip_accents")
    made.normalizer = normalizers.BertNormalizer(
        lowercase=bool(settings.get("do_lower_case", True)),
        strip_accents=None if accents is None else bool(accents),
        handle_chinese_chars=bool(settings.get("tokenize_chinese_chars", True)),
    )
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    made.add_special_tokens([name for name in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if name in vocabulary])
    _add(made, path, settings)
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", cls), ("[SEP]", sep)],
    )
    return made.to_str(pretty=True).encode()


def _byte_pairs(path: Path, merges: Path, settings: dict[str, Any]) -> bytes:
    """RoBERTa's `vocab.json` and `merges.txt` as a `tokenizer.json`."""
    vocabulary = read_json(path)
    pairs = [line.partition(" ")[::2] for line in _lines(merges) if line and not line.startswith("#version")]
    cls, sep = (_named(vocabulary, (name,), str(path)) for name in ("<s>", "</s>"))
    try:
        made = tokenizers.Tokenizer(models.BPE(vocabulary, pairs, unk_token="<unk>"))
    except BaseException as error:
        raise _refused(str(path), error) from None
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=bool(settings.get("add_prefix_space", False)))
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([name for name in ("<s>", "<pad>", "</s>", "<unk>", "<mask>") if name in vocabulary])
    _add(made, path, settings)
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", cls), ("</s>", sep)]
    )
    return made.to_str(pretty=True).encode()


def _add(made: Any, path: Path, settings: dict[str, Any]) -> None:
    """Adds the pieces that came to a vocabulary later, as the files beside it say. Raises LspError (exit 4)."""
    beside = path.with_name(ADDED)
    pieces: dict[str, Any] = {}
    for content, number in (read_json(beside) if beside.is_file() else {}).items():
        pieces[str(number)] = {"content": content}
    decoder = settings.get("added_tokens_decoder")
    pieces |= decoder if isinstance(decoder, dict) else {}
    if not all(number.isdecimal() and len(number) < 10 and isinstance(piece, dict) for number, piece in pieces.items()):
        raise _unusable(str(path), "the pieces that were added to it have no numbers")
    for number, piece in sorted(pieces.items(), key=lambda item: int(item[0])):
        content, special = piece.get("content"), bool(piece.get("special"))
        if not isinstance(content, str) or not content:
            raise _unusable(str(path), f"the piece that was added as number {number} is no text")
        flags = {name: bool(piece.get(name)) for name in ("lstrip", "rstrip", "single_word")}
        token = tokenizers.AddedToken(content, normalized=bool(piece.get("normalized", not special)), **flags)
        if made.token_to_id(content) is None or content not in (*PADS, *UNKNOWNS, *MASKS, *ENDS):
            (made.add_special_tokens if special else made.add_tokens)([token])
        if made.token_to_id(content) != int(number):
            raise _unusable(str(path), f"{content!r} was added as number {number}, and is {made.token_to_id(content)}")


def _lines(path: Path) -> list[str]:
    try:
        lines = read_bounded(path, LARGEST_FILE).decode().removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise _unusable(str(path), f"{error.reason} at byte {error.start}") from None
    return [line.removesuffix("\r") for line in lines]


def _writing(model: str) -> Callable[[str], str]:
    """How the model's pieces are written as ours are."""
    table = json.loads(model)
    if table["model"].get("type") == "WordPiece":
        prefix = table["model"].get("continuing_subword_prefix", "##")
        return lambda piece: piece.removeprefix(prefix) if piece.startswith(prefix) else "▁" + piece
    if "ByteLevel" in _kinds(table.get("pre_tokenizer")) | _kinds(table.get("decoder")):
        return _bytes_written
    return lambda piece: piece


def _kinds(part: Any) -> set[str]:
    """The types of a part of the file, and of its parts."""
    inner = [*part.values(), part.get("type")] if isinstance(part, dict) else part if isinstance(part, list) else []
    return {kind for each in inner for kind in ({each} if isinstance(each, str) else _kinds(each))}


def _bytes_written(piece: str) -> str:
    """A byte-level piece (Radford et al., 2019): characters where its bytes are some, else the bytes."""
    values = [_bytes().get(character, -1) for character in piece]
    if -1 in values:
        return piece  # an added piece, written as it is
    try:
        return bytes(values).decode().replace(" ", "▁")
    except UnicodeDecodeError:
        return "".join(f"<0x{value:02X}>" for value in values)


@lru_cache(maxsize=1)
def _bytes() -> dict[str, int]:
    """The characters that stand for bytes: those that print stand for themselves, the rest for U+0100 and on."""

    def printing() -> Iterator[int]:
        yield from range(ord("!"), ord("~") + 1)
        yield from range(ord("¡"), ord("¬") + 1)
        yield from range(ord("®"), ord("ÿ") + 1)

    table = {chr(value): value for value in printing()}
    others = (value for value in range(256) if chr(value) not in table)
    return table | {chr(256 + place): value for place, value in enumerate(others)}
