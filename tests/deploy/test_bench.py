"""Timing: what is timed in which order, what the numbers are, and whose bytes are whose."""

import dataclasses
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from lsp import Exit, LspError, checkpoint, cli, manifest, timing
from lsp.arrays import stored_bytes
from lsp.commands import bench as verb
from lsp.data.examples import TOKENS_AT_ONCE, Examples, alone, sorted_by_length
from lsp.data.tasks import Table
from lsp.data.tokenizer import Tokenizer
from lsp.deploy import apart, bench, parts
from lsp.model.weightonly import dequantize

Build = Callable[..., checkpoint.Model]
Store = Callable[[checkpoint.Model, Path], Path]


@dataclasses.dataclass
class Clock:
    """A clock that only work moves, and who worked."""

    now: float = 0.0
    log: list[str] = dataclasses.field(default_factory=list)

    def __call__(self) -> float:
        return self.now

    def work(self, name: str, seconds: Iterator[float]) -> None:
        self.now += next(seconds)
        self.log.append(name)


def forever(seconds: float) -> Iterator[float]:
    while True:
        yield seconds


def timed(name: str) -> bench.Timed:
    def never(*inputs: object) -> None:
        raise AssertionError

    return bench.Timed(name, never, never, None, 32)


def test_models_take_turns() -> None:
    clock = Clock()
    calls = [partial(clock.work, name, forever(1.0)) for name in "ab"]
    timing.interleaved(calls, timing.Limits(4, 100.0, clock), 1)
    assert "".join(clock.log) == "abababab"


def test_of_a_turn_of_several_calls_the_first_is_not_counted() -> None:
    clock = Clock()
    slow_first = [partial(clock.work, "a", iter([9.0, 1.0, 2.0, 3.0] * 5)), partial(clock.work, "b", forever(5.0))]
    found = timing.interleaved(slow_first, timing.Limits(5, 1000.0, clock), 3)
    assert "".join(clock.log) == ("aaaa" + "bbbb") * 5
    assert found.shape == (2, 5, 3)
    np.testing.assert_allclose(found[0], [[1, 2, 3]] * 5)


@pytest.mark.parametrize(("limit", "rounds"), [(0.0, 3), (7.9, 4), (8.0, 4), (8.1, 5), (1e9, 6)])
def test_time_is_limited_and_three_rounds_are_made_anyway(limit: float, rounds: int) -> None:
    clock = Clock()
    calls = [partial(clock.work, name, forever(1.0)) for name in "ab"]
    assert len(timing.interleaved(calls, timing.Limits(6, limit, clock), 1)[0]) == rounds


def test_percentiles_are_numpys_and_rates_the_median_and_the_best() -> None:
    clock, draw = Clock(), np.random.default_rng(0)
    seconds = draw.gamma(2.0, 0.01, (2, 20, 11))
    calls = [partial(clock.work, name, iter(own.ravel().tolist())) for name, own in zip("ab", seconds, strict=True)]
    found = timing.interleaved(calls, timing.Limits(20, 1e9, clock), 10)
    row = bench.latency(found[1])
    counted = np.sort(seconds[1, :, 1:].ravel()) * 1e3  # 200 calls: percentile q lies at place 1.99 q
    for q in (50, 90, 99):
        place, rest = divmod(1.99 * q, 1)
        low, high = counted[int(place)], counted[int(place) + 1]
        assert row[f"p{q}_ms"] == pytest.approx(low + rest * (high - low), rel=1e-6)
    assert row["calls"] == 200
    rate = bench.rate(32, np.array([[0.5], [0.25], [1.0]]))
    assert rate == {"examples_per_second": 64.0, "best_per_second": 128.0, "calls": 3}


def test_times_as_fast_is_of_turns_in_the_same_round() -> None:
    """The machine is half as fast from the third round on, for both: that is no difference between the models."""
    seconds = np.array([[[1.0], [1.0], [2.0], [2.0], [2.0]], [[3.0], [3.0], [6.0], [6.0], [6.0]]])
    own, baseline = bench.speedups(seconds, 1)
    assert own == {"speedup": 3.0, "low": 3.0, "high": 3.0}
    assert baseline == {"speedup": 1.0, "low": 1.0, "high": 1.0}


