"""Who may write a run, and what a reader notices."""

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lsp import Exit, LspError, Stopped, directory, manifest
from lsp.commands import verify

RECIPE = "[train]\nsteps = 100\n"


@contextmanager
def claimed(out: Path, **changes: Any) -> Iterator[directory.Run]:
    asked = {"command": "pretrain", "recipe": RECIPE, "inputs": {"data": "a" * 64}} | changes
    with directory.claim(out, **asked) as run:
        yield run


def finished(out: Path) -> Path:
    """A complete run with one file in each folder."""
    with claimed(out) as run:
        for name in ("params/d/00", "tokenizer/tokenizer.model"):
            (out / name).parent.mkdir(parents=True)
            (out / name).write_bytes(name.encode() * 20)
        directory.write_atomically(out / "result.json", json.dumps({"command": "pretrain", "status": "complete"}))
        directory.seal(run.path, {"stage": "pretrain", "labels": ("猫", "dog"), "metrics": {"loss": 0.1}})
    return out


def fail(error: Exception) -> None:
    raise error


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {str(p): (p.read_bytes(), p.stat().st_mtime_ns) for p in sorted(folder.rglob("*")) if p.is_file()}


@contextmanager
def refused(code: Exit, *words: str) -> Iterator[None]:
    with pytest.raises(LspError) as caught:
        yield
    assert caught.value.code == code
    for word in words:
        assert word in caught.value.message + caught.value.hint


def test_a_finished_run_reads_back_and_a_second_command_changes_no_byte(tmp_path: Path) -> None:
    out = finished(tmp_path / "run")
    before = contents(out)
    stored = directory.read(out)
    assert stored["labels"] == ["猫", "dog"] and set(stored["files"]) == {
        *("run.json", "recipe.toml", "result.json", "params/d/00", "tokenizer/tokenizer.model")
    }
    assert stored["files"]["params/d/00"]["sha256"] == hashlib.sha256((out / "params/d/00").read_bytes()).hexdigest()
    assert directory.identity(stored) == stored["self"]
    with claimed(out) as run:
        assert run.complete and run.result() == {"command": "pretrain", "status": "already complete"}
    assert contents(out) == before and not (out / ".lock").exists()


def test_an_unfinished_run_is_continued(tmp_path: Path) -> None:
    with claimed(tmp_path / "new" / "run") as run:
        (run.path / "train").mkdir()
    with claimed(tmp_path / "new" / "run") as run:
        assert not run.complete and (run.path / "train").is_dir()
        assert (run.path / "recipe.toml").read_text() == RECIPE
    with refused(Exit.ARTIFACT, "not finished", "again"):
        directory.read(run.path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"recipe": RECIPE.replace("100", "200")}, "train.steps: 100 → 200"),
        ({"command": "finetune"}, "command: pretrain → finetune"),
        ({"inputs": {"data": "b" * 64}}, "data: aaaaaaaaaaaa → bbbbbbbbbbbb"),
    ],
)
@pytest.mark.parametrize("complete", [True, False])
def test_something_else_for_the_same_directory_is_refused(
    tmp_path: Path, change: dict[str, Any], words: str, complete: bool
) -> None:
    out = finished(tmp_path / "run")
    if not complete:
        (out / "manifest.json").unlink()
    before = contents(out / "params")
    with refused(Exit.USAGE, words, "--overwrite"), claimed(out, **change):
        pass
    assert contents(out / "params") == before
    for mine in ("notes.txt", "README.md"):
        (out / mine).write_text("mine")
    with claimed(out, overwrite=True, **change) as run:
        assert not run.complete and not (out / "params").exists()
        assert (out / "notes.txt").read_text() == (out / "README.md").read_text() == "mine"


