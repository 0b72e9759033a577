"""The command line as people and scripts meet it: verbs, options, texts, exit codes, and what is on stdout."""

import errno
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import typer

from lsp import Exit, LspError, Stopped, arguments, cache, cli, console, failures

JSON = ["--json", "--quiet"]
TRAINING = ["--from", "--train", "--dev", "--out", "--text-column", "--label-column"]
RECIPE = ["--recipe", "--set"]
# Names that pipelines use. Adding one is fine; the day one goes, its users need a release of warning.
OPTIONS = {
    "demo": ["--out", "--overwrite", *JSON],
    "prepare": ["--out", "--tokenizer", "--part", "--vocab-size", "--seq-len", *RECIPE, "--overwrite", *JSON],
    "data peek": ["--rows", "--step", *RECIPE, "--json"],
    "pretrain": [
        *["--data", "--out", "--valid", "--from", "--teacher", "--tokenizer", *RECIPE, "--budget"],
        *["--coordinator", "--processes", "--process-id", "--tracker", "--overwrite", *JSON],
    ],
    "explain": ["--from", "--label", "--html", "--text-column", *JSON],
    "import": ["--out", "--overwrite", *JSON],
    "export": ["--from", "--format", "--out", "--runtime", "--overwrite", *JSON],
    "finetune": [
        *["--from", "--train", "--dev", "--task", "--data", "--old", "--old-dev", *TRAINING[3:], "--tokenizer"],
        *[*RECIPE, "--seeds", "--sweep", "--budget", "--tracker", "--overwrite", *JSON],
    ],
    "compress quantize": [
        *["--from", "--out", "--dev", "--train", *TRAINING[-2:], "--method", "--max-drop"],
        *[*RECIPE, "--budget", "--tracker", "--overwrite", *JSON],
    ],
    "compress prune": [*TRAINING, *RECIPE, "--budget", "--tracker", "--overwrite", *JSON],
    "compress distill": [
        *[*TRAINING[:4], "--augmenter", *TRAINING[4:]],
        *[*RECIPE, "--budget", "--tracker", "--overwrite", *JSON],
    ],
    "compress search": [
        *TRAINING[:4],
        "--max-drop",
        "--min-speedup",
        "--max-size",
        *TRAINING[4:],
        *RECIPE,
        "--budget",
        "--overwrite",
        *JSON,
    ],
    "evaluate": ["--from", "--data", "--task", "--min", "--errors", "--slice", *TRAINING[-2:], *JSON],
    "predict": ["--from", "--top-k", "--text-column", *JSON],
    "inspect": ["--json"],
    "plan": [
        *["--devices", "--accelerator", "--topology", "--mfu", "--price", "--tokens", "--set", *JSON],
    ],
    "plot": ["--metric", "--x", "--log", "--smooth", "--out", "--json"],
    "report": ["--out", "--max-drop", "--min-speedup", "--max-size", "--overwrite", *JSON],
    "bench": [
        *["--against", "--data", "--text-column", "--length", "--batch", "--rounds", "--seconds", "--threads"],
        *["--plot", *JSON],
    ],
    "verify": ["--json"],
    "verify resume": ["--data", "--out", "--tokenizer", *RECIPE, "--steps", "--kills", "--overwrite", *JSON],
    "replay": JSON,
    "doctor": ["--json"],
}


def run(*words: str) -> subprocess.CompletedProcess[str]:
    """`lsp` in a process of its own, without a terminal and with stdin empty."""
    command = [sys.executable, "-m", "lsp", *words]
    return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60)


