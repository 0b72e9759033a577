"""How a command that trains is run, whatever it trains."""

from collections.abc import Sequence
from typing import Any, NamedTuple


class Options(NamedTuple):
    """`progress` is `console.Progress`; `budget` in seconds, 0 for none; `track` as `--tracker` says it; `overwrite`
    what is in the way of --out."""

    progress: Any
    overwrite: bool = False
    budget: float = 0.0
    track: Sequence[str] = ()