def test_compiling_is_what_a_first_call_takes_longer() -> None:
    clock = Clock()
    case = bench.Case([partial(clock.work, "a", iter([7.0, *[2.0] * 3, 2.0]))], 1, 2, {})
    timings = bench.measure(case, timing.Limits(3, 0.0, clock))
    assert timings.compile_seconds == [5.0]
    assert timings.seconds_MRE.tolist() == [[[2.0]] * 3]


def test_a_model_alone_is_not_compared() -> None:
    case = bench.Case([], 1, 2, {"batch": 2})
    timings = bench.Timings(np.ones((1, 3, 1)), [0.0])
    (row,) = bench.described([timed("a")], case, timings)
    assert list(row) == ["model", "batch", "examples_per_second", "best_per_second", "calls"]


@pytest.mark.parametrize(("in_a_row", "column"), [(1, "examples_per_second"), (8, "p50_ms")])
def test_one_text_is_a_rate_too_unless_a_turn_repeats_it(in_a_row: int, column: str) -> None:
    """As a file with a single row is."""
    timings = bench.Timings(np.ones((1, 3, in_a_row)), [0.0])
    (row,) = bench.described([timed("a")], bench.Case([], in_a_row, 1, {}), timings)
    assert row[column] == (1.0 if in_a_row == 1 else 1000.0)


@pytest.mark.parametrize("shares", [[1, 1, 1], [5, 0, 1], [10**9, 3, 7], [0, 0, 0]])
def test_what_is_shared_out_adds_up(shares: list[int]) -> None:
    found = parts.shared_out(1001, shares)
    assert sum(found) == (1001 if sum(shares) else 0)
    for part, share in zip(found, shares, strict=True):
        assert abs(part - 1001 * share / max(1, sum(shares))) <= 1


@pytest.mark.parametrize("int8", [False, True])
def test_bytes_and_parameters_of_the_parts_are_those_of_the_run(
    build: Build, store: Store, tmp_path: Path, int8: bool
) -> None:
    base = checkpoint.open(store(build("modern", int8), tmp_path / "run"))
    found = parts.of_run(base)
    assert [part.part for part in found] == ["embeddings", "encoder", "head", "tokenizer"]
    assert sum(part.bytes for part in found) == base.size()["bytes"]
    assert sum(part.parameters for part in found) == base.size()["parameters"]
    assert found[0].parameters == 285 * 16 + 16  # the table, and a norm without bias
    assert found[2].parameters == 16 * 16 + 16 + 16 * 3 + 3  # pooler and its norm, classifier
    on_disk = manifest.bytes_under(base.path / "params")
    share = stored_bytes(base.params["embeddings"]) / stored_bytes(base.params)
    assert found[0].bytes == pytest.approx(on_disk * share, abs=1)


def test_random_texts_have_the_lengths_that_are_stated() -> None:
    normal = statistics.NormalDist(np.log(bench.MEDIAN), bench.SPREAD)
    assert [round(float(np.exp(normal.inv_cdf(q)))) for q in (0.5, 0.9, 0.99)] == [24, 59, 122]
    assert "half under 24 tokens, 90 % under 59, 99 % under 122" in bench.DRAWN


def test_random_examples_are_as_long_as_asked(words: Tokenizer) -> None:
    examples = Examples.random(words, [1, 2, 9, 40], 32)
    assert examples.lengths.tolist() == [2, 2, 9, 32] == [len(tokens) for tokens in examples.tokens]
    assert all((tokens[1:-1] > 4).all() and tokens[0] == 2 for tokens in examples.tokens)
    assert (examples.batch(np.arange(4), 4)["tokens"] != 0).sum(1).tolist() == [2, 2, 9, 32]