def fails(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    """Exit code and stderr of a mistake, which must leave stdout empty."""
    code = cli.main(words)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "Traceback" not in printed.err
    return code, printed.err


def test_help_loads_the_parser_of_commands_and_nothing_else() -> None:
    program = (
        "import sys; before = set(sys.modules); from lsp import cli; assert cli.main(['--help']) == 0;"
        "loaded = {name.split('.')[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names);"
        "print(sorted(loaded), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == str(["annotated_doc", "lsp", "shellingham", "typer"])


def test_a_usage_error_loads_no_jax() -> None:
    program = (
        "import sys; from lsp import cli;"
        "code = cli.main(['pretrain', '--data', '.', '--out', 'x', '--set', 'train.step=1']);"
        "sys.exit(code if 'jax' not in sys.modules else 99)"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True).returncode == Exit.USAGE


def test_the_verbs_and_their_options_are_frozen() -> None:
    def walk(command: Any, name: str) -> dict[str, list[str]]:
        if nested := getattr(command, "commands", None):
            return {k: v for n, c in nested.items() for k, v in walk(c, f"{name} {n}".strip()).items()}
        parameters = command.params
        options = [p.opts[0] for p in parameters if p.param_type_name == "option" and p.name != "help"]
        return {name: options}

    assert walk(typer.main.get_command(cli.app), "") == OPTIONS


@pytest.mark.parametrize("command", OPTIONS)
def test_each_help_begins_with_a_line_to_paste(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*command.split(), "-h"]) == Exit.DONE
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith(f"  lsp {command}")
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["pretrian"], "error: No such command 'pretrian'. Did you mean 'pretrain'?\nfix: lsp -h shows"),
        (["quantize"], "error: No such command 'quantize'. Did you mean 'compress quantize'?\n"),
        (["peek", "x"], "error: No such command 'peek'. Did you mean 'data peek'?\n"),
        (
            ["pretrain", "--recpie", "x"],
            "error: No such option: --recpie. Did you mean '--recipe'?\nfix: lsp pretrain -h",
        ),
        (["pretrain", "--data", "."], "error: Missing option '--out'.\nfix: lsp pretrain -h"),
        (
            ["evaluate", "tests/data", "--data", "."],
            "error: Missing option '--from'.\nfix: Name the run with it: lsp evaluate --from tests/data\n",
        ),
        (["evaluate", "--data", "."], "error: Missing option '--from'.\nfix: lsp evaluate -h"),
        (["bench", "--from", "."], "error: No such option: --from.\nfix: The run goes without it: lsp bench RUN\n"),
        (
            ["prepare", "--data", "."],
            "error: No such option: --data.\nfix: The text goes without it: lsp prepare TEXT\n",
        ),
        (["finetune", "--from"], "error: Option '--from' requires an argument.\n"),
        (
            ["export", "--from", ".", "--out", "x", "--format", "onx"],
            "error: --format onx is not one of huggingface, onnx, stablehlo. Did you mean 'onnx'?\nfix: lsp export -h",
        ),
        (
            ["report", ".", "--min-speedup", "nan"],
            "error: --min-speedup nan is no number.\nfix: Write it as in --min-speedup 1.5.",
        ),
        (
            ["evaluate", "--from", ".", "--data", ".", "--task", "sst2", "--label-column", "human"],
            "error: --task knows the columns itself.\nfix: Leave --text-column and --label-column out.",
        ),
        (
            ["evaluate", "--from", ".", "--data", ".", "--min", "accuracy"],
            "error: --min accuracy is not METRIC=VALUE.\n",
        ),
        (
            ["pretrain", "--data", ".", "--out", "x", "--set", "train.step=3"],
            "error: --set: unknown key 'train.step'. Did you mean 'train.steps'?\n",
        ),
        (
            ["pretrain", "--data", ".", "--out", "x", "--budget", "soon"],
            "error: --budget soon is not a length of time.\n",
        ),
        (
            ["pretrain", "--data", ".", "--out", "x", "--budget", "9s", "--set", "data.mask_rate_end=0.1"],
            "error: data.mask_rate_end follows the steps, and with --budget alone",
        ),
        (
            ["finetune", "--from", ".", "--train", ".", "--dev", ".", "--out", "x", "--seeds", "100000000"],
            "error: Invalid value for '--seeds'",
        ),
        (["compress", "quantize", "--from", "..", "--out", ".."], "error: --out and --from are the same folder"),
        (
            ["finetune", "--from", "scratch", "--train", ".", "--dev", ".", "--out", "x"],
            "error: --from scratch has no tokenizer.\nfix: Add --tokenizer DIR",
        ),
    ],
)
def test_a_wrong_command_is_a_sentence_with_a_fix(
    words: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = fails(capsys, *words)
    assert code == Exit.USAGE
    assert said.startswith(expected)
    assert "fix: " in said


def test_a_missing_path_is_named_with_its_nearest_neighbour(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "train.tsv").write_text("")
    words = ["finetune", "--from", str(tmp_path), "--dev", str(tmp_path), "--out", str(tmp_path / "out"), "--train"]
    code, said = fails(capsys, *words, str(tmp_path / "trian.tsv"))
    assert code == Exit.DATA
    assert said.startswith(f"error: {tmp_path}/trian.tsv does not exist. Did you mean '{tmp_path}/train.tsv'?")
    code, said = fails(capsys, "inspect", str(tmp_path / "nowhere" / "run"))
    assert code == Exit.ARTIFACT
    assert not (tmp_path / "out").exists()


def test_a_recipe_that_is_not_toml_is_exit_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.toml").write_text("[train\n")
    words = ["pretrain", "--data", str(tmp_path), "--out", str(tmp_path / "out"), "--recipe"]
    code, said = fails(capsys, *words, str(tmp_path / "bad.toml"))
    assert (code, "is not TOML" in said) == (Exit.USAGE, True)


@pytest.mark.parametrize(
    "words", [["pretrian"], ["pretrain", "--nope"], ["pretrain", "--data", "/nowhere", "--out", "x"], ["compress", "x"]]
)
def test_with_json_a_failure_is_one_object_on_stdout(words: list[str]) -> None:
    done = run(*words, "--json")
    lines = done.stdout.splitlines()
    assert len(lines) == 1
    failure = json.loads(lines[0])
    assert set(failure) == {"command", "status", "error", "hint", "code"}
    assert failure["status"] == "failed"
    assert failure["code"] == done.returncode != 0
    assert done.stderr == ""


def test_results_are_on_stdout_and_nothing_else() -> None:
    done = run("doctor", "--json")
    found = json.loads(done.stdout)
    assert done.stdout.count("\n") == 1
    assert found["command"] == "doctor"
    assert {check["state"] for check in found["checks"]} <= {"ok", "warn", "failed"}
    assert done.returncode == (Exit.MACHINE if found["status"] == "failed" else Exit.DONE)


@pytest.mark.parametrize("words", [["--help"], ["pretrain", "-h"], ["--version"], []])
def test_a_reader_that_goes_away_is_not_an_error(words: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run([sys.executable, "-m", "lsp", *words], stdout=writing, stderr=subprocess.PIPE, text=True)
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (Exit.DONE, "")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("pretrain --data a b --out x", "pretrain --data a --data b --out x"),
        ("pretrain --data a - --valid v w -q", "pretrain --data a --data - --valid v --valid w -q"),
        ("pretrain --data a --out x --data b", "pretrain --data a --out x --data b"),
        ("evaluate --data a b", "evaluate --data a b"),
    ],
)
def test_data_takes_what_a_shell_makes_of_a_glob(words: str, expected: str) -> None:
    assert arguments.spread(words.split()) == expected.split()


def test_lengths_of_time() -> None:
    assert [arguments.parse_duration(text) for text in ("", "90", "90s", "30m", "1h30m", "1.5h", "2d")] == [
        *(0, 90, 90, 1800, 5400, 5400, 172800),
    ]
    for nothing in ("0", "0s", "0h0m"):
        with pytest.raises(LspError, match="leaves no time"):
            arguments.parse_duration(nothing)


def test_a_closed_stdout_changes_no_exit_code(tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("a line\n" * 3)
    for words, code in (("predict --from nowhere lines.txt", 4), ("--version", 0), ("prepare nowhere --out rows", 3)):
        ran = subprocess.run(f"{sys.executable} -m lsp {words} >&-", shell=True, cwd=tmp_path, capture_output=True)
        assert ran.returncode == code and b"Traceback" not in ran.stderr, ran.stderr


@pytest.mark.parametrize(
    "words", ["doctor --json > /dev/full", "doctor > /dev/full", "verify nowhere --json > /dev/full"]
)
def test_a_stdout_that_takes_nothing_is_exit_5_or_the_failure_that_it_was_to_tell(words: str) -> None:
    """Never 1, which says that a gate was missed. This one is open for reading alone."""
    ran = subprocess.run(f"{sys.executable} -m lsp {words} 1< /dev/null", shell=True, capture_output=True, text=True)
    assert ran.returncode == (Exit.ARTIFACT if "verify" in words else Exit.MACHINE), ran.stderr
    assert "Traceback" not in ran.stderr and ran.stderr.startswith("error: ")


def test_a_user_without_a_home_has_no_cache_and_all_else(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless(self: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "expanduser", homeless)
    cache.save("kind", "key", b"body")
    assert cache.load("kind", "key") == b"body" and cache.folder("kind").is_relative_to(tempfile.gettempdir())


def test_a_closed_stderr_ends_the_display_and_not_the_work(tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("".join(f"Line {n} of a short text.\n\n" for n in range(400)))
    command = f"{sys.executable} -m lsp prepare lines.txt --vocab-size 300 --seq-len 16 --out rows --json 2>&-"
    done = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and json.loads(done.stdout)["status"] == "complete"


def test_sizes() -> None:
    texts = ("", "800kB", "20 MB", "1.5GiB", "20000000")
    assert [arguments.parse_size(text) for text in texts] == [0, 8e5, 2e7, 1.5 * 2**30, 2e7]
    with pytest.raises(LspError, match="is not a size"):
        arguments.parse_size("20 megs")
    with pytest.raises(LspError, match="3 is 3 bytes, and no model is that small") as forgotten:
        arguments.parse_size("3")
    assert "the unit" in forgotten.value.hint


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (LspError("a", hint="b", code=Exit.DIVERGED), Exit.DIVERGED, "a"),
        (Stopped(Exit.STOPPED), Exit.STOPPED, "saved"),
        (Stopped(Exit.INTERRUPTED), Exit.INTERRUPTED, "saved"),
        (KeyboardInterrupt(), Exit.INTERRUPTED, "saved"),
        (MemoryError(), Exit.MACHINE, "memory"),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes"), Exit.MACHINE, "9 bytes"),
        (OSError(28, "No space left on device"), Exit.MACHINE, "full"),
        (ValueError("RESOURCE_EXHAUSTED: write failed: No space left on device"), Exit.MACHINE, "full"),
        (PermissionError(13, "Permission denied", "/x"), Exit.MACHINE, "/x: Permission denied"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "n" * 300), Exit.USAGE, "too long for a file"),
        (ModuleNotFoundError("No module named 'wandb'", name="wandb"), Exit.MACHINE, "wandb"),
        (ZeroDivisionError("division by zero"), Exit.BUG, "ZeroDivisionError: division by zero"),
    ],
)
def test_every_failure_has_its_code_and_a_fix(error: BaseException, code: Exit, said: str) -> None:
    failure = failures.explain(error)
    assert failure.code == code
    assert said in failure.message
    assert failure.hint


def test_what_saves_nothing_does_not_say_that_it_goes_on() -> None:
    for error, code in ((KeyboardInterrupt(), Exit.INTERRUPTED), (Stopped(Exit.STOPPED), Exit.STOPPED)):
        failure = failures.explain(error, saves=False)
        assert (failure.message, failure.hint, failure.code) == ("Stopped.", "", code)
    assert "train." not in failures.explain(MemoryError(), saves=False).hint


def test_a_signal_that_a_library_wrapped_is_still_a_signal() -> None:
    def start() -> None:
        try:
            raise Stopped(Exit.STOPPED)
        except Stopped as error:
            raise RuntimeError(f"Unable to initialize backend: {error}")  # noqa: B904  as JAX does

    with pytest.raises(RuntimeError) as caught:
        start()
    assert failures.explain(failures.root(caught.value)).code == Exit.STOPPED
    circle = RuntimeError("its own cause, as those of C++ may be")
    circle.__cause__ = circle
    assert failures.root(circle) is circle
    bug = ZeroDivisionError()
    assert failures.root(bug) is bug


def test_a_bug_shows_its_traceback_only_when_asked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*paths: object, **options: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(cli.runs, "need", broken)
    code, said = fails(capsys, "inspect", ".")
    assert (code, "LSP_DEBUG=1" in said) == (Exit.BUG, True)
    monkeypatch.setenv("LSP_DEBUG", "1")
    assert cli.main(["inspect", "."]) == Exit.BUG
    assert "Traceback" in capsys.readouterr().err


def test_what_a_terminal_would_obey_is_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        console.safe("a\x1b[31mb\x9b1m\u202e\u2028\r\ud800é中\n") == r"a\x1b[31mb\x9b1m\u202e\u2028\r\ud800é中" + "\n"
    )
    console.result({"labels": ["\x1b]0;x\x07"], "rows": [{"name": "\x1b[2J"}]}, as_json=False)
    console.fail(LspError("\x1b[2J", hint="\x1b[2J"), False, "")
    printed = capsys.readouterr()
    assert "\x1b" not in printed.out + printed.err


