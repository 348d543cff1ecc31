"""Class offsets against all thresholds by brute force, and what must not change them."""

import jax
import jax.numpy as jnp
import numpy as np
import planted
import pytest

from d3mjax.debiasing import offsets

GROUPS, TOLERANCE = 4, 0.02


def problem(seed: int, count: int = 60, num_classes: int = 2):
    """Logits on a grid of 1/8, so that some are equal; labels that they predict badly; groups, some of them unknown."""
    rng = np.random.default_rng(seed)
    y = rng.integers(num_classes, size=count)
    logits = rng.normal(size=(count, num_classes)) + 2 * np.eye(num_classes)[y] - 1.5 * np.arange(num_classes)
    return np.round(8 * logits).astype(np.float32) / 8, y, rng.integers(-1, GROUPS - 1, size=count)  # the last is empty


def quality(logits, y, group, added):
    """Worst-group accuracy, and correct examples of known group, by argmax."""
    right = (logits + np.asarray(added)).argmax(1) == y
    return min(right[group == g].mean() for g in set(group.tolist()) - {-1}), right[group >= 0].sum()


def best_of(tried, tolerance):
    """The most correct examples among offsets whose worst group is within ``tolerance`` of the best."""
    worst = max(accuracy for accuracy, _ in tried)
    return max(correct for accuracy, correct in tried if accuracy >= worst - tolerance - 1e-6)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("tolerance", [0.0, TOLERANCE, 0.2])
def test_two_classes_get_the_best_of_all_thresholds(seed, tolerance):
    logits, y, group = problem(seed)
    chosen = offsets.choose(logits, y, group, GROUPS, tolerance=tolerance)
    grid = np.unique((logits[:, 1] - logits[:, 0])[group >= 0])  # between two of these all thresholds are equal
    middles = np.concatenate([grid[:1] - 1, (grid[1:] + grid[:-1]) / 2, grid[-1:] + 1])
    tried = {-m: quality(logits, y, group, [0, -m]) for m in middles}
    worst, correct = quality(logits, y, group, chosen)
    assert worst >= max(accuracy for accuracy, _ in tried.values()) - tolerance - 1e-6
    assert correct == best_of(tried.values(), tolerance)
    equal = [o for o, (accuracy, c) in tried.items() if c == correct and accuracy >= worst - 1e-6]
    assert chosen[0] == 0
    assert abs(chosen[1]) <= min(map(abs, equal))


@pytest.mark.parametrize("seed", range(4))
def test_more_classes_get_a_local_optimum_better_than_none(seed):
    logits, y, group = problem(seed, count=40, num_classes=3)
    chosen = np.asarray(offsets.choose(logits, y, group, GROUPS, tolerance=0.0, rounds=6))
    worst, correct = quality(logits, y, group, chosen)
    assert (worst, correct) > quality(logits, y, group, np.zeros(3))
    grid = np.arange(-8, 8, 1 / 16, dtype=np.float32)
    for c in range(3):
        moved = (quality(logits, y, group, chosen + step * np.eye(3)[c]) for step in grid)
        assert max(moved) <= (worst, correct)


def test_three_classes_of_which_one_never_occurs_are_two():
    logits, y, group = problem(1)
    far = np.concatenate([logits, np.full((len(y), 1), -100, np.float32)], 1)
    two, three = (offsets.choose(some, y, group, GROUPS, tolerance=0.0) for some in (logits, far))
    assert quality(logits, y, group, three[:2]) == quality(logits, y, group, two)


@pytest.mark.parametrize("num_classes", [2, 3])
def test_order_padding_constants_and_batches_do_not_matter(num_classes):
    logits, y, group = problem(2, num_classes=num_classes)
    chosen = offsets.choose(logits, y, group, GROUPS)
    order = np.random.default_rng(3).permutation(len(y))
    planted.equal(offsets.choose(logits[order], y[order], group[order], GROUPS), chosen)
    padded = (np.concatenate([logits, 100 + logits]), np.tile(y, 2), np.concatenate([group, np.full_like(group, -1)]))
    planted.equal(offsets.choose(*padded, GROUPS), chosen)
    planted.equal(offsets.choose(logits + 4, y, group, GROUPS), chosen)  # exact on the grid of 1/8
    many = jax.jit(jax.vmap(lambda shift: offsets.choose(logits + shift, y, group, GROUPS)))(jnp.arange(3.0))
    planted.equal(many, np.tile(chosen, (3, 1)))


def test_what_offsets_cannot_improve_gets_none():
    y = np.array([0, 0, 1, 1])
    right = np.array([[3, 0], [1, 0], [0, 1], [0, 9]], np.float32)
    planted.equal(offsets.choose(right, y, np.array([0, 1, 0, 1]), 2), np.zeros(2))
    for unknown in (np.full(4, -1), np.full(4, 7)):
        planted.equal(offsets.choose(right[::-1], y, unknown, 2), np.zeros(2))


def test_a_threshold_is_in_the_middle_and_not_between_logits_that_rounding_makes_differ():
    y, group = np.array([0, 1, 1]), np.array([0, 1, 1])
    logits = np.array([[4, 0], [2, 0], [1, 0]], np.float32)
    np.testing.assert_array_equal(offsets.choose(logits, y, group, 2), [0, 3])
    near = np.nextafter(np.float32(4), np.float32(0))
    logits = np.array([[4, 0], [near, 0], [1, 0]], np.float32)
    np.testing.assert_array_equal(offsets.choose(logits, y, group, 2), [0, (1 + near) / 2])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
def test_offsets_are_finite_whatever_the_logits(bad):
    logits, y, group = problem(4)
    logits[::7, 1], logits[3] = bad, bad
    assert np.isfinite(offsets.choose(logits, y, group, GROUPS)).all()
    assert np.isfinite(offsets.choose(np.full_like(logits, bad), y, group, GROUPS)).all()
