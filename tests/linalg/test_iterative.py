from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d3mjax.linalg import iterative


def problem(n=30):
    rng = np.random.default_rng(0)
    a = rng.normal(size=(n, 2 * n))
    return a @ a.T, rng.normal(size=(3, n)), np.array([50.0, 0.5, 3.0, 0.5, 1e4])


def test_every_shift_equals_a_direct_solve():
    a, vectors, shifts = problem()
    with jax.enable_x64(True):
        solve = jax.jit(
            jax.vmap(lambda b: iterative.shifted_cg(lambda v: jnp.asarray(a) @ v, b, jnp.asarray(shifts), rtol=1e-12))
        )
        result = jax.tree.map(np.asarray, solve(jnp.asarray(vectors)))
    for i, b in enumerate(vectors):
        for j, shift in enumerate(shifts):
            exact = np.linalg.solve(a + shift * np.eye(len(a)), b)
            np.testing.assert_allclose(result.value[i, j], exact, rtol=1e-8, atol=1e-12)
    assert (result.residual < 1e-11).all()


def test_the_reported_residual_is_the_true_one_and_falls_short_when_steps_run_out():
    a, vectors, shifts = problem()
    b = vectors[0]
    with jax.enable_x64(True):
        result = iterative.shifted_cg(lambda v: jnp.asarray(a) @ v, jnp.asarray(b), jnp.asarray(shifts), max_steps=5)
        result = jax.tree.map(np.asarray, result)
    for j, shift in enumerate(shifts):
        true = np.linalg.norm(b - a @ result.value[j] - shift * result.value[j]) / np.linalg.norm(b)
        np.testing.assert_allclose(result.residual[j], true, rtol=1e-6, atol=1e-12)
    assert result.steps == 5
    assert result.residual[1] > 1e-3 > result.residual[4]  # the larger the shift, the faster


def test_a_singular_matrix_and_a_zero_vector_are_no_problem():
    a = np.zeros((4, 4))
    a[0, 0] = 2.0
    shifts = jnp.array([1.0, 2.0])
    value = iterative.shifted_cg(lambda v: jnp.asarray(a, jnp.float32) @ v, jnp.ones(4), shifts).value
    np.testing.assert_allclose(value, [[1 / 3, 1, 1, 1], [1 / 4, 0.5, 0.5, 0.5]], rtol=1e-6)
    zero = iterative.shifted_cg(lambda v: v, jnp.zeros(4), shifts)
    assert (zero.value == 0).all()
    assert (zero.residual == 0).all()


def test_shifts_far_apart_stay_finite_in_float32():
    a, vectors, _ = problem()
    shifts = jnp.array([1e-2, 1e6])
    result = iterative.shifted_cg(
        lambda v: jnp.asarray(a, jnp.float32) @ v, jnp.asarray(vectors[0], jnp.float32), shifts
    )
    np.testing.assert_allclose(result.value[1], np.linalg.solve(a + 1e6 * np.eye(30), vectors[0]), rtol=1e-4)
    assert (result.residual < 1e-5).all()


def spectrum(n=24):
    """A matrix with eigenvalues spread over four decades, and a vector."""
    rng = np.random.default_rng(1)
    q, _ = np.linalg.qr(rng.normal(size=(n, n)))
    values = np.logspace(-2, 2, n)
    return jnp.asarray(q * values @ q.T), jnp.asarray(rng.normal(size=n)), values


