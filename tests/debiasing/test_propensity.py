"""Kernel-balanced weights: exact without clipping, 1 where nothing is to do, and those of inverse propensity."""

import jax
import numpy as np
import pytest

from d3mjax.debiasing import propensity


def test_weights_are_one_for_the_population_itself():
    x = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    weights = propensity.kernel_balanced(jax.random.key(0), x, x)
    np.testing.assert_allclose(weights, 1, atol=1e-4)


def test_weights_are_those_of_inverse_propensity():
    """Rows of one kind are seen three times as often as those of the other."""
    observed = np.repeat([[0.0], [2.0]], [300, 100], axis=0).astype(np.float32)
    population = np.repeat([[0.0], [2.0]], 200, axis=0).astype(np.float32)
    weights = np.asarray(propensity.kernel_balanced(jax.random.key(0), observed, population, damping=1e-4))
    np.testing.assert_allclose(weights[0], 200 / 300, rtol=1e-2)
    np.testing.assert_allclose(weights[-1], 200 / 100, rtol=1e-2)
    np.testing.assert_allclose(weights.mean(), 1, rtol=1e-5)


def test_weighted_means_are_those_of_the_population():
    rng = np.random.default_rng(1)
    population = rng.normal(size=(4000, 2)).astype(np.float32)
    seen = rng.random(4000) < 1 / (1 + np.exp(-population[:, 0]))
    observed = population[seen]
    weights = np.asarray(propensity.kernel_balanced(jax.random.key(2), observed, population, damping=1e-3))
    before, after = (
        np.abs((w[:, None] * observed).mean(0) - population.mean(0)) for w in (np.ones(len(observed)), weights)
    )
    assert after[0] < 0.1 * before[0]
    assert (weights >= 0).all()


def test_bad_arguments_are_named():
    x = np.zeros((4, 2), np.float32)
    with pytest.raises(ValueError, match="damping: found 0"):
        propensity.kernel_balanced(jax.random.key(0), x, x, damping=0.0)
