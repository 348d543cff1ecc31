"""Further forms of broken rows: exactly the flagged rows change, as the form does, whatever the order of the rows."""

import jax
import numpy as np
import pytest

from d3mjax.data import tables
from d3mjax.data.planted import mixed_errors, table_errors
from d3mjax.data.planted.table_errors import FORMS, Form, plant, possible

KEY = jax.random.key(3)


def made(n=120, seed=0):
    rng = np.random.default_rng(seed)
    columns = {name: rng.normal(size=n) + 5 for name in ("a", "b", "c", "d")}
    columns["a"][::7] = np.nan
    columns |= {"colour": rng.choice(["red", "green", "blue"], n), "one": rng.choice(["x", "xx"], n)}
    return tables.from_columns(columns, id=rng.permutation(4 * n)[:n])


def changed(before, after):
    pairs = zip(before.columns.values(), after.columns.values(), strict=True)
    return np.stack([~((a == b) | (np.isnan(a) & np.isnan(b))) for a, b in pairs], 1)


@pytest.mark.parametrize("name", FORMS)
def test_exactly_the_flagged_rows_change(name):
    table, among = made(), np.arange(120) % 4 > 0
    broken, flags = plant(KEY, table, FORMS[name], 37, among=among)
    assert flags.sum() == 37
    assert not (flags & ~among).any()
    np.testing.assert_array_equal(changed(table, broken).any(1), flags)
    assert name in possible(KEY, table, 37, among=among)
    back = np.random.default_rng(1).permutation(120)
    shuffled, flags_shuffled = plant(KEY, tables.take(table, back), FORMS[name], 37, among=among[back])
    np.testing.assert_array_equal(flags_shuffled, flags[back])
    for a, b in zip(shuffled.columns.values(), tables.take(broken, back).columns.values(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_swapped_columns_hold_each_other_s_numbers():
    table = made()
    broken, flags = plant(KEY, table, FORMS["swapped columns"], 30)
    first, second = np.array(list(table.columns))[changed(table, broken).any(0)]
    np.testing.assert_array_equal(broken.columns[first][flags], table.columns[second][flags])
    np.testing.assert_array_equal(broken.columns[second][flags], table.columns[first][flags])


def test_a_unit_is_one_factor_in_one_column():
    table = made()
    broken, flags = plant(KEY, table, FORMS["unit change"], 30)
    (column,) = np.flatnonzero(changed(table, broken).any(0))
    ratio = list(broken.columns.values())[column] / list(table.columns.values())[column]
    assert np.unique(np.round(ratio[flags], 9)).item() in table_errors.UNITS


def test_shifted_rows_keep_their_numbers_in_another_order():
    table = made()
    broken, flags = plant(KEY, table, FORMS["shifted rows"], 30)
    before, after = (np.stack([t.columns[name] for name in "abcd"], 1)[flags] for t in (table, broken))
    np.testing.assert_array_equal(np.sort(before, 1), np.sort(after, 1))
    moved = changed(table, broken)[flags, :4].any(0)
    first = int(np.argmax(moved))
    np.testing.assert_array_equal(after[:, first:], np.roll(before[:, first:], 1, axis=1))


def test_cells_are_copied_from_the_row_above_by_id():
    table = made()
    broken, flags = plant(KEY, table, FORMS["copied cells"], 30)
    order = np.argsort(table.id)
    above = {int(order[i]): int(order[i - 1]) for i in range(120)}
    for i in np.flatnonzero(flags):
        for name in np.array(list(table.columns))[changed(table, broken)[i]]:
            np.testing.assert_array_equal(broken.columns[name][i], table.columns[name][above[int(i)]])


def test_typos_are_new_levels_next_to_the_old_ones():
    table = made()
    broken, flags = plant(KEY, table, FORMS["typos"], 30)
    (name,) = (name for name in table.levels if broken.levels[name] != table.levels[name])
    count = len(table.levels[name])
    assert broken.levels[name][:count] == table.levels[name]
    assert len(set(broken.levels[name])) == 2 * count
    np.testing.assert_array_equal(broken.columns[name][flags], table.columns[name][flags] + count)
    colours = table._replace(levels={"colour": ("red", "green", "blue")}, columns={"colour": table.columns["colour"]})
    assert table_errors.typos(KEY, colours).levels["colour"][3:] == ("erd", "rgeen", "lbue")
    taken = table._replace(levels={"x": ("x", "xx", "xxx")}, columns={"x": table.columns["one"]})
    assert len(set(table_errors.typos(KEY, taken).levels["x"])) == 6


def test_a_stuck_sensor_shows_one_value_over_blocks():
    table = made()
    broken, flags = plant(KEY, table, FORMS["stuck sensor"], 30)
    (column,) = np.flatnonzero(changed(table, broken).any(0))
    assert len(np.unique(list(broken.columns.values())[column][flags])) == 1
    ordered = flags[np.argsort(table.id)]
    assert np.abs(np.diff(ordered.astype(int))).sum() <= 2 * (
        3 + 1
    )  # three blocks of ten, and rows that have the value


def test_duplicated_rows_are_rows_of_the_table():
    table = made()
    broken, flags = plant(KEY, table, FORMS["duplicated rows"], 30)
    rows = lambda t: np.nan_to_num(np.stack(list(t.columns.values()), 1), nan=-1)
    sources = np.argmax((rows(broken)[flags][:, None] == rows(table)[None]).all(2), axis=1)
    assert (rows(table)[sources] == rows(broken)[flags]).all()
    assert not (sources == np.flatnonzero(flags)).any()


def test_a_table_that_cannot_have_a_form_is_refused():
    numbers = tables.from_columns({"a": np.arange(30.0), "b": np.arange(30.0) * 2})
    words = tables.from_columns({"a": np.array(["x", "y"] * 15)})
    assert set(FORMS) - set(possible(KEY, numbers, 10)) == {"shifted rows", "typos"}
    of_numbers = {"swapped columns", "unit change", "shifted rows", "stuck sensor"}
    assert not of_numbers & set(possible(KEY, words, 10))
    assert {"broken values", "typos"} <= set(possible(KEY, words, 10))
    for table, name in ((numbers, "typos"), *((words, name) for name in of_numbers)):
        with pytest.raises(ValueError, match="form: found 0 rows that it can change, expected at least 10"):
            plant(KEY, table, FORMS[name], 10)
    with pytest.raises(ValueError, match="form: found 20 rows"):
        plant(KEY, numbers, Form(table_errors.unit_change), 25, among=np.arange(30) >= 10)


def test_mixed_errors_break_rows_by_a_form():
    rng = np.random.default_rng(0)
    table, y = made(), rng.integers(0, 2, 120).astype(np.int32)
    options = mixed_errors.Options(0.5, form=FORMS["typos"])
    errors = mixed_errors.inject(KEY, table, y, None, num_classes=2, options=options)
    wrong, broken, _ = errors.flags.T
    assert wrong.sum() == broken.sum() == 30
    assert not (wrong & broken).any()
    np.testing.assert_array_equal(changed(errors.clean_table, errors.table).any(1), broken)
    other = mixed_errors.inject(KEY, made(seed=1), y, None, num_classes=2, options=options)
    assert other.table.levels == errors.table.levels  # columns are drawn by the key alone