def test_inverse_products_reach_the_exact_one_as_steps_rise():
    with jax.enable_x64(True):
        a, v, values = spectrum()
        exact = np.linalg.solve(a + 0.1 * np.eye(24), v)
        matvec = lambda x: a @ x
        error = lambda solve: np.linalg.norm(solve.value - exact) / np.linalg.norm(exact)
        assert error(iterative.dense(matvec, v, damping=0.1)) < 1e-12
        errors = [error(iterative.cg(matvec, v, damping=0.1, rtol=0.0, max_steps=k)) for k in (5, 15, 60)]
        assert errors[0] > errors[1] > errors[2]
        assert errors[2] < 1e-10
        scale = 1.05 * (values[-1] + 0.1)
        depth = iterative.lissa_depth(values[0] + 0.1, scale, rtol=1e-6)
        solves = [
            iterative.lissa(matvec, v, scale=scale, depth=k, damping=0.1) for k in (depth // 4, depth // 2, depth)
        ]
        assert error(solves[0]) > error(solves[1]) > error(solves[2])
        assert error(solves[2]) < 1e-6
        space = iterative.lanczos(jax.random.key(0), matvec, v, 24)
        np.testing.assert_allclose(space.vectors @ space.vectors.T, np.eye(24), atol=1e-12)
        np.testing.assert_allclose(space.values, values, rtol=1e-8)
        errors = [error(iterative.arnoldi(space, v, damping=0.1, keep=k)) for k in (4, 12, 24)]
        assert errors[0] > errors[1] > errors[2]
        assert errors[2] < 1e-8


def test_residuals_are_true_and_a_preconditioner_saves_steps():
    with jax.enable_x64(True):
        a, v, _ = spectrum()
        matvec = lambda x: a @ x
        space = iterative.lanczos(jax.random.key(0), matvec, v, 24)
        for solve in (
            iterative.cg(matvec, v, damping=0.1, max_steps=7),
            iterative.lissa(matvec, v, scale=110.0, depth=50, damping=0.1),
            iterative.arnoldi(space, v, damping=0.1, keep=9),
        ):
            true = np.linalg.norm(v - a @ solve.value - 0.1 * solve.value) / np.linalg.norm(v)
            np.testing.assert_allclose(solve.residual, true, rtol=1e-6)
        skewed = jnp.diag(jnp.logspace(0, 4, 24)) + 0.1 * a
        plain, guided = (
            iterative.cg(lambda x: skewed @ x, v, rtol=1e-8, precondition=p)
            for p in (lambda r: r, lambda r: r / jnp.diag(skewed))
        )
        assert guided.steps < plain.steps / 2


def test_a_nystrom_inverse_is_exact_at_low_rank_and_leaves_cg_few_steps():
    with jax.enable_x64(True):
        a, v, values = spectrum()
        key, damping = jax.random.key(0), 0.1
        low = jnp.linalg.eigh(a).eigenvectors[:, -6:]
        planted = low @ jnp.diag(values[-6:]) @ low.T
        matrix = iterative.nystrom(key, lambda x: planted @ x, v, 8)  # two directions more than the rank
        np.testing.assert_allclose(matrix.values, [*values[:-7:-1], 0, 0], atol=1e-10)
        np.testing.assert_allclose(matrix.vectors @ matrix.vectors.T, np.eye(8), atol=1e-12)
        exact = np.linalg.solve(planted + damping * np.eye(24), v)
        np.testing.assert_allclose(iterative.low_rank_inverse(matrix, v, damping=damping), exact, rtol=1e-8)

        exact, steps = np.linalg.solve(a + damping * np.eye(24), v), []
        for num in (1, 6, 12, 24):
            guess = partial(
                iterative.low_rank_inverse, iterative.nystrom(key, lambda x: a @ x, v, num), damping=damping
            )
            solve = iterative.cg(lambda x: a @ x, v, damping=damping, rtol=1e-10, precondition=guess)
            np.testing.assert_allclose(solve.value, exact, rtol=1e-7)
            steps.append(int(solve.steps))
        assert steps == sorted(steps, reverse=True)
        assert steps[-1] <= 3
    with pytest.raises(ValueError, match="num: found 25, expected 1 to 24"):
        iterative.nystrom(key, lambda x: a @ x, v, 25)


def test_what_went_wrong_is_said():
    look = lambda solve, **options: iterative.check(solve.residual, solve.steps, **options)
    with jax.enable_x64(True):
        a, v, values = spectrum()
        matvec = lambda x: a @ x
        low, high = iterative.extremes(jax.random.key(0), matvec, v, num=24)
        np.testing.assert_allclose([low, high], values[[0, -1]], rtol=1e-6)
        with pytest.raises(FloatingPointError, match="LiSSA, a larger scale"):
            look(iterative.lissa(matvec, v, scale=40.0, depth=2000), rtol=1e-3)
        indefinite = lambda x: a @ x - 3 * x
        solve = iterative.cg(indefinite, v, rtol=1e-8)
        low, _ = iterative.extremes(jax.random.key(0), indefinite, v, num=24)
        with pytest.raises(FloatingPointError, match=r"an eigenvalue near -2.99 .* take damping above 3.29"):
            look(solve, rtol=1e-8, smallest=float(low))
        look(iterative.cg(indefinite, v, damping=3.3, rtol=1e-8), rtol=1e-8, smallest=float(low), damping=3.3)
    with pytest.raises(ValueError, match="expected 0 < smallest < scale"):
        iterative.lissa_depth(2.0, 1.0, rtol=0.1)


def test_a_small_krylov_space_ends_without_noise():
    with jax.enable_x64(True):
        matvec = lambda x: x * jnp.asarray([2.0, 2.0, 5.0, 5.0, 5.0])
        space = iterative.lanczos(jax.random.key(0), matvec, jnp.zeros(5), 4)
        np.testing.assert_allclose(np.sort(space.values), [0, 0, 2, 5], atol=1e-10)
        low, high = iterative.extremes(jax.random.key(0), matvec, jnp.zeros(5), num=4)
        np.testing.assert_allclose([low, high], [2, 5])


def test_no_direction_has_no_solve():
    solve = iterative.cg(lambda x: x, jnp.zeros(3))
    assert (solve.value == 0).all()
    assert (solve.residual, solve.steps) == (0, 0)


@pytest.mark.parametrize("mapped", [False, True])
def test_a_step_costs_one_product_mapped_as_unmapped(mapped):
    calls = []

    def product(v):
        calls.append(v.shape)
        return np.asarray(v) * np.logspace(0, 2, 24, dtype=v.dtype)[(None,) * (v.ndim - 1)]

    matvec = lambda v: jax.pure_callback(
        product, jax.ShapeDtypeStruct(v.shape, v.dtype), v, vmap_method="broadcast_all"
    )
    solve = jax.jit(lambda v: iterative.cg(matvec, v, rtol=1e-4, recompute=10))
    vectors = np.random.default_rng(0).normal(size=(3, 24)).astype(np.float32)
    result = jax.vmap(solve)(vectors) if mapped else solve(vectors[0])
    steps = int(np.max(jax.block_until_ready(result).steps))
    assert steps > 20
    assert len(calls) == steps + steps // 10 + 1  # and the residuals computed anew, the last of which is returned
