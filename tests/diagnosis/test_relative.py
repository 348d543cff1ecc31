"""Features relative to the table: hand-made lifts, copies and repeats; planted errors stand out; order is no matter."""

import numpy as np
import pytest

from d3mjax.data import tables
from d3mjax.diagnosis import relative


def made(n=200, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, n).astype(np.int32)
    columns = {"size": 3.0 * y + rng.normal(size=n), "noise": rng.normal(size=n)}
    return tables.from_columns({**columns, "colour": np.where(rng.random(n) < 0.5, "red", "blue")}), y


def test_lifts_are_shares_of_the_other_rows():
    table = tables.from_columns({"a": np.array(["x", "x", "x", "y", "y", "y"])})
    y = np.array([0, 0, 1, 1, 1, 1])
    lifts, information = relative.shortcuts(table, y, 2)
    prior = np.array([2.5, 4.5]) / 7
    others = np.array([1, 1, 0, 2, 2, 2])  # of the same label among the two other rows of the level
    expected = np.log((others + 2 * prior[y]) / 4 / prior[y])
    np.testing.assert_allclose(lifts[:, 0], expected, rtol=1e-12)
    np.testing.assert_allclose(lifts[:, 3], expected, rtol=1e-12)  # all columns are one
    assert not lifts[:, 1:3].any()
    np.testing.assert_allclose(information, [expected.mean(), 0, 0], rtol=1e-12)


def test_the_best_column_comes_first_and_missing_numbers_are_a_bin():
    table, y = made()
    table.columns["noise"][:] = np.where(y == 1, np.nan, table.columns["noise"])
    lifts, information = relative.shortcuts(table, y, 2)
    assert information[0] > information[1] > information[2]
    assert information[0] > 0.6  # almost log 2: missing means class 1
    assert (lifts[:, 0] > 0).all()


def test_copies_and_repeated_numbers():
    a = np.arange(12.0)
    a[[0, 1, 2]] = 999
    a[[3, 4]] = np.nan
    table = tables.from_columns({"a": a, "mostly the same": np.r_[np.zeros(10), 1, 2], "c": np.array(["x"] * 12)})
    assert relative.copies_of(table).tolist() == [3, 3, 3, 2, 2, 1, 1, 1, 1, 1, 1, 1]
    share, excess = relative.repeated(table).T
    np.testing.assert_allclose(share, np.array([3, 3, 3, 0, 0, 1, 1, 1, 1, 1, 1, 1]) / 12)
    np.testing.assert_allclose(excess, np.log([3, 3, 3, *[1] * 9]))  # 10 of 12 rows have the median of the other


def test_cells_as_in_the_row_above():
    a, c = np.array([3.0, 1, 1, 2, np.nan, np.nan]), np.array(["x", "y", "y", "y", "x", "x"])
    table = tables.from_columns({"a": a, "c": c}, id=np.array([5, 4, 3, 2, 1, 0]))  # from the last row up
    rare, common = -np.log((2**2 + 1 + 1) / 36), -np.log((3**2 + 3**2) / 36)
    np.testing.assert_allclose(relative.above(table), [0, rare + common, common, 0, common, 0])


def test_misspellings_of_more_frequent_levels():
    words = np.array(["private"] * 8 + ["privaet"] + ["state"] * 2 + ["statte"] * 2 + ["A11"] * 3 + ["A12"])
    table = tables.from_columns({"work": words, "number": np.arange(17.0)})
    expected = {"privaet": np.log(9 / 2), "private": 0, "state": 0, "statte": 0, "A11": 0, "A12": 0}
    np.testing.assert_allclose(relative.misspelt(table), [expected[word] for word in words])
    table.columns["work"][0] = -1
    assert relative.misspelt(table)[0] == 0


def test_nearest_labels_and_isolation():
    x = np.r_[np.zeros((20, 2)) + np.arange(20)[:, None] / 100, [[50.0, -50.0]]]
    y = np.r_[np.zeros(20, int), 1]
    votes, distance = relative.nearest(x, y, neighbours=5)
    assert votes[:20].tolist() == [1] * 20
    assert votes[20] == 0
    assert distance.argmax() == relative.isolation(x).argmax() == 20
    np.testing.assert_allclose(distance[10], np.sqrt(2) * 0.018)  # 1, 1, 2, 2 and 3 hundredths away


def test_probabilities_are_of_trees_without_the_row():
    rng = np.random.default_rng(0)
    table = tables.from_columns({"noise": rng.normal(size=300)})
    y = rng.integers(0, 3, 300)
    p = relative.out_of_bag(table, y, 4)
    assert p.shape == (300, 4)
    np.testing.assert_allclose(p.sum(1), 1, atol=1e-9)
    assert not p[:, 3].any()
    assert (p.argmax(1) == y).mean() < 0.5  # trees that had seen the rows would be right


def test_planted_label_errors_are_odd_in_any_order():
    table, y = made()
    wrong = np.zeros(200, bool)
    wrong[:10] = True
    y = np.where(wrong, 1 - y, y)
    forest = relative.out_of_bag(table, y, 2)
    of_table = relative.scores(table, y, 2)
    np.testing.assert_array_equal(of_table.forest, forest.astype(np.float32))
    values = relative.features(of_table, y, forest)
    assert values.shape == (200, len(relative.NAMES))
    assert np.isfinite(values).all()
    for name in ("both: margin", "trees: log-odds", "votes of the nearest", "lift by the best column"):
        column = values[:, relative.NAMES.index(name)]
        assert column[wrong].mean() < np.quantile(column[~wrong], 0.2)
        ranks = values[:, relative.NAMES.index(f"{name} in the table")]
        assert (np.argsort(ranks, kind="stable") == np.argsort(column, kind="stable")).mean() > 0.5
    back = np.random.default_rng(1).permutation(200)
    same = relative.scores(tables.take(table, back), y[back], 2)._replace(forest=of_table.forest[back])
    again = relative.features(same, y[back], forest[back])
    cuts = [relative.NAMES.index(name) for name in relative.NAMES if "isolation" in name]  # its cuts are of rows drawn
    keep = np.setdiff1d(np.arange(len(relative.NAMES)), cuts)
    np.testing.assert_allclose(again[:, keep], values[back][:, keep], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [5, 11])
def test_few_rows_have_fewer_neighbours(size):
    x, y = np.arange(float(size))[:, None], np.zeros(size, int)
    assert relative.nearest(x, y)[0].tolist() == [1] * size
