"""A SentencePiece model as the `tokenizer.json` that transformers loads without code of ours."""

from collections.abc import Iterator
from typing import Any

import tokenizers
from sentencepiece import sentencepiece_model_pb2
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from lsp.data.published import Published
from lsp.data.tokenizer import CLS, SEP, SPECIALS, UNK, Tokenizer

NORMAL, USER_DEFINED = 1, 4  # kinds of pieces that text can become; the rest are special pieces and bytes
UNIGRAM = 1  # of the kinds of models; the other that we train is BPE
SPACE = "▁"
# tokenizers' Unigram finds special pieces and bytes in text that spells them out, `[SEP]` or `<0x41>`; SentencePiece
# never does. So such text is cut before its first letter: a piece that SentencePiece learnt is of one script.
SPELT = tokenizers.Regex(rf"\[(?=(?:{'|'.join(name[1:-1] for name in SPECIALS)})\])|<0(?=x[0-9A-F]{{2}}>)")


def converted(words: Tokenizer, types: int) -> Published:
    """The same pieces at the same ids. With two `types` the second text of a pair has the second.

    Two kinds of text are cut in another way, both rare, and not prose: letters under accents that stand alone, which
    Unicode's normal form changes, and long runs of one mark, whose pieces may come in another order.
    """
    if isinstance(words, Published):
        return _told_apart(words) if types > 1 else words
    proto = sentencepiece_model_pb2.ModelProto.FromString(words.model)
    unigram = proto.trainer_spec.model_type == UNIGRAM
    made = tokenizers.Tokenizer(_unigram(proto) if unigram else _byte_pairs(proto))
    normal = [normalizers.Strip(), normalizers.Replace(tokenizers.Regex(" {2,}"), " ")]
    if charsmap := proto.normalizer_spec.precompiled_charsmap:
        normal.insert(0, normalizers.Precompiled(charsmap))
    made.normalizer = normalizers.Sequence(normal)
    spaces = pre_tokenizers.Metaspace(SPACE, prepend_scheme="always")
    made.pre_tokenizer = pre_tokenizers.Sequence([spaces, pre_tokenizers.Split(SPELT, "merged_with_previous")])
    made.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(SPACE, prepend_scheme="always")])
    made.add_special_tokens([*SPECIALS])
    second = ":1" if types > 1 else ""
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair=f"[CLS] $A [SEP] $B{second} [SEP]{second}",
        special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)],
    )
    return Published(made.to_str().encode())


def _told_apart(words: Published) -> Published:
    """The same tokenizer with the second type for the second text of a pair, which RoBERTa's does not give it."""
    made = tokenizers.Tokenizer.from_str(words.model.decode())
    ends = made.encode("", "")
    if max(ends.type_ids):
        return words
    cls, *seps = ends.tokens
    made.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {seps[0]}",
        pair=f"{cls} $A {' '.join(seps[1:])} $B:1 {seps[0]}:1",
        special_tokens=[(cls, ends.ids[0]), (seps[0], ends.ids[1])],
    )
    return Published(made.to_str().encode())


def _unigram(proto: Any) -> Any:
    return models.Unigram([(piece.piece, piece.score) for piece in proto.pieces], UNK, byte_fallback=True)


def _byte_pairs(proto: Any) -> Any:
    """SentencePiece joins the neighbours whose joint piece scores best; a merge is any way to make a piece of two."""
    vocabulary = {piece.piece: index for index, piece in enumerate(proto.pieces)}
    joinable = {piece.piece for piece in proto.pieces if piece.type in (NORMAL, USER_DEFINED)}

    def merges() -> Iterator[tuple[str, str]]:
        for piece in sorted(proto.pieces, key=lambda piece: -piece.score):
            text = piece.piece
            ways = [(text[:at], text[at:]) for at in range(1, len(text)) if text in joinable]
            yield from (way for way in ways if joinable.issuperset(way))

    return models.BPE(vocabulary, [*merges()], unk_token=SPECIALS[UNK], fuse_unk=True, byte_fallback=True)
