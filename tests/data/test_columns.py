"""The law of types and missing values on planted columns, alike for texts and typed values."""

# pandas and scikit-learn come without stubs: pyright infers unions of all that they may return.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportIndexIssue=false
# pyright: reportGeneralTypeIssues=false, reportReturnType=false
# pyright: reportOptionalMemberAccess=false, reportOptionalSubscript=false

import datetime
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest

from d3mjax.data import columns
from d3mjax.data.columns import CATEGORY, DATE, DROPPED, NUMBER, TEXT

N = 200
ROWS = range(N)


def texts(values):
    """A column as a text format gives it: every cell a str, NA where empty."""
    return pd.Series([None if v == "" else v for v in values], dtype="str", name="c")


def one(values, *others, **options):
    """The column ``c`` and what it becomes, given its training values and those of other frames."""
    frames = {f"--{i}": pd.DataFrame({"c": v}) for i, v in enumerate((values, *others))}
    column, *_ = columns.infer(frames, **options)
    made = [columns.typed(frame, [column]) for frame in frames.values()]
    return column, *[m["c"] if column.kind != DROPPED else None for m in made]


def nan_at(values, *rows):
    return [np.nan if i in rows else float(v) for i, v in enumerate(values)]


NUMBERS = [
    # texts, numbers, word of the note
    ([f"{i}.5" for i in ROWS], [i + 0.5 for i in ROWS], ""),
    ([f" {i}e1 " for i in ROWS], [10.0 * i for i in ROWS], ""),
    ([f"{i % 7}" for i in ROWS], [float(i % 7) for i in ROWS], ""),
    (["", "NA", "n/a", "NaN", "-", "?", "#N/A", "None", "NULL", *map(str, ROWS[9:])], nan_at(ROWS, *range(9)), ""),
    (
        ["unknown"] * 20 + [str(i * i) for i in ROWS[20:]],
        nan_at([i * i for i in ROWS], *range(20)),
        "20 texts .*'unknown'",
    ),
    (["a1", *[f"{i}.5" for i in ROWS[1:]]], nan_at([i + 0.5 for i in ROWS], 0), "1 texts in --0 taken as missing"),
    (["inf", *[f"{i}.5" for i in ROWS[1:]]], nan_at([i + 0.5 for i in ROWS], 0), "1 infinite in --0 taken as missing"),
    ([f"1,{i:03d}.5" for i in ROWS], [1000.5 + i for i in ROWS], "commas taken as thousands"),
    ([f"{i},5" for i in ROWS], [i + 0.5 for i in ROWS], "decimal commas"),
    ([f"0,{i:03d}" for i in ROWS], [i / 1000 for i in ROWS], "decimal commas"),
    ([f"1.{i:03d}.000,5" for i in ROWS], [1e6 + 1000 * i + 0.5 for i in ROWS], "points between thousands"),
    ([f"1 {i:03d},5" for i in ROWS], [1000.5 + i for i in ROWS], "decimal commas, spaces"),
    ([f"1'{i:03d}.5" for i in ROWS], [1000.5 + i for i in ROWS], "spaces between thousands"),
    ([f"{i} %" for i in ROWS], [float(i) for i in ROWS], "% removed"),
    ([f"-$1,{i:03d}" for i in ROWS], [-1000.0 - i for i in ROWS], r"commas .*, \$ removed"),
    (["Yes", "no"] * 100, [1.0, 0.0] * 100, "no = 0, yes = 1"),
    (["TRUE", "False"] * 100, [1.0, 0.0] * 100, "false = 0, true = 1"),
]


@pytest.mark.parametrize(("cells", "numbers", "note"), NUMBERS, ids=[repr(cells[-1]) for cells, _, _ in NUMBERS])
def test_texts_that_are_numbers(cells, numbers, note):
    order = np.argsort(np.arange(N) * 7 % N)  # not the row index
    column, made = one(texts(cells).iloc[order])
    assert column.kind == NUMBER
    np.testing.assert_allclose(made, np.array(numbers)[order], rtol=1e-15)
    assert column.missing == {"--0": int(np.isnan(numbers).sum())}
    assert pd.Series([column.note]).str.contains(note).all()
    assert bool(column.note) == bool(note)


