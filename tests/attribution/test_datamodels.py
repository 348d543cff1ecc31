"""Datamodels on planted linear worlds: exact recovery, sign, level, choice of lambda, and the host-level checks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import Lasso, Ridge

from d3mjax.attribution import datamodels
from d3mjax.linalg import lasso
from d3mjax.types import Linear

pytestmark = pytest.mark.usefixtures("doubles")
LAMBDAS = np.array([1e-4, 3e-2, 10.0])


def fixed_size(m, n, keep, seed=0):
    return np.random.default_rng(seed).random((m, n)).argsort(axis=1) < keep


def mixed_size(m, n, seed=0):
    rng = np.random.default_rng(seed)
    return rng.random((m, n)).argsort(axis=1) < rng.integers(n // 4, n - n // 4, size=(m, 1))


def planted(masks, t=3, noise=0.0, seed=1):
    """Weights ``[t n]`` with a mean away from zero, biases ``[t]``, and the outputs ``[m t]`` they give."""
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((t, masks.shape[1])) + 0.7
    bias = np.arange(t) - 4.0
    return weight, bias, masks @ weight.T + bias + noise * rng.standard_normal((len(masks), t))


@pytest.mark.parametrize("m", [9, 30])
def test_fit_equals_sklearn(m):
    masks = mixed_size(m, 12)
    outputs = planted(masks, noise=1.0)[2]
    linear, _ = datamodels.fit_ridge(masks, outputs, LAMBDAS)
    for i, lam in enumerate(LAMBDAS):
        expected = Ridge(alpha=lam * m, solver="cholesky").fit(masks, outputs)
        np.testing.assert_allclose(linear.weight[i], expected.coef_, atol=1e-8)
        np.testing.assert_allclose(linear.bias[i], expected.intercept_, atol=1e-8)
        prediction = datamodels.predict(linear, masks)[i]
        np.testing.assert_allclose(prediction, expected.predict(masks), atol=1e-8)


@pytest.mark.parametrize("m", [10, 30])
def test_errors_at_every_lambda_are_those_of_leaving_one_out(m):
    masks = mixed_size(m, 12)
    outputs = planted(masks, noise=1.0)[2]
    _, info = datamodels.fit_ridge(masks, outputs, LAMBDAS)
    others = [np.delete(np.arange(m), i) for i in range(m)]
    fits = [[Ridge(alpha=lam * m, solver="cholesky").fit(masks[of], outputs[of]) for of in others] for lam in LAMBDAS]
    predictions = np.stack([[fit.predict(masks[i : i + 1])[0] for i, fit in enumerate(row)] for row in fits])
    mse = ((predictions - outputs[None]) ** 2).mean(1)
    np.testing.assert_allclose(info.mse, mse, rtol=1e-6)
    best = mse.argmin(0)
    np.testing.assert_array_equal(info.chosen, LAMBDAS[best])
    means = np.stack([outputs[of].mean(0) for of in others])
    np.testing.assert_allclose(info.r2, 1 - mse.min(0) / ((outputs - means) ** 2).mean(0), rtol=1e-6)
    for t in range(outputs.shape[1]):
        expected = np.corrcoef(predictions[best[t], :, t], outputs[:, t])[0, 1]
        np.testing.assert_allclose(info.correlation[t], expected, rtol=1e-6)


def test_mixed_sizes_recover_the_planted_world_as_lambda_vanishes():
    masks = mixed_size(40, 12)
    weight, bias, outputs = planted(masks)
    linear, _ = datamodels.fit_ridge(masks, outputs, np.array([0.0, 1e-12]))
    for i in range(2):
        np.testing.assert_allclose(linear.weight[i], weight, atol=1e-8)
        np.testing.assert_allclose(linear.bias[i], bias, atol=1e-8)
    assert datamodels.level_is_identified(masks)


@pytest.mark.parametrize("m", [8, 40])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_fixed_size_masks_lose_the_level_and_nothing_else(m, dtype):
    masks = fixed_size(m, 12, keep=5)
    weight, _, outputs = planted(masks)
    linear, _ = datamodels.fit_ridge(masks, outputs.astype(dtype), np.array([0, 1e-6, 0.1], dtype))
    tolerance = 10 * np.sqrt(np.finfo(dtype).eps) if m == 40 else 10 * np.finfo(dtype).eps
    np.testing.assert_allclose(linear.weight.mean(axis=-1), 0, atol=100 * np.finfo(dtype).eps)
    assert (np.abs(weight.mean(axis=1)) > 0.3).all()
    if m == 40:
        level = weight.mean(axis=1, keepdims=True)
        np.testing.assert_allclose(linear.weight[0], weight - level, atol=tolerance)
    assert not datamodels.level_is_identified(masks)


def test_positive_weight_means_including_helps():
    masks = (np.arange(64)[:, None] >> np.arange(6)) % 2 == 1  # all subsets
    outputs = (2.0 * masks[:, 0] - 1.0 * masks[:, 4])[:, None]  # example 0 helps, example 4 harms
    linear, _ = datamodels.fit_ridge_heldout(masks, outputs, np.array([1e-6]), np.arange(5))
    np.testing.assert_allclose(linear.weight[0], [2, 0, 0, 0, -1, 0], atol=1e-3)
    difference = datamodels.difference_of_means(masks, outputs)
    np.testing.assert_allclose(difference[0], [2, 0, 0, 0, -1, 0], atol=1e-12)


def test_group_means_are_the_averages_of_rows():
    masks = mixed_size(20, 12)
    outputs = planted(masks, t=5, noise=1.0)[2]
    groups = np.array([[1, 0, 0, 1, 0], [0, 1, 1, 0, 1]]) / np.array([[2], [3]])
    rows, _ = datamodels.fit_ridge(masks, outputs, LAMBDAS)
    columns, _ = datamodels.fit_ridge(masks, outputs @ groups.T, LAMBDAS)
    np.testing.assert_allclose(columns.weight, groups @ rows.weight, atol=1e-10)
    np.testing.assert_allclose(columns.bias, rows.bias @ groups.T, atol=1e-10)


@pytest.mark.parametrize("m", [10, 40])
@pytest.mark.parametrize("shared", [True, False])
def test_heldout_choice_equals_brute_force(m, shared):
    masks = mixed_size(m, 12)
    outputs = planted(masks, noise=1.0)[2] * np.array([1, 0.1, 1])
    outputs[:, 1] += np.random.default_rng(2).standard_normal(m) * 5  # noise: wants a larger lambda
    heldout = np.array([m - 1, 2, 5, 7])
    fit = np.setdiff1d(np.arange(m), heldout)
    linear, info = datamodels.fit_ridge_heldout(masks, outputs, LAMBDAS, heldout, shared=shared)

    models = [Ridge(alpha=lam * m, solver="cholesky") for lam in LAMBDAS]  # the same total penalty
    predictions = np.stack([model.fit(masks[fit], outputs[fit]).predict(masks[heldout]) for model in models])
    mse = ((predictions - outputs[heldout]) ** 2).mean(axis=1)
    np.testing.assert_allclose(info.mse, mse, rtol=1e-7)
    best = np.broadcast_to(mse.mean(axis=1).argmin(), 3) if shared else mse.argmin(axis=0)
    np.testing.assert_array_equal(info.chosen, LAMBDAS[best])
    if not shared:
        assert len(set(best)) > 1
    for z in range(3):
        refit = models[best[z]].fit(masks, outputs[:, z])
        np.testing.assert_allclose(linear.weight[z], refit.coef_, atol=1e-8)
        np.testing.assert_allclose(linear.bias[z], refit.intercept_, atol=1e-8)
        truth, prediction = outputs[heldout, z], predictions[best[z], :, z]
        spread = ((truth - outputs[fit, z].mean()) ** 2).mean()
        np.testing.assert_allclose(info.r2[z], 1 - mse[best[z], z] / spread, rtol=1e-6)
        np.testing.assert_allclose(info.correlation[z], np.corrcoef(truth, prediction)[0, 1], rtol=1e-6)


def test_jit_vmap_and_kinds_of_arrays_agree():
    masks = mixed_size(20, 12)
    outputs = planted(masks, noise=1.0)[2]
    heldout = np.arange(15, 20)
    expected = datamodels.fit_ridge_heldout(masks, outputs, LAMBDAS, heldout)

    def same(a, b):
        np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9)

    for kind in (jnp.asarray(masks), masks.astype(np.float32), masks.astype(np.int32)):
        fit = datamodels.fit_ridge_heldout(kind, outputs, LAMBDAS, heldout)
        jax.tree.map(same, fit, expected)
    run = jax.jit(jax.vmap(lambda y: datamodels.fit_ridge_heldout(masks, y, LAMBDAS, heldout)))
    twice = run(jnp.stack([outputs, outputs[::-1]]))
    jax.tree.map(lambda a, b: same(a[0], b), twice, expected)
    assert jax.jit(datamodels.level_is_identified)(masks)
    single, _ = datamodels.fit_ridge(masks, outputs.astype(np.float32), LAMBDAS)
    assert single.weight.dtype == jnp.float32


def test_difference_of_means_is_that():
    masks = mixed_size(15, 6)
    masks[:, 2], masks[:, 5] = True, False
    outputs = planted(masks, noise=1.0)[2]
    difference = datamodels.difference_of_means(masks, outputs)
    for i in (0, 1, 3, 4):
        expected = outputs[masks[:, i]].mean(axis=0) - outputs[~masks[:, i]].mean(axis=0)
        np.testing.assert_allclose(difference[:, i], expected, atol=1e-10)
    np.testing.assert_array_equal(difference[:, [2, 5]], 0)


def test_predict_keeps_the_lambda_axis():
    linear = Linear(jnp.array([[1.0, 2.0, 3.0]]), jnp.array([0.5]))
    masks = np.array([[True, False, True], [False, True, False]])
    np.testing.assert_array_equal(datamodels.predict(linear, masks), [[4.5], [2.5]])
    stacked = jax.tree.map(lambda a: jnp.stack([a, 2 * a]), linear)
    np.testing.assert_array_equal(datamodels.predict(stacked, masks), [[[4.5], [2.5]], [[9], [5]]])


def test_default_lambdas_hold_the_best_penalty_of_a_random_world():
    n, m, noise = 60, 200, 2.0
    masks = fixed_size(m, n, keep=30)
    lambdas = np.asarray(datamodels.default_lambdas(masks))
    # (v n / m) * noise / signal, signal = v n for weights of variance 1: noise^2 / m = 4 / 200
    middle = 0.25 * n / m
    np.testing.assert_allclose(lambdas[[0, 6, 12]], [middle * 1e-3, middle, middle * 1e3], rtol=2e-2)
    _, _, outputs = planted(masks, t=50, noise=noise)
    _, info = datamodels.fit_ridge_heldout(masks, outputs, lambdas, np.arange(100))
    assert 1 / 4 <= float(info.chosen[0]) / (noise**2 / m) <= 4


def test_check_masks_names_what_is_wrong():
    masks = mixed_size(10, 8)
    outputs = planted(masks)[2]
    datamodels.check_masks(masks, outputs, num_fit=8)
    datamodels.check_masks(jnp.asarray(masks), jnp.asarray(outputs))

    def refused(message, masks: np.ndarray = masks, outputs: np.ndarray = outputs, **options):
        with pytest.raises(ValueError, match=message):
            datamodels.check_masks(masks, outputs, **options)

    refused(r"outputs: found shape \(9, 3\), .* m = 10", outputs=outputs[:9])
    refused(r"outputs: found shape \(10,\)", outputs=outputs[:, 0])
    refused("masks: found entries other than 0 and 1", masks=np.where(masks, 0.5, 0))
    refused(r"masks: found models \[3\] trained on no example", masks=masks & (np.arange(10) != 3)[:, None])
    refused(r"trained on all examples", masks=masks | (np.arange(10) == 3)[:, None])
    broken = np.where(np.arange(10)[:, None] >= 2, np.nan, outputs)
    refused(r"outputs: found non-finite values for models \[2, 3, 4, 5, 6\] and 3 more", outputs=broken)
    refused(r"outputs: found targets \[1\] constant", outputs=outputs * np.array([1, 0, 1]))
    refused("num_fit: found 10, expected from 2 to 9", num_fit=10)
    refused("num_fit: found 1, expected from 2 to 9", num_fit=1)


@pytest.mark.parametrize("m", [20, 60])
def test_conjugate_gradients_choose_and_fit_as_the_eigendecomposition_does(m):
    masks = mixed_size(m, 30)
    outputs = planted(masks, noise=2.0)[2]
    heldout = np.arange(2, 9)
    lambdas = np.array([30.0, 1e-2, 1.0])
    exact, expected = datamodels.fit_ridge_heldout(masks, outputs, lambdas, heldout)
    linear, info = jax.jit(datamodels.fit_ridge_few, static_argnames="rtol")(
        masks, outputs, lambdas, heldout, rtol=1e-12
    )
    assert info.residual < 1e-11
    for ours, theirs in zip((*linear, *info), (*exact, *expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-7, atol=1e-9)


def test_lasso_chooses_and_fits_as_scikit_learn_does():
    masks = fixed_size(160, 30, 15)
    weight, _, _ = planted(masks)
    weight = np.where(np.abs(weight) > 1, weight, 0)
    rng = np.random.default_rng(3)
    outputs = masks @ weight.T + rng.standard_normal((160, 3)) * [0.1, 1.0, 4.0]
    heldout = np.arange(5, 160, 8)
    options = lasso.Options(num_lambdas=12, tolerance=1e-9, max_steps=20_000, target_block=2)
    linear, info = datamodels.fit_lasso(masks, outputs, heldout, options=options)
    kept = np.delete(np.arange(160), heldout)

    def standardised(rows, of):
        return (masks[rows] - masks[of].mean(0)) / masks[of].std(0)

    for t in range(3):
        grid = np.abs(standardised(kept, kept).T @ (outputs[kept, t] - outputs[kept, t].mean())).max() / len(kept)
        grid = grid * np.logspace(0, -3, 12)
        errors = []
        for penalty in grid:
            model = Lasso(alpha=penalty, tol=1e-12, max_iter=100_000).fit(standardised(kept, kept), outputs[kept, t])
            errors.append(np.mean((outputs[heldout, t] - model.predict(standardised(heldout, kept))) ** 2))
        stopped = ~np.isfinite(info.mse[:, t])
        np.testing.assert_allclose(np.asarray(info.mse[:, t])[~stopped], np.array(errors)[~stopped], rtol=1e-4)
        np.testing.assert_allclose(info.chosen[t], grid[np.argmin(errors)], rtol=1e-6)
        everything = np.arange(160)
        final = Lasso(alpha=grid[np.argmin(errors)], tol=1e-12, max_iter=100_000)
        final.fit(standardised(everything, everything), outputs[:, t])
        np.testing.assert_allclose(linear.weight[t], final.coef_ / masks.std(0), atol=1e-3)
        np.testing.assert_allclose(
            datamodels.predict(linear, masks)[:, t], final.predict(standardised(everything, everything)), atol=1e-2
        )
        spread = np.mean((outputs[heldout, t] - outputs[kept, t].mean()) ** 2)
        np.testing.assert_allclose(info.r2[t], 1 - min(errors) / spread, atol=1e-4)


def test_lasso_targets_do_not_depend_on_each_other():
    masks = fixed_size(80, 20, 10)
    outputs = planted(masks, t=4, noise=1.0)[2]
    options = lasso.Options(tolerance=1e-8, max_steps=5000)
    together, info = datamodels.fit_lasso(masks, outputs, np.arange(20), options=options)
    order = np.array([2, 0, 3, 1])
    permuted, of = datamodels.fit_lasso(
        masks, outputs[:, order], np.arange(20), options=options._replace(target_block=3)
    )
    np.testing.assert_allclose(permuted.weight, together.weight[order], atol=1e-3)
    np.testing.assert_allclose(of.chosen, info.chosen[order], rtol=1e-6)
    assert (info.support <= 20).all()


def test_lasso_of_a_constant_target_is_the_constant():
    masks = fixed_size(80, 20, 10)
    outputs = planted(masks, t=5, noise=1.0)[2].astype(np.float32)
    alone, _ = datamodels.fit_lasso(masks, outputs[:, :2], np.arange(20))
    outputs[:, 2], outputs[:, 3] = 0.1, 0
    outputs[20:, 4] = 7  # constant where it is fitted
    linear, info = datamodels.fit_lasso(masks, outputs, np.arange(20))
    np.testing.assert_allclose(linear.weight[:2], alone.weight, atol=1e-3)
    assert not linear.weight[2:].any()
    assert not info.support[2:].any()
    np.testing.assert_allclose(linear.bias[2:], outputs[:, 2:].mean(0), rtol=1e-6)
    assert np.isfinite(info.gap).all()
    assert np.isfinite(info.chosen).all()
