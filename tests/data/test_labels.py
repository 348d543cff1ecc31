"""Labels of users: what is a class, in which order, and what is refused."""

import numpy as np
import pandas as pd
import pytest

from d3mjax.data import labels


def encode(train, held=None, **options):
    columns = {"--train": pd.Series(train)}
    return labels.encode(columns | ({} if held is None else {"--validation": pd.Series(held)}), "y", **options)


@pytest.mark.parametrize(
    ("train", "names", "y"),
    [
        (["no", "yes", " yes "], ("no", "yes"), [0, 1, 1]),
        ([True, False, True], ("False", "True"), [1, 0, 1]),
        (["10", "9", "-1"], ("-1", "9", "10"), [2, 1, 0]),
        ([1.0, 7.0, 1.0], ("1", "7"), [0, 1, 0]),
        (["01", "1", "1"], ("01", "1"), [0, 1, 1]),
        (pd.Categorical(["b", "a", "b"]), ("a", "b"), [1, 0, 1]),
        (pd.array([3, 0, 3], dtype="Int64"), ("0", "3"), [1, 0, 1]),
    ],
)
def test_classes_and_their_order(train, names, y):
    encoded = encode(train)
    assert encoded.names == names
    assert encoded.y["--train"].tolist() == y


def test_text_and_numbers_of_the_same_values_agree_over_sources():
    encoded = encode(["1", "0"], np.array([0, 1, 1]))
    assert encoded.y["--validation"].tolist() == [0, 1, 1]


def test_many_numbers_are_classes_where_each_has_many_examples_or_when_told_so():
    assert len(encode(np.tile(np.arange(30), 20)).names) == 30
    assert len(encode(np.arange(60) % 30, categorical=True).names) == 30


@pytest.mark.parametrize(
    ("train", "held", "message"),
    [
        (np.arange(120), None, "120 different numbers in 'y' of --train: it looks like a number to predict"),
        ([0.5, 1.5, 2.0], None, "numbers such as 1.5 in 'y' of --train: it looks like a number to predict"),
        (["a"] * 4, None, "found the one class a in 'y'"),
        (["a", None, "b"], None, "--train, column 'y': found 1 missing values, first in row 1, expected none"),
        (["a", "?", "b"], None, "found 1 missing values, first in row 1"),
        (["a", "b"], ["a", "c"], "--train: found no example of class c of 'y', which --validation has"),
        (["yes", "no"], ["Yes", "no"], "class Yes of 'y', which --validation has. Did you mean yes"),
        (["a", "b"], [0, 1], "--validation: found numbers in the label 'y', which holds text in --train"),
        ([["a"], ["a", "b"]], None, "found lists in the label 'y'"),
        (["a|b", "a", "b", "b|c", "a|c", "a|b|c"], None, "'a|b' in 'y' of --train, which looks like several labels"),
        ([f"name {i}" for i in range(30)], None, "30 different texts in 'y' of --train: it looks like a name"),
    ],
)
def test_what_is_no_class_is_refused(train, held, message):
    with pytest.raises(ValueError, match=message.replace("|", r"\|").replace("?", r"\?")):
        encode(train, held)


def test_places_with_commas_are_classes():
    assert len(encode(["Paris, France", "Lyon, France", "Nice, France"]).names) == 3


def test_rare_classes_are_noted():
    encoded = encode(["a"] * 20 + ["rare"] * 2, ["a"] * 12)
    assert encoded.notes == (
        "--train has fewer than 10 examples of class rare (2).",
        "--validation has fewer than 10 examples of class rare (0).",
    )
