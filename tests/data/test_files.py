"""The user's own files arrive unchanged, and every bad one is refused by name."""

from typing import Any

import numpy as np
import pytest

import d3mjax.data.sets.fashion_cues as tasks
from d3mjax.data.files import csv_levels, from_csv, from_npz, from_parquet, from_tfds

CSV = """age, job, sex, income, row
30, cook, F, low, 7
41.5, clerk, M, high, 8
25, cook, M, low, 9
"""


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text(CSV)
    return path


def test_npz(tmp_path):
    x = np.arange(6.0).reshape(3, 2)
    np.savez(tmp_path / "a.npz", x=x, y=[0, 1, 1], g=[1, 0, 1], key=[5, 3, 4])
    split = from_npz(tmp_path / "a.npz", group="g", id="key")
    np.testing.assert_array_equal(split.x, x)
    assert (split.y.tolist(), split.group.tolist(), split.id.tolist()) == ([0, 1, 1], [1, 0, 1], [5, 3, 4])
    bare = from_npz(tmp_path / "a.npz")
    assert (bare.group.tolist(), bare.id.tolist()) == ([-1, -1, -1], [0, 1, 2])
    with pytest.raises(ValueError, match=r"a\.npz: found \['g', 'key', 'x', 'y'\], expected \['labels'\] among them"):
        from_npz(tmp_path / "a.npz", y="labels")
    with pytest.raises(ValueError, match=r"a\.npz, pixels: found none, expected numeric features"):
        from_npz(tmp_path / "a.npz", x="pixels")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": [[1.0], [np.nan]], "y": [0, 1]}, "NaN or infinity, first in row 1"),
        ({"x": [[1.0], [1e300]], "y": [0, 1]}, "NaN or infinity, first in row 1"),
        ({"x": [[1.0], [2.0]], "y": [0, 1, 1]}, "found lengths"),
        ({"x": [[1.0], [2.0]], "y": [0, -1]}, "labels -1"),
        ({"x": [[1.0], [2.0]], "y": [0.5, 1]}, "y: found float64, expected whole numbers"),
        ({"x": [["a"], ["b"]], "y": [0, 1]}, "expected numeric features"),
    ],
)
def test_bad_npz_is_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        from_npz(tmp_path / "bad.npz")


@pytest.mark.parametrize("content", [None, b"", b"not a zip", b"PK\x03\x04 cut short"])
@pytest.mark.parametrize(("read", "options"), [(from_npz, {}), (from_parquet, {"label": "y"})])
def test_missing_or_damaged_file_is_named(tmp_path, read, options, content):
    if read is from_parquet:
        pytest.importorskip("pyarrow")
    path = tmp_path / "data.bin"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"path: .*data\.bin is missing or damaged, expected a"):
        read(path, **options)


def test_csv_by_hand(table):
    split = from_csv(table, label="income", group="sex", id="row")
    # columns: age, job=clerk, job=cook; income high 0, low 1; sex F 0, M 1 (sorted)
    np.testing.assert_array_equal(split.x, np.array([[30, 0, 1], [41.5, 1, 0], [25, 0, 1]], np.float32))
    assert (split.y.tolist(), split.group.tolist(), split.id.tolist()) == ([1, 0, 1], [0, 1, 1], [7, 8, 9])


def test_csv_levels_make_two_files_agree(table, tmp_path):
    levels = csv_levels(table)
    assert levels == {"job": ("clerk", "cook"), "sex": ("F", "M"), "income": ("high", "low")}
    other = tmp_path / "test.csv"
    other.write_text("age,job,sex,income,row\n50,cook,M,low,10\n")
    split = from_csv(other, label="income", group="sex", id="row", levels=levels)
    assert (split.x.tolist(), split.y.tolist(), split.group.tolist()) == ([[50, 0, 1]], [1], [1])
    ordered = from_csv(table, label="income", drop=("row", "job", "sex"), levels={"income": ["low", "high"]})
    assert (ordered.x.shape, ordered.y.tolist()) == ((3, 1), [0, 1, 0])
    other.write_text("age,job,sex,income,row\n50,nurse,M,low,10\n")
    with pytest.raises(ValueError, match=r"column 'job': found \['nurse'\], expected levels \['clerk', 'cook'\]"):
        from_csv(other, label="income", levels=levels)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "missing, empty or no text"),
        ("a,y\n", "0 rows"),
        ("a,a\n1,2\n", "distinct names"),
        ("a,y\n1,2\n3\n", "line 3: found 1 fields, expected 2"),
        ("a,y\n1,0\n?,1\n", r"column 'a': found both numbers \(1\) and text \('\?'\)"),
        ("a,z\n1,0\n", r"found \['a', 'z'\], expected \['y'\] among them"),
        ("y\n1\n", "features: found none"),
        ("a,y\n1,0\nnan,1\n", "NaN or infinity, first in row 1"),
    ],
)
def test_bad_csv_is_refused(tmp_path, text, message):
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        from_csv(path, label="y")


