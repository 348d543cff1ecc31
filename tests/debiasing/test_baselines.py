"""Balancing by its definitions: equal masses, equal sizes, uniform subsets, plain training where all is one."""

import jax
import jax.numpy as jnp
import numpy as np
import planted
import pytest

from d3mjax.debiasing import baselines, selection
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
    planted.close(np.float32(np.bincount(CELL, weights, minlength=4)), np.array([N / 3, N / 3, 0, N / 3]), terms=30)
    planted.close(np.float32(weights.mean()), 1.0, terms=N)
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
        planted.close(jax.jit(lambda call=call: call(CELL))(), device)


def test_jtt_weighs_errors_and_nothing_else():
    errors = np.array([True, False, False, True])
    np.testing.assert_array_equal(baselines.jtt_weights(errors, 20.0), [21, 1, 1, 21])
    np.testing.assert_array_equal(baselines.jtt_weights(np.zeros(4, bool), 20.0), baselines.erm_weights(4))


def test_mixed_weights_share_mass_between_train_and_balanced_targets():
    target = np.array([False] * 6 + [True] * 4)
    cell = np.array([-1, -1, 3, 3, 3, 3, 0, 0, 0, 3])  # cells of the others are unknown or not to be read
    weights = np.float32(baselines.mixed_weights(target, cell, 4, 0.25))
    expected = 10 * np.array([0.75 / 6] * 6 + [0.25 / 6] * 3 + [0.25 / 2])
    planted.close(weights, expected)
    planted.close(weights.mean(), 1.0, terms=10)


@pytest.mark.parametrize("k", [0, 7, 18, 20, 32, 47])
def test_majority_random_takes_from_whatever_is_largest(k):
    keys = jax.random.split(jax.random.key(3), 200)
    keep = np.asarray(jax.vmap(lambda key: baselines.drop_majority(key, jnp.asarray(CELL), 4, k))(keys))
    size = np.array(SIZES)
    for _ in range(k):
        size[size.argmax()] -= 1
    counts = np.stack([np.bincount(CELL[row], minlength=4) for row in keep])
    assert (counts.sum(1) == N - k).all()
    # Which of several equal cells goes next is chance: compare sizes in order.
    np.testing.assert_array_equal(np.sort(counts, 1), np.broadcast_to(np.sort(size), counts.shape))
    if k == 18:
        np.testing.assert_array_equal(counts, np.broadcast_to([12, 5, 0, 12], counts.shape))
        assert np.abs(keep[:, CELL == 0].mean(0) - 12 / 30).max() < 5 * np.sqrt(0.4 * 0.6 / 200)


def test_majority_random_breaks_ties_without_preference_and_leaves_unknown_cells():
    cell = jnp.array([0, 0, 1, 1, -1, -1, -1])
    keys = jax.random.split(jax.random.key(4), 1000)
    keep = np.asarray(jax.vmap(lambda key: baselines.drop_majority(key, cell, 2, 1))(keys))
    assert keep[:, 4:].all()
    assert np.abs(keep[:, :4].mean(0) - 0.75).max() < 5 * np.sqrt(0.75 * 0.25 / 1000)


def test_ranked_controls_are_argsort():
    loss = np.random.default_rng(5).normal(size=N).astype(np.float32)
    keep = np.asarray(selection.drop_lowest(-loss, 9))
    assert set(np.flatnonzero(~keep)) == set(np.argsort(-loss)[:9])


def test_tune_takes_the_first_of_the_best_within_its_budget():
    seen = []
    found = baselines.tune([3, 1, 2, 9], lambda cs: seen.append(cs) or [0.5, 0.7, 0.7, 0.1], budget=4)
    assert (found.best, seen) == (1, [[3, 1, 2, 9]])
    with pytest.raises(ValueError, match=r"candidates: found 5, expected 1\.\.4"):
        baselines.tune(range(5), list, budget=4)
    with pytest.raises(FloatingPointError, match="expected 2 finite ones"):
        baselines.tune([0, 1], lambda _: [0.5, float("nan")], budget=4)
