"""Pairs differ in the attribute and in nothing else, and sets of pairs share no example."""

import numpy as np
import pytest

from d3mjax.data import pairs
from d3mjax.data.planted import cues
from d3mjax.data.sets import adult
from d3mjax.types import Pairs, Split

close = np.testing.assert_array_equal


@pytest.fixture
def table():
    """Six rows: a number, the one-hot of two levels, the one-hot of three, another number."""
    two, three = np.eye(2)[[0, 1, 1, 0, 1, 0]], np.eye(3)[[0, 1, 2, 2, 0, 1]]
    number = np.arange(6.0)[:, None]
    x = np.concatenate([number, two, three, -number], axis=1).astype(np.float32)
    return Split(x, np.array([0, 1, 1, 0, 0, 1], np.int32), np.full(6, -1), np.arange(6))


@pytest.fixture(scope="module")
def people():
    rows = adult.read_rows("adult.test")[:400]
    return adult.encode(rows, rows)[1]


@pytest.mark.parametrize("columns", [slice(1, 3), [1, 2], np.array([2, 1])])
def test_two_levels_swap(table, columns):
    found = pairs.flip_attribute(table, columns)
    close(found.x, table.x)
    close(found.y, table.y)
    close(found.flipped[:, [1, 2]], table.x[:, [2, 1]])
    close(np.delete(found.flipped, [1, 2], axis=1), np.delete(table.x, [1, 2], axis=1))
    assert found.flipped.dtype == np.float32
    close(pairs.flip_attribute(table._replace(x=found.flipped), columns).flipped, table.x)


def test_other_levels_become_the_first(table):
    found = pairs.flip_attribute(table, slice(3, 6), levels=(2, 0))
    # Levels 0 1 2 2 0 1: 2 becomes 0, 0 becomes 2, and 1 becomes 2.
    close(found.flipped[:, 3:6].argmax(1), [2, 2, 0, 0, 2, 2])
    close(found.flipped[:, 3:6].sum(1), np.ones(6))
    close(np.delete(found.flipped, [3, 4, 5], axis=1), np.delete(table.x, [3, 4, 5], axis=1))


@pytest.mark.parametrize(
    ("columns", "levels", "message"),
    [
        (slice(6, 8), None, r"columns: found \[6, 7\], expected distinct columns in 0\.\.6"),
        ([1, -1], None, r"columns: found \[1, -1\], expected distinct"),
        ([1, 1], None, "expected distinct"),
        (slice(2, 2), None, r"columns: found \[\], expected distinct"),
        ([1], None, r"columns: found 1 in x of shape \(6, 7\), expected 2 or more"),
        (slice(3, 6), None, "levels: found None, expected two of the 3 levels"),
        (slice(3, 6), (0, 3), r"levels: found \(0, 3\), expected two different ones in 0\.\.2"),
        (slice(3, 6), (1, 1), "two different"),
        (slice(0, 2), None, r"columns: found \[2\.0, 0\.0\] in row 2"),
    ],
)
def test_columns_that_are_no_attribute(table, columns, levels, message):
    with pytest.raises(ValueError, match=message):
        pairs.flip_attribute(table, columns, levels=levels)


def test_an_attribute_that_is_constant_or_no_one_hot(table):
    same = table.x.copy()
    same[:, 1:3] = (0, 1)
    with pytest.raises(ValueError, match="columns: found level 0 in 0% of 6 rows, expected some and not all"):
        pairs.flip_attribute(table._replace(x=same), slice(1, 3))
    without = table.x.copy()
    without[:, 3:6] = np.eye(3)[[0, 1, 1, 1, 0, 1]]
    with pytest.raises(ValueError, match="found level 2 in 0%"):
        pairs.flip_attribute(table._replace(x=without), slice(3, 6), levels=(0, 2))
    pairs.flip_attribute(table._replace(x=without), slice(3, 6), levels=(0, 1))
    for bad in ((0, 0), (1, 1), (0.5, 0.5)):
        x = table.x.copy()
        x[4, 1:3] = bad
        with pytest.raises(ValueError, match=r"columns: found \[.*\] in row 4, expected one 1 among zeros"):
            pairs.flip_attribute(table._replace(x=x), slice(1, 3))
    with pytest.raises(ValueError, match=r"x of shape \(6, 2, 2\), expected 2 or more of a table"):
        pairs.flip_attribute(table._replace(x=np.zeros((6, 2, 2))), slice(0, 2))


def test_adult_by_names(people):
    sex, race = adult.COLUMNS["sex"], adult.COLUMNS["race"]
    found = adult.flip(people, "sex")
    close(found.flipped[:, sex], people.x[:, sex][:, ::-1])
    close(np.delete(found.flipped, np.r_[sex], axis=1), np.delete(people.x, np.r_[sex], axis=1))
    found = adult.flip(people, "race", levels=("White", "Black"))
    names = np.array(adult.LEVELS["race"])
    before, after = (names[x[:, race].argmax(1)] for x in (found.x, found.flipped))
    close(after, np.where(before == "White", "Black", "White"))
    assert {"White", "Black", "Asian-Pac-Islander"} <= set(before)
    for feature in ("age", "gender"):
        with pytest.raises(ValueError, match=rf"feature: found '{feature}', expected one of \['workclass', .*'sex'"):
            adult.flip(people, feature)
    with pytest.raises(ValueError, match=r"levels: found \('White', 'Green'\), expected two of \('White', 'Asian"):
        adult.flip(people, "race", levels=("White", "Green"))


