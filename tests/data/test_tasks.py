"""Labelled tables: every format reads the same, and every bad row is named by its line."""

import gzip
import io
import json
import sys
from pathlib import Path

import pytest

from lsp import Exit, LspError
from lsp.data import tasks
from lsp.data.tasks import Table

ROWS = [("a fine film", "positive"), ('says "no', "negative"), ("line\u2028end\x85in it", "positive")]
EXPECTED = Table([(text,) for text, _ in ROWS], [1, 0, 1], ("negative", "positive"))


def write(path: Path, content: str) -> Path:
    path.write_bytes(content.encode())
    return path


def tsv(*rows: tuple[str, ...]) -> str:
    return "".join("\t".join(row) + "\n" for row in rows)


def test_tsv_csv_and_jsonl_hold_the_same_table(tmp_path: Path) -> None:
    quoted = [f'"{text.replace(chr(34), chr(34) * 2)}",{label}\n' for text, label in ROWS]
    files = {
        "a.tsv": tsv(("sentence", "label"), *ROWS),
        "windows.tsv": tsv(("sentence", "label"), *ROWS).replace("\n", "\r\n"),
        "no-end.tsv": tsv(("sentence", "label"), *ROWS).removesuffix("\n"),
        "b.csv": "Text,Label\n" + "".join(quoted),
        "c.jsonl": "".join(json.dumps({"label": label, "text": text}) + "\n" for text, label in ROWS),
    }
    for name, content in files.items():
        assert tasks.read(write(tmp_path / name, content)) == EXPECTED, name
    (tmp_path / "d.tsv.gz").write_bytes(gzip.compress(files["a.tsv"].encode()))
    assert tasks.read(tmp_path / "d.tsv.gz") == EXPECTED


def test_csv_cells_may_hold_newlines(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'text,label\n"two\nlines, and ""quotes""",x\nplain,y\n')
    assert tasks.read(path).texts == [('two\nlines, and "quotes"',), ("plain",)]


@pytest.mark.parametrize(
    ("header", "places"),
    [
        (("sentence", "label"), (0,)),
        (("index", "question", "sentence", "label"), (1, 2)),
        (("Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"), (3, 4)),
        (("premise", "hypothesis", "gold_label"), (0, 1)),
        (("id", "sentence1", "sentence2", "label"), (1, 2)),
    ],
)
def test_the_usual_columns_are_found(tmp_path: Path, header: tuple[str, ...], places: tuple[int, ...]) -> None:
    rows = [tuple(f"{name} {n}" if name.lower() not in tasks.LABELS else str(n) for name in header) for n in (0, 1)]
    table = tasks.read(write(tmp_path / "a.tsv", tsv(header, *rows)))
    assert table.texts == [tuple(row[place] for place in places) for row in rows]
    assert table.labels == [0, 1]


def test_columns_without_a_header_are_given_by_number(tmp_path: Path) -> None:
    path = write(tmp_path / "cola.tsv", "gj04\t1\t\tThe car honked.\ngj04\t0\t*\tCar the honked.")
    table = tasks.read(path, ("4",), "2")
    assert table == Table([("The car honked.",), ("Car the honked.",)], [1, 0], ("0", "1"))


def test_a_number_is_a_place_whatever_the_first_row_holds(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", '"2","a title","long text"\n"1","another","and more"\n')
    table = tasks.read(path, ("2", "3"), "1")
    assert table.texts == [("a title", "long text"), ("another", "and more")] and table.labels == [1, 0]


def test_a_header_may_be_numbers_where_one_of_them_is_no_place(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "0,1\ngood,pos\nbad,neg\n")
    assert tasks.read(path, ("0",), "1") == Table([("good",), ("bad",)], [1, 0], ("neg", "pos"))


def test_commas_on_stdin_are_csv_where_the_first_line_names_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    for given, wanted in (
        ('text,note\n"good, great",x\n', [(("good, great",), {"note": "x"})]),
        ("well, this is text\n", [(("well, this is text",), {})]),
    ):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(given.encode()))))
        assert list(tasks.stream("-")) == wanted


