"""Cross-entropy against Optax, its gradient included, and the weighted mean by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import planted
import pytest

from d3mjax.training import objectives

LOGITS = 5 * planted.normal(0, 9, 4)
Y = jnp.arange(9) % 4
BATCH = planted.split_of(jnp.zeros((9, 1)), Y)


def test_losses_and_their_gradient_are_those_of_optax():
    reference = optax.softmax_cross_entropy_with_integer_labels
    planted.close(objectives.losses(LOGITS, Y), reference(LOGITS, Y), scale=20)  # logits are below 20
    got, expected = (jax.jacobian(fn)(LOGITS, Y) for fn in (objectives.losses, reference))
    planted.close(got, expected, scale=20)


def test_extreme_logits_stay_finite():
    logits = jnp.array([[1e4, 0.0, -1e4], [-1e30, 0.0, 1e30]])
    np.testing.assert_allclose(objectives.losses(logits, jnp.array([2, 2])), [2e4, 0.0], rtol=1e-6)
    assert jnp.isfinite(jax.grad(lambda a: objectives.losses(a, jnp.array([2, 2])).sum())(logits)).all()


def test_half_precision_logits_are_computed_in_float32():
    half = LOGITS.astype(jnp.bfloat16)
    got = objectives.losses(half, Y)
    assert got.dtype == jnp.float32
    np.testing.assert_array_equal(got, objectives.losses(half.astype(jnp.float32), Y))


def test_cross_entropy_divides_by_the_batch_size_whatever_the_weights():
    objective = objectives.cross_entropy()
    weight = jnp.array([0.0, 0, 3, 1, 0, 0, 0, 0, 0.5], jnp.float32)
    value, state = objective.value(objective.init(), LOGITS, BATCH, weight)
    losses = np.asarray(optax.softmax_cross_entropy_with_integer_labels(LOGITS, Y))
    planted.close(value, (3 * losses[2] + losses[3] + 0.5 * losses[8]) / 9, scale=20)
    assert state == ()
    gradient = jax.grad(lambda a: objective.value((), a, BATCH, weight)[0])(LOGITS)
    np.testing.assert_array_equal(gradient[jnp.array([0, 1, 4, 5, 6, 7])], 0)  # weight 0 is no influence at all


def test_smoothing_spreads_the_target_over_all_classes():
    target = 0.9 * jax.nn.one_hot(Y, 4, dtype=jnp.float32) + 0.1 / 4
    expected = optax.softmax_cross_entropy(LOGITS, target)
    planted.close(objectives.losses(LOGITS, Y, smoothing=0.1), expected, scale=20)
    value, _ = objectives.cross_entropy(smoothing=0.1).value((), LOGITS, BATCH, jnp.ones(9, jnp.float32))
    planted.close(value, expected.mean(), scale=20)
    with pytest.raises(ValueError, match=r"smoothing: found 1\.5"):
        objectives.cross_entropy(smoothing=1.5)


def test_squared_error_and_huber_are_those_of_optax():
    predictions, y = LOGITS[:, :1], planted.normal(1, 9)
    weight = jnp.array([0.0, 0, 3, 1, 0, 0, 0, 0, 0.5], jnp.float32)
    batch = planted.split_of(jnp.zeros((9, 1)), y)
    errors = np.asarray(predictions[:, 0] - y)
    value, state = objectives.squared_error().value((), predictions, batch, weight)
    planted.close(value, (3 * errors[2] ** 2 + errors[3] ** 2 + errors[8] ** 2 / 2) / 18, terms=9, scale=200)
    assert state == ()
    for delta in (0.5, 2.0):
        robust = lambda a, delta=delta: objectives.huber(delta).value((), a, batch, weight)[0]
        reference = lambda a, delta=delta: jnp.mean(weight * optax.huber_loss(a[:, 0], y, delta=delta))
        planted.close(robust(predictions), reference(predictions), terms=9, scale=200)
        planted.close(jax.grad(robust)(predictions), jax.grad(reference)(predictions), terms=9, scale=20)
    exact = jax.grad(lambda a: objectives.huber(1.0).value((), a, batch, weight)[0])(y[:, None])
    np.testing.assert_array_equal(exact, 0)  # and finite where the error is zero
    with pytest.raises(ValueError, match=r"delta: found 0\.0, expected a positive error"):
        objectives.huber(0.0)
