"""Group counts are exact, draws disjoint, and cues touch exactly the pixels they claim."""

import numpy as np
import pytest

from d3mjax.data.planted import cues
from d3mjax.data.sets.digits import load_coloured_digits
from d3mjax.data.splits import check_data


@pytest.mark.parametrize(
    ("num", "shares", "expected"),
    [(4000, (0.475, 0.025, 0.025, 0.475), (1900, 100, 100, 1900)), (10, (1, 1, 1), (4, 3, 3)), (0, (1, 2), (0, 0))],
)
def test_apportion(num, shares, expected):
    assert cues.apportion(num, shares) == expected


def test_group_shares_by_hand():
    # Class 1 (share .4) agrees with attribute 1: .4 * .9; the other two attributes share .4 * .1.
    shares = cues.group_shares(2, 3, 0.9, (0.6, 0.4))
    np.testing.assert_allclose(shares, [0.54, 0.03, 0.03, 0.02, 0.36, 0.02], rtol=1e-12)
    assert cues.group_shares(4, 1, 0.9) == (0.25,) * 4
    with pytest.raises(ValueError, match=r"aligned: found 1.5"):
        cues.group_shares(2, 2, 1.5)
    with pytest.raises(ValueError, match=r"class_shares: .*expected 2 positive"):
        cues.group_shares(2, 2, 0.9, (1.0,))


def test_draw_is_exact_disjoint_and_stable():
    labels = np.random.default_rng(0).integers(0, 4, 400)
    counts = [(30, 2, 3, 31), (5, 6, 7, 8)]
    train, target = cues.draw(1, labels, ((0, 3), (2,)), 2, counts)
    for part, count in zip((train, target), counts, strict=True):
        assert np.bincount(2 * part.y + part.attribute).tolist() == list(count)
        assert np.isin(labels[part.row][part.y == 0], (0, 3)).all()
        assert (labels[part.row][part.y == 1] == 2).all()
    assert not set(train.row) & set(target.row)
    alone, _ = cues.draw(1, labels, ((0, 3), (2,)), 2, [counts[0], (9, 9, 9, 9)])
    np.testing.assert_array_equal(alone.row, train.row)
    other, _ = cues.draw(2, labels, ((0, 3), (2,)), 2, counts)
    assert other.row.tolist() != train.row.tolist()
    with pytest.raises(ValueError, match=r"class 1, made of \(2,\): asked for 1000 images, found"):
        cues.draw(1, labels, ((0, 3), (2,)), 2, [(0, 0, 0, 1000)])


@pytest.mark.parametrize(("size", "width"), [(14, 2), (28, 4)])
def test_corner_patch_is_white_there_and_nothing_elsewhere(size, width):
    images = np.random.default_rng(0).integers(0, 200, (4, size, size, 1)).astype(np.uint8)
    before = images.copy()
    painted = cues.CornerPatch(4)(images, np.arange(4))
    far = slice(size - width, size)
    for attribute, (rows, columns) in enumerate(
        [(slice(width), slice(width)), (slice(width), far), (far, slice(width)), (far, far)]
    ):
        expected = before[attribute].copy()
        expected[rows, columns] = 255
        np.testing.assert_array_equal(painted[attribute], expected)
    np.testing.assert_array_equal(images, before)  # the caller's images stay
    with pytest.raises(ValueError, match=r"num_attributes: found 5, expected 1\.\.4"):
        cues.CornerPatch(5)


def test_background_colour_by_hand():
    images = np.array([[[[0], [200]]], [[[15], [16]]]], np.uint8)
    painted = cues.BackgroundColour(((1, 2, 3), (4, 5, 6)))(images, np.array([0, 1]))
    assert painted.tolist() == [[[[1, 2, 3], [200, 200, 200]]], [[[4, 5, 6], [16, 16, 16]]]]


def test_ink_colour_by_hand():
    images = np.array([[[[255], [51]]]], np.uint8)
    painted = cues.InkColour(((255, 100, 0), (0, 0, 255)))(images, np.array([0]))
    assert painted.tolist() == [[[[255, 100, 0], [51, 20, 0]]]]


def test_coloured_digits():
    data = load_coloured_digits(seed=3)
    check_data(data, 2, 4)
    # 800 * .5 * .95 = 380; 200: 95 and 5; test balanced.
    assert [np.bincount(s.group).tolist() for s in data] == [
        [380, 20, 20, 380],
        [95, 5, 5, 95],
        [95, 5, 5, 95],
        [100, 100, 100, 100],
    ]
    x = data.train.x.reshape(-1, 8, 8, 3)
    colour = data.train.group % 2
    assert (x[colour == 0, ..., 2] == 0).all()  # the first ink has no blue, the second no red
    assert (x[colour == 1, ..., 0] == 0).all()
    again, other = load_coloured_digits(seed=3), load_coloured_digits(seed=4)
    np.testing.assert_array_equal(again.target.x, data.target.x)
    assert other.train.id.tolist() != data.train.id.tolist()


def test_coloured_digits_of_ten_classes():
    data = load_coloured_digits(classes=tuple((d,) for d in range(10)), aligned=0.9, train=400, flat=False)
    assert data.train.x.shape == (400, 8, 8, 3)
    agrees = data.train.group % 2 == data.train.y % 2
    assert agrees.sum() == 360
    with pytest.raises(ValueError, match=r"asked for .* images, found"):
        load_coloured_digits(train=2000)
