"""Words as a reader would cut them, from pieces alone."""

import numpy as np
import pytest

from lsp.data import words
from lsp.data.tokenizer import SPECIALS


def cut(pieces: str) -> str:
    """`pieces`, written apart by spaces, as words apart by spaces with `·` between the pieces of one."""
    split = pieces.split()
    codes = words.borders([*SPECIALS, *split])
    ids = [SPECIALS.index(piece) if piece in SPECIALS else len(SPECIALS) + at for at, piece in enumerate(split)]
    starts = words.starts(codes[np.array([ids])])[0]
    return "".join((" " if start else "·") + piece for piece, start in zip(split, starts, strict=True)).strip()


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ("[CLS] ▁play ing ▁chess [SEP] [PAD]", "[CLS] ▁play·ing ▁chess [SEP] [PAD]"),
        ("[CLS] ing ▁go [SEP] [CLS] er [SEP]", "[CLS] ing ▁go [SEP] [CLS] er [SEP]"),  # cut inside a word
        ("▁don ' t", "▁don ' t"),
        ("▁( an ) ▁well - known", "▁( an ) ▁well - known"),
        ("▁covid 19 ▁3 . 5 ▁ 20 18", "▁covid·19 ▁3 . 5 ▁·20·18"),
        ("中国 人 abc 中 2018 年", "中国 人 abc 中 2018 年"),
        ("▁コン ピュー タ の データ", "▁コン ピュー タ の データ"),
        ("▁ภาษา ไทย ▁ພາ ສາ ▁ភាសា ខ្មែរ ▁မြန် မာ", "▁ภาษา ไทย ▁ພາ ສາ ▁ភាសា ខ្មែរ ▁မြန် မာ"),
        ("▁한국 어 ▁हिन् दी ▁рус ский", "▁한국·어 ▁हिन्·दी ▁рус·ский"),
        ("▁e \u0301 t", "▁e·\u0301·t"),  # a combining accent
        ("▁می \u200c خوا", "▁می·\u200c·خوا"),  # a joiner between letters
        ("▁caf <0xC3> <0xA9> s", "▁caf·<0xC3>·<0xA9>·s"),
        ("額 <0xE8> <0xBC> <0x93> <0xE9> <0xBE> <0x98>", "額 <0xE8>·<0xBC>·<0x93> <0xE9>·<0xBE>·<0x98>"),
        ("▁한 <0xEB> <0xB7> <0x81>", "▁한·<0xEB>·<0xB7>·<0x81>"),
        ("▁a <0xF0> <0x9F> <0x98> <0x80> <0x7B> b", "▁a <0xF0>·<0x9F>·<0x98>·<0x80> <0x7B> b"),
    ],
)
def test_pieces_are_cut_into_words(pieces: str, expected: str) -> None:
    assert cut(pieces) == expected


def test_every_row_begins_anew() -> None:
    codes = words.borders([*SPECIALS, "▁a", "b"])
    assert words.starts(codes[np.array([[5, 6], [6, 6]])]).tolist() == [[True, False], [True, False]]
