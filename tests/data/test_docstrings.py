"""The demo's harvest, on packages that the tests write themselves."""

from pathlib import Path

import pytest

from lsp import Exit, LspError
from lsp.data import docstrings
from lsp.data.docstrings import clean, harvest, names_of, shorten

SUBJECTS = {"alpha": "arrays and their shapes", "beta": "sockets and their peers"}


def write_packages(folder: Path, modules: int = 20, functions: int = 20) -> Path:
    for package, subject in SUBJECTS.items():
        (folder / package).mkdir(parents=True)
        for m in range(modules):
            body = [f'"""Module {m} of {package.title()}, which is about {subject}."""\n']
            body += [
                f'def f{n}():\n    """Tells function {n} of module {m} in {package} about {subject}."""\n'
                for n in range(functions)
            ]
            (folder / package / f"m{m}.py").write_text("\n".join(body))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_packages(tmp_path_factory.mktemp("site-packages"))


@pytest.fixture
def nothing(tmp_path: Path) -> Path:
    return tmp_path / "no-standard-library"


def test_the_harvest_is_balanced_and_the_same_every_time(folder: Path, nothing: Path) -> None:
    first, second = harvest(nothing, [folder]), harvest(nothing, [folder])
    assert first == second
    assert first.packages == ["alpha", "beta"] and first.files == 40
    for part in (first.train, first.dev):
        labels = [label for _, label in part]
        assert labels.count("alpha") == labels.count("beta") == len(labels) // 2
    assert len(first.dev) >= 0.1 * len(first.train)


def test_train_and_dev_share_no_file_and_the_corpus_holds_none_of_dev(folder: Path, nothing: Path) -> None:
    found = harvest(nothing, [folder])
    hidden = names_of(found.packages)
    dev = {text for text, _ in found.dev}
    assert not dev & {text for text, _ in found.train}
    assert not dev & {hidden.sub("this", text) for text in found.corpus}
    modules = {
        (label, text.partition(" module ")[2].partition(" ")[0]) for text, label in found.dev if " module " in text
    }
    assert {f"{label}/m{number}.py" for label, number in modules} <= set(found.dev_files)


def test_the_label_is_not_named_in_the_text(folder: Path, nothing: Path) -> None:
    found = harvest(nothing, [folder])
    assert not [text for text, _ in found.train + found.dev if "alpha" in text.lower() or "beta" in text.lower()]


def test_names_are_hidden_as_whole_words_with_their_aliases() -> None:
    hidden = names_of(["jax", "numpy"])
    assert hidden.sub("this", "NumPy's np.zeros and jax_array, not numpydoc or ajax") == (
        "this's this.zeros and this_array, not numpydoc or ajax"
    )


def test_nothing_is_imported_and_odd_files_are_passed_over(nothing: Path, tmp_path: Path) -> None:
    odd = tmp_path / "odd"
    odd.mkdir()
    (odd / "a_raises.py").write_text('"""A module that must not be run by anybody at all."""\nraise SystemExit(1)\n')
    (odd / "b_surrogate.py").write_text('"""A lone surrogate \\ud800 and a\\ttab can be in no line of a table."""\n')
    (odd / "c_broken.py").write_text('"""A module whose syntax is of another Python version."""\ndef (:\n')
    (odd / "d_bytes.py").write_bytes(b'"""\xff\xfe is not UTF-8, and no encoding is declared here."""\n')
    (odd / "e_gone.py").symlink_to(odd / "nowhere.py")
    files = docstrings.affordable(docstrings.sources(nothing, [tmp_path]))
    assert [found.text for entry in files for found in docstrings.docstrings(*entry)] == [
        "A module that must not be run by anybody at all.",
        "A lone surrogate and a tab can be in no line of a table.",
    ]


def test_equal_texts_are_kept_once(nothing: Path, tmp_path: Path) -> None:
    write_packages(tmp_path)
    for package in SUBJECTS:
        (tmp_path / package / "copy.py").write_text('"""The same  sentence stands\nin more than one package here."""')
    corpus = harvest(nothing, [tmp_path]).corpus
    assert corpus.count("The same sentence stands in more than one package here.") <= 1
    assert len({text.casefold() for text in corpus}) == len(corpus)


def test_the_amount_of_source_is_bounded(folder: Path, nothing: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = sum(path.stat().st_size for path in (folder / "alpha").iterdir())
    monkeypatch.setattr(docstrings, "LARGEST_SOURCE", one)
    files = docstrings.affordable(docstrings.sources(nothing, [folder]))
    assert sum(path.stat().st_size for *_, path in files) <= one and {package for package, *_ in files} == {"alpha"}


def test_too_little_text_is_said(nothing: Path, tmp_path: Path) -> None:
    with pytest.raises(LspError, match="0 docstrings in 0 packages") as failure:
        harvest(nothing, [tmp_path])
    assert failure.value.code == Exit.DATA


def test_clean_keeps_prose_and_drops_code_and_layout() -> None:
    docstring = """zeros(shape, dtype=float) -> array

    Return a new array of zeros, as in the
    following example::

        zeros((2, 1))

    Parameters
    ----------
    shape : int or tuple of ints
        Shape of the new array.
    dtype : data-type, optional
        The desired type.

    .. versionadded:: 1.5
    Args:
    >>> zeros(2)
    array([0., 0.])

    ```python
    zeros(3)
    ```
    That is all.
    :copyright: Copyright 2006 by somebody.
    """
    assert clean(docstring) == (
        "Return a new array of zeros, as in the following example: "
        "Shape of the new array. The desired type. That is all."
    )


def test_long_texts_are_cut_at_a_word() -> None:
    assert shorten("one two three", 7) == "one two"
    assert shorten("one two three", 9) == "one two"
    assert shorten("unbroken", 3) == "unb"
    assert shorten("short", 5) == "short"