def test_alone_each_example_comes_once_in_few_shapes(words: Tokenizer) -> None:
    texts = [("the cat " * n,) for n in (1, 3, 2, 9, 1, 4, 30, 2, 5)]
    examples = Examples(Table(texts, [], ()), words, 32)
    seen, shapes = [], set()
    for chosen, batch in alone(examples):
        shapes.add(batch["tokens"].shape)
        for row, example in enumerate(chosen.tolist()):
            seen.append(example)
            tokens = batch["tokens"][row]
            assert tokens[tokens != 0].tolist() == examples.tokens[example].tolist()
        assert not batch["tokens"][len(chosen) :].any()
    assert sorted(seen) == list(range(9))
    assert {width for _, width in shapes} <= {16, 32} and len(shapes) <= 2


def test_for_any_shape_the_longest_come_first_and_nothing_is_wider_than_it_must_be(words: Tokenizer) -> None:
    texts = [("the cat " * n,) for n in (1, 3, 2, 9, 1, 4, 30, 2, 5) * 100]
    examples = Examples(Table(texts, [], ()), words, 32)
    batches = list(sorted_by_length(examples))
    assert sorted(np.concatenate([chosen for chosen, _ in batches]).tolist()) == list(range(900))
    widths = [batch["tokens"].shape[1] for _, batch in batches]
    assert widths == sorted(widths, reverse=True) and len(batches) > 3
    for chosen, batch in batches:
        assert batch["tokens"].shape == (len(chosen), examples.lengths[chosen].max())
        assert batch["tokens"].size <= TOKENS_AT_ONCE
        for row, example in enumerate(chosen.tolist()):
            assert batch["tokens"][row][: examples.lengths[example]].tolist() == examples.tokens[example].tolist()
        assert (batch["tokens"] != 0).sum() == examples.lengths[chosen].sum()


