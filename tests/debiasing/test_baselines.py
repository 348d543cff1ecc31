"""Balancing by its definitions: equal masses, equal sizes, uniform subsets, plain training where all is one."""

import jax
import jax.numpy as jnp
import numpy as np

from d3mjax.debiasing import baselines
from d3mjax.training import sampling

SIZES = [30, 5, 0, 12]  # cell 2 is empty
CELL = np.random.default_rng(0).permutation(np.repeat(np.arange(4), SIZES))
N = len(CELL)


def test_subsample_is_as_large_as_the_smallest_cell_in_every_cell():
    draw = jax.jit(jax.vmap(lambda key: baselines.subsample_balanced(key, jnp.asarray(CELL), 4)))
    keep = np.asarray(draw(jax.random.split(jax.random.key(0), 2000)))
    counts = np.stack([np.bincount(CELL[row], minlength=4) for row in keep])
    np.testing.assert_array_equal(counts, np.broadcast_to([5, 5, 0, 5], counts.shape))
    p = np.array([5 / 30, 1, 0, 5 / 12])[CELL]  # uniform within a cell
    assert np.all(np.abs(keep.mean(0) - p) <= 5 * np.sqrt(p * (1 - p) / 2000))


def test_balanced_weights_give_every_cell_the_same_mass():
    weights = np.asarray(baselines.balanced_weights(jnp.asarray(CELL), 4))
    np.testing.assert_allclose(np.bincount(CELL, weights, minlength=4), [N / 3, N / 3, 0, N / 3], rtol=1e-5)
    np.testing.assert_allclose(weights.mean(), 1, rtol=1e-5)
    assert all(len(set(weights[c == CELL])) == 1 for c in (0, 1, 3))


def test_balanced_weights_resample_every_cell_equally_often():
    sampler = sampling.resampled()
    plan = sampler.prepare(baselines.balanced_weights(jnp.asarray(CELL), 4))
    index, _ = sampler.draw(jax.random.key(1), plan, jnp.arange(300), 30)
    counts = np.bincount(CELL[np.asarray(index).ravel()], minlength=4)
    assert np.abs(counts[[0, 1, 3]] - 3000).max() < 5 * np.sqrt(9000 * (1 / 3) * (2 / 3))


def test_one_cell_is_plain_training():
    cell = jnp.zeros(N, int)
    np.testing.assert_array_equal(baselines.balanced_weights(cell, 1), baselines.erm_weights(N))
    np.testing.assert_array_equal(baselines.subsample_balanced(jax.random.key(0), cell, 1), True)
    np.testing.assert_array_equal(baselines.erm_weights(N), np.ones(N))


def test_host_labels_give_what_device_labels_give():
    key = jax.random.key(0)
    calls = [lambda c: baselines.subsample_balanced(key, c, 4), lambda c: baselines.balanced_weights(c, 4)]
    for call in calls:
        device = call(jnp.asarray(CELL))
        np.testing.assert_array_equal(call(CELL), device)
        np.testing.assert_allclose(jax.jit(lambda call=call: call(CELL))(), device, rtol=1e-6)
