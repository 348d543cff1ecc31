"""Planted label errors: exact counts, flags that belong to ids, every other class equally often."""

import jax
import numpy as np
import pytest

from d3mjax.data.planted import corruptions

IDS = np.random.default_rng(0).permutation(5000)[:2000] - 100  # some are negative


@pytest.mark.parametrize("num", [0, 1, 7, 500])
def test_exactly_so_many_are_chosen_among_those_asked_for(num):
    among = np.arange(2000) % 4 == 1
    flags = corruptions.choose(jax.random.key(1), IDS, num, among=among)
    assert flags.sum() == num
    assert not (flags & ~among).any()


def test_flags_and_labels_belong_to_ids_in_any_order():
    y = IDS % 5
    order = np.random.default_rng(1).permutation(len(IDS))
    key = jax.random.key(2)
    flags = corruptions.choose(key, IDS, 300)
    flipped = corruptions.flip_labels(key, IDS, y, flags, num_classes=5)
    np.testing.assert_array_equal(corruptions.choose(key, IDS[order], 300), flags[order])
    shuffled = corruptions.flip_labels(key, IDS[order], y[order], flags[order], num_classes=5)
    np.testing.assert_array_equal(shuffled, flipped[order])
    assert (corruptions.choose(jax.random.key(3), IDS, 300) != flags).any()


def test_more_flags_keep_those_of_fewer():
    few, many = (corruptions.choose(jax.random.key(4), IDS, num) for num in (100, 200))
    assert (many >= few).all()


def test_flipped_labels_are_other_classes_equally_often():
    y = np.full(2000, 3, np.int32)
    flags = np.arange(2000) < 1600
    flipped = corruptions.flip_labels(jax.random.key(5), IDS, y, flags, num_classes=5)
    assert flipped.dtype == y.dtype
    np.testing.assert_array_equal(flipped[~flags], 3)
    counts = np.bincount(flipped[flags], minlength=5)
    assert counts[3] == 0
    # Four classes, 1,600 draws: 400 each, standard deviation sqrt(1600 * 1/4 * 3/4) = 17.3.
    assert (abs(counts[[0, 1, 2, 4]] - 400) < 4 * 17.3).all()
    np.testing.assert_array_equal(
        corruptions.flip_labels(jax.random.key(5), IDS, IDS % 2, flags, num_classes=2) != IDS % 2, flags
    )


@pytest.mark.parametrize("num", [-1, 501])
def test_more_than_there_are_is_refused(num):
    with pytest.raises(ValueError, match=rf"num: found {num}, expected a number of examples in 0\.\.500"):
        corruptions.choose(jax.random.key(0), IDS, num, among=np.arange(2000) % 4 == 0)