def test_columns_of_one_name_are_told_apart(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", tsv(("id", "id", "text"), ("1", "2", "good")))
    assert list(tasks.stream(str(path))) == [(("good",), {"id": "1", "id.2": "2"})]


def test_labels_of_records_have_one_name_whatever_their_kind(tmp_path: Path) -> None:
    lines = ['{"text": "a", "label": [1]}', '{"text": "b", "label": 1.0}', '{"text": "c", "label": true}']
    path = write(tmp_path / "a.jsonl", "\n".join(lines))
    table = tasks.read(path, problem="multi_label")
    assert table.names == ("1", "true") and table.labels == [[0], [0], [1]]
    path = write(tmp_path / "b.jsonl", '{"text": "a", "label": NaN}\n')
    with pytest.raises(LspError, match="line 1: field 'label' holds no label"):
        tasks.read(path)


def test_columns_that_a_model_knows_come_before_the_usual_ones(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", tsv(("title", "Body", "label"), ("t", "b", "x"), ("u", "c", "y")))
    assert tasks.read(path).columns == ("title",)
    table = tasks.read(path, known=("body",))
    assert table.texts == [("b",), ("c",)] and table.columns == ("Body",)
    assert tasks.read(path, known=("other",)).texts == [("t",), ("u",)]
    assert tasks.read(path, ("2",), "3", known=("title",)).texts == [("b",), ("c",)]
    spaced = write(tmp_path / "b.csv", "label, text\nx,t\ny,u\n")
    table = tasks.read(spaced)
    assert tasks.read(spaced, known=table.columns).texts == table.texts == [("t",), ("u",)], "of a model made of it"
    with pytest.raises(LspError, match="gives one text a row, and the model was trained on pairs of texts: 'a', 'b'"):
        tasks.read(path, known=("a", "b"))
    with pytest.raises(LspError, match="pairs of texts a row, and the model was trained on one text"):
        list(tasks.stream(str(path), ("title", "body"), known=("text",)))


def test_columns_known_by_numbers_are_not_looked_for_among_the_cells(tmp_path: Path) -> None:
    """A label of the first row may be the number of the column of texts."""
    path = write(tmp_path / "a.tsv", tsv(("good film", "1"), ("bad film", "0")))
    read = tasks.read(path, ("1",), "2")
    assert tasks.read(path, ("1",), "2", known=read.columns) == read and read.columns == ("1",)
    assert [texts for texts, _ in tasks.stream(str(path), known=("1",))] == [("good film",), ("bad film",)]
    path = write(tmp_path / "b.tsv", tsv(("2", "good film"), ("1", "bad film")))
    assert tasks.read(path, label_column="1", known=("2",)).texts == [("good film",), ("bad film",)]
    path = write(tmp_path / "c.tsv", tsv(("id", "text", "label"), ("1", "t", "x"), ("2", "u", "y")))
    assert tasks.read(path, known=("1",)).texts == [("t",), ("u",)], "a header says more"
    path = write(tmp_path / "e.tsv", tsv(("how are you", "question"), ("fine", "statement"), ("who?", "question")))
    spoken = [("how are you",), ("fine",), ("who?",)]
    assert tasks.read(path, ("1",), "2").texts == tasks.read(path, label_column="2", known=("1",)).texts == spoken
    assert [texts for texts, _ in tasks.stream(str(path), known=("1",))] == spoken, "a class's name makes no header"
    path = write(tmp_path / "f.tsv", tsv(("id", "text"), ("1", "t"), ("2", "u")))
    assert [texts for texts, _ in tasks.stream(str(path), known=("1",))] == [("t",), ("u",)]
    path = write(tmp_path / "d.jsonl", '{"text": "t", "label": 1}\n{"text": "u", "label": 0}\n')
    assert tasks.read(path, known=("2",)).texts == [("t",), ("u",)]


def test_blank_lines_of_a_table_are_no_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", tsv(("sentence", "label"), *ROWS) + "\n\n")
    assert tasks.read(path) == EXPECTED


def test_lines_of_qqp_that_end_early_are_counted_and_passed_by(tmp_path: Path) -> None:
    rows = [(str(n), "1", "2", "so?", "how?", str(n)) for n in (0, 1)]
    short = ("3", "4", "5")
    path = write(tmp_path / "train.tsv", tsv(tuple(tasks.RAGGED), rows[0], short, rows[1]))
    table = tasks.read(path)
    assert table.passed == 1 and table.labels == [0, 1]
    path = write(tmp_path / "mine.tsv", tsv(("id", *tasks.RAGGED[1:-1], "label"), rows[0], short))
    with pytest.raises(LspError, match="line 3: 3 columns"):
        tasks.read(path)


def test_numbers_work_beside_a_header_too(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", tsv(("id", "sentence", "label"), ("7", "x", "a"), ("8", "y", "b")))
    assert tasks.read(path, ("2",), "3").texts == [("x",), ("y",)]


def test_other_columns_are_given_by_name(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "body,mood\nx,good\ny,bad\n")
    assert tasks.read(path, ("body",), "mood") == Table([("x",), ("y",)], [1, 0], ("bad", "good"))


def test_labels_of_numbers_are_sorted_as_numbers(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", "".join(json.dumps({"text": "x", "label": n}) + "\n" for n in (10, 9, 100.0)))
    assert tasks.read(path).names == ("9", "10", "100")


def test_a_label_that_looks_like_a_number_is_a_name(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", tsv(("text", "label"), ("x", "--1"), ("y", "10"), ("z", "9")))
    assert tasks.read(path).names == ("--1", "10", "9")


@pytest.mark.parametrize(
    ("names", "held", "places"),
    [
        (("1", "2", "3"), ("1.0", "2", "+3"), [0, 1, 2]),
        (("1.0", "2.0", "3.0"), ("1", "2.0", "3"), [0, 1, 2]),  # of a model that was made when these were names
        (("+1", "-1"), ("1", "-1", "+1"), [0, 1, 0]),
        (("-2", "-1"), ("-1", "-2.0"), [1, 0]),
        (("0", "0.5", "1"), ("1", "0.5", "0.0"), [2, 1, 0]),
        (("7", "007"), ("007", "7.0", "-0"), None),
    ],
)
def test_a_whole_number_is_one_class_however_it_is_written(
    tmp_path: Path, names: tuple[str, ...], held: tuple[str, ...], places: list[int] | None
) -> None:
    path = write(tmp_path / "a.tsv", tsv(("text", "label"), *(("x", name) for name in held)))
    if places is None:
        with pytest.raises(LspError, match="label '0' is unknown"):
            tasks.read(path, labels=names)
        return
    assert tasks.read(path, labels=names).labels == places
    lines = write(tmp_path / "a.jsonl", "".join(f'{{"text": "x", "label": {float(name)}}}\n' for name in held))
    assert tasks.read(lines, labels=names).labels == places


def test_numbers_are_no_places_where_a_class_is_called_by_one(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", tsv(("text", "label"), ("x", "0"), ("y", "1")))
    for names in (("1.5", "2.5"), ("-2", "-1"), ("+1", "-1")):
        with pytest.raises(LspError, match="label '0' is unknown"):
            tasks.read(path, labels=names)
    path = write(tmp_path / "b.tsv", tsv(("text", "label"), *(("x", name) for name in ("10.0", "9.0", "-1", "9.5"))))
    assert tasks.read(path).names == ("-1", "9", "9.5", "10")


def test_given_labels_keep_their_order_and_may_be_absent(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", tsv(("text", "label"), ("x", "b"), ("y", "b")))
    assert tasks.read(path, labels=["b", "a"]) == Table([("x",), ("y",)], [0, 0], ("b", "a"))


def test_unlabelled_rows_are_read_when_labels_are_not_needed(tmp_path: Path) -> None:
    indexed = write(tmp_path / "test.tsv", tsv(("index", "sentence"), ("0", "x"), ("1", "y")))
    plain = write(tmp_path / "a.txt", "x\n\ny\twith a tab\n")
    assert list(tasks.stream(str(indexed))) == [(("x",), {"index": "0"}), (("y",), {"index": "1"})]
    assert list(tasks.stream(str(plain))) == [(("x",), {}), (("",), {}), (("y\twith a tab",), {})]


def test_a_number_stands_for_a_class_where_no_class_is_called_by_one(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", tsv(("text", "label"), ("x", "1"), ("y", "bad")))
    assert tasks.read(path, labels=["bad", "good"]).labels == [1, 0]
    with pytest.raises(LspError, match="'1' is unknown"):
        tasks.read(path, labels=["bad", "2"])


def test_numbers_of_known_classes_are_no_new_ones(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", tsv(("text", "label"), ("x", "1"), ("y", "odd"), ("z", "0")))
    assert tasks.read(path, labels=["calm", "wild"], grow=True) == Table(
        [("x",), ("y",), ("z",)], [1, 2, 0], ("calm", "wild", "odd")
    )


def test_a_text_file_has_no_header_and_a_csv_always_has_one(tmp_path: Path) -> None:
    titles = write(tmp_path / "a.txt", "title\nx\n")
    assert [texts for texts, _ in tasks.stream(str(titles))] == [("title",), ("x",)]
    tweets = str(write(tmp_path / "a.csv", "tweet\nx\n"))
    with pytest.raises(LspError, match="which column holds the text"):
        list(tasks.stream(tweets))
    assert [texts for texts, _ in tasks.stream(tweets, ["tweet"])] == [("x",)]
    for name, content in (("a.json", '[\n{"text": "x"}\n]\n'), ("b.json", '[{"text": "x"}]\n')):
        with pytest.raises(LspError, match="begins with a list") as refused:
            list(tasks.stream(str(write(tmp_path / name, content))))
        assert "jq" in refused.value.hint


def test_more_than_two_texts_are_no_example(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", tsv(("a", "b", "c", "label"), ("x", "y", "z", "1"), ("x", "y", "z", "0")))
    with pytest.raises(LspError, match="one text or a pair"):
        tasks.read(path, text_columns=["a", "b", "c"])


def test_an_example_may_have_several_labels_or_none(tmp_path: Path) -> None:
    table = write(tmp_path / "a.tsv", tsv(("text", "label"), ("x", "b, a"), ("y", ""), ("z", "c")))
    assert tasks.read(table, problem="multi_label") == Table([("x",), ("y",), ("z",)], [[1, 0], [], [2]], tuple("abc"))
    lines = write(tmp_path / "a.jsonl", '{"text": "x", "label": ["b", "a,b"]}\n{"text": "y", "label": []}\n')
    assert tasks.read(lines, problem="multi_label") == Table([("x",), ("y",)], [[1, 0], []], ("a,b", "b"))
    none = write(tmp_path / "b.jsonl", '{"text": "x", "label": null}\n{"text": "y", "label": ["a", "b"]}\n')
    assert tasks.read(none, problem="multi_label") == Table([("x",), ("y",)], [[], [0, 1]], ("a", "b"))
    with pytest.raises(LspError, match="holds no label at all"):
        tasks.read(write(tmp_path / "c.tsv", tsv(("text", "label"), ("x", ""), ("y", ""))), problem="multi_label")
    with pytest.raises(LspError, match="label 'c' is unknown"):
        tasks.read(table, labels=["a", "b"], problem="multi_label")


def test_labels_may_be_numbers(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", tsv(("text", "score"), ("x", "2.5"), ("y", "-1e1")))
    assert tasks.read(path, label_column="score", problem="regression") == Table([("x",), ("y",)], [2.5, -10.0], ())
    for bad in ("good", "", "nan", "inf", "1e39"):
        path = write(tmp_path / "b.tsv", tsv(("text", "label"), ("x", "1"), ("y", bad)))
        with pytest.raises(LspError, match=r"line 3: .* not a number") as error:
            tasks.read(path, problem="regression")
        assert error.value.code == Exit.DATA


def test_a_number_too_large_for_any_float_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "x", "label": 1' + "0" * 400 + "}\n")
    with pytest.raises(LspError, match="line 1: field 'label' is '1000"):
        tasks.read(path, problem="regression")


def test_columns_are_kept_for_slices(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", tsv(("text", "country", "label"), ("x", "at", "1"), ("y", "ch", "0")))
    assert tasks.read(path, slices=["country"]).groups == {"country": ["at", "ch"]}
    with pytest.raises(LspError, match=r"no column county. Did you mean 'country'"):
        tasks.read(path, slices=["county"])


@pytest.mark.parametrize(
    "content", ["x\ny\n", "sentence\nx\ny\n", '{"text": "x"}\n{"text": "y"}\n', "id\ttext\n1\tx\n2\ty\n"]
)
def test_standard_input_shows_by_its_first_line_what_it_is(monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    class Stdin:
        buffer = io.BufferedReader(io.BytesIO(content.encode()))

    monkeypatch.setattr(sys, "stdin", Stdin)
    assert [texts for texts, _ in tasks.stream("-")] == [("x",), ("y",)]


def test_a_stream_gives_the_rows_before_a_bad_one(tmp_path: Path) -> None:
    rows = tasks.stream(str(write(tmp_path / "a.tsv", tsv(("id", "text"), ("1", "x"), ("2",)))))
    assert next(rows) == (("x",), {"id": "1"})
    with pytest.raises(LspError, match="line 3: 1 column where line 1 has 2"):
        next(rows)
    assert list(tasks.stream(str(write(tmp_path / "empty.tsv", "")))) == []


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.tsv", "", "is empty"),
        ("b.tsv", "sentence\tlabel\n", "a header and no rows"),
        ("c.tsv", "sentence\tlabel\nx\t1\ny\nz\t0\n", "c.tsv, line 3: 1 column where line 1 has 2"),
        ("d.tsv", "sentence\tlabel\nx\t1\ny\t0\t0\n", "d.tsv, line 3: 3 columns where line 1 has 2"),
        ("e.tsv", "sentence\tlabel\nx\t1\ny\t1\n", "one class only"),
        ("f.tsv", "sentence\tlabel\nx\t1\ny\t\n", "f.tsv, line 3: column 2 holds no label"),
        ("g.tsv", "what\tthis\nx\t1\n", "which column holds the text?"),
        ("h.tsv", "sentence\tscore\nx\t1\n", "which column holds the label?"),
        ("i.csv", 'text,label\n"open,1\nx,2\n', "i.csv, line 2: not CSV"),
        ("j.jsonl", '{"text": "x", "label": 1}\n{"text": "y"}\n', "j.jsonl, line 2: no field 'label'"),
        ("k.jsonl", '{"text": null, "label": 1}\n', "k.jsonl, line 1: field 'text' holds NoneType, not text"),
        ("m.jsonl", '{"text": "x", "label": ["a"]}\n', "m.jsonl, line 1: field 'label' holds a list of labels"),
        ("l.tsv", "sentence\tlabel\n" + "".join(f"x\tlabel {n}\n" for n in range(1001)), "those are no classes"),
    ],
)
def test_bad_tables_say_what_and_where(tmp_path: Path, name: str, content: str, said: str) -> None:
    with pytest.raises(LspError) as error:
        tasks.read(write(tmp_path / name, content))
    assert error.value.code == Exit.DATA
    assert said in error.value.message
    assert error.value.hint


def test_an_unknown_label_gets_its_line_and_the_nearest_name(tmp_path: Path) -> None:
    path = write(tmp_path / "dev.tsv", tsv(("text", "label"), ("x", "positive"), ("y", "negatve")))
    with pytest.raises(LspError, match=r"line 3: label 'negatve' is unknown\. Did you mean 'negative'") as error:
        tasks.read(path, labels=("negative", "positive"))
    assert error.value.code == Exit.DATA


@pytest.mark.parametrize(
    ("column", "said"),
    [
        ("sentense", "no such column. Did you mean 'sentence'"),
        ("9", "has no such column"),
        pytest.param("9" * 5000, "has no such column", id="digits"),
    ],
)
def test_a_column_that_is_not_there_is_a_wrong_command(tmp_path: Path, column: str, said: str) -> None:
    with pytest.raises(LspError) as error:
        tasks.read(write(tmp_path / "a.tsv", tsv(("sentence", "label"), ("x", "1"))), (column,))
    assert error.value.code == Exit.USAGE
    assert said in error.value.message
