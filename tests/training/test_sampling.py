"""Permutations against the exact moments of uniform ones; samplers against what an epoch and a probability mean."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import planted
import pytest

from d3mjax.training import sampling


def _images(seeds, num_indices, size):
    """[s, num_indices] images under one permutation of 0..size-1 a seed."""
    index = jnp.arange(num_indices)
    one = lambda seed: sampling.permute(jnp.broadcast_to(seed, index.shape), index, size)
    return jax.vmap(one)(seeds)


images = jax.jit(_images, static_argnums=1)


def _assert_chi_square(statistic, dof):
    # mean dof, variance 2 dof; both sides, because too even is as wrong as too uneven
    assert abs(statistic - dof) < 5 * np.sqrt(2 * dof), f"chi-square {statistic:.0f} at {dof} degrees of freedom"


def test_permute_is_a_bijection_for_every_traced_size():
    traces = []
    fn = jax.jit(lambda seeds, size: (traces.append(None), _images(seeds, 1000, size))[1])
    for size in (1, 2, 3, 7, 64, 257, 999, 1000):
        got = fn(jax.random.bits(jax.random.key(size), (30,), jnp.uint32), jnp.int32(size))[:, :size]
        np.testing.assert_array_equal(np.sort(got), np.broadcast_to(np.arange(size), got.shape))
    assert len(traces) == 1, "permute retraced: `size` must stay traced, look for Python arithmetic on it"


@pytest.mark.parametrize(("size", "num_seeds"), [(7, 20_000), (100, 3000)])
def test_permute_places_every_index_uniformly(size, num_seeds):
    got = images(jax.random.bits(jax.random.key(0), (num_seeds,), jnp.uint32), size, jnp.int32(size))
    counts = np.array([np.bincount(got[:, i], minlength=size) for i in range(size)])
    # A uniform permutation matrix has covariance (I - J/n) x (I - J/n) / (n - 1): (n - 1)^2 equal eigenvalues.
    statistic = ((counts - num_seeds / size) ** 2).sum() * (size - 1) / num_seeds
    _assert_chi_square(statistic, (size - 1) ** 2)


@pytest.mark.parametrize("pair", [(0, 1), (2, 5), (0, 15)])
def test_permute_places_pairs_uniformly(pair):
    # Rounds move pairs with a fixed sum together, so sums and differences of images are where too few rounds show.
    size, num_seeds = 16, 40_000
    got = np.asarray(images(jax.random.bits(jax.random.key(1), (num_seeds,), jnp.uint32), size, jnp.int32(size)))
    a, b = got[:, pair[0]], got[:, pair[1]]
    difference = np.bincount((a - b) % size, minlength=size)[1:]
    _assert_chi_square(((difference - num_seeds / (size - 1)) ** 2).sum() / (num_seeds / (size - 1)), size - 2)
    cells = size * (size - 1)
    joint = np.bincount(a * size + b, minlength=size**2).reshape(size, size)[~np.eye(size, dtype=bool)]
    _assert_chi_square(((joint - num_seeds / cells) ** 2).sum() / (num_seeds / cells), cells - 1)


def test_permute_fixed_points_and_agreement_of_neighbouring_seeds():
    size, num_seeds = 500, 4000
    got = np.asarray(images(jnp.arange(num_seeds, dtype=jnp.uint32), size, jnp.int32(size)))
    fixed = (got == np.arange(size)).sum(1)
    agreeing = (got[1:] == got[:-1]).sum(1)  # fixed points of one permutation after the inverse of the other
    for count in (fixed, agreeing):
        # Mean and variance are exactly 1, the fourth central moment is 4: var(s^2) = (4 - 1) / num_seeds.
        assert abs(count.mean() - 1) < 5 / np.sqrt(num_seeds)
        assert abs(count.var() - 1) < 5 * np.sqrt(3 / num_seeds)


WEIGHTS = jnp.array([2.0, 0, 1, 1, 0, 3, 1, 5, 0, 1])
KEPT = np.array([0, 2, 3, 5, 6, 7, 9])


@functools.partial(jax.jit, static_argnums=(0, 3))
def _draw(sampler, weights, steps, batch_size, seed=0):
    return sampler.draw(jax.random.key(seed), sampler.prepare(weights), steps, batch_size)


def test_shuffled_visits_every_kept_example_once_an_epoch():
    index, weight = _draw(sampling.shuffled(), WEIGHTS, jnp.arange(21), 4)  # 84 draws: 12 epochs of 7, batches straddle
    epochs = np.asarray(index).reshape(12, 7)
    np.testing.assert_array_equal(np.sort(epochs), np.broadcast_to(KEPT, (12, 7)))
    assert len({tuple(e) for e in epochs}) == 12  # 7! orders: two of 12 epochs agree by chance in 1 of 76 keys
    # the seven positive weights sum to 14: mean 2
    planted.close(weight, WEIGHTS[index] / 2, terms=10)
    planted.close(weight.mean(), 1.0, terms=84)


def test_shuffled_mask_draws_what_the_smaller_split_draws():
    mask_index, mask_weight = _draw(sampling.shuffled(), (WEIGHTS > 0).astype(float), jnp.arange(9), 5)
    index, weight = _draw(sampling.shuffled(), jnp.ones(len(KEPT)), jnp.arange(9), 5)
    np.testing.assert_array_equal(mask_index, KEPT[np.asarray(index)])
    np.testing.assert_array_equal(mask_weight, weight)
    np.testing.assert_array_equal(weight, 1)


def test_shuffled_ignores_the_scale_of_the_weights():
    sampler = sampling.shuffled()
    index, weight = _draw(sampler, WEIGHTS, jnp.arange(5), 4)
    same_index, same_weight = _draw(sampler, 0.01 * WEIGHTS, jnp.arange(5), 4)
    np.testing.assert_array_equal(index, same_index)
    planted.close(weight, same_weight, terms=10)


@pytest.mark.parametrize("sampler", [sampling.shuffled(), sampling.resampled()], ids=["shuffled", "resampled"])
def test_any_step_can_be_drawn_alone(sampler):
    whole = _draw(sampler, WEIGHTS, jnp.arange(10), 4)
    part = _draw(sampler, WEIGHTS, jnp.arange(3, 7), 4)
    jax.tree.map(lambda w, p: np.testing.assert_array_equal(w[3:7], p), whole, part)
    other = _draw(sampler, WEIGHTS, jnp.arange(10), 4, seed=1)
    assert not np.array_equal(whole[0], other[0])


@pytest.mark.parametrize("sampler", [sampling.shuffled(), sampling.resampled()], ids=["shuffled", "resampled"])
def test_nothing_to_draw_is_padding(sampler):
    index, weight = _draw(sampler, jnp.zeros(6), jnp.arange(3), 4)
    np.testing.assert_array_equal(index, -1)
    np.testing.assert_array_equal(weight, 0)


def test_resampled_frequencies():
    weights = jnp.array([0.0, 1, 3, 0, 6, 0])
    index, weight = _draw(sampling.resampled(), weights, jnp.arange(2000), 20)
    p = np.asarray(weights) / 10
    draws = index.size
    counts = np.bincount(np.asarray(index).ravel(), minlength=6)
    assert np.all(np.abs(counts - draws * p) <= 5 * np.sqrt(draws * p * (1 - p))), counts  # exactly 0 where p is 0
    np.testing.assert_array_equal(weight, 1)


def test_both_samplers_have_the_upweighted_gradient():
    gradient = np.random.default_rng(0).normal(size=10)
    p = np.asarray(WEIGHTS) / np.asarray(WEIGHTS).sum()
    expected = p @ gradient
    index, weight = _draw(sampling.shuffled(), WEIGHTS, jnp.arange(7), 3)  # exactly three epochs
    planted.close(
        np.float32((np.asarray(weight) * gradient[index]).mean()), expected, terms=21, scale=np.abs(gradient).max()
    )
    index, weight = _draw(sampling.resampled(), WEIGHTS, jnp.arange(1000), 10)
    std = np.sqrt(p @ gradient**2 - expected**2)
    assert abs((np.asarray(weight) * gradient[index]).mean() - expected) < 5 * std / np.sqrt(10_000)
    assert abs(expected - gradient.mean()) > 10 * std / np.sqrt(10_000)  # unweighted draws would be noticed
