"""Labels of a regression: numbers as numbers or as text, and every bad column refused by name."""

import numpy as np
import pandas as pd
import pytest

from d3mjax.data import number_labels

GOOD = pd.Series([1.5, 2.0, -3.0])


def test_numbers_are_read_from_numbers_and_from_text():
    y = number_labels.read({"--train": pd.Series(["1.5", " 2", "-3e1"]), "--validation": pd.Series([4, 4])}, "y")
    np.testing.assert_array_equal(y["--train"], [1.5, 2.0, -30.0])
    np.testing.assert_array_equal(y["--validation"], [4.0, 4.0])
    assert y["--validation"].dtype == np.float64


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([0, 1, 0], r"--label: found 2 different values in 'y' of --train, .*use classification: leave out"),
        ([1.0, None, 3.0], r"--train, column 'y': found 1 missing values, first in row 1, expected none"),
        (["1", "low", "3"], r"--label: found 'low' in 'y' of --train, row 1, expected numbers"),
        ([1.0, 2.0, -np.inf], r"--label: found 1 infinite values in 'y' of --train, first in row 2"),
        ([True, False, True], r"--label: found truth values in 'y' of --train"),
    ],
)
def test_bad_labels_are_named(bad, message):
    with pytest.raises(ValueError, match=message):
        number_labels.read({"--train": pd.Series(bad), "--validation": GOOD}, "y")


def test_bad_labels_of_other_sources_are_named_too():
    with pytest.raises(ValueError, match=r"found 'x' in 'y' of --validation, row 0"):
        number_labels.read({"--train": GOOD, "--validation": pd.Series(["x"])}, "y")
