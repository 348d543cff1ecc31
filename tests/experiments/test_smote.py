"""New rows lie between old rows of their own cell; categories stay categories."""

import numpy as np
import pytest

from experiments.d3m import smote

RNG = np.random.default_rng(0)
CELL = np.repeat([0, 1, 3], [20, 4, 9])
X = (RNG.normal(size=(33, 3)) + 10 * CELL[:, None]).astype(np.float32)


def test_cells_become_equal_and_new_rows_lie_on_segments_within_their_cell():
    x, cell = smote.oversample(X, CELL, 0)
    np.testing.assert_array_equal(np.bincount(cell), [20, 20, 0, 20])
    np.testing.assert_array_equal(x[:33], X)
    for row, own in zip(x[33:], cell[33:], strict=True):
        a = X[own == CELL]
        through = np.linalg.norm(row - a, axis=1)
        gap = through[:, None] + through[None] - np.linalg.norm(a[:, None] - a[None], axis=2)
        assert gap[~np.eye(len(a), dtype=bool)].min() < 1e-4
    again, _ = smote.oversample(X, CELL, 0)
    np.testing.assert_array_equal(x, again)


def test_one_hot_columns_stay_one_hot():
    colour = np.eye(4, dtype=np.float32)[RNG.integers(3, size=33)]  # the last level never occurs
    mixed = np.concatenate([X[:, :1], colour, X[:, 1:]], axis=1)
    x, cell = smote.oversample(mixed, CELL, 1, categorical=[slice(1, 5)])
    np.testing.assert_array_equal(np.bincount(cell), [20, 20, 0, 20])
    np.testing.assert_allclose(x[:33], mixed, rtol=1e-6)
    assert set(np.unique(x[:, 1:5])) == {0, 1}
    np.testing.assert_array_equal(x[:, 1:5].sum(1), 1)
    np.testing.assert_array_equal(x[:, 4], 0)


def test_a_single_row_has_no_segment():
    with pytest.raises(ValueError, match="found one of 1 row, expected at least 2"):
        smote.oversample(X, (np.arange(33) == 0).astype(int), 0)
