"""Splits are disjoint, complete and repeatable; each check refuses what it is there to refuse."""

import numpy as np
import pytest

from d3mjax.data.splits import (
    check_data,
    check_groups,
    check_split,
    concatenate,
    divide,
    from_published,
    group_sizes,
    rows_of,
    take,
)
from d3mjax.types import Data, Split


def make(n, first_id=0, **fields):
    rng = np.random.default_rng(n)
    y = np.arange(n) % 2
    split = Split(rng.normal(size=(n, 3)), y, 2 * y + (np.arange(n) // 2) % 2, first_id + np.arange(n))
    return split._replace(**fields)


def test_divide_gives_disjoint_parts_with_their_own_rows():
    split = make(20, first_id=100)
    parts = divide(split, 3, (9, 0, 11))
    assert [len(p.y) for p in parts] == [9, 0, 11]
    assert sorted(np.concatenate([p.id for p in parts])) == list(range(100, 120))
    for part in parts:
        np.testing.assert_array_equal(part.x, split.x[part.id - 100])
        np.testing.assert_array_equal(part.group, split.group[part.id - 100])


def test_divide_repeats_by_seed_and_later_sizes_change_nothing_earlier():
    split = make(50)
    first, _ = divide(split, 7, (10, 10))
    again, *_ = divide(split, 7, (10, 30, 5))
    other, _ = divide(split, 8, (10, 10))
    np.testing.assert_array_equal(first.id, again.id)
    assert first.id.tolist() != other.id.tolist()


@pytest.mark.parametrize("sizes", [(5, 6), (-1, 3)])
def test_divide_refuses_more_than_there_is(sizes):
    with pytest.raises(ValueError, match=r"sizes: found .*expected non-negative, adding up to <= 10"):
        divide(make(10), 0, sizes)


def test_rows_of_ids_in_any_order():
    np.testing.assert_array_equal(rows_of(np.array([9, 2, 9]), np.array([5, 9, -1, 2])), [1, 3, 1])
    for absent in (6, -2, 10):  # between, below and above the ids
        with pytest.raises(ValueError, match=f"ids: found {absent}, expected ids among the 4 of the data"):
            rows_of(np.array([5, absent]), np.array([5, 9, -1, 2]))


def test_take_and_concatenate_reach_every_leaf():
    split = make(6)._replace(x={"a": np.arange(6), "b": np.arange(12).reshape(6, 2)})
    back = concatenate(take(split, np.array([0, 1])), take(split, np.array([2, 3, 4, 5])))
    np.testing.assert_array_equal(back.x["b"], split.x["b"])
    np.testing.assert_array_equal(take(split, np.array([4, 1])).x["a"], [4, 1])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"y": np.zeros(7, int)}, r"train: found lengths .*'y': 7.*one common length"),
        ({"x": {"a": np.zeros((8, 2)), "b": np.zeros(5)}}, r"lengths .*\['b'\].*5"),
        ({"x": np.where(np.arange(8)[:, None] == 5, np.nan, np.zeros((8, 3)))}, r"train.x: .*NaN.*row 5"),
        ({"x": np.full((8, 1), np.inf)}, r"train.x: found NaN or infinity, first in row 0"),
        ({"y": np.array([0, 1, 0, 1, 0, 1, 0, 2])}, r"train.y: found labels 0\.\.2, expected 0\.\.1"),
        ({"y": np.array([0, 1, 0, 1, 0, 1, 0, -1])}, r"train.y: found labels -1\.\.1"),
        ({"y": np.zeros(8)}, r"train.y: found float64\[8\], expected integers"),
        ({"id": np.array([0, 1, 2, 3, 4, 5, 6, 3])}, r"train.id: found 1 duplicate ids, first 3"),
        ({"id": np.arange(8) + 2**31}, r"train.id: .*int32"),
    ],
)
def test_check_split_names_what_is_wrong(fields, message):
    with pytest.raises(ValueError, match=message):
        check_split(make(8, **fields), name="train", num_classes=2)


