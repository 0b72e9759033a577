"""A tokenizer with fewer pieces, that cuts every text as before that none of the others came up in."""

import itertools
import json
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from lsp.data.published import Published
from lsp.data.tokenizer import SPECIALS, SentencePiece, Tokenizer

NORMAL, BPE = 1, 2  # of SentencePiece: the kind of pieces that text can become, and the kind of models that join pairs
CONTINUES = "##"  # of WordPiece, before what is not the beginning of a word
Rank = Callable[[str, str], float | None]  # of two neighbours, when they are joined: lower is earlier, None is never


def subset(words: Tokenizer, wanted: np.ndarray) -> tuple[Tokenizer, np.ndarray]:
    """The tokenizer with the pieces that are `wanted`, bool [size], and of its ids the old ones, int32 [new size].

    Kept besides are special pieces, bytes, ASCII characters, and what a wanted piece is put together from.
    """
    return _of_pieces(words, wanted) if isinstance(words, SentencePiece) else _of_tokens(words, wanted)


def joined(piece: str, rank: Rank) -> set[str]:
    """All that comes up while byte-pair encoding puts a piece together from its characters."""
    parts, found = list(piece), set(piece)
    while len(parts) > 1:
        ranks = [rank(*pair) for pair in itertools.pairwise(parts)]
        some = [(each, place) for place, each in enumerate(ranks) if each is not None]
        if not some:
            break
        place = min(some)[1]
        parts[place : place + 2] = ["".join(parts[place : place + 2])]
        found.add(parts[place])
    return found


def _plain(piece: str) -> bool:
    """Whether a piece is an ASCII character, or the space of SentencePiece."""
    return len(piece) == 1 and (piece.isascii() or piece == "▁")


def _of_pieces(words: Tokenizer, wanted: np.ndarray) -> tuple[Tokenizer, np.ndarray]:
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto.FromString(words.model)
    pieces = list(proto.pieces)
    kept = {piece.piece for piece, want in zip(pieces, wanted.tolist(), strict=True) if want or _plain(piece.piece)}
    if proto.trainer_spec.model_type == BPE:
        scores = {piece.piece: -piece.score for piece in pieces if piece.type == NORMAL}
        kept |= _parts_of(kept & scores.keys(), lambda one, other: scores.get(one + other))
    old = [number for number, piece in enumerate(pieces) if piece.type != NORMAL or piece.piece in kept]
    del proto.pieces[:]
    proto.pieces.extend(pieces[number] for number in old)
    proto.trainer_spec.vocab_size = len(old)
    return SentencePiece(proto.SerializeToString()), np.array(old, np.int32)


def _of_tokens(words: Tokenizer, wanted: np.ndarray) -> tuple[Tokenizer, np.ndarray]:
    table = json.loads(words.model)
    model = table["model"]
    names: dict[int, str] = (
        {number: piece for piece, number in model["vocab"].items()}
        if isinstance(model["vocab"], dict)
        else {number: piece for number, (piece, _) in enumerate(model["vocab"])}
    )
    asked = set(words.theirs[wanted].tolist()) | {token["id"] for token in table.get("added_tokens", ())}
    asked |= set(words.theirs[: len(SPECIALS)].tolist())
    asked |= {number for number, piece in names.items() if _plain(piece.removeprefix(CONTINUES))}
    if "merges" in model:
        pairs = [tuple(pair.split(" ", 1)) if isinstance(pair, str) else tuple(pair) for pair in model["merges"]]
        ranks = {pair: float(rank) for rank, pair in enumerate(pairs)}
        pieces = {names[number] for number in asked & names.keys()}
        parts = pieces | _parts_of(pieces, lambda one, other: ranks.get((one, other)))
        asked |= {number for number, piece in names.items() if piece in parts or len(piece) == 1}
        left = {names[number] for number in asked & names.keys()}
        model["merges"] = [
            pair
            for pair, whole in zip(model["merges"], pairs, strict=True)
            if left.issuperset((*whole, "".join(whole)))
        ]
    new = {old: number for number, old in enumerate(sorted(asked))}
    _renumber(table, new)
    made = Published(json.dumps(table, ensure_ascii=False).encode())
    ours = np.empty(words.size, np.int32)
    ours[words.theirs] = np.arange(words.size, dtype=np.int32)
    return made, ours[np.array(sorted(asked))[made.theirs]]


def _parts_of(pieces: Iterable[str], rank: Rank) -> set[str]:
    return set().union(*(joined(piece, rank) for piece in pieces))


def _renumber(table: dict[str, Any], new: dict[int, int]) -> None:
    """Every id of a `tokenizer.json` as its new one, and no piece without one."""
    model = table["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {piece: new[old] for piece, old in model["vocab"].items() if old in new}
    else:
        model["vocab"] = [entry for old, entry in enumerate(model["vocab"]) if old in new]
        model["unk_id"] = new[model["unk_id"]]
    for token in table.get("added_tokens", ()):
        token["id"] = new[token["id"]]
    if table.get("padding"):
        table["padding"]["pad_id"] = new[table["padding"]["pad_id"]]
    _renumber_ends(table.get("post_processor"), new)


def _renumber_ends(part: Any, new: dict[int, int]) -> None:
    """The ids of the special pieces that a post-processor, or one inside it, puts around texts."""
    if not isinstance(part, dict):
        return
    for token in part.get("special_tokens", {}).values() if isinstance(part.get("special_tokens"), dict) else ():
        token["ids"] = [new[old] for old in token["ids"]]
    for end in ("sep", "cls"):
        if isinstance(part.get(end), list):
            part[end] = [part[end][0], new[part[end][1]]]
    for inner in part.get("processors", ()):
        _renumber_ends(inner, new)
