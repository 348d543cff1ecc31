"""Rows shared by sources, repeated rows, and copies of the label."""

import numpy as np
import pandas as pd

from d3mjax.data import traps

TRAIN = pd.DataFrame({"a": [1.0, 2.0, 1.0, np.nan], "b": ["x", "y", "x", "z"]})


def test_rows_are_equal_in_all_their_cells():
    target = pd.DataFrame({"b": ["x", "y", "z"], "a": [1.0, 2.5, np.nan], "more": [0, 0, 0]})
    assert traps.repeated(TRAIN).tolist() == [False, False, True, False]
    assert traps.shared(TRAIN, target).tolist() == [True, False, True]


def test_only_a_one_to_one_column_is_a_copy_of_the_label():
    y = np.array([0, 1, 2, 0])
    frame = pd.DataFrame(
        {"coded": [5.0, 3.0, 9.0, 5.0], "text": ["a", "b", "c", "a"], "coarse": [1, 0, 0, 1], "fine": range(4)}
    )
    assert traps.copies(frame, y) == ["coded", "text"]


def test_different_numbers_are_copies_of_different_labels_only_where_they_rise_or_fall_with_them():
    rng = np.random.default_rng(0)
    y = rng.normal(size=50)
    columns = {"same": y, "log": np.log(y + 9), "minus": -y, "other": rng.normal(size=50), "id": [f"r{i}" for i in y]}
    assert traps.copies(pd.DataFrame(columns), y) == ["same", "log", "minus"]
    rounded = np.round(y) + 0.0  # without -0; labels that repeat match a column one to one only if it is a copy
    assert traps.copies(pd.DataFrame({"text": rounded.astype(str), "other": columns["other"]}), rounded) == ["text"]


def test_shared_rows_stay_where_training_rows_repeat_each_other():
    shared = np.array([True, False, False])
    out, (note,) = traps.overlap_note("--validation", shared, np.zeros(20, bool))
    assert out
    assert "1 of 3 rows" in note
    kept, _ = traps.overlap_note("--validation", shared, np.arange(20) < 5)
    assert not kept
    assert traps.overlap_note("--validation", np.zeros(3, bool), np.zeros(20, bool)) == (False, ())
