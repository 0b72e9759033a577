"""Where words begin, read off the pieces of a tokenizer once, so that rows of ids can be cut into words by look-up.

Each id has a code of three bits. `BEGINS`: the piece begins a word, because it is written with a space (`▁`) or starts
with a sign or a character of a script that is written without spaces. `CLOSES`: what follows begins a word. `BORDER`:
a special token, a word by itself that no segment reaches across.

Signs stand alone and digits go with letters, as in BERT's basic tokenizer: `don't` is three words and `covid19` is one.
In scripts without spaces every piece begins a word, for a piece of theirs is about a word. The bytes of a character
that is not in the vocabulary stay together.
"""

import re
import unicodedata
from collections.abc import Sequence

import numpy as np

from lsp.data.tokenizer import SPECIALS

BEGINS, CLOSES, BORDER = 1, 2, 4

# Thai, Lao, Myanmar, Khmer, kana and Han with their extensions. Hangul is not here: Korean is written with spaces.
UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u19e0-\u19ff\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3040-\u30ff"
    "\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\ua9e0-\ua9ff\uaa60-\uaa7f\uf900-\ufaff\U00020000-\U0003ffff]"
)
BYTE = re.compile("<0x([0-9A-F]{2})>")


def borders(pieces: Sequence[str]) -> np.ndarray:
    """The code of each piece, uint8 [V]; the first five are the special ones."""
    codes = [BEGINS | CLOSES | BORDER] * len(SPECIALS) + [_code(piece) for piece in pieces[len(SPECIALS) :]]
    return np.array(codes, np.uint8)


def starts(codes: np.ndarray) -> np.ndarray:
    """Which tokens begin a word, bool [B, T], by their codes [B, T]. The first of a row or of a segment does."""
    first = np.ones_like(codes, bool)
    np.logical_or(codes[:, 1:] & BEGINS, codes[:, :-1] & CLOSES, out=first[:, 1:])
    return first


def _code(piece: str) -> int:
    if byte := BYTE.fullmatch(piece):
        return _byte(int(byte[1], 16))
    text = piece.lstrip("▁")
    begins = len(text) < len(piece) or _alone(text[0])
    return BEGINS * begins | CLOSES * (text != "" and _alone(text[-1]))


def _byte(value: int) -> int:
    """A byte that opens a character decides by the scripts it can open, one inside a character goes with it."""
    if value < 0x80:
        return (BEGINS | CLOSES) * _alone(chr(value))
    # From U+2000 on come signs, kana, Han and emoji, but for Hangul and its neighbours, U+A000 to U+EFFF.
    return BEGINS * (value >= 0xE2 and not 0xEA <= value <= 0xEE)


def _alone(character: str) -> bool:
    """Is it a word by itself, or part of a text without spaces? Letters, digits, marks and joiners are neither."""
    category = unicodedata.category(character)
    return UNSPACED.match(character) is not None or not (category[0] in "LNM" or category == "Cf")