def test_divide_is_disjoint_and_repeats(table):
    whole = Pairs(np.arange(10)[:, None], -np.arange(10)[:, None], np.arange(10))
    sets = pairs.divide(whole, 3, (2, 3, 4))
    assert [len(part.y) for part in sets] == [2, 3, 4]
    assert len(set(np.concatenate([part.y for part in sets]).tolist())) == 9
    for part, again in zip(sets, pairs.divide(whole, 3, (2, 3, 5)), strict=True):
        close(part.x[:, 0], part.y)
        close(part.flipped[:, 0], -part.y)
        close(part.y, again.y[: len(part.y)])
    with pytest.raises(ValueError, match=r"sizes: found \(5, 5, 1\), expected .* <= 10"):
        pairs.divide(whole, 3, (5, 5, 1))


def test_recolour_by_hand():
    images = np.full((3000, 1, 2, 1), 255, np.uint8)
    images[:, 0, 1] = 0
    y = np.arange(3000) % 5
    cue = cues.InkColour(((255, 0, 0), (0, 255, 0), (0, 0, 255)))
    found = pairs.recolour(images, y, cue, seed=1, flat=False)
    assert found.x.shape == found.flipped.shape == (3000, 1, 2, 3)
    assert found.x.dtype == found.flipped.dtype == np.float32
    close(found.x[:, 0, 0], np.eye(3)[y % 3])  # class 3 and 4 agree with attributes 0 and 1
    assert not found.x[:, 0, 1].any()
    other = found.flipped[:, 0, 0].argmax(1)
    assert (other != y % 3).all()
    shares = np.bincount((other - y % 3) % 3, minlength=3) / 3000
    np.testing.assert_allclose(shares, [0, 0.5, 0.5], atol=4 * 0.5 / 3000**0.5)
    close(found.y, y)
    flat = pairs.recolour(images, y, cue, seed=1)
    close(flat.flipped, found.flipped.reshape(3000, 6))
    assert (pairs.recolour(images, y, cue, seed=2).flipped != flat.flipped).any()
    with pytest.raises(ValueError, match="cue: found 1 attributes, expected 2 or more"):
        pairs.recolour(images, y, cues.NoCue(), seed=0)


def test_recoloured_sets_share_no_image():
    images = np.arange(100, dtype=np.uint8).reshape(100, 1, 1, 1)
    white = cues.InkColour(((255, 255, 255), (255, 255, 255)))
    ids, exclude = 1000 + np.arange(100), np.array([1003, 1050, 7])
    draw = lambda sizes: pairs.draw_recoloured(
        images, np.zeros(100, int), ids, white, seed=0, sizes=sizes, exclude=exclude
    )
    grey = [np.rint(part.x[:, 0] * 255).astype(int).tolist() for part in draw((10, 20, 68))]
    assert [len(part) for part in grey] == [10, 20, 68]
    assert sorted(i for part in grey for i in part) == [i for i in range(100) if i not in (3, 50)]
    with pytest.raises(ValueError, match=r"sizes: found \(10, 20, 69\), expected .* <= 98"):
        draw((10, 20, 69))


def test_group_paired():
    group = np.array([2, 3, 3, -1, 2, 0, 3, 1, 2, 3])
    x = {"a": np.arange(10.0), "b": np.arange(20.0).reshape(10, 2)}
    split = Split(x, np.maximum(group, 0) // 2, group, np.arange(10))
    found = pairs.group_paired(split, num_attributes=2, label=1)
    close(found.x["a"], [0, 4, 8])
    close(found.flipped["a"], [1, 2, 6])
    close(found.flipped["b"], x["b"][[1, 2, 6]])
    close(found.y, [1, 1, 1])
    with pytest.raises(ValueError, match=r"split\.group: found \(0, 0\) of class 2 with attributes 0, 1"):
        pairs.group_paired(split, num_attributes=2, label=2)
    with pytest.raises(ValueError, match="num_attributes: found 1, expected 2 or more"):
        pairs.group_paired(split, num_attributes=1, label=0)


def test_oriented_pairs_swap_whole_sides():
    found = pairs.Pairs(np.arange(12.0).reshape(3, 2, 2), -np.arange(12.0).reshape(3, 2, 2), np.array([0, 1, 1]))
    swapped = pairs.orient(found, np.array([True, False, True]))
    np.testing.assert_array_equal(swapped.x, found.x * np.array([-1, 1, -1])[:, None, None])
    np.testing.assert_array_equal(swapped.flipped, -swapped.x)
    assert swapped.y is found.y