def test_a_result_is_json_whatever_it_holds(capsys: pytest.CaptureFixture[str]) -> None:
    console.result({"loss": float("nan"), "out": Path("x"), "metrics": {"f1": 0.5}, "labels": ("a",)}, as_json=True)
    assert json.loads(capsys.readouterr().out) == {"loss": None, "out": "x", "metrics": {"f1": 0.5}, "labels": ["a"]}


def test_a_table_lines_up_whatever_its_script(capsys: pytest.CaptureFixture[str]) -> None:
    console.result(
        {"bytes": 2_500_000, "rows": [{"stage": "中文", "n": 5}, {"stage": "int8", "n": 1234}]}, as_json=False
    )
    assert capsys.readouterr().out.splitlines() == [
        *("bytes  2.5 MB", "", "stage      n", "─────  ─────", "中文       5", "int8   1,234"),
    ]


def test_progress_off_a_terminal_is_plain_lines_and_rare(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr("lsp.console.time.monotonic", lambda: now)
    progress = console.Progress()
    with progress.task("finetune", 1000) as outer:
        for step in range(1, 1001):
            now += 0.1
            outer.update(step, loss=1.23456, tokens_per_second=9876.5)
        with progress.task("evaluate", 10) as inner:
            now += 31
            inner.update(5)
    printed = capsys.readouterr()
    lines = printed.err.splitlines()
    assert printed.out == ""
    assert "\r" not in printed.err
    assert lines[0] == "finetune: 51/1,000, loss 1.235, 9,876 tokens/s, 1 min 35 s left"
    assert 15 <= len(lines) <= 25
    assert "finetune › evaluate: 5/10" in lines
    assert lines[-1] == "finetune: 1,000/1,000, loss 1.235, 9,876 tokens/s, in 2 min 11 s"


def test_the_time_left_forgets_a_slow_beginning_and_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("lsp.console.time.monotonic", lambda: now)
    with console.Progress(quiet=True).task("training", 2000) as task:
        task.update(1)
        now += 30  # six programs are compiled
        task.update(41)
        assert task.seconds_left(now) is None  # not half an hour
        for step in range(42, 1001):
            now += 0.5
            task.update(step)
        assert task.seconds_left(now) == pytest.approx(500, rel=0.01)
        now += 3600  # the machine slept
        for step in range(1001, 1501):
            now += 0.5
            task.update(step)
        assert task.seconds_left(now) == pytest.approx(250, rel=0.01)


def test_the_time_left_leaves_out_what_was_spent_compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("lsp.console.time.monotonic", lambda: now)
    with console.Progress(quiet=True).task("training", 2000) as task:
        task.update(0)
        for step in range(1, 201):
            now += 0.5
            if step in (3, 70, 150):  # a batch of a new shape
                now, task.idle = now + 100, task.idle + 100
            task.update(step)
        assert task.seconds_left(now) == pytest.approx(900)  # not forty minutes


def test_no_time_is_told_of_batches_that_a_device_was_only_handed(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("lsp.console.time.monotonic", lambda: now)
    with console.Progress(quiet=True).task("judging", 4) as task:
        for done in (1, 2):
            task.update(done)
            now += 0.01
        assert task.seconds_left(now) is None  # not none at all
        now += 10
        task.update(3)
        assert task.seconds_left(now) == pytest.approx(5, rel=0.01)


def test_quiet_progress_says_only_warnings_and_each_once(capsys: pytest.CaptureFixture[str]) -> None:
    progress = console.Progress(quiet=True)
    with progress.task("pack", 2) as task:
        task.update(1)
        progress.say("hello")
        for cut in (37, 37, 2):
            progress.warn(f"{cut} of 40 examples were cut")
    assert capsys.readouterr().err == "warning: 37 of 40 examples were cut\nwarning: 2 of 40 examples were cut\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["prepare", "OUT"], "--out and TEXT are the same folder"),
        (["prepare", "a=0.5:OUT", "b=0.5:TEXT"], "--out and TEXT are the same folder"),
        (["prepare", "TEXT", "--tokenizer", "OUT"], "--out and --tokenizer are the same folder"),
        (["pretrain", "--data", "OUT"], "--out and --data are the same folder"),
        (["pretrain", "--data", "TEXT", "--valid", "OUT/rows"], "--valid OUT/rows is a part of --out"),
        (["pretrain", "--data", "TEXT", "--tokenizer", "OUT/tokenizer"], "--tokenizer OUT/tokenizer is a part of"),
        (["verify", "resume", "--data", "OUT"], "--out and --data are the same folder"),
        (["verify", "resume", "--data", "TEXT", "--tokenizer", "OUT"], "--out and --tokenizer are the same folder"),
        (["compress", "quantize", "--from", "OUT/candidates/int8"], "--from OUT/candidates/int8 is a part of"),
    ],
)
def test_what_a_command_reads_is_not_written_over(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, text = tmp_path / "out", tmp_path / "text.txt"
    text.write_text("words")
    for name in ("rows", "tokenizer", "candidates/int8"):
        (out / name).mkdir(parents=True)
        (out / name / "kept").write_text("mine")
    (out / "run.json").write_text("{}")
    given = [word.replace("TEXT", str(text)).replace("OUT", str(out)) for word in words]
    assert cli.main([*given, "--out", str(out), "--overwrite"]) == Exit.USAGE
    printed = capsys.readouterr().err
    assert said.replace("OUT", str(out)) in printed and "fix: Give --out another" in printed
    assert len([*out.rglob("kept")]) == 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["prepare", "TEXT", "--tokenizer", "DIR", "--part", "0/3"], "--part 0/3 is no share"),
        (["prepare", "TEXT", "--tokenizer", "DIR", "--part", "4/3"], "--part 4/3 is no share"),
        (["prepare", "TEXT", "--tokenizer", "DIR", "--part", "half"], "--part half is no share"),
        pytest.param(
            ["prepare", "TEXT", "--tokenizer", "DIR", "--part", "1/" + "9" * 5000], "is no share", id="digits"
        ),
        (["prepare", "TEXT", "--part", "1/3"], "--part has no tokenizer"),
        (["prepare", "TEXT", "--tokenizer", "DIR", "--part", "1/3", "--overwrite"], "would take away"),
        (["prepare", "a=0.5:TEXT", "TEXT"], "has no weight, and a has one"),
        (["prepare", "a=0.5:TEXT", "b=x:TEXT"], "'x', which is no number"),
        (["prepare", "a=0.5:missing.txt"], "missing.txt does not exist"),
        (["pretrain", "--data", "TEXT", "--valid", "a=1:TEXT"], "Text to measure on has no weight"),
    ],
)
def test_mistakes_in_parts_and_weights_are_answered(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.txt").write_text("words")
    given = [word.replace("TEXT", str(tmp_path / "text.txt")).replace("DIR", str(tmp_path)) for word in words]
    assert cli.main([*given, "--out", str(tmp_path / "out")]) in (Exit.USAGE, Exit.DATA)
    printed = capsys.readouterr().err
    assert said in printed
    assert "fix: " in printed
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("words", [["--budget", "5m"], ["--tracker", "tensorboard"]])
def test_what_does_not_train_has_no_budget(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["compress", "quantize", "--from", str(tmp_path), "--out", str(tmp_path / "out"), *words]
    assert cli.main(line) == Exit.USAGE
    assert "are for training" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["quantize", "prune", "distill", "search"])
def test_no_stage_of_compression_reads_a_stream(verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.tsv").write_text("text\tlabel\na\t0\nb\t1\n")
    os.mkfifo(tmp_path / "pipe")
    line = ["compress", verb, "--from", str(tmp_path), "--out", str(tmp_path / "out")]
    for train, dev in (("-", "text.tsv"), ("text.tsv", "pipe")):
        files = ["--train", train if train == "-" else str(tmp_path / train), "--dev", str(tmp_path / dev)]
        assert cli.main([*line, *files]) == Exit.USAGE
        assert "a stream can be read once only" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--from", "DIR", "--train", "-", "--dev", "TEXT"], "--train -: a stream can be read once only"),
        (["--from", "DIR", "--train", "TEXT", "--dev", "PIPE"], "a stream can be read once only"),
        (
            ["--from", "DIR", "--tokenizer", "DIR", "--train", "TEXT", "--dev", "TEXT"],
            "--tokenizer is for --from scratch",
        ),
        (
            ["--from", "DIR", "--train", "TEXT", "--dev", "TEXT", "--sweep", "model.layers=1,2"],
            "the one that --from names",
        ),
        (
            ["--from", "scratch", "--tokenizer", "OUT", "--train", "TEXT", "--dev", "TEXT"],
            "--out and --tokenizer are the same folder",
        ),
    ],
)
def test_mistakes_in_starts_and_streams_are_answered_and_cost_nothing(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {
        "TEXT": tmp_path / "text.tsv",
        "DIR": tmp_path / "start",
        "PIPE": tmp_path / "pipe",
        "OUT": tmp_path / "out",
    }
    places["TEXT"].write_text("text\tlabel\na\t0\nb\t1\n")
    os.mkfifo(places["PIPE"])
    for name in ("DIR", "OUT"):
        places[name].mkdir()
        (places[name] / "kept").write_text("mine")
    given = [str(places.get(word, word)) for word in words]
    assert cli.main(["finetune", *given, "--out", str(places["OUT"]), "--overwrite"]) == Exit.USAGE
    printed = capsys.readouterr().err
    assert said.replace("OUT", str(places["OUT"])) in printed and "fix: " in printed
    assert (places["OUT"] / "kept").read_text() == "mine"
