"""Values as a person would write them, and text of others with nothing in it that a terminal or a page would obey."""

import re
from typing import Any

# Control characters but tab and newline, the C1 range, line separators, and marks that reorder what follows: text from
# a data file or a path could otherwise move the cursor, recolour the terminal or spoof a line.
UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufff9-\ufffb]"
)


def safe(text: str) -> str:
    """`text` with every character a terminal might obey written as an escape."""
    return UNSAFE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def number(value: Any) -> str:
    """Four significant digits and thousands apart; other values as text."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 or float(value).is_integer() else f"{value:.4g}"


def duration(seconds: float) -> str:
    """`2.5 s`, `4 min 05 s` or `3 h 20 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def size(count: float) -> str:
    """Bytes for a person, in powers of ten."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
