"""Memory of `lsp predict` over a long stream: the most it had after each tenth.

    .venv/bin/python benchmarks/predict_memory.py --from CLASSIFIER --data dev.tsv --rows 1000000

Repeats the rows of DATA (a table with a header) into the command's stdin, reads its stdout as it comes, and counts the
lines. Prints JSON: rows, seconds, and the high-water mark of the process in MB after each tenth of the rows. On Linux.
"""

import argparse
import itertools
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="start", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--lsp", default=str(Path(sys.executable).with_name("lsp")))
    args = parser.parse_args()
    header, *lines = args.data.read_bytes().removesuffix(b"\n").split(b"\n")
    command = [args.lsp, "predict", "--from", args.start, "-", "--quiet"]
    began = time.monotonic()
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        feeder = threading.Thread(target=feed, args=(process.stdin, header, lines, args.rows))
        feeder.start()
        seen, marks = 0, []
        for _ in process.stdout:
            seen += 1
            if seen % (args.rows // 10) == 0:
                marks.append(high_water(process.pid))
        feeder.join()
    found = {"rows": seen, "seconds": time.monotonic() - began, "high_water_megabytes": marks}
    print(json.dumps(found | {"exit": process.returncode}, indent=1))


def feed(file: IO[bytes], header: bytes, lines: list[bytes], count: int) -> None:
    file.write(header + b"\n")
    for line in itertools.islice(itertools.cycle(lines), count):
        file.write(line + b"\n")
    file.close()


def high_water(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1000 for line in lines if line.startswith("VmHWM"))


if __name__ == "__main__":
    main()