TYPED = [
    (pd.Series([i / 3 for i in ROWS]), NUMBER),
    (pd.Series([i * i for i in ROWS], dtype="Int64"), NUMBER),
    (pd.Series([i % 3 for i in ROWS], dtype="int8"), NUMBER),
    (pd.Series([Decimal(i) / 8 for i in ROWS]), NUMBER),
    (pd.Series([7 * i * 10**30 for i in ROWS]), NUMBER),
    (pd.Series([True, False] * 100), NUMBER),
    (pd.Series([True, False, None, True] * 50, dtype="boolean"), NUMBER),
    (pd.Series([True, False, None, True] * 50, dtype=object), NUMBER),
    (pd.Series(pd.to_timedelta([i % 9 for i in ROWS], unit="h")), NUMBER),
    (pd.Series(["a", "b"] * 100, dtype="category"), CATEGORY),
    (pd.Series([3, 4] * 100, dtype="category"), NUMBER),
    (pd.Series([datetime.date(2024, 1, 1 + i % 20) for i in ROWS]), DATE),
    (pd.Series(pd.date_range("2024-01-01", periods=N, tz="Europe/Berlin")), DATE),
    (pd.Series(pd.period_range("2024-01", periods=N, freq="M")), DATE),
    (pd.Series([datetime.time(i % 24) for i in ROWS]), CATEGORY),
]


@pytest.mark.parametrize(("values", "kind"), TYPED, ids=[f"{v.dtype} {v.iloc[0]}" for v, _ in TYPED])
def test_typed_columns_are_as_their_texts(values, kind):
    column, made = one(values)
    assert column.kind == kind
    assert len(made) == N
    if kind == NUMBER and values.dtype != "timedelta64[us]":
        as_text = texts(["" if pd.isna(v) else str(v) for v in values])
        np.testing.assert_array_equal(made, one(as_text)[1])
    assert made.isna().sum() == values.isna().sum()


DROPS = [
    (texts([f"{i}" for i in ROWS]), "row index"),
    (pd.Series(range(1, N + 1)), "row index"),
    (texts([f"r-{i}" for i in ROWS]), "id: another value in each row"),
    (texts([f"{i * 7:05d}" for i in ROWS]), "id: another value in each row"),
    (texts([f"{i * i:032x}" for i in ROWS]), "id: another value in each row"),
    (texts(["x"] * N), "constant"),
    (pd.Series([2.5] * N), "constant"),
    (texts(["", "NA"] * 100), "all missing"),
    (pd.Series([None] * N), "all missing"),
]


@pytest.mark.parametrize(("values", "reason"), DROPS, ids=[reason for _, reason in DROPS])
def test_columns_without_use_are_dropped_with_a_reason(values, reason):
    column, made = one(values)
    assert (column.kind, column.note, made) == (DROPPED, reason, None)


def test_an_unnamed_first_column_is_the_row_index_in_any_order_and_ids_go_by_their_name():
    shuffled = [str(i * 3 + 17) for i in reversed(ROWS)]
    for name in ("", "Unnamed: 0", "__index_level_0__", "customer_id", "ID"):
        frame = pd.DataFrame({name: texts(shuffled), "a": texts([str(i % 9) for i in ROWS])})
        first, second = columns.infer({"--train": frame})
        assert (first.kind, second.kind) == (DROPPED, NUMBER)
    frame = frame.set_axis(["seconds", "a"], axis=1)
    assert columns.infer({"--train": frame})[0].kind == NUMBER


def test_codes_with_leading_zeros_are_categories_and_stay_as_they_are():
    codes = [f"{501 + i % 30:05d}" for i in ROWS]
    column, made = one(texts(codes))
    assert column.kind == CATEGORY
    assert made.tolist() == codes
    assert column.levels == tuple(sorted(set(codes)))


def test_mixed_texts_are_categories_and_say_so():
    for cells in (["a", "1", "2", "b", "3"] * 40, ["0", "1", "2", "3+"] * 50):
        column, made = one(texts(cells))
        assert column.kind == CATEGORY
        assert "numbers and text" in column.note
        assert made.tolist() == cells


