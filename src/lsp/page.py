"""A page of HTML in one file: nothing in it is fetched, nothing runs, and it reads on a phone and on paper.

What comes from files or names goes through `text`. Pages are well-formed XML too, so that a test can read them.
"""

import html
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lsp.shown import safe

STYLE = """body{font:16px/1.6 system-ui,sans-serif;color:#222;background:#fff}
body{max-width:56em;margin:2em auto;padding:0 1em}
h1{font-size:1.5em;margin-bottom:.2em}h2{font-size:1.15em;margin-top:2em;border-bottom:1px solid #ddd}
b{font-weight:600}small,.note{color:#666;font-size:.85em}code,pre{font:.85em/1.5 ui-monospace,monospace}
pre{white-space:pre-wrap;overflow-wrap:anywhere;background:#f6f6f6;padding:.6em .8em;border-radius:.3em}
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:.9em}
th,td{text-align:left;vertical-align:top;padding:.3em .8em .3em 0;border-bottom:1px solid #eee}
th{font-weight:600;vertical-align:bottom}.n{text-align:right;font-variant-numeric:tabular-nums}
td.n{white-space:nowrap}
svg{max-width:100%;height:auto}summary{cursor:pointer}
@media print{body{margin:0;max-width:none;font-size:11px}figure,tr{break-inside:avoid}h2{break-after:avoid}}"""
# The title comes first: by it `ours` knows a page. The policy forbids a browser to fetch or to run anything.
SHELL = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"/><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1"/>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'"/>
<style>{style}</style></head>
<body>
{body}
</body></html>
"""


def page(title: str, body: Iterable[str], style: str = "") -> str:
    """The page of pieces of HTML; `title` is one of ours, as in `lsp report`."""
    return SHELL.format(title=title, style=STYLE + style, body="\n".join(body))


def ours(path: Path, title: str) -> bool:
    """Whether a path is a page that lsp made under this title."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return f"<title>{title}</title>".encode() in file.read(200)


def text(value: Any) -> str:
    """Any text, or a number, to stand between tags or in an attribute."""
    return html.escape(safe(str(value)))


def section(title: str, *pieces: str) -> list[str]:
    """A heading and what is under it; nothing where nothing is."""
    found = [piece for piece in pieces if piece]
    return [f"<h2>{text(title)}</h2>", *found] if found else []


def note(words: str) -> str:
    return f'<p class="note">{text(words)}</p>'


def table(rows: Sequence[Mapping[str, Any]], numbers: Iterable[str] = ()) -> str:
    """The rows under their keys, as text; those in `numbers` are set to the right. None is blank."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    right = set(numbers)
    kinds = {name: ' class="n"' if name in right else "" for name in names}
    head = "".join(f"<th{kinds[name]}>{text(name)}</th>" for name in names)
    lines = ["".join(f"<td{kinds[n]}>{text('' if row.get(n) is None else row[n])}</td>" for n in names) for row in rows]
    body = "\n".join(f"<tr>{line}</tr>" for line in lines)
    drawn = f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table>"
    return f'<div class="wide">{drawn}</div>' if rows else ""


def details(summary: str, body: str, shown: bool = False) -> str:
    """What opens when its summary is touched, or is open from the start."""
    opened = ' open="open"' if shown else ""
    return f"<details{opened}><summary>{text(summary)}</summary>\n{body}\n</details>" if body else ""


def lines(words: Iterable[str]) -> str:
    """Lines as they are, in the letters of a terminal."""
    return f"<pre>{text(chr(10).join(words))}</pre>"


def figure(drawing: str) -> str:
    return f'<figure style="margin:1em 0">{drawing}</figure>'
