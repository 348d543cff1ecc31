"""Spreads over checkpoints and folds, against NumPy and by hand; folds of TRAK's own columns merge exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d3mjax.attribution import trak, trak_checks, uncertainty
from d3mjax.attribution.projections import identity
from d3mjax.networks import dense
from d3mjax.types import Split

RNG = np.random.default_rng(0)


def _split(n):
    x, y = RNG.normal(size=(n, 3)).astype(np.float32), RNG.integers(0, 3, n)
    return Split(x, y, np.arange(n) % 4 // 3, np.arange(n) + 10)


TRAIN, TARGET = _split(20), _split(11)  # groups of 9 and 2 targets


def test_error_over_checkpoints():
    kernel, weights = RNG.normal(size=(4, 6, 3)).astype(np.float32), np.array([0.7, 0.0, 0.3])
    kernel[:, :, 1] = np.nan  # an empty group has no weight
    mean, error = uncertainty.checkpoint_error(kernel, weights)
    kappa = kernel[:, :, [0, 2]] @ weights[[0, 2]]
    np.testing.assert_allclose(mean, kappa.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(error, kappa.std(0, ddof=1) / 2, rtol=1e-5)
    assert np.isnan(uncertainty.checkpoint_error(kernel[:1], weights)[1]).all()


def test_folds_split_groups_evenly_whatever_the_order():
    group = np.append(TARGET.group, -1)
    ids = np.append(TARGET.id, 99)
    folded = uncertainty.fold_groups(group, ids, 3)
    assert np.array_equal(np.where(folded < 0, -1, folded // 3), group)
    assert np.bincount(folded[folded >= 0]).tolist() == [3, 3, 3, 1, 1]
    order = np.random.default_rng(1).permutation(12)
    assert np.array_equal(uncertainty.fold_groups(group[order], ids[order], 3), folded[order])
    with pytest.raises(ValueError, match="num_folds"):
        uncertainty.fold_groups(group, ids, 0)


def test_merged_folds_of_trak_are_its_groups():
    model = dense.mlp((4,), 3)
    checkpoints = trak_checks.stack_checkpoints([model.init(jax.random.key(j), TRAIN.x) for j in range(2)])
    folded = uncertainty.fold_groups(TARGET.group, TARGET.id, 3)  # one fold of the smaller group is empty

    def columns(group, num_groups):
        target = TARGET._replace(group=group)
        args = (jax.random.key(0), model, checkpoints, TRAIN, target, num_groups)
        return jax.jit(lambda: trak.group_scores(*args, options=trak.Options(identity())).columns)()

    mean, error = uncertainty.merge_folds(columns(folded, 6), folded, 3)
    whole = columns(TARGET.group, 2)
    np.testing.assert_allclose(mean, whole, rtol=1e-3, atol=1e-3 * np.abs(whole).max())
    assert np.isfinite(error).all()


def test_merge_by_hand():
    # Two equal folds of values 1 and 3: mean 2, squares (1 + 1) / 2 over J - 1 = 1. One fold: no spread.
    mean, error = uncertainty.merge_folds(jnp.array([[1.0, 3.0, 5.0, 7.0]]), np.array([0, 1, 0, 1, 2, -1]), 2)
    np.testing.assert_allclose(mean, [[2, 5]])
    np.testing.assert_allclose(error, [[1, np.nan]])
