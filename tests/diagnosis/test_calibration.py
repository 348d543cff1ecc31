"""Platt's correction against its objective and a planted distortion."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

from d3mjax.diagnosis import calibration, claim_metrics

RNG = np.random.default_rng(0)


def test_platt_minimises_its_objective_and_undoes_a_planted_distortion():
    n = 20_000
    z = 2 * RNG.normal(size=n)
    truth = RNG.random(n) < 1 / (1 + np.exp(-(0.5 * z - 1.0)))
    p = (1 / (1 + np.exp(-z))).astype(np.float32)[:, None]
    rows = np.arange(n) % 2 == 0
    (found,) = np.asarray(calibration.platt(p, truth[:, None], rows=rows))
    # Standard errors at n = 10,000, variance p (1 - p) about 0.17: slope 0.012, intercept 0.024.
    np.testing.assert_allclose(found, [0.5, -1.0], atol=0.1)
    x, y = z[rows], truth[rows]
    target = np.where(y, (y.sum() + 1) / (y.sum() + 2), 1 / ((~y).sum() + 2))
    loss = lambda ab: np.mean(np.logaddexp(0, ab[0] * x + ab[1]) - target * (ab[0] * x + ab[1]))
    np.testing.assert_allclose(found, minimize(loss, [1.0, 0.0], tol=1e-10).x, atol=1e-4)
    better = calibration.calibrated(p, found[None])
    before, after = (claim_metrics.calibration_error(q[~rows, 0], truth[~rows]) for q in (p, better))
    assert before > 0.1
    assert after < 0.02  # its noise floor: 10 bins, mean |gap| sqrt(2 / pi) sum_b sqrt(n_b 0.17) / n, at most 0.013


@pytest.mark.parametrize("flip", [False, True])
def test_platt_is_finite_where_the_probabilities_separate(flip):
    p = jnp.array([[0.0], [0.1], [0.2], [0.9], [1.0]])
    truth = np.array([[0], [0], [0], [1], [1]], bool) ^ flip
    found = jax.jit(calibration.platt)(p, truth)
    assert np.isfinite(found).all()
    assert (found[0, 0] < 0) == flip
    assert np.isfinite(calibration.calibrated(p, found)).all()


def test_platt_of_a_constant_finds_the_share():
    truth = np.arange(10)[:, None] < 3
    p = np.full((10, 1), 0.8, np.float32)
    found = calibration.calibrated(p, calibration.platt(p, truth))
    # Targets 4/5 of three rows and 1/9 of seven: mean (2.4 + 7/9) / 10.
    np.testing.assert_allclose(found, (2.4 + 7 / 9) / 10, atol=1e-4)