def test_rare_levels_are_merged_and_missing_ones_are_a_level():
    cells = ["a"] * 100 + ["b"] * 80 + [f"z{i}" for i in range(10)] + [""] * 10
    column, made, held = one(texts(cells), texts(["a", "new", "z1", ""] * 10))
    assert column.levels == ("a", "b", "missing", "other")
    assert made.value_counts().to_dict() == {"a": 100, "b": 80, "other": 10, "missing": 10}
    assert held.tolist() == ["a", "new", "other", "missing"] * 10
    assert column.missing == {"--0": 10, "--1": 10}
    assert "10 levels below 2 rows merged into 'other'" in column.note
    assert "10 rows have values in --1 that --0 does not have (new)" in column.note


def test_missing_values_of_other_frames_alone_are_no_level():
    column, _, held = one(texts(["a", "b"] * 100), texts(["a", ""] * 20))
    assert column.levels == ("a", "b")
    assert column.missing == {"--0": 0, "--1": 20}
    assert held.tolist() == ["a", "missing"] * 20


def test_text_of_many_values_is_free_text_unless_said_otherwise():
    cells = [f"Mr. {chr(65 + i % 26)} of street {i}" for i in ROWS]
    assert one(texts(cells))[0].kind == TEXT
    assert one(texts([f"w{i % 60}" for i in ROWS]))[0].kind == CATEGORY
    column, made = one(texts(["a", "b"] * 100), text=["c"])
    assert column.kind == TEXT
    assert made.tolist() == ["a", "b"] * 100


def test_codes_named_as_categories_are_spelled_in_one_way():
    want = ["1", "2", "missing", "3"] * 50
    for values in (texts(["1", "2.0", "", "3"] * 50), pd.Series([1.0, 2.0, np.nan, 3.0] * 50)):
        column, made = one(values, categorical=["c"])
        assert column.levels == ("1", "2", "3", "missing")
        assert made.tolist() == want


DAYS = [(i % 28 + 1, i % 12 + 1) for i in ROWS]  # day, month
DATES = [
    ([f"2024-{m:02d}-{d:02d}" for d, m in DAYS], ""),
    ([f"2024-{m:02d}-{d:02d}T00:00:00Z" for d, m in DAYS], ""),
    ([f"2024/{m:02d}/{d:02d}" for d, m in DAYS], ""),
    ([f"{d}/{m}/2024" for d, m in DAYS], "read as %d/%m/%Y"),
    ([f"{m}/{d}/24" for d, m in DAYS], "read as %m/%d/%y"),
    ([f"{d:02d}.{m:02d}.2024 00:00" for d, m in DAYS], "read as %d.%m.%Y %H:%M"),
    ([f"{m}/{d}/2024 12:00 AM" for d, m in DAYS], "read as %m/%d/%Y %I:%M %p"),
    ([datetime.date(2024, m, d).strftime("%d %b %Y") for d, m in DAYS], "read as %d %b %Y"),
]


@pytest.mark.parametrize(("cells", "note"), DATES, ids=[cells[20] for cells, _ in DATES])
def test_texts_that_are_dates(cells, note):
    column, made = one(texts(["", *cells[1:]]))
    assert (column.kind, column.note, column.missing) == (DATE, note, {"--0": 1})
    want = [pd.NaT, *[pd.Timestamp(2024, m, d) for d, m in DAYS[1:]]]
    pd.testing.assert_series_equal(made, pd.Series(want, name="c", dtype="datetime64[us]"))


def test_dates_that_differ_in_each_row_are_dates():
    days = pd.date_range("2024-01-01", periods=N)
    for format in ("%Y-%m-%d", "%d/%m/%Y", "%d-%m-%Y %H:%M"):
        assert one(texts(days.strftime(format)))[0].kind == DATE


def test_a_value_that_is_recorded_or_not_is_a_category():
    for values in (texts(["x", "", "x"] * 60), pd.Series([1.0, np.nan, 1.0] * 60)):
        column, made = one(values)
        assert column.kind == CATEGORY
        assert len(column.levels) == 2
        assert (made == "missing").sum() == 60


