"""The user's own files arrive unchanged, by one law for all formats, and every bad one is refused by name."""

from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds

from d3mjax.data import files
from d3mjax.data.files import read_split, text_levels

CSV = """age, job, sex, income, row
30, cook, F, low, 7
41.5, clerk, M, high, 8
25, cook, M, low, 9
"""


class TinyImages(tfds.core.GeneratorBasedBuilder):
    """Six images of 2 x 2 in two splits, with labels, groups, and a feature of no fixed shape."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features: dict[str, Any] = {
            "image": tfds.features.Tensor(shape=(2, 2, 1), dtype=np.uint8),
            "y": np.int32,
            "name": tfds.features.Text(),
            "ragged": tfds.features.Tensor(shape=(None,), dtype=np.int32),
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(range(4)), "test": self._generate_examples(range(4, 6))}

    def _generate_examples(self, rows):
        for i in rows:
            image, ragged = np.full((2, 2, 1), 10 * i, np.uint8), np.arange(i, dtype=np.int32)
            yield i, {"image": image, "y": i % 2, "name": f"n{i}", "ragged": ragged}


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text(CSV)
    return path


def test_npz(tmp_path):
    x = np.arange(6.0).reshape(3, 2)
    np.savez(tmp_path / "a.npz", x=x, y=[0, 1, 1], g=[1, 0, 1], key=[5, 3, 4])
    split = read_split(tmp_path / "a.npz", feature="x", group="g", id="key")
    np.testing.assert_array_equal(split.x, x)
    assert (split.y.tolist(), split.group.tolist(), split.id.tolist()) == ([0, 1, 1], [1, 0, 1], [5, 3, 4])
    bare = read_split(tmp_path / "a.npz", feature="x")
    assert (bare.group.tolist(), bare.id.tolist()) == ([-1, -1, -1], [0, 1, 2])
    for options, message in (
        ({"label": "yy"}, "label: found no 'yy' in .*a.npz, which has .* Did you mean y?"),
        ({"feature": "pixels"}, "found no 'pixels' in"),
    ):
        with pytest.raises(ValueError, match=message):
            read_split(tmp_path / "a.npz", **{"feature": "x", **options})  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": [[1.0], [np.nan]], "y": [0, 1]}, "NaN or infinity, first in row 1"),
        ({"x": [[1.0], [1e300]], "y": [0, 1]}, "NaN or infinity, first in row 1"),
        ({"x": [[1.0], [2.0]], "y": [0, 1, 1]}, "found lengths"),
        ({"x": [[1.0], [2.0]], "y": [0, -1]}, "labels -1"),
        ({"x": [[1.0], [2.0]], "y": [0.5, 1]}, "y: found float64, expected whole numbers"),
        ({"x": [["a"], ["b"]], "y": [0, 1]}, "expected numbers, one row an example"),
    ],
)
def test_bad_npz_is_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        read_split(tmp_path / "bad.npz", feature="x")


@pytest.mark.parametrize("content", [None, b"", b"not a zip", b"PK\x03\x04 cut short"])
@pytest.mark.parametrize("suffix", ["npz", "parquet"])
def test_missing_or_damaged_file_is_named(tmp_path, suffix, content):
    path = tmp_path / f"data.{suffix}"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"path: .*data\.{suffix} is missing or damaged, expected a"):
        files.read(path)


def test_csv_by_hand(table):
    split = read_split(table, label="income", group="sex", id="row")
    # columns: age, job=clerk, job=cook; income high 0, low 1; sex F 0, M 1 (sorted)
    np.testing.assert_array_equal(split.x, np.array([[30, 0, 1], [41.5, 1, 0], [25, 0, 1]], np.float32))
    assert (split.y.tolist(), split.group.tolist(), split.id.tolist()) == ([1, 0, 1], [0, 1, 1], [7, 8, 9])


def test_levels_make_two_files_agree(table, tmp_path):
    levels = text_levels(table)
    assert levels == {"job": ("clerk", "cook"), "sex": ("F", "M"), "income": ("high", "low")}
    other = tmp_path / "test.csv"
    other.write_text("age,job,sex,income,row\n50,cook,M,low,10\n")
    split = read_split(other, label="income", group="sex", id="row", levels=levels)
    assert (split.x.tolist(), split.y.tolist(), split.group.tolist()) == ([[50, 0, 1]], [1], [1])
    ordered = read_split(table, label="income", drop=("row", "job", "sex"), levels={"income": ["low", "high"]})
    assert (ordered.x.shape, ordered.y.tolist()) == ((3, 1), [0, 1, 0])
    other.write_text("age,job,sex,income,row\n50,nurse,M,low,10\n")
    with pytest.raises(ValueError, match=r"column 'job': found \['nurse'\], expected levels \['clerk', 'cook'\]"):
        read_split(other, label="income", levels=levels)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "missing, empty or not text"),
        ("a,y\n", "0 rows"),
        ("a,a\n1,2\n", "distinct names"),
        ("a,y\n1,2\n3\n", "line 3: found 1 fields, expected 2"),
        ("a,y\n1,0\n?,1\n", r"found both numbers \(1\) and text \('\?'\) in 'a'"),
        ("a,z\n1,0\n", r"found no 'y' in .* which has \['a', 'z'\]"),
        ("y\n1\n", "expected features beside label"),
        ("a,y\n1,0\nnan,1\n", "NaN or infinity, first in row 1"),
        ("a,y\n1,0\ninf,1\n", "found infinite numbers in 'a', in row 1"),
    ],
)
def test_bad_csv_is_refused(tmp_path, text, message):
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_split(path)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([1, 2]), [1.0, 2.0]),
        (np.array([True, False]), [1.0, 0.0]),
        (np.array([1.5, np.nan]), [1.5, np.nan]),
        (np.array(["1.5", "", "NA", " 2 "]), [1.5, np.nan, np.nan, 2.0]),
        (np.array(["a", "", "null", " b "]), ["a", "missing", "missing", "b"]),
        (np.array(["", "nan"]), [np.nan, np.nan]),
    ],
)
def test_one_law_of_missing_values(values, expected):
    column = files.parsed(values, "c", "t.csv")
    np.testing.assert_array_equal(column, np.array(expected))
    assert column.dtype.kind == ("U" if isinstance(expected[0], str) else "f")


def test_codes_are_categories_where_asked():
    column = files.parsed(np.array([3.0, 1.0, np.nan]), "c", "t.csv", categorical=True)
    assert column.tolist() == ["3", "1", "missing"]
    mixed = files.parsed(np.array(["3", "?", ""]), "c", "t.csv", categorical=True)
    assert mixed.tolist() == ["3", "?", "missing"]


@pytest.mark.parametrize("role", ["label", "group", "id"])
@pytest.mark.parametrize("values", ["0,1,,0", "0,1,nan,1", "F,M,,F", "F,M,NA,", "low,high,NULL,low"])
def test_missing_labels_groups_and_ids_are_not_a_level(tmp_path, role, values):
    path = tmp_path / "t.csv"
    path.write_text("a,y,b\n" + "".join(f"1,{i % 2},{value}\n" for i, value in enumerate(values.split(","))))
    with pytest.raises(ValueError, match=r"t\.csv, column 'b': found . missing values, first in row 2, expected none"):
        read_split(path, **{"label": "y", role: "b"})  # pyright: ignore[reportArgumentType]
    assert read_split(path, drop=("b",)).x.shape == (4, 1)


def test_missing_groups_of_npz_are_named(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros((3, 1)), y=[0, 1, 1], g=[0.0, np.nan, 1.0], h=[0, -1, 1])
    with pytest.raises(ValueError, match=r"a\.npz, column 'g': found 1 missing values, first in row 1"):
        read_split(tmp_path / "a.npz", feature="x", group="g")
    assert read_split(tmp_path / "a.npz", feature="x", group="h").group.tolist() == [0, -1, 1]


def test_options_must_name_columns_and_sources_a_format(table):
    with pytest.raises(ValueError, match=r"drop: found no 'wage' in .*table\.csv"):
        read_split(table, label="income", drop=("wage",))
    with pytest.raises(ValueError, match=r"path: .*none\.csv is missing"):
        files.read(table.with_name("none.csv"))
    with pytest.raises(ValueError, match=r"found 'table.txt', expected a \.csv, \.parquet, \.npz file, or tfds:NAME"):
        files.read("table.txt")


def test_parquet_equals_csv(table, tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    columns = {"age": [30, 41.5, 25], "job": ["cook", "clerk", "cook"], "sex": ["F", "M", "M"]}
    columns |= {"income": ["low", "high", "low"], "row": [7, 8, 9]}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    parquet = read_split(tmp_path / "t.parquet", label="income", group="sex", id="row")
    for a, b in zip(parquet, read_split(table, label="income", group="sex", id="row"), strict=True):
        np.testing.assert_array_equal(a, b)
    nulls = {"a": [1, None], "b": [True, None], "c": ["x", None], "d": [None, None]}
    pq.write_table(pa.table(nulls), tmp_path / "null.parquet")
    read = {name: files.parsed(a, name, "t") for name, a in files.read(tmp_path / "null.parquet").items()}
    np.testing.assert_array_equal([read[name] for name in "abd"], [[1, np.nan], [1, np.nan], [np.nan, np.nan]])
    assert read["c"].tolist() == ["x", "missing"]


def test_tfds_by_name(tmp_path):
    options = {"feature": "image", "data_dir": tmp_path}
    split = read_split("tfds:tiny_images:test", **options)
    np.testing.assert_array_equal(split.x, np.full((2, 2, 2, 1), np.array([40, 50], np.float32)[:, None, None, None]))
    assert (split.y.tolist(), split.id.tolist()) == ([0, 1], [0, 1])
    assert read_split("tfds:tiny_images:1.0.0:train[:3]", **options).id.tolist() == [0, 1, 2]
    columns = files.read("tfds:tiny_images:train", data_dir=tmp_path)
    assert sorted(columns) == ["image", "name", "y"]  # what has no one shape is left out
    assert sorted(columns["name"].tolist()) == ["n0", "n1", "n2", "n3"]
    for source, message in (
        ("tfds:tiny_images:val", r"split 'val': cannot be read .*'train'"),
        ("tfds:tiny_images", "found 'tfds:tiny_images', expected tfds:NAME:SPLIT"),
        ("tfds:fashion_mnits:train", r"TFDS knows no data set 'fashion_mnits'\. Did you mean .*fashion_mnist"),
    ):
        with pytest.raises(ValueError, match=message):
            files.read(source, data_dir=tmp_path)
