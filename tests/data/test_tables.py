"""Raw tables: levels, encoding by hand, what is missing or unknown."""

import numpy as np
import pytest

from d3mjax.data import tables
from d3mjax.data.sets import adult


def made():
    columns = {
        "age": np.array([1.0, 3.0, np.nan, 5.0]),
        "sex": np.array(["m", "f", "f", "m"]),
        "same": np.array([2, 2, 2, 2]),
    }
    return tables.from_columns(columns, id=np.array([7, 5, 9, 2]))


def test_features_by_hand():
    table = made()
    assert table.levels == {"sex": ("f", "m")}
    x = tables.encode(tables.fit_encoder(table), table)
    std = np.sqrt(8 / 3)  # of 1, 3, 5
    expected = [[-2 / std, 0, 1, 0], [0, 1, 0, 0], [0, 1, 0, 0], [2 / std, 0, 1, 0]]
    np.testing.assert_allclose(x, expected, rtol=1e-6)
    assert tables.slices(table) == {"age": slice(0, 1), "sex": slice(1, 3), "same": slice(3, 4)}


def test_unknown_levels_are_zero_and_other_columns_refused():
    table = made()
    encoder = tables.fit_encoder(table)
    other = tables.from_columns(
        {"age": np.array([3.0]), "sex": np.array(["x"]), "same": np.array([9])}, levels=table.levels
    )
    assert other.columns["sex"].tolist() == [-1]
    np.testing.assert_array_equal(tables.encode(encoder, other), [[0, 0, 0, 0]])
    with pytest.raises(ValueError, match="table: found columns"):
        tables.encode(encoder, table._replace(columns={"age": table.columns["age"]}))


def test_rows_are_taken_with_their_ids():
    taken = tables.take(made(), np.array([2, 0]))
    assert taken.id.tolist() == [9, 7]
    assert taken.columns["sex"].tolist() == [0, 1]
    assert tables.take(made(), np.array([True, False, False, True])).id.tolist() == [7, 2]


def test_codes_name_levels():
    assert tables.codes(made(), "sex", "m").tolist() == [0, -1, -1, 0]
    with pytest.raises(ValueError, match="name, levels: found 'age'"):
        tables.codes(made(), "age", "m")
    with pytest.raises(ValueError, match=r"expected among \('f', 'm'\)"):
        tables.codes(made(), "sex", "x")


@pytest.mark.parametrize(
    ("columns", "ids", "message"),
    [
        ({"a": np.zeros(2), "b": np.zeros(3)}, None, "columns: found lengths"),
        ({"a": np.zeros(2)}, np.array([1, 1]), "id: found 1 different ids for 2 rows"),
        ({"a": np.array([None, 1])}, None, "columns: found 'a' of object"),
    ],
)
def test_what_is_no_table_is_refused(columns, ids, message):
    with pytest.raises(ValueError, match=message):
        tables.from_columns(columns, id=ids)


def test_adult_encodes_as_the_split_does():
    table, y = adult.load_table()
    train, test = adult.encode(adult.read_rows("adult.data"), adult.read_rows("adult.test"))
    num = len(train.y)
    encoder = tables.fit_encoder(tables.take(table, np.arange(num)))
    np.testing.assert_allclose(tables.encode(encoder, table)[num:], test.x, atol=1e-5)
    np.testing.assert_array_equal(y, np.concatenate([train.y, test.y]))
