"""Baselines against arithmetic done by hand."""

import math

import numpy as np
import pytest

from lsp.data.baselines import BUCKETS, bag_of_words, bags, fit, majority, predict


def test_majority_is_the_share_of_the_most_frequent_training_label() -> None:
    train = [("", "b"), ("", "a"), ("", "b")]
    assert majority(train, [("", "a"), ("", "b"), ("", "a"), ("", "a")]) == 0.25


def test_majority_takes_the_first_by_name_among_equals() -> None:
    assert majority([("", "b"), ("", "a")], [("", "a"), ("", "b"), ("", "a")]) == pytest.approx(2 / 3)


def test_a_bag_counts_words_and_pairs_in_logarithms_at_length_one() -> None:
    found = bags(["Go go!", ""])
    # go twice, "!" once, "go go" once, "go !" once
    length = math.sqrt(math.log(3) ** 2 + 3 * math.log(2) ** 2)
    assert found.starts.tolist() == [0, 4, 4]
    assert sorted(found.values) == pytest.approx([math.log(2) / length] * 3 + [math.log(3) / length])
    assert found.rows().tolist() == [0, 0, 0, 0]


def test_naive_bayes_agrees_with_the_formula() -> None:
    known = bags(["cat", "cat", "dog"])  # one feature each, of weight 1
    cat, _, dog = known.buckets
    model = fit(known, ["x", "x", "y"], smoothing=0.5)
    assert model.labels == ["x", "y"]
    assert model.prior_C == pytest.approx(np.log([2 / 3, 1 / 3]))
    assert model.weights_VC[cat] == pytest.approx(np.log([2.5 / (2 + 0.5 * BUCKETS), 0.5 / (1 + 0.5 * BUCKETS)]))
    assert model.weights_VC[dog] == pytest.approx(np.log([0.5 / (2 + 0.5 * BUCKETS), 1.5 / (1 + 0.5 * BUCKETS)]))
    assert predict(model, bags(["cat", "dog", "", "bird"])) == ["x", "y", "x", "x"]  # the prior decides the last two


def test_bag_of_words_learns_what_words_tell_and_the_same_every_time() -> None:
    words = {"sea": ["wave", "ship", "salt"], "land": ["hill", "road", "tree"]}
    pairs = [(f"the {word} number {i}", label) for i in range(20) for label, given in words.items() for word in given]
    train, dev = pairs[:90], pairs[90:]
    assert bag_of_words(train, dev) == bag_of_words(train, dev) == 1.0