@pytest.mark.parametrize("role", ["label", "group", "id"])
@pytest.mark.parametrize("values", ["0,1,,0", "0,1,nan,1", "F,M,,F", "F,M,NA,", "low,high,NULL,low"])
def test_missing_labels_groups_and_ids_are_no_level(tmp_path, role, values):
    path = tmp_path / "t.csv"
    path.write_text("a,y,b\n" + "".join(f"1,{i % 2},{value}\n" for i, value in enumerate(values.split(","))))
    options: dict[str, Any] = {"label": "y", role: "b"}
    with pytest.raises(ValueError, match=r"t\.csv, column 'b': found . missing values, first in row 2, expected none"):
        from_csv(path, **options)
    assert from_csv(path, label="y", drop=("b",)).x.shape == (4, 1)


def test_missing_groups_of_npz_are_named(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros((3, 1)), y=[0, 1, 1], g=[0.0, np.nan, 1.0])
    with pytest.raises(ValueError, match=r"a\.npz, column 'g': found 1 missing values, first in row 1"):
        from_npz(tmp_path / "a.npz", group="g")
    np.savez(tmp_path / "a.npz", x=np.zeros((3, 1)), y=[0, 1, 1], g=[0, -1, 1])
    assert from_npz(tmp_path / "a.npz", group="g").group.tolist() == [0, -1, 1]


def test_csv_options_must_name_columns(table):
    with pytest.raises(ValueError, match=r"drop, levels: found \['wage'\], expected columns"):
        from_csv(table, label="income", drop=("wage",))
    with pytest.raises(ValueError, match=r"path: .*none\.csv is missing"):
        from_csv(table.with_name("none.csv"), label="income")


def test_parquet_equals_csv(table, tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    columns = {"age": [30, 41.5, 25], "job": ["cook", "clerk", "cook"], "sex": ["F", "M", "M"]}
    columns |= {"income": ["low", "high", "low"], "row": [7, 8, 9]}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    parquet = from_parquet(tmp_path / "t.parquet", label="income", group="sex", id="row")
    for a, b in zip(parquet, from_csv(table, label="income", group="sex", id="row"), strict=True):
        np.testing.assert_array_equal(a, b)
    pq.write_table(pa.table({"a": [1, None], "y": [0, 1]}), tmp_path / "null.parquet")
    with pytest.raises(ValueError, match="column 'a': found 1 nulls"):
        from_parquet(tmp_path / "null.parquet", label="y")


def test_tfds_by_name(tmp_path):
    task = tasks.Task(train=40, targets=40, selection=40, test=40)
    data = tasks.load_fashion_spurious(task, data_dir=tmp_path, flat=False)
    name = f"fashion_spurious/{tasks.config(task).name}"
    split = from_tfds(name, split="test", label="y", group="group", id="id", data_dir=tmp_path)
    for a, b in zip(split, data.test, strict=True):
        np.testing.assert_array_equal(a, b)
    assert from_tfds(name, split="test[:10]", label="y", data_dir=tmp_path).id.tolist() == list(range(10))
    with pytest.raises(ValueError, match=r"split 'val': cannot be read .*'train'"):
        from_tfds(name, split="val", label="y", data_dir=tmp_path)
    with pytest.raises(ValueError, match=r"found features .*expected \['label'\]"):
        from_tfds(name, split="test", data_dir=tmp_path)


def test_unknown_tfds_name_gets_suggestions(tmp_path):
    with pytest.raises(ValueError, match=r"name: TFDS knows no data set 'fashion_mnits'\. Did you mean fashion_mnist"):
        from_tfds("fashion_mnits", split="train", data_dir=tmp_path)