def test_an_overwrite_that_is_killed_leaves_no_complete_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What makes a run complete goes first, in any process: a set of names has another order in each."""
    removed = []
    monkeypatch.setattr(directory, "_remove", removed.append)
    out = finished(tmp_path / "run")
    with claimed(out, overwrite=True):
        pass
    assert [path.name for path in removed] == [*directory.WRITTEN, *manifest.UNSEALED]
    assert removed[0].name == "manifest.json"


def test_a_run_that_made_nothing_may_be_asked_for_something_else(tmp_path: Path) -> None:
    with refused(Exit.DATA, "unusable"), claimed(tmp_path / "run") as run:
        (run.path / "train" / "data").mkdir(parents=True)  # empty folders are nothing
        fail(LspError("The data is unusable.", code=Exit.DATA))
    with claimed(tmp_path / "run", inputs={"data": "b" * 64}) as run:
        assert json.loads((run.path / "run.json").read_text())["inputs"] == run.inputs == {"data": "b" * 64}


def test_what_it_left_is_not_sealed_with_what_is_asked_for_then(tmp_path: Path) -> None:
    """An export that was stopped, say; the black box of a run that diverged is for looking at."""
    with pytest.raises(ZeroDivisionError), claimed(tmp_path / "out", command="export") as run:
        for name in ("model.onnx", "README.md"):
            (run.path / name).write_bytes(b"of another")
        (run.path / "blackbox").mkdir()
        fail(ZeroDivisionError())
    with claimed(tmp_path / "out", recipe="[train]\nsteps = 9\n") as run:
        assert not (run.path / "model.onnx").exists() and not (run.path / "README.md").exists()
        assert (run.path / "blackbox").is_dir()
    with claimed(tmp_path / "out", recipe="[train]\nsteps = 9\n") as run:
        (run.path / "metrics.jsonl").write_text("{}\n")
    with claimed(tmp_path / "out", recipe="[train]\nsteps = 9\n") as run:
        assert (run.path / "metrics.jsonl").exists(), "the same goes on"


@pytest.mark.parametrize("overwrite", [True, False])
def test_what_lsp_did_not_write_is_never_touched(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "params").write_text("years of work")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to("nowhere")
    before = contents(tmp_path)
    for name, word in (("thesis", "params"), ("file", "is a file"), ("link", "nowhere"), ("file/run", "is a file")):
        with refused(Exit.USAGE, word), claimed(tmp_path / name, overwrite=overwrite):
            pass
    assert contents(tmp_path) == before


@pytest.mark.usefixtures("uncollected")
def test_a_damaged_marker_is_not_taken_for_ours(tmp_path: Path) -> None:
    for text in ("{", "[]", '{"format": 1}', "[" * 100_000):
        (tmp_path / "run.json").write_text(text)
        with refused(Exit.ARTIFACT, "run.json"), claimed(tmp_path, overwrite=True):
            pass
    (tmp_path / "run.json").write_text('{"format": 9, "command": "", "recipe": "", "inputs": {}}')
    with refused(Exit.ARTIFACT, "newer", "pgrade"), claimed(tmp_path, overwrite=True):
        pass


def test_the_second_writer_is_refused_and_told_who_is_first(tmp_path: Path) -> None:
    with claimed(tmp_path / "run"):
        with refused(Exit.STOPPED, f"process {os.getpid()}"), claimed(tmp_path / "run"):
            pass
        (tmp_path / "run" / ".lock").unlink()  # as a person might who thinks it stale
        with refused(Exit.STOPPED), claimed(tmp_path / "run"):
            pass
    with claimed(tmp_path / "run"):
        pass


def test_a_killed_writer_holds_nothing(tmp_path: Path) -> None:
    code = (
        "import sys, time, pathlib; from lsp import directory\n"
        "with directory.claim(pathlib.Path(sys.argv[1]), command='pretrain', recipe='', inputs={}):\n"
        "    print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, tmp_path / "run"], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout and owner.stdout.readline() == "held\n"
        with refused(Exit.STOPPED, f"process {owner.pid}"), claimed(tmp_path / "run", recipe=""):
            pass
        owner.send_signal(signal.SIGKILL)
        owner.wait()
    assert "token" in (tmp_path / "run" / ".lock").read_text()  # left behind, and no obstacle
    with claimed(tmp_path / "run", recipe="", inputs={}):
        pass


def test_failures_are_written_down_and_machine_errors_are_sentences(tmp_path: Path) -> None:
    def result() -> dict[str, Any]:
        return json.loads((tmp_path / "result.json").read_text())

    with pytest.raises(Stopped), claimed(tmp_path):
        fail(Stopped(Exit.STOPPED))
    assert result()["status"] == "stopped" and result()["code"] == 75
    with refused(Exit.MACHINE, "MB are free"), claimed(tmp_path):
        fail(OSError(errno.ENOSPC, "No space left on device", "params/x"))
    assert result()["status"] == "failed" and "params/x: no space left" in result()["error"]
    with pytest.raises(ZeroDivisionError), claimed(tmp_path):
        fail(ZeroDivisionError())
    assert result()["code"] == Exit.BUG


def test_a_failure_after_the_seal_changes_nothing(tmp_path: Path) -> None:
    with pytest.raises(Stopped), claimed(tmp_path) as run:
        directory.write_atomically(tmp_path / "result.json", "{}")
        directory.seal(run.path, {"stage": "pretrain"})
        fail(Stopped(Exit.STOPPED))
    directory.read(tmp_path)


def test_half_written_files_are_not_sealed(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with claimed(out):
        (out / "rows").mkdir()
        (out / "rows" / "00000.rows.tmp").write_text("half")
        (out / "rows" / "00000.rows").write_text("whole")
        (out / "wandb").mkdir()
        (out / "wandb" / "live.tmp").write_text("a tracker's own")
        assert "rows/00000.rows.tmp" not in directory.seal(out, {"stage": "prepare"})["files"]
    directory.read(out)
    assert not (out / "rows" / "00000.rows.tmp").exists() and (out / "wandb" / "live.tmp").exists()


def test_a_folder_of_runs_names_them(tmp_path: Path) -> None:
    """As `lsp demo` leaves one, with a `run.json` and a result of its own."""
    made = finished(tmp_path / "demo" / "int8")
    with pytest.raises(LspError, match="is no run, and holds some") as caught:
        directory.read(tmp_path / "demo")
    assert caught.value.hint == f"Name one of them: {made}"
    (tmp_path / "demo" / "run.json").write_text("{}")
    with pytest.raises(LspError, match="is not finished"):
        directory.read(tmp_path / "demo")
    (tmp_path / "demo" / "result.json").write_text("{}")
    with pytest.raises(LspError, match="holds some"):
        directory.read(tmp_path / "demo")


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory.write_atomically(tmp_path / "file", "old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        directory.write_atomically(tmp_path / "file", "new")
    assert os.listdir(tmp_path) == ["file"] and (tmp_path / "file").read_text() == "old"


def test_a_write_touches_no_file_of_a_name_like_it(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "file.tmp").symlink_to(tmp_path / "mine")
    for name in ("file", "n" * 255, "é" * 127):
        directory.write_atomically(tmp_path / name, name)
        assert (tmp_path / name).read_text() == name
    assert (tmp_path / "file.tmp").is_symlink() and (tmp_path / "mine").read_text() == "mine"
    assert len(os.listdir(tmp_path)) == 5
    directory.write_atomically(tmp_path / "result", '{"out": "\udcff"}')
    assert json.loads((tmp_path / "result").read_bytes()) == {"out": "\udcff"}


def test_what_a_killed_process_left_of_its_first_write_is_no_foreign_file(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json.0123abcd.tmp").write_text("{")
    finished(tmp_path / "run")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.0123abcd.tmp").write_text("mine")
    with refused(Exit.USAGE, "mine.0123abcd.tmp"), claimed(tmp_path / "other"):
        pass


@pytest.mark.parametrize("place", ["train", "params/d", "tokenizer/x/y"])
def test_no_run_is_made_where_another_keeps_its_own(tmp_path: Path, place: str) -> None:
    """It would damage that one, or go with what that one tidies up. One that is not finished has some there itself."""
    out = finished(tmp_path / "run")
    (tmp_path / "link").symlink_to(out)
    for folder in (out, tmp_path / "link"):
        with refused(Exit.USAGE, "keeps that for itself"), claimed(folder / place):
            pass
    directory.read(out)
    finished(out / "beside it")
    finished(out / "candidates" / "one")  # of a search, by the search
    directory.read(out)


def test_every_flipped_bit_is_noticed_and_its_file_named(tmp_path: Path) -> None:
    out = finished(tmp_path / "run")
    for path in sorted(p for p in out.rglob("*") if p.is_file()):
        whole = path.read_bytes()
        for place in range(0, len(whole) * 8, 7 if path.name == "manifest.json" else 61):
            broken = bytearray(whole)
            broken[place // 8] ^= 1 << place % 8
            path.write_bytes(broken)
            with refused(Exit.ARTIFACT, path.relative_to(out).as_posix()):
                directory.read(out)
        path.write_bytes(whole)
    directory.read(out)


@pytest.mark.parametrize("verified", [True, False])
def test_truncated_missing_and_added_files_are_named(tmp_path: Path, verified: bool) -> None:
    out = finished(tmp_path / "run")
    file = out / "params/d/00"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    with refused(Exit.ARTIFACT, "params/d/00", f"{len(whole) - 1} bytes instead of {len(whole)}"):
        directory.read(out, verified)
    file.unlink()
    with refused(Exit.ARTIFACT, "params/d/00", "No such file"):
        directory.read(out, verified)
    file.write_bytes(whole)
    (out / "tokenizer" / "other.model").write_text("x")
    with refused(Exit.ARTIFACT, "tokenizer/other.model", "not in the manifest"):
        directory.read(out, verified)


def test_a_complete_run_whose_result_changed_is_not_believed(tmp_path: Path) -> None:
    out = finished(tmp_path / "run")
    text = (out / "result.json").read_text()
    (out / "result.json").write_text(text.replace("complete", "complEte"))
    with claimed(out) as run, refused(Exit.ARTIFACT, "result.json"):
        run.result()


def forged(out: Path, files: dict[str, Any]) -> None:
    """A manifest with a right hash over whatever it says: what an attacker would write."""
    body = {"format": 1, "stage": "pretrain", "files": files}
    (out / "manifest.json").write_text(manifest._canonical(body | {"self": manifest._digest(body)}))


ENTRY = {"size": 6, "sha256": hashlib.sha256(b"secret").hexdigest()}


@pytest.mark.parametrize(
    "name",
    [
        *(
            "../secret",
            "{root}/secret",
            "a/../../secret",
            "./x",
            "a//b",
            "",
            ".",
            "..\\secret",
            "params/link",
            "up/secret",
        ),
        *("params/pipe", "params", "manifest.json", "train/x", "x\0y", "x\u202ey", "a/" * 40 + "b", "b" * 300),
    ],
)
def test_a_manifest_cannot_lead_outside_the_directory(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret").write_text("secret")
    out = tmp_path / "run"
    (out / "params").mkdir(parents=True)
    (out / "params" / "link").symlink_to(tmp_path / "secret")
    (out / "up").symlink_to(tmp_path)
    os.mkfifo(out / "params" / "pipe")
    forged(out, {name.format(root=tmp_path): ENTRY})
    with refused(Exit.ARTIFACT):
        directory.read(out)


@pytest.mark.parametrize(
    "entry", [{}, [], None, "x", {"size": -1, "sha256": ""}, {"size": True, "sha256": ""}, {"size": 6, "sha256": 7}]
)
def test_a_manifest_with_odd_entries_is_refused(tmp_path: Path, entry: Any) -> None:
    (tmp_path / "file").write_text("secret")
    forged(tmp_path, {"file": entry})
    with refused(Exit.ARTIFACT, "manifest.json"):
        directory.read(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        *("", "{}", "[]", "null", "[" * 200_000, '{"a":' * 100_000, "9" * 5000, '{"format": NaN}', "\udce4"),
        *('{"format":1}', '{"format": 1, "files": {}, "self": ""}', '{"format": true, "files": {}, "self": "x"}'),
    ],
)
@pytest.mark.usefixtures("uncollected")
def test_a_manifest_that_is_no_manifest_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with refused(Exit.ARTIFACT, "manifest.json"):
        directory.read(tmp_path)


def test_a_huge_manifest_is_not_read_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = finished(tmp_path / "run")
    monkeypatch.setattr(manifest, "MANIFEST_LIMIT", 100)
    with refused(Exit.ARTIFACT, "too large"):
        directory.read(out)


def test_what_is_no_checkpoint_gets_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "file").write_text("x")
    with refused(Exit.ARTIFACT, "does not exist", "Did you mean", "runs"):
        directory.read(tmp_path / "rusn")
    with refused(Exit.ARTIFACT, "is a file"):
        directory.read(tmp_path / "file")
    with refused(Exit.ARTIFACT, "no manifest.json"):
        directory.read(tmp_path / "runs")
    (tmp_path / "runs" / "manifest.json").write_text('{"format": 3, "other": 1}')
    with refused(Exit.ARTIFACT, "newer", "pgrade"):
        directory.read(tmp_path / "runs")


def test_verify_reads_everything_and_names_what_is_damaged(tmp_path: Path) -> None:
    out = finished(tmp_path / "run")
    result = verify.run(out)
    assert result["status"] == "whole" and result["files"] == 5
    assert result["bytes"] == sum((out / n).stat().st_size for n in directory.read(out)["files"])
    (out / "manifest.json").unlink()
    for step in (1, 2):
        (out / f"train/{step:08d}/state").mkdir(parents=True)
        (out / f"train/{step:08d}/state/x").write_text("x")
        directory.seal(out / f"train/{step:08d}", {"stage": "step", "step": step})
    (out / "train/00000003.damaged").mkdir()
    result = verify.run(out)
    assert (result["status"], result["steps"], result["set_aside"]) == ("unfinished", [1, 2], ["00000003.damaged"])
    (out / "train/00000002/state/x").write_text("y")
    with refused(Exit.ARTIFACT, "00000002", "state/x", "made it again"):
        verify.run(out)
    (tmp_path / "empty").mkdir()
    with refused(Exit.ARTIFACT, "no manifest.json", "Give the --out of a command"):
        verify.run(tmp_path / "empty")
