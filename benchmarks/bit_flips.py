"""Flips single bits of a finished checkpoint, one at a time, and counts how many `directory.read` notices.

    python benchmarks/bit_flips.py [RUN] [--flips 100] [--seed 0]

Works on a copy of RUN, or of a small int8 model that it makes. Files take turns, so that the small ones are hit as
often as the arrays; the bit within a file is random. Prints one JSON object: flips, files, noticed, named (the message
has the file's name). Exit 1 when a flip went unnoticed.
"""

import argparse
import json
import random
import shutil
import sys
import tempfile
from pathlib import Path

from lsp import Exit, LspError, directory


def flip_bits(run: Path, flips: int, seed: int) -> dict[str, int]:
    """Flips and restores bits of the files in `run`, in place."""
    chance = random.Random(seed)
    files = sorted(path for path in run.rglob("*") if path.is_file() and path.stat().st_size)
    noticed = named = 0
    for turn in range(flips):
        path = files[turn % len(files)]
        place = chance.randrange(path.stat().st_size * 8)
        flip(path, place)
        try:
            directory.read(run)
        except LspError as error:
            noticed += error.code == Exit.ARTIFACT
            named += path.relative_to(run).as_posix() in error.message
        flip(path, place)
    directory.read(run)  # whole again, so each flip was the only fault
    return {"flips": flips, "files": len(files), "noticed": noticed, "named": named}


def flip(path: Path, place: int) -> None:
    with open(path, "r+b") as file:
        file.seek(place // 8)
        byte = file.read(1)[0]
        file.seek(place // 8)
        file.write(bytes([byte ^ 1 << place % 8]))


def make(out: Path) -> None:
    """A finished run with real int8 parameters and a stand-in for a tokenizer."""
    import numpy as np

    from lsp import arrays
    from lsp.model.int8 import Int8

    numbers = np.random.default_rng(0)
    layer = Int8.stored(numbers.integers(-127, 128, (256, 256), np.int8), np.ones(256, np.float32), 1)
    with directory.claim(out, command="bit_flips", recipe="[train]\nseed = 0\n", inputs={}):
        arrays.save_params(out / "params", {"layers": {i: {"kernel": layer} for i in range(4)}})
        (out / "tokenizer").mkdir()
        (out / "tokenizer" / "tokenizer.model").write_bytes(numbers.bytes(10_000))
        directory.write_atomically(out / "metrics.jsonl", '{"step": 1, "loss": 2.5}\n')
        directory.write_atomically(out / "result.json", json.dumps({"status": "complete"}))
        directory.seal(out, {"stage": "bit_flips", "metrics": {"loss": 2.5}, "labels": ["no", "yes"]})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?")
    parser.add_argument("--flips", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "run"
        if options.run:
            directory.read(options.run)
            shutil.copytree(options.run, copy)
        else:
            make(copy)
        result = flip_bits(copy, options.flips, options.seed)
    print(json.dumps(result))
    return 0 if result["noticed"] == result["flips"] else 1


if __name__ == "__main__":
    sys.exit(main())
