"""What `lsp evaluate` writes and says beside its metrics."""

import os
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from lsp.commands import evaluate
from lsp.train import metrics


def test_a_small_group_that_falls_behind_is_named_however_many_there_are() -> None:
    cells = [f"g{n:02d}" for n in range(60) for _ in range(40 if n < 59 else 31)]
    labels = np.zeros(len(cells), np.int32)
    logits = np.tile(np.float32([2, 0]), (len(cells), 1))
    logits[-31:] = [0, 2]
    rows = list(evaluate._sliced("group", cells, "single_label", logits, labels))
    assert len(rows) == evaluate.MOST_GROUPS + 1
    assert [row["slice"] for row in rows if row["behind"]] == ["group = g59"]


def test_numbers_that_do_not_vary_have_no_correlation_and_fall_behind_nothing() -> None:
    labels = np.repeat([0.0, 1.0], 40).astype(np.float32)
    logits = labels[:, None] + np.linspace(0, 0.1, 80, dtype=np.float32)[:, None]
    rows = list(evaluate._sliced("score", [str(label) for label in labels], "regression", logits, labels))
    assert [(row["value"], row["behind"]) for row in rows] == [(None, None)] * 2


def test_groups_are_as_numpy_sorts_them_and_take_the_memory_of_their_cells() -> None:
    names = ["b", "a", "é", "", "B", "aa"]
    cells = [names[n % 6] for n in range(230)] + ["x" * 100_000]
    labels = (np.arange(len(cells)) % 2).astype(np.int32)
    logits = np.tile(np.float32([2, 0]), (len(cells), 1))
    tracemalloc.start()
    rows = list(evaluate._sliced("group", cells, "single_label", logits, labels))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10 * 100_000  # an array of such cells has 92 MB
    sorted_names, counts = np.unique(cells, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    assert [row["slice"] for row in rows] == [f"group = {name}" for name in sorted_names[order]]
    assert [row["examples"] for row in rows] == counts[order].tolist()
    for row in rows:
        picked = np.array([f"group = {cell}" == row["slice"] for cell in cells])
        assert row["value"] == metrics.measured("single_label", logits[picked], labels[picked])[row["metric"]]


def test_errors_may_go_into_a_pipe(tmp_path: Path) -> None:
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    evaluate.put(pipe, "a line\n")
    reader.join(10)
    assert read == ["a line\n"] and pipe.is_fifo()
    evaluate.put(tmp_path / "file", "another\n")
    assert (tmp_path / "file").read_text() == "another\n"


@pytest.mark.parametrize("name", ["/dev/stdout", "-"])
def test_what_is_behind_standard_output_is_written_to_and_not_replaced(name: str, tmp_path: Path) -> None:
    """A rename there would put a file in the place of the machine's /dev/stdout, where one may."""
    code = f"from lsp.commands import evaluate; from pathlib import Path; evaluate.put(Path('{name}'), 'rows\\n')"
    with (tmp_path / "file").open("w") as file:
        subprocess.run([sys.executable, "-c", code + "; print('table')"], stdout=file, check=True)
    assert (tmp_path / "file").read_text() == "rows\ntable\n" and Path("/dev/stdout").is_symlink()
