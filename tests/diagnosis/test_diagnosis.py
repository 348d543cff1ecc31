"""Diagnosis of a table whose labels are classes: features relative to the table, and errors that it cannot have."""

import sys

import jax
import numpy as np
import pytest

import d3mjax
from d3mjax.data import tables
from d3mjax.diagnosis import cells, diagnose, relative, taught, trees
from d3mjax.networks import dense

WRONG, BROKEN = 12, 10


def planted(seed, n, wrong=0, broken=0):
    """Numbers that tell the class; the first ``wrong`` labels are others, the next ``broken`` rows have one far off."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, n)
    a, b, c = 3.0 * y + rng.normal(size=n), rng.normal(size=n) - y, rng.normal(size=n)
    c[wrong : wrong + broken] += 12.0
    y[:wrong] = 1 - y[:wrong]
    return tables.from_columns({"a": a, "b": b, "c": c}), y


def constant(trees_of, at):
    """A diagnoser of one tree for each type, that reads feature ``at`` and gives all rows the log-odds 2."""
    node = lambda value, dtype: np.full((3, 1, 1), value, dtype)
    forest = trees.Forest(
        *(node(at, np.int32), node(0, np.float32), node(0, bool), node(0, np.int32), node(0, np.int32)),
        *(node(0, np.float32), np.full(3, 2.0, np.float32)),
    )
    return trees_of._replace(forest=forest, slope=np.ones(3, np.float32), intercept=np.zeros(3, np.float32))


@pytest.fixture(scope="module")
def shipped():
    return taught.shipped()[0]


def test_planted_errors_are_claimed_by_the_shipped_diagnoser():
    result = d3mjax.diagnose(jax.random.key(0), *planted(0, 300, WRONG, BROKEN), *planted(1, 64), networks=1)
    label, feature, _ = result.claims.T
    assert label[:WRONG].mean() > 0.6
    assert feature[WRONG : WRONG + BROKEN].mean() > 0.8
    assert label[WRONG + BROKEN :].mean() < 0.05
    assert feature[WRONG + BROKEN :].mean() < 0.05


def test_a_table_has_no_error_of_a_kind_that_it_cannot_have(shipped):
    # Trees that claim every row for every kind.
    everything = constant(shipped, 0)._replace(thresholds=np.full(3, 0.5, np.float32))
    (table, y), held = planted(0, 90), planted(1, 64)
    claimed = lambda table, y: diagnose.combine([_look(everything, len(y))], table, y, everything)
    same = table._replace(columns={name: np.ones(len(y)) for name in table.columns})
    missing = table._replace(columns={name: np.full(len(y), np.nan) for name in table.columns})
    level = tables.from_columns({"a": np.array(["one"] * len(y))})
    for other, labels, kinds in (
        (table, y, [True, True, True]),
        (table, np.zeros_like(y), [False, True, False]),  # one class: no label is wrong, none follows a shortcut
        (same, y, [True, False, False]),  # columns of one value: nothing is broken, and no shortcut
        (missing, y, [True, False, False]),
        (level, y, [True, False, False]),
    ):
        result = claimed(other, labels)
        assert result.claims.all(0).tolist() == result.claims.any(0).tolist() == kinds
        assert (result.probabilities > 0).all(0).tolist() == kinds
        assert result.info.claimed.tolist() == [list(map(float, kinds))]
    # Numbers alone: forms of broken rows that need categories leave no trace.
    of_table = relative.scores(table, y, 2)
    at = [name.removesuffix(" in the table") for name in relative.ROWS].index("misspelt") - 6  # after those of labels
    assert not of_table.rows[:, at].any()
    assert len(held[1]) == 64


def test_without_scikit_learn_diagnosers_of_features_relative_to_the_table_are_refused(shipped, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.ensemble", None)
    both = *planted(0, 90), *planted(1, 64)
    with pytest.raises(ImportError, match=r"features relative to a table need scikit-learn: pip install 'd3mjax\["):
        d3mjax.diagnose(jax.random.key(0), *both, networks=1)
    narrow = constant(shipped, len(cells.FEATURES) - 1)
    assert d3mjax.diagnose(jax.random.key(0), *both, networks=1, diagnoser=narrow).claims.shape == (90, 3)


def test_a_narrow_diagnoser_reads_the_same_of_wide_features(shipped):
    rng = np.random.default_rng(0)
    features, flags = rng.normal(size=(300, len(cells.WIDE))).astype(np.float32), rng.random((300, 3)) < 0.3
    narrow = features[:, : len(cells.FEATURES)]
    fitted = trees.fit(narrow, flags, np.arange(300) % 5, options=trees.Options(rounds=4, leaves=4))
    assert trees.width(fitted) <= len(cells.FEATURES) < trees.width(shipped) <= len(cells.WIDE)
    np.testing.assert_array_equal(trees.predict(fitted, features), trees.predict(fitted, narrow))


def test_a_training_step_has_a_bounded_number_of_rows(monkeypatch):
    sizes, make = [], cells.make_trainer

    def recorded(*parts, batch_size):
        sizes.append(batch_size)
        return make(*parts, batch_size=batch_size)

    monkeypatch.setattr(cells, "make_trainer", recorded)
    for network, rows in ((cells.MLP2, 300), (cells.MLP2, 100_000), (cells.FTT, 100_000)):
        cells.trainer_of(dense.mlp((2,), 2), network, rows)
    assert sizes == [300, cells.MOST_ROWS, 256]


def _look(diagnoser, n):
    p = np.asarray(trees.predict(diagnoser, np.zeros((n, 1), np.float32)))
    return diagnose.Look(p, np.full((n, 2), 0.5), np.full((n, 2), 0.5))
