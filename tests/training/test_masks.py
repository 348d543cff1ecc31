"""Masks: exact sizes, uniform subsets, rows that depend on their id alone; and every complaint of `check_weights`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import config

from d3mjax.training import masks

KEY = jax.random.key(3)
MAKERS = {
    "fixed_size": jax.jit(lambda ids: masks.fixed_size(KEY, ids, 20, 6)),
    "mixed_sizes": jax.jit(lambda ids: masks.mixed_sizes(KEY, ids, 20, 3, 9)),
    "bernoulli": jax.jit(lambda ids: masks.bernoulli(KEY, ids, 20, 0.3)),
}
fixed_size = jax.jit(masks.fixed_size, static_argnums=(2, 3))
M = 4000


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_rows_depend_on_their_id_alone(make):
    rows = np.asarray(make(jnp.arange(10)))
    np.testing.assert_array_equal(make(jnp.array([5])), rows[[5]])
    np.testing.assert_array_equal(make(jnp.array([9, 2, 5])), rows[[9, 2, 5]])
    assert len({tuple(row) for row in rows}) == 10


@pytest.mark.parametrize("keep", [0, 1, 6, 20])
def test_fixed_size_is_exact(keep):
    np.testing.assert_array_equal(fixed_size(KEY, jnp.arange(50), 20, keep).sum(1), keep)


@pytest.mark.parametrize("name", MAKERS)
def test_examples_and_pairs_are_kept_equally_often(name):
    rows = np.asarray(MAKERS[name](jnp.arange(M)), float)
    single, pair = {
        "fixed_size": (6 / 20, 6 * 5 / (20 * 19)),
        # sizes 3..9: mean 6, mean of s (s - 1) = mean of s^2 - 6 = 40 - 6
        "mixed_sizes": (6 / 20, 34 / (20 * 19)),
        "bernoulli": (0.3, 0.09),
    }[name]
    sigma = lambda p: np.sqrt(p * (1 - p) / M)
    together = rows.T @ rows / M
    assert np.abs(np.diag(together) - single).max() < 5 * sigma(single)
    assert np.abs(together[~np.eye(20, dtype=bool)] - pair).max() < 5 * sigma(pair)


def test_mixed_sizes_are_uniform_up_to_both_bounds():
    counts = np.bincount(np.asarray(MAKERS["mixed_sizes"](jnp.arange(M)).sum(1)), minlength=21)
    np.testing.assert_array_equal(np.flatnonzero(counts), np.arange(3, 10))
    assert np.abs(counts[3:10] - M / 7).max() < 5 * np.sqrt(M * 6 / 49)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda ids: masks.fixed_size(KEY, ids, 20, 21), r"num_keep: found 21, .* 0\.\.20"),
        (lambda ids: masks.fixed_size(KEY, ids, 20, -1), r"num_keep: found -1"),
        (lambda ids: masks.mixed_sizes(KEY, ids, 20, -2, 9), r"min_keep: found -2"),
        (lambda ids: masks.mixed_sizes(KEY, ids, 20, 3, 21), r"max_keep: found 21"),
        (lambda ids: masks.mixed_sizes(KEY, ids, 20, 9, 3), r"min_keep: found 9, expected at most max_keep = 3"),
        (lambda ids: masks.bernoulli(KEY, ids, 20, 1.5), r"share: found 1\.5"),
    ],
)
def test_bad_sizes_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(jnp.arange(2))


Y = np.array([0, 0, 1, 1, 2])


@pytest.mark.parametrize("weights", [np.ones(5), np.array([[2.0, 0, 0, 1, 1]] * 3), np.array([0, 1, 1, 0, 1], bool)])
def test_check_weights_accepts_host_and_device_rows(weights):
    masks.check_weights(weights, Y)
    masks.check_weights(jnp.asarray(weights), jnp.asarray(Y))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.array([1, 1, -0.5, 1, 1]), r"weights: found -0\.5 for example 2 of row 0"),
        (np.array([[1.0] * 5, [1, 1, 1, np.nan, 1]]), r"weights: found nan for example 3 of row 1"),
        (np.array([1, 1, 1, 1, np.inf]), r"weights: found inf for example 4 of row 0"),
        (np.array([[1.0] * 5, [0.0] * 5]), r"weights: found only zeros in row 1"),
        (np.array([[1.0] * 5, [1.0, 1, 0, 0, 1]]), r"weights: found no example of class 1 left in row 1"),
    ],
)
def test_check_weights_names_what_is_wrong(weights, message):
    with pytest.raises(ValueError, match=message):
        masks.check_weights(weights, Y)


def test_check_weights_names_a_wrong_length(monkeypatch):
    monkeypatch.setattr(config, "jaxtyping_disable", True)  # the tests' own shape checks would speak first
    with pytest.raises(ValueError, match="weights: found length 4, expected 5 as in y"):
        masks.check_weights(np.ones(4), Y)
