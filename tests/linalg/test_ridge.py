"""Ridge against scikit-learn, normal equations and explicit refits, in float64; finiteness in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import Ridge

from d3mjax.linalg import lasso, ridge

pytestmark = pytest.mark.usefixtures("doubles")
LAMBDAS = np.array([1e-3, 0.1, 2.0])
SHAPES = [(7, 12), (12, 12), (13, 12), (30, 12)]  # dual, square, one row more, primal


def problem(m, n, t=3, seed=0):
    """Columns and targets of unequal scale, far from zero mean."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((m, n)) * np.arange(1, n + 1) ** -0.5 + np.arange(n)
    y = x @ rng.standard_normal((n, t)) + rng.standard_normal((m, t)) + 10 * np.arange(1, t + 1)
    return x, y


def sklearn_fit(x, y, penalty):
    """Weights ``[t n]`` and biases ``[t]`` at total penalty ``lam m``."""
    model = Ridge(alpha=penalty, solver="cholesky", tol=1e-12).fit(x, y)
    return model.coef_, model.intercept_


def normal_equations(x, y, penalty):
    """The bias as an unpenalised column of ones."""
    design = np.column_stack([x, np.ones(len(x))])
    penalties = np.diag([penalty] * x.shape[1] + [0.0])
    solution = np.linalg.solve(design.T @ design + penalties, design.T @ y)
    return solution[:-1].T, solution[-1]


@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_equals_sklearn_and_normal_equations(m, n):
    x, y = problem(m, n)
    linear = ridge.solve(ridge.factor(x), y, LAMBDAS)
    assert linear.weight.shape == (3, 3, n)
    assert linear.bias.shape == (3, 3)
    for i, lam in enumerate(LAMBDAS):
        for weight, bias in (sklearn_fit(x, y, lam * m), normal_equations(x, y, lam * m)):
            np.testing.assert_allclose(linear.weight[i], weight, atol=1e-8)
            np.testing.assert_allclose(linear.bias[i], bias, atol=1e-8)


@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_moments_give_the_same_weights(m, n):
    x, y = problem(m, n)
    x[:, 3] = 2  # a constant column
    lambdas = np.array([0.0, *LAMBDAS])
    moments = lasso.moments(x, y, reduce=lambda sums: sums)
    linear = ridge.solve_moments(ridge.factor_moments(moments), moments, lambdas)
    expected = ridge.solve(ridge.factor(x), y, lambdas)
    np.testing.assert_allclose(np.swapaxes(linear.weight, 0, 1), expected.weight, atol=1e-8)
    np.testing.assert_allclose(linear.bias.T, expected.bias, atol=1e-7)


def test_moments_without_a_gram_are_refused():
    few = lasso.moments(*problem(5, 12))
    with pytest.raises(ValueError, match="moments: found rows in place of a Gram"):
        ridge.factor_moments(few)


@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_predictions_and_each_target_at_its_own_lambda_equal_weights(m, n):
    x, y = problem(m, n)
    new, _ = problem(5, n, seed=1)
    factor = ridge.factor(x)
    linear = ridge.solve(factor, y, LAMBDAS)
    expected = new @ np.swapaxes(linear.weight, 1, 2) + linear.bias[:, None, :]
    np.testing.assert_allclose(ridge.predict(factor, y, LAMBDAS, new), expected, atol=1e-8)
    each = ridge.solve_each(factor, y, LAMBDAS[[2, 0, 1]])  # target 0 at lambda 2, 1 at 0, 2 at 1
    np.testing.assert_allclose(each.weight, np.asarray(linear.weight)[[2, 0, 1], [0, 1, 2]], atol=1e-10)
    np.testing.assert_allclose(each.bias, np.asarray(linear.bias)[[2, 0, 1], [0, 1, 2]], atol=1e-9)


@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_left_out_rows_equal_refits_at_the_same_total_penalty(m, n):
    x, y = problem(m, n)
    factor = ridge.factor(x)

    def refit(rows, lam):
        rest = np.setdiff1d(np.arange(m), rows)
        weight, bias = normal_equations(x[rest], y[rest], lam * m)
        return y[rows] - (x[rows] @ weight.T + bias)

    rows = np.array([4, 0, 5])  # in this order
    expected = np.stack([refit(rows, lam) for lam in LAMBDAS])
    np.testing.assert_allclose(ridge.leave_out(factor, y, LAMBDAS, rows), expected, atol=1e-7)
    expected = np.stack([np.concatenate([refit([j], lam) for j in range(m)]) for lam in LAMBDAS])
    np.testing.assert_allclose(ridge.leave_one_out(factor, y, LAMBDAS), expected, atol=1e-7)


def test_left_out_rows_of_an_interpolating_fit_are_predicted_by_the_minimum_norm_fit():
    x, y = problem(7, 12)
    expected = []
    for j in range(7):
        rest = np.delete(np.arange(7), j)
        mean, centre = y[rest].mean(0), x[rest].mean(0)
        weight = np.linalg.pinv(x[rest] - centre, rcond=1e-10) @ (y[rest] - mean)
        expected.append(y[j] - mean - (x[j] - centre) @ weight)
    actual = ridge.leave_one_out(ridge.factor(x), y, np.zeros(1))[0]
    np.testing.assert_allclose(actual, np.stack(expected), rtol=1e-7)