def test_two_are_timed_in_a_process_of_their_own(
    build: Build, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In which nothing of the folder that it is started in is run."""
    run = store(build("bert", int8=True), tmp_path / "run")
    data = tmp_path / "dev.tsv"
    data.write_text("text\tlabel\n" + "the cat\tgood\na dog ran over the hill\tbad\n" * 20)
    (tmp_path / "json.py").write_text("raise SystemExit(3)\n")
    monkeypatch.chdir(tmp_path)
    found = apart.speedup(run, run, apart.Texts(str(data), (("text",), "label"), 16, 30))
    assert 0.05 < found < 20, "a model beside itself"
    with pytest.raises(LspError, match="ended with") as ended:
        apart.speedup(tmp_path / "nowhere", run, apart.Texts(str(data), (("text",), "label"), 16, 30))
    assert ended.value.code == Exit.MACHINE


def test_an_int8_run_is_timed_beside_its_float32_self(
    build: Build, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = store(build("bert", int8=True), tmp_path / "small")
    data = tmp_path / "texts.txt"
    data.write_text("the cat\na dog ran over the hill to the old mill\n")
    words = ["bench", str(run), "--data", str(data), "--length", "16", "--length", "400", "--batch", "2"]
    assert cli.main([*words, "--seconds", "0", "--json"]) == Exit.DONE
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    assert "latency" in printed.err and "small in float32" in printed.err
    assert result.keys() == {
        *("command", "run", "status", "device", "processor", "threads", "load_averages", "baseline", "texts_from"),
        *("models", "latency", "throughput", "texts", "parts"),
    }
    assert result["baseline"] == "small in float32"
    assert [model["bytes"] for model in result["models"]] == [sum(part["bytes"] for part in result["parts"]), None]
    assert [(row["model"], row["tokens"]) for row in result["latency"]] == [
        *(
            ("small", 16),
            ("small in float32", 16),
            ("small", 32),
            ("small in float32", 32),
        ),  # 400 is more than it takes
    ]
    assert result["latency"][0].keys() == {
        *("model", "batch", "tokens", "p50_ms", "p90_ms", "p99_ms", "calls", "speedup", "low", "high"),
    }
    assert result["throughput"][0]["batch"] == 2 and result["texts"][0]["examples"] == 2
    assert all(row["speedup"] == 1 for row in result["latency"] if row["model"] == result["baseline"])
    assert all(np.isfinite(row["speedup"]) and row["speedup"] > 0 for row in result["latency"])


def test_the_float32_self_has_the_weights_that_int8_stands_for(build: Build, store: Store, tmp_path: Path) -> None:
    base = checkpoint.open(store(build("bilstm", int8=True), tmp_path / "small"))
    own = bench.of_params(base, dequantize(base.params), "self")
    tokens = np.array([[2, 9, 30, 31, 3, 0, 0]], np.int32)
    kept = bench.of_run(base, "small")
    found, expected = kept.answer(tokens, tokens * 0), own.answer(tokens, tokens * 0)
    assert found.shape == expected.shape == (1, 3)
    assert 0 < np.abs(found - expected).max() < 0.2 * np.abs(expected).max()


def test_others_are_measured_too_and_the_first_of_them_counts_as_one(
    build: Build, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An encoder's hidden states are timed; it has no classes."""
    runs = [store(build("bert", head="words"), tmp_path / name) for name in ("one", "other")]
    words = ["bench", str(runs[0]), "--against", str(runs[1]), "--against", str(runs[0]), "--length", "8"]
    assert cli.main([*words, "--batch", "2", "--seconds", "0", "--quiet"]) == Exit.DONE
    printed = capsys.readouterr()
    assert "this machine is busy, or just was" in printed.err or not printed.err
    shown = dict(line.split(None, 1) for line in printed.out.splitlines())
    assert shown["baseline"] == "other" and float(shown["speedup.8_tokens"]) > 0
    hidden = bench.of_run(checkpoint.open(runs[0]), "one").answer(np.ones((2, 8), np.int32), np.zeros((2, 8), np.int32))
    assert hidden.shape == (2, 8, 16)


def test_a_chart_is_drawn_and_written(build: Build, store: Store, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    run, picture = store(build("bert"), tmp_path / "run"), tmp_path / "latency.png"
    options = ["--seconds", "0", "--length", "8", "--length", "16", "--plot", str(picture), "--threads", "1", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "lsp", "bench", str(run), *options], capture_output=True, text=True, check=True
    )
    assert "milliseconds for one text (p50) by tokens" in done.stderr
    result = json.loads(done.stdout)
    assert result["threads"] == 1 and result["baseline"] is None and result["plot"] == str(picture)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_what_can_not_be_measured_is_said(
    build: Build, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = store(build("bert"), tmp_path / "run")
    assert cli.main(["bench", str(run), "--threads", "9999"]) == Exit.MACHINE
    assert "this process may use" in capsys.readouterr().err
    assert cli.main(["bench", str(run), "--plot", str(tmp_path / "a.txt")]) == Exit.USAGE
    (tmp_path / "empty.jsonl").write_text("")
    assert cli.main(["bench", str(run), "--data", str(tmp_path / "empty.jsonl")]) == Exit.DATA
    assert cli.main(["bench", str(tmp_path / "nothing")]) == Exit.ARTIFACT


def test_texts_are_drawn_from_all_of_a_file(words: Tokenizer, tmp_path: Path) -> None:
    data = tmp_path / "sorted.txt"
    data.write_text("".join("the " * (1 + n // 100) + "\n" for n in range(1000)))
    model = dataclasses.replace(timed("a"), tokenizer=words)
    (examples,), said = verb._examples([model], verb.Texts(data))
    assert len(examples) == bench.TEXTS and said.startswith(f"256 of {data}")
    assert len(set(examples.lengths.tolist())) == 10


def test_texts_are_those_of_the_columns_that_the_first_model_knows(words: Tokenizer, tmp_path: Path) -> None:
    data = tmp_path / "two.tsv"
    data.write_text("sentence\treview\n" + "the\tthe the the\n" * 5)
    one, other = (dataclasses.replace(timed(name), tokenizer=words) for name in ("a", "b"))
    short, long = ({len(ids) + 2} for ids in words.encode(["the", "the the the"]))  # [CLS] and [SEP] besides
    for model, lengths in ((one, short), (dataclasses.replace(one, columns=("review",)), long)):
        read, _ = verb._examples([model, other], verb.Texts(data))
        assert [set(each.lengths.tolist()) for each in read] == [lengths] * 2 and short != long
    with pytest.raises(LspError, match="pairs of texts"):
        verb._examples([dataclasses.replace(one, columns=("a", "b"))], verb.Texts(data))
