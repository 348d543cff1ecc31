"""LASSO against scikit-learn, its optimality conditions, and the ways of cutting the work up."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from planted import close
from sklearn.linear_model import Lasso

from d3mjax.linalg import lasso


def planted(m=200, n=50, t=5, seed=0):
    """Masks, sparse weights and noisy targets, one of them pure noise; columns correlated by a fixed subset size."""
    rng = np.random.default_rng(seed)
    x = np.argsort(rng.random((m, n)), axis=1) < n // 2
    weight = rng.normal(size=(t, n)) * (rng.random((t, n)) < 0.2) * 2.0 ** np.arange(t)[:, None]
    weight[-1] = 0
    y = x @ weight.T + rng.normal(size=(m, t)) + 3
    return x, y.astype(np.float32)


def standardised(x):
    return (x - x.mean(0)) / x.std(0)


def test_path_is_that_of_scikit_learn():
    x, y = planted()
    moments = lasso.moments(x, y)
    grid = lasso.penalties(moments, 10, smallest=1e-3)
    fits = lasso.path(moments, grid, options=lasso.Options(tolerance=1e-6, max_steps=5000))
    for k, t in ((0, 2), (4, 0), (4, 4), (9, 1)):
        theirs = Lasso(alpha=float(grid[k, t]), tol=1e-10, max_iter=100_000).fit(standardised(x), y[:, t].astype(float))
        np.testing.assert_allclose(fits.weight[k, t], theirs.coef_, atol=1e-3 * y[:, t].std())
        bias = moments.target_mean[t]
        np.testing.assert_allclose(bias, theirs.intercept_, rtol=1e-6)


def test_largest_penalty_is_where_weights_begin():
    moments = lasso.moments(*planted())
    most = lasso.largest_penalty(moments)
    assert not lasso.solve(moments, most).weight.any()
    assert (lasso.solve(moments, 0.99 * most, options=lasso.Options(tolerance=1e-6)).weight != 0).any(axis=1).all()


def test_gap_bounds_the_objective_and_optimality_conditions_hold():
    x, y = planted()
    moments = lasso.moments(x, y)
    penalty = 0.05 * lasso.largest_penalty(moments)
    best = lasso.objective(
        moments, penalty, lasso.solve(moments, penalty, options=lasso.Options(tolerance=0.0, max_steps=5000)).weight
    )
    for steps in (8, 16, 64):
        fit = lasso.solve(moments, penalty, options=lasso.Options(tolerance=0.0, max_steps=steps))
        excess = (lasso.objective(moments, penalty, fit.weight) - best) / moments.power
        assert (excess <= fit.gap + 1e-6).all()
        assert fit.steps == steps
    fit = lasso.solve(moments, penalty, options=lasso.Options(tolerance=0.0, max_steps=5000))
    gradient = np.asarray(standardised(x).T @ (y - y.mean(0) - standardised(x) @ np.asarray(fit.weight).T) / len(y)).T
    limit, weight = np.asarray(penalty)[:, None], np.asarray(fit.weight)
    tolerance = 1e-4 * y.std(0).max()
    assert (np.abs(gradient) <= limit + tolerance).all()
    np.testing.assert_allclose(
        (gradient * np.sign(weight))[weight != 0], np.broadcast_to(limit, weight.shape)[weight != 0], atol=tolerance
    )


def test_few_rows_take_the_other_form_to_the_same_end():
    x, y = planted(m=30, n=70)
    few = lasso.moments(x, y)
    assert few.gram is None
    assert few.rows is not None
    full = few._replace(gram=few.rows.T @ few.rows, rows=None)
    penalty = 0.1 * lasso.largest_penalty(few)
    one, other = (
        lasso.solve(moments, penalty, options=lasso.Options(tolerance=1e-6, max_steps=5000)) for moments in (few, full)
    )
    np.testing.assert_allclose(one.weight, other.weight, atol=2e-3 * y.std())
    assert (one.gap <= 1e-6).all()


def test_blocks_change_nothing():
    x, y = planted()
    whole, cut = lasso.moments(x, y), lasso.moments(x, y, block=33)
    assert whole.gram is not None
    assert cut.gram is not None
    close(whole.gram, cut.gram, terms=25)
    close(whole.gram, np.corrcoef(x.T), terms=25)
    close(whole.cross, cut.cross, terms=25)
    penalty = 0.1 * lasso.largest_penalty(whole)
    solve = lambda moments, penalty: lasso.solve(moments, penalty, options=lasso.Options(tolerance=1e-6)).weight
    np.testing.assert_allclose(
        lasso.map_targets(solve, whole, penalty, block=2), solve(whole, penalty), atol=2e-3 * y.std()
    )


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_rounded_steps_lead_to_the_same_weights(dtype):
    moments = lasso.moments(*planted())
    penalty = 0.05 * lasso.largest_penalty(moments)
    exact = lasso.solve(moments, penalty, options=lasso.Options(tolerance=1e-6, max_steps=5000))
    rounded = lasso.solve(
        moments, penalty, options=lasso.Options(tolerance=1e-6, max_steps=5000, step_dtype=jnp.dtype(dtype))
    )
    assert (rounded.gap <= 1e-6).all()
    excess = lasso.objective(moments, penalty, rounded.weight) - lasso.objective(moments, penalty, exact.weight)
    assert (jnp.abs(excess) <= 3e-6 * moments.power).all()


def test_raw_weights_predict_what_standardised_ones_do():
    with jax.enable_x64(True):
        x, y = planted()
        moments = lasso.moments(x, y.astype(np.float64))
        assert moments.gram is not None
        assert moments.gram.dtype == jnp.float64
        fit = lasso.solve(
            moments, 0.1 * lasso.largest_penalty(moments), options=lasso.Options(tolerance=1e-12, max_steps=20_000)
        )
        assert (fit.gap <= 1e-12).all()
        linear = lasso.unstandardise(moments, fit.weight)
        expected = standardised(x) @ np.asarray(fit.weight).T + y.mean(0, dtype=np.float64)
        np.testing.assert_allclose(x @ np.asarray(linear.weight).T + np.asarray(linear.bias), expected, rtol=1e-12)


def test_constant_columns_and_targets_get_nothing():
    x, y = planted()
    x[:, 3], y[:, 1] = True, 7
    moments = lasso.moments(x, y)
    fit = lasso.solve(moments, 0.01 * lasso.largest_penalty(moments))
    assert not fit.weight[:, 3].any()
    assert not fit.weight[1].any()
    assert fit.gap[1] == 0
    assert jnp.isfinite(fit.weight).all()


def test_rounding_of_a_long_sum_is_no_variation():
    x, y = planted(m=30_000, n=4, t=3)
    y[:, 0], y[:, 1] = 0.1, -1e5 / 3
    moments = lasso.moments(x, y)
    np.testing.assert_allclose(moments.target_mean[:2], y[0, :2], rtol=float(4 * np.finfo(np.float32).eps))
    assert not moments.power[:2].any()
    assert not moments.cross[:2].any()
    np.testing.assert_allclose(moments.power[2], y[:, 2].astype(float).var(), rtol=1e-5)