def test_check_split_accepts_a_sound_split_and_refuses_an_empty_one():
    check_split(make(8), name="train", num_classes=2)
    check_split(make(8, x=np.zeros((8, 2), np.uint8)), name="train")
    with pytest.raises(ValueError, match="at least 1"):
        check_split(take(make(8), np.array([], int)), name="train")


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ([0, 1, 3, 3], r"target.group: found no example of groups \[2\], expected every group of 0\.\.3"),
        ([0, 1, 2, 4], r"target.group: found ids 0\.\.4"),
        ([0, 1, 2, -1], r"found ids -1\.\.2 \(-1 means unknown\)"),
    ],
)
def test_check_groups(group, message):
    with pytest.raises(ValueError, match=message):
        check_groups(make(4, group=np.array(group)), 4, name="target")


def test_check_data():
    data = Data(make(8), make(8, 8), make(8, 16), make(8, 24))
    check_data(data, 2, 4)
    check_data(data._replace(train=make(8, group=np.full(8, -1))), 2, 4)  # unknown training groups are fine
    with pytest.raises(ValueError, match=r"test.id: found 1 ids of target, first 15, expected disjoint"):
        check_data(data._replace(test=make(8, id=np.array([15, *range(24, 31)]))), 2, 4)
    for name in ("target", "selection", "test"):  # the others have group 3
        with pytest.raises(ValueError, match=rf"{name}\.group: found no example of groups \[3\]"):
            check_data(data._replace(**{name: make(3, 100)._replace(group=np.arange(3))}), 2, 4)
    with pytest.raises(
        ValueError, match=r"train\.y: found no example of classes \[1, 2\], expected every class of 0\.\.2"
    ):
        check_data(data._replace(train=make(8, y=np.zeros(8, int))), 3, 4)
    with pytest.raises(ValueError, match=r"train.group: found ids 0\.\.4"):
        check_data(data._replace(train=make(8, group=np.array([0, 1, 2, 3, 4, 0, 1, 2]))), 2, 4)
    with pytest.raises(ValueError, match=r"feature shapes .*expected the same"):
        check_data(data._replace(test=make(8, 24, x=np.zeros((8, 2)))), 2, 4)


def test_from_published_halves_the_validation_split():
    parts = {"train": make(8), "val": make(9, 8), "test": make(8, 24)}
    data, other = (from_published(parts, seed, counts={"val": (3, 2, 2, 2)}) for seed in (0, 1))
    assert data.train is parts["train"]
    assert data.test is parts["test"]
    assert [len(split.y) for split in data] == [8, 4, 5, 8]
    assert sorted([*data.target.id, *data.selection.id]) == list(range(8, 17))
    assert data.target.id.tolist() != other.target.id.tolist()
    with pytest.raises(
        ValueError, match=r"test\.group: found counts \[2, 2, 2, 2\], expected the published \[2, 2, 4\]"
    ):
        from_published(parts, 0, counts={"test": (2, 2, 4)})


def test_group_sizes_skips_the_unknown():
    assert group_sizes(make(5, group=np.array([0, 2, 2, -1, 0])), 4).tolist() == [2, 0, 2, 0]


def test_labels_of_a_regression_are_finite_numbers_of_many_values():
    numbers = lambda n, first: make(n, first, y=np.linspace(0, 1, n), group=np.arange(n) % 4)
    data = Data(*(numbers(8, 8 * i) for i in range(4)))
    check_data(data, None, 4)
    with pytest.raises(ValueError, match=r"train\.y: found float64\[8\], expected integers"):
        check_data(data, 2, 4)
    for bad, message in (
        (np.r_[np.nan, np.arange(6.0), np.inf], r"target\.y: found float64\[8\] with 2 NaN or infinite labels"),
        (np.arange(8.0)[:, None], r"target\.y: found float64\[8, 1\] with 0 NaN"),
    ):
        with pytest.raises(ValueError, match=message):
            check_data(data._replace(target=data.target._replace(y=bad)), None, 4)
    with pytest.raises(ValueError, match=r"train\.y: found 2 different labels \[0\.0, 1\.0\].*use classification"):
        check_data(data._replace(train=data.train._replace(y=np.arange(8) % 2 * 1.0)), None, 4)
    with pytest.raises(ValueError, match=r"train\.y: found int64 labels, expected floats"):
        check_data(data._replace(train=make(8)), None, 4)
