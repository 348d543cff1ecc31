"""Datamodels fitted on several devices equal those of one, whatever does not divide into them."""

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from d3mjax.attribution import datamodels
from d3mjax.runtime import sharded


def problem(m, n, t):
    """Masks of half the examples, and what a planted linear world with noise makes of them."""
    rng = np.random.default_rng(m)
    masks = np.argsort(rng.random((m, n)), axis=1) < n // 2
    outputs = masks @ rng.normal(size=(n, t)) + rng.normal(size=(m, t)) + np.arange(t)
    return masks, outputs.astype(np.float32)


@pytest.mark.parametrize("devices", [1, 2, 8])
@pytest.mark.parametrize(("m", "n", "t"), [(61, 20, 5), (64, 12, 8), (13, 20, 1)])  # the last: more columns than rows
def test_ridge_is_that_of_one_device(devices, m, n, t):
    masks, outputs = problem(m, n, t)
    lambdas = np.array([0.0, 0.01, 1.0])
    some = Mesh(np.array(jax.devices()[:devices]), ("model",))
    expected, _ = datamodels.fit_ridge(masks, outputs, lambdas)
    for block in (2, 256):
        linear = sharded.fit_ridge(masks, outputs, lambdas, mesh=some, target_block=block)
        assert linear.weight.shape == (3, t, n)
        # float32 sums in another order, through the inverse of a Gram; exact in float64 (tests of `linalg.ridge`)
        np.testing.assert_allclose(linear.weight, expected.weight, atol=2e-4)
        np.testing.assert_allclose(linear.bias, expected.bias, atol=2e-3)
