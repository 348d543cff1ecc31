"""Adult: the counts of the official description, one row encoded by hand, and a division that repeats."""

import lzma

import numpy as np
import pytest

from d3mjax.data.sets import adult
from d3mjax.data.splits import check_data


@pytest.fixture(scope="module")
def rows():
    return adult.read_rows("adult.data"), adult.read_rows("adult.test")


@pytest.fixture(scope="module")
def encoded(rows):
    return adult.encode(*rows)


def test_official_counts(rows, encoded):
    train, test = encoded
    assert (len(train.y), len(test.y)) == (32_561, 16_281)
    assert np.bincount(train.y).tolist() == [24_720, 7_841]
    assert np.bincount(test.y).tolist() == [12_435, 3_846]
    assert np.bincount(train.group % 2).tolist() == [10_771, 21_790]  # Female, Male
    # adult.names: 30,162 train and 15,060 test rows are left when those with unknown values go.
    assert [sum("?" not in row.values() for row in part) for part in rows] == [30_162, 15_060]
    unknown = [adult.FEATURE_NAMES.index(f"{name}=?") for name in ("workclass", "occupation", "native-country")]
    assert [int((part.x[:, unknown].sum(1) == 0).sum()) for part in encoded] == [30_162, 15_060]


def test_encoding_is_107_columns_of_which_each_feature_fills_its_own(encoded):
    train, _ = encoded
    widths = {name: at.stop - at.start for name, at in adult.COLUMNS.items()}
    categorical = [9, 16, 7, 15, 6, 5, 2, 42]
    assert [w for w in widths.values() if w > 1] == categorical
    assert sum(widths.values()) == len(adult.FEATURE_NAMES) == train.x.shape[1] == 107
    assert adult.FEATURE_NAMES[adult.COLUMNS["sex"]] == ("sex=Female", "sex=Male")
    for name, at in adult.COLUMNS.items():
        block = train.x[:, at]
        if at.stop - at.start > 1:
            assert ((block == 0) | (block == 1)).all()
            assert (block.sum(1) == 1).all()
        else:  # standardised by the train split itself
            assert abs(block.mean(dtype=np.float64)) < 1e-6
            assert abs(block.std(dtype=np.float64) - 1) < 1e-6, name
    np.testing.assert_array_equal(train.x[:, adult.COLUMNS["sex"]].argmax(1), train.group % 2)


def test_first_row_by_hand(rows, encoded):
    # 39, State-gov, 77516, Bachelors, 13, Never-married, Adm-clerical, Not-in-family, White, Male, 2174, 0, 40,
    # United-States, <=50K
    x = encoded[0].x[0]
    on = {name for name, value in zip(adult.FEATURE_NAMES, x, strict=True) if "=" in name and value == 1}
    assert on == {
        "workclass=State-gov",
        "education=Bachelors",
        "marital-status=Never-married",
        "occupation=Adm-clerical",
        "relationship=Not-in-family",
        "race=White",
        "sex=Male",
        "native-country=United-States",
    }
    for name, value in [("age", 39), ("education-num", 13), ("capital-gain", 2174), ("capital-loss", 0)]:
        column = np.array([int(row[name]) for row in rows[0]], np.float64)
        expected = (value - column.mean()) / np.sqrt(((column - column.mean()) ** 2).mean())
        np.testing.assert_allclose(x[adult.COLUMNS[name]], expected, rtol=1e-6)
    assert (encoded[0].y[0], encoded[0].group[0], encoded[0].id[0], encoded[1].id[0]) == (0, 1, 0, 32_561)


def test_load_divides_the_train_split_and_keeps_test_whole(encoded):
    data = adult.load_adult(5, num_train=300, num_targets=200, num_selection=200)
    check_data(data, 2, 4)
    assert [len(s.y) for s in data] == [300, 200, 200, 16_281]
    for split in data[:3]:
        np.testing.assert_array_equal(split.x, encoded[0].x[split.id])
        np.testing.assert_array_equal(split.group, encoded[0].group[split.id])
    np.testing.assert_array_equal(data.test.x, encoded[1].x)


def test_damaged_file_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(adult, "_FILES", tmp_path)
    with pytest.raises(ValueError, match=r"adult\.data\.xz: missing or damaged.*Install d3mjax anew"):
        adult.read_rows("adult.data")
    (tmp_path / "adult.data.xz").write_bytes(lzma.compress(b"39, State-gov"))
    with pytest.raises(ValueError, match=r"adult\.data\.xz: checksum differs"):
        adult.read_rows("adult.data")