def test_swapped_days_and_months_are_settled_by_other_frames_or_said():
    cells = [f"{i % 12 + 1:02d}/{i % 11 + 1:02d}/2024" for i in ROWS]
    column, made = one(texts(cells))
    assert column.note == "day and month may be swapped: read as %m/%d/%Y"
    assert made[1] == pd.Timestamp(2024, 2, 2)
    assert made[11] == pd.Timestamp(2024, 12, 1)
    column, made, _ = one(texts(cells), texts(["31/12/2024"] * 5))
    assert (column.note, made[11]) == ("read as %d/%m/%Y", pd.Timestamp(2024, 1, 12))
    column, made = one(texts([c.replace("/", ".") for c in cells]))
    assert (column.note, made[11]) == ("day and month may be swapped: read as %d.%m.%Y", pd.Timestamp(2024, 1, 12))


BAD = [
    ([1.5, 2.5] * 100, ["x", "y"] * 50, r"--1: column 'c': found 100 of 100 rows that are not numbers \('x', 'y'\)"),
    (
        ["a", "b"] * 100,
        [1.0, 2.0] * 50,
        r"--1: column 'c': found no value of --0 \(1, 2\), expected levels such as a, b",
    ),
    (
        [f"2024-01-{i % 28 + 1:02d}" for i in ROWS],
        [1.7e9, 1.8e9] * 9,
        "--1: column 'c': found 18 of 18 rows that are not dates",
    ),
    (
        [[1], [2]] * 100,
        [[1]] * 50,
        "--0: column 'c': found list, expected one number, text or date for each row; --drop c",
    ),
    ([{"a": 1}] * N, [{"a": 1}] * 50, "--0: column 'c': found dict"),
    ([b"a", b"b"] * 100, [b"a"] * 50, "--0: column 'c': found bytes"),
    ([1j, 2j] * 100, [1j] * 50, "--0: column 'c': found complex128"),
]


@pytest.mark.parametrize(("train", "other", "message"), BAD, ids=[message[:60] for _, _, message in BAD])
def test_columns_of_another_or_unknown_kind_are_refused_by_name(train, other, message):
    with pytest.raises(ValueError, match=message):
        one(pd.Series(train), pd.Series(other))


def test_columns_of_one_frame_alone():
    train = pd.DataFrame({"a": ["1", "3"] * 9, "b": ["x", "y"] * 9, "y": ["0", "1"] * 9}, dtype="str")
    other = pd.DataFrame({"a": ["2"], "aa": ["3"], "y": ["0"]}, dtype="str")
    with pytest.raises(ValueError, match=r"--held: found no column 'b', which --train has; expected it, or --drop"):
        columns.infer({"--train": train, "--held": other})
    table = columns.infer({"--train": train, "--held": other}, dropped={"b": "--drop", "y": "label"})
    assert [(c.name, c.kind, c.note) for c in table] == [
        ("a", NUMBER, ""),
        ("b", DROPPED, "--drop"),
        ("y", DROPPED, "label"),
        ("aa", DROPPED, "only in --held"),
    ]
    with pytest.raises(ValueError, match=r"--categorical: found no 'bb' in --train, .*Did you mean b\?"):
        columns.infer({"--train": train}, categorical=["bb"])
    with pytest.raises(ValueError, match="--train: found several columns named 'a', expected one of each name"):
        columns.infer({"--train": pd.concat([train, other[["a"]]], axis=1)})


def test_card_and_lines():
    frame = pd.DataFrame({"age": ["1.5", "?", "3"] * 9, "job": ["x", "y", "z"] * 9, "same": ["x"] * 27}, dtype="str")
    table = columns.infer({"--train": frame})
    assert columns.card(table)[:2] == [
        {"name": "age", "kind": "number", "missing": {"--train": 9}, "levels": [], "note": ""},
        {"name": "job", "kind": "category", "missing": {"--train": 0}, "levels": ["x", "y", "z"], "note": ""},
    ]
    assert columns.lines(table) == [
        "age   number    9 missing in --train",
        "job   category  3 levels",
        "same  dropped   constant",
    ]