@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_lambda_zero_is_the_pseudo_inverse_also_for_a_singular_gram(m, n):
    x, y = problem(m, n)
    x = x[:, [*range(n - 1), 0]]  # the last column repeats the first
    x[1] = x[0]
    linear = ridge.solve(ridge.factor(x), y, np.zeros(1))
    expected = np.linalg.pinv(x - x.mean(0), rcond=1e-7) @ (y - y.mean(0))
    np.testing.assert_allclose(linear.weight[0], expected.T, rtol=1e-6, atol=1e-8)


def test_a_duplicated_problem_has_the_same_weights_in_primal_and_dual():
    x, y = problem(9, 12)
    once = ridge.solve(ridge.factor(x), y, LAMBDAS)  # dual
    twice = ridge.solve(ridge.factor(np.tile(x, (2, 1))), np.tile(y, (2, 1)), LAMBDAS)  # primal, same objective
    np.testing.assert_allclose(once.weight, twice.weight, atol=1e-8)
    np.testing.assert_allclose(once.bias, twice.bias, atol=1e-8)


@pytest.mark.parametrize(("m", "n"), [(6, 9), (20, 9)])
def test_permutations_and_shifts(m, n):
    x, y = problem(m, n)
    linear = ridge.solve(ridge.factor(x), y, LAMBDAS)
    targets, columns = np.array([2, 0, 1]), np.random.default_rng(1).permutation(n)
    by_target = ridge.solve(ridge.factor(x), y[:, targets], LAMBDAS)
    np.testing.assert_allclose(by_target.weight, linear.weight[:, targets], atol=1e-10)
    by_column = ridge.solve(ridge.factor(x[:, columns]), y, LAMBDAS)
    np.testing.assert_allclose(by_column.weight, linear.weight[:, :, columns], atol=1e-8)
    shifted = ridge.solve(ridge.factor(x), y + 5, LAMBDAS)
    np.testing.assert_allclose(shifted.weight, linear.weight, atol=1e-9)
    np.testing.assert_allclose(shifted.bias, linear.bias + 5, atol=1e-8)


@pytest.mark.parametrize(("m", "n"), [(6, 9), (20, 9)])
def test_jit_and_vmap_give_the_same(m, n):
    problems = [problem(m, n, seed=seed) for seed in range(2)]
    x, y = (jnp.stack([jnp.asarray(p[i]) for p in problems]) for i in range(2))

    def run(x, y):
        factor = ridge.factor(x)
        rows = jnp.array([3, 1])
        return (
            ridge.solve(factor, y, LAMBDAS),
            ridge.leave_out(factor, y, LAMBDAS, rows),
            ridge.leave_one_out(factor, y, LAMBDAS),
        )

    expected = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[run(*p) for p in problems])
    actual = jax.jit(jax.vmap(run))(x, y)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-8), actual, expected)


def test_precision_is_that_of_the_inputs_and_never_half():
    x, y = problem(6, 9)
    assert ridge.factor(x).eigenvalues.dtype == jnp.float64
    assert ridge.factor(x.astype(np.float32)).eigenvalues.dtype == jnp.float32
    assert ridge.factor(x.astype(np.float16)).eigenvalues.dtype == jnp.float32
    assert ridge.factor(x > 0).eigenvalues.dtype == jnp.float32
    assert ridge.factor(x > 0, dtype=jnp.float64).eigenvalues.dtype == jnp.float64
    assert ridge.solve(ridge.factor(x > 0), y, LAMBDAS).weight.dtype == jnp.float32


@pytest.mark.parametrize(("m", "n"), [(6, 5), (12, 60), (60, 12), (60, 55)])
@pytest.mark.parametrize("kind", ["masks", "repeated rows", "constant", "far from zero"])
def test_finite_in_float32_whatever_is_singular(m, n, kind):
    rng = np.random.default_rng(m)
    x = rng.random((m, n)).astype(np.float32)
    if kind == "masks":
        x = x.argsort(axis=1) < n // 2
    elif kind == "repeated rows":
        x[m // 2 :] = x[: m - m // 2]
    elif kind == "constant":
        x[:] = x[:1]
    else:
        x = 10 * x + 1000
    y = rng.standard_normal((m, 2)).astype(np.float32) + 100
    factor, lambdas = ridge.factor(x), np.array([0, 1e-9, 1.0], np.float32)
    for rows in ([0], range(m // 2), range(m - 1)):
        assert jnp.isfinite(ridge.leave_out(factor, y, lambdas, np.array(rows))).all()
    assert jnp.isfinite(ridge.leave_one_out(factor, y, lambdas)).all()
    assert jnp.isfinite(ridge.solve(factor, y, lambdas).weight).all()
