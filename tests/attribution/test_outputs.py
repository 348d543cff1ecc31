"""Margins against their formulas, at extreme logits too, and outputs that do not depend on the microbatch."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import planted
import pytest

from d3mjax.attribution import outputs
from d3mjax.networks import dense
from d3mjax.types import Split

close = partial(planted.close, terms=25)  # widths of layers

LOGITS = (4 * np.random.default_rng(0).normal(size=(7, 3))).astype(np.float32)
Y = np.array([0, 1, 2, 0, 1, 2, 2])


def test_margins_by_their_formulas():
    logits = LOGITS.astype(float)
    hard, soft = [], []
    for row, y in zip(logits, Y, strict=True):
        others = np.delete(row, y)
        hard.append(row[y] - others.max())
        p = np.exp(row[y]) / np.exp(row).sum()
        soft.append(np.log(p / (1 - p)))
    close(outputs.hard_margin(jnp.asarray(LOGITS), Y), hard)
    close(outputs.soft_margin(jnp.asarray(LOGITS), Y), soft)
    right = logits.argmax(1) == Y
    assert 0 < right.sum() < 7
    np.testing.assert_array_equal(np.array(hard) > 0, right)


def test_extreme_logits_give_finite_margins_and_gradients():
    # p is 0 or 1 in float32, where log(p / (1 - p)) is infinite; the margin is the plain difference of logits
    logits, y = jnp.array([[200.0, 0, -5], [-1e6, 1e6, 0], [0, 3e4, -3e4]]), np.array([0, 0, 2])
    np.testing.assert_allclose(outputs.soft_margin(logits, y), [200 - np.log1p(np.exp(-5)), -2e6, -6e4], rtol=1e-6)
    np.testing.assert_allclose(outputs.hard_margin(logits, y), [200, -2e6, -6e4], rtol=1e-6)
    gradient = jax.grad(lambda a: outputs.soft_margin(a, y).sum())(logits)
    # the runner-up takes all: at [200, 0, -5] shared as 1 : e^-5
    np.testing.assert_allclose(gradient[1:], [[1, -1, 0], [0, -1, 1]], atol=1e-6)
    np.testing.assert_allclose(gradient[0], [1, -1 / (1 + np.exp(-5)), -1 / (1 + np.exp(5))], rtol=1e-5)


def test_two_classes_have_one_margin():
    logits, y = jnp.asarray(LOGITS[:, :2]), Y % 2
    np.testing.assert_array_equal(outputs.soft_margin(logits, y), outputs.hard_margin(logits, y))


def test_half_precision_logits_are_computed_in_float32_and_leading_axes_map():
    half = jnp.asarray(LOGITS, jnp.bfloat16)
    got = outputs.soft_margin(jnp.stack([half, half[::-1]]), np.stack([Y, Y[::-1]]))
    assert got.dtype == jnp.float32
    np.testing.assert_array_equal(got[0], outputs.soft_margin(half.astype(jnp.float32), Y))
    np.testing.assert_array_equal(got[1], got[0][::-1])


MODEL = dense.mlp((5,), 3)
X = np.random.default_rng(1).normal(size=(7, 4)).astype(np.float32)
SPLIT = Split(X, Y, np.zeros(7, int), np.arange(7))


@pytest.fixture(scope="module")
def variables():
    return MODEL.init(jax.random.key(0), jnp.asarray(SPLIT.x))


@pytest.mark.parametrize("microbatch", [1, 3, 7, 100, None])  # 7 rows: single, padded, exact, more than there are
@pytest.mark.parametrize("name", ["hard_margins", "soft_margins", "losses", "error_norms"])
def test_outputs_do_not_depend_on_the_microbatch(variables, name, microbatch):
    logits = np.asarray(MODEL.apply(variables, jnp.asarray(SPLIT.x))[0], float)
    own = logits[np.arange(7), Y]
    others = np.stack([np.delete(row, y) for row, y in zip(logits, Y, strict=True)])
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = {
        "hard_margins": own - others.max(1),
        "soft_margins": own - np.log(np.exp(others).sum(1)),
        "losses": np.log(np.exp(logits).sum(1)) - own,
        "error_norms": np.sqrt(((p - np.eye(3)[Y]) ** 2).sum(1)),
    }[name]
    got = getattr(outputs, name)(MODEL, variables, SPLIT, microbatch=microbatch)
    close(got, expected)


def test_microbatch_below_one_is_refused(variables):
    with pytest.raises(ValueError, match="microbatch: found 0"):
        outputs.losses(MODEL, variables, SPLIT, microbatch=0)


@pytest.mark.parametrize("microbatch", [3, None])
def test_residuals_of_a_regression_by_hand(microbatch):
    model, y = dense.linear(1), np.linspace(-1, 1, 7, dtype=np.float32)
    fitted = model.init(jax.random.key(1), jnp.asarray(X))
    split = SPLIT._replace(y=y)
    expected = y - np.asarray(model.apply(fitted, jnp.asarray(X))[0], float)[:, 0]
    close(outputs.residuals(model, fitted, split, microbatch=microbatch), expected)
    close(outputs.negative_squared_errors(model, fitted, split, microbatch=microbatch), -(expected**2) / 2)
