"""Checkpoints as one tree, and the spread of group columns over them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d3mjax.attribution import per_checkpoint


def test_error_over_checkpoints_is_that_of_the_mean():
    kernel = np.random.default_rng(0).normal(size=(4, 6, 3)).astype(np.float32)
    weights = np.array([0.7, 0.0, 0.3])
    kernel[:, :, 1] = np.nan  # an empty group has no weight
    mean, error = per_checkpoint.checkpoint_error(kernel, weights)
    kappa = kernel[:, :, [0, 2]] @ weights[[0, 2]]
    np.testing.assert_allclose(mean, kappa.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(error, kappa.std(0, ddof=1) / 2, rtol=1e-5)
    assert np.isnan(per_checkpoint.checkpoint_error(kernel[:1], weights)[1]).all()


def test_wrong_checkpoints_are_named():
    one = {"params": {"kernel": np.zeros((2, 3)), "bias": np.zeros(3)}}
    other = {"params": {"kernel": np.zeros((2, 4)), "bias": np.zeros(3)}}
    with pytest.raises(ValueError, match=r"number 1 differs from number 0 in .*kernel"):
        per_checkpoint.stack_checkpoints([one, other])
    with pytest.raises(ValueError, match="found none"):
        per_checkpoint.stack_checkpoints([])
    stacked = per_checkpoint.stack_checkpoints([one, one])
    key = jax.random.key(0)
    with pytest.raises(ValueError, match=r"found leading axes \[\(2,\), \(4,\)\]"):
        per_checkpoint.checkpoint_keys(key, {**stacked, "more": jnp.zeros(4)})
    with pytest.raises(ValueError, match="ids: found 3, expected one for each of 2"):
        per_checkpoint.checkpoint_keys(key, stacked, ids=np.arange(3))
    same = per_checkpoint.checkpoint_keys(key, stacked, ids=np.array([1, 0]))
    first, second = (jax.random.key_data(k) for k in (same[::-1], per_checkpoint.checkpoint_keys(key, stacked)))
    np.testing.assert_array_equal(first, second)


def test_wrong_groups_are_named():
    with pytest.raises(ValueError, match="no target has a group"):
        per_checkpoint.check_groups(np.full(9, -1), 2)
    with pytest.raises(ValueError, match=r"found \[0, 1\], expected 0 to 0"):
        per_checkpoint.check_groups(np.array([0, 1, 1]), 1)
