import jax
import jax.numpy as jnp
import numpy as np

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
