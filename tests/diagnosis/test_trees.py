"""Trees as arrays are scikit-learn's; calibration and thresholds come from cells that the forest has not seen."""

import jax
import numpy as np
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier

from d3mjax.diagnosis import claims, trees

SMALL = trees.Options(rounds=12, leaves=6)


def planted(cells=4, n=150, *, seed=0):
    """Two types that features 0 and 1 show, each cell with an offset of its own, and a type that no row has."""
    rng = np.random.default_rng(seed)
    cell = np.repeat(np.arange(cells), n)
    flags = np.stack([rng.random(cells * n) < share for share in (0.3, 0.1, 0.0)], 1)
    features = rng.normal(size=(cells * n, 5)).astype(np.float32)
    features[:, 0] += 2.5 * flags[:, 0] + 0.5 * (cell % 3)
    features[:, 1] -= 3 * flags[:, 1]
    features[rng.random(features.shape) < 0.1] = np.nan
    return features, flags, cell


def test_the_forest_is_the_one_that_scikit_learn_grew():
    features, flags, cell = planted()
    fitted = trees.fit(features, flags, cell, options=SMALL)
    fresh = np.concatenate([planted(seed=9)[0], features])
    got = np.asarray(trees._log_odds(fitted.forest, fresh))
    for type in range(2):
        grown = HistGradientBoostingClassifier(max_iter=12, max_leaf_nodes=6, random_state=0)
        grown.fit(features, flags[:, type])  # too few rows to stop early
        np.testing.assert_allclose(got[:, type], grown.decision_function(fresh), atol=2e-5)
    probability = np.asarray(trees.predict(fitted, fresh))
    np.testing.assert_allclose(
        probability, 1 / (1 + np.exp(-(fitted.slope * got + fitted.intercept))), rtol=1e-4, atol=1e-6
    )
    assert (fitted.slope > 0).all()
    assert probability[:, 2].max() < 1e-6


def test_chunks_order_and_jit_change_nothing():
    features, flags, cell = planted(3, 40)
    fitted = trees.fit(features, flags, cell, options=SMALL)
    whole = np.asarray(trees.predict(fitted, features, microbatch=None))
    for microbatch in (1, 7):
        np.testing.assert_allclose(trees.predict(fitted, features, microbatch=microbatch), whole, atol=1e-6)
    order = np.random.default_rng(0).permutation(len(features))
    np.testing.assert_allclose(jax.jit(trees.predict)(fitted, features[order]), whole[order], atol=1e-6)
    claimed = np.asarray(trees.claim(fitted, whole))
    np.testing.assert_array_equal(claimed, whole >= fitted.thresholds)
    again = trees.fit(features, flags, cell, options=SMALL)
    jax.tree.map(np.testing.assert_array_equal, again, fitted)


def test_it_finds_what_is_planted_in_a_cell_it_has_not_seen():
    features, flags, cell = planted(6)
    known = cell < 5
    fitted = trees.fit(features[known], flags[known], cell[known], options=SMALL)
    probability = np.asarray(trees.predict(fitted, features[~known]))
    for type in range(2):
        right = claims.average_precision(probability[:, type], flags[~known, type])
        turned = claims.average_precision(-probability[:, type], flags[~known, type])
        assert right > 0.6
        assert turned < 0.3
        assert claims.calibration_error(probability[:, type], flags[~known, type]) < 0.15  # 150 rows
    f1 = claims.scores(trees.claim(fitted, probability), flags[~known]).f1
    assert (np.asarray(f1)[:2] > 0.5).all()


def test_whole_cells_are_held_out():
    cell = np.array(["a", "a", "b", "b", "b", "c", "d", "e"])
    fold = trees._folds(cell, 3, 0)
    assert len(np.unique(fold)) == 3
    for name in np.unique(cell):
        assert len(np.unique(fold[cell == name])) == 1
    rows = trees._folds(np.array([0, 0, 0, 1, 1]), 4, 0)  # two cells: rows are split
    assert sorted(np.bincount(rows)) == [1, 1, 1, 2]


def test_a_cell_that_gives_itself_away_is_not_believed():
    # Feature 0 is the flag, but in every cell under a code of its own: in the cell all is known, elsewhere nothing.
    rng = np.random.default_rng(0)
    cell = np.repeat(np.arange(6), 60)
    flags = rng.random((360, 1)) < 0.3
    features = np.stack([10 * cell + np.where(flags[:, 0] ^ (cell % 2 == 0), 3, 0), rng.random(360)], 1)
    fitted = trees.fit(features.astype(np.float32), flags, cell, options=trees.Options(rounds=40, leaves=16))
    assert claims.average_precision(trees.predict(fitted, features)[:, 0], flags[:, 0]) > 0.95
    assert fitted.slope[0] < 0.5


def test_bad_input_is_named():
    features, flags, cell = planted(3, 20)
    with pytest.raises(ValueError, match="folds"):
        trees.fit(features, flags, cell, options=trees.Options(folds=1))
    features[0, 0] = np.inf
    with pytest.raises(ValueError, match="features"):
        trees.fit(features, flags, cell)
