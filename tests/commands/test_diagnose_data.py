"""The user's tables for diagnosis: columns, notes, and every bad input refused by name."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from planted_diagnoser import make_files, planted
from planted_files import write_csv

from d3mjax.commands import diagnose_data
from d3mjax.commands.diagnose_data import Files


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return make_files(tmp_path_factory.mktemp("own"))


def test_columns_and_notes(files):
    own = diagnose_data.read(files)
    columns = planted(0, 240, 24, 8)
    assert list(own.train.columns) == ["a", "b", "job", "age"]
    np.testing.assert_array_equal(own.train.columns["a"], columns["a"].astype(float))
    assert own.train.levels == {"job": ("clerk", "cook", "missing", "smith")}
    assert (own.train.columns["job"] == 2).sum() == 2
    assert np.isnan(own.train.columns["age"]).sum() == 4
    assert (own.validation.columns["job"] == -1).sum() == 2
    assert own.class_names == ("high", "low")
    assert own.y.tolist() == (columns["income"] == "low").astype(int).tolist()
    assert own.names.tolist() == columns["row"].tolist()
    notes = "\n".join(own.notes)
    for sentence in (
        "--validation has 96 rows: few",
        "Left out, as constant in --train: same.",
        "Left out, as all missing in --train: none.",
        "Column 'age': 1.7% of the entries",
        "2 rows have values of 'job' that --train does not have (pilot)",
    ):
        assert sentence in notes


def test_rows_to_look_with_are_drawn_by_name(files, tmp_path, monkeypatch):
    monkeypatch.setattr(diagnose_data, "LOOKED_AT", 30)
    own = diagnose_data.read(files)
    held = planted(1, 96, 6, 0)
    chosen = set(held["row"][diagnose_data.looked_at(own)])
    assert len(chosen) == 30
    order = np.random.default_rng(0).permutation(96)
    turned = write_csv(tmp_path / "val.csv", {name: a[order] for name, a in held.items()})
    again = diagnose_data.read(replace(files, validation=turned))
    assert set(held["row"][order][diagnose_data.looked_at(again)]) == chosen
    assert own.train.id.tolist() == np.argsort(np.argsort(own.names)).tolist()


def test_codes_are_numbers_unless_named_as_categories(files, tmp_path):
    columns = {name: a.copy() for name, a in planted(0, 240, 0, 0).items()}
    columns["age"] = np.where(np.arange(240) < 5, "unknown", columns["age"])
    mixed = replace(files, train=write_csv(tmp_path / "train.csv", columns))
    with pytest.raises(ValueError, match=r"numbers \(\d+\) and text \('unknown'\) in 'age', a column of unknown kind"):
        diagnose_data.read(mixed)
    own = diagnose_data.read(replace(mixed, categorical="age"))
    assert {"unknown", "missing", "30"} <= set(own.train.levels["age"])
    assert "age" not in diagnose_data.read(replace(mixed, drop="age")).train.columns


def test_npz_and_parquet_give_the_same_table(files, tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    sources = {}
    for flag, seed, n in (("train", 0, 240), ("validation", 1, 96)):
        columns = planted(seed, n, 24 if seed == 0 else 6, 8 if seed == 0 else 0)
        numbers = {
            name: np.where(columns[name] == "", "nan", columns[name]).astype(float) for name in ("a", "b", "age")
        }
        columns: dict[str, Any] = columns | numbers
        np.savez(tmp_path / f"{flag}.npz", allow_pickle=False, **columns)
        lists: dict[str, list[Any]] = {name: a.tolist() for name, a in columns.items()} | {"none": [None] * n}
        lists["age"] = [None if v != v else int(v) for v in lists["age"]]
        lists["job"] = [None if v == "NA" else v for v in lists["job"]]
        lists["same"] = [None, *[True] * (n - 1)]
        pq.write_table(pa.table(lists), tmp_path / f"{flag}.parquet")
        sources[flag] = str(tmp_path / flag)
    want = diagnose_data.read(replace(files, validation=files.validation))
    for suffix in (".npz", ".parquet"):
        own = diagnose_data.read(replace(files, **{flag: path + suffix for flag, path in sources.items()}))
        assert own.train.levels == want.train.levels
        for name, a in want.train.columns.items():
            np.testing.assert_array_equal(own.train.columns[name], a)


def change(which="train", n=None, **columns):
    """The planted files with other columns (None: without it), or fewer rows."""

    def write(path):
        made = {"train": planted(0, 240, 24, 8), "val": planted(1, 96, 6, 0)}
        made[which] |= {name: np.asarray(a) for name, a in columns.items() if a is not None}
        made[which] = {name: a[:n] for name, a in made[which].items() if columns.get(name, 0) is not None}
        for name, of in made.items():
            write_csv(path / f"{name}.csv", of)

    return write


SAME = planted(0, 240, 24, 8)
BAD = [
    ({"label": "incom"}, change(), r"--label: found no 'incom' in --train .*, which has .* Did you mean income\?"),
    ({}, change("val", income=None), "--label: found no 'income' in --validation"),
    ({}, change(income=["", *SAME["income"][1:]]), "'income': found 1 missing values, first in row 0, .*: leave these"),
    ({}, change(income=SAME["a"]), "--label: found float64"),
    ({}, change(income=np.arange(240)), "--train: found no example of class"),
    ({"label": "age"}, change(age=np.arange(240) % 60, n=None), "--train: found no|missing values"),
    (
        {},
        change(income=["low"] * 240),
        r"--train: found no example of class \['high'\] of 'income', which --validation",
    ),
    ({"id": "rows"}, change(), r"--id: found no 'rows' in --train .* Did you mean row\?"),
    ({}, change(row=["r"] * 240), "--id: found 240 rows called r in --train, expected another name for each"),
    ({"drop": "jobs"}, change(), "--drop: found no 'jobs'"),
    ({"categorical": "x"}, change(), "--categorical: found no 'x'"),
    ({"drop": "income"}, change(), "--label: found 'income' in --id, --drop or --categorical, too"),
    ({}, change(n=99), "--train: found 99 rows, expected at least 100"),
    ({}, change("val", n=63), "--validation: found 63 rows, expected at least 64"),
    ({}, change("val", job=None), r"--validation: found no columns \['job'\], which --train has"),
    ({}, change("val", a=["x"] * 96), "--validation: found text in 'a', which holds numbers in --train"),
    ({}, change(age=["2024-01-02"] * 120 + ["2024-02-03"] * 120), r"found dates \(2024-01-02\) in 'age', a column of"),
    ({}, change(a=["inf", *SAME["a"][1:]]), "--train: found infinite numbers in 'a', in row 0"),
    (
        {},
        change(job=[f"j{i}" for i in range(240)]),
        "--train: found 240 texts in 'job', expected at most 200, or --drop",
    ),
    ({"drop": "a, b,job,age"}, change(), "expected features that vary beside label and id"),
    ({"train": "table.xlsx"}, change(), r"--train: found 'table\.xlsx', expected a \.csv, \.parquet, \.npz file"),
    ({"train": "none.csv"}, change(), r"--train: path: none\.csv is missing"),
]


@pytest.mark.parametrize(("options", "write", "message"), BAD)
def test_bad_input_is_refused_by_name(tmp_path, options, write, message):
    write(tmp_path)
    own = Files(str(tmp_path / "train.csv"), str(tmp_path / "val.csv"), "income", id="row")
    with pytest.raises(ValueError, match=message):
        diagnose_data.read(replace(own, **options))


def test_numbers_are_not_classes_and_training_rows_not_validation(tmp_path):
    change(income=np.arange(240) % 60)(tmp_path)
    write_csv(tmp_path / "val.csv", {**planted(1, 96, 6, 0), "income": np.arange(96) % 60})
    own = Files(str(tmp_path / "train.csv"), str(tmp_path / "val.csv"), "income", id="row")
    with pytest.raises(ValueError, match="--label: found 60 different values in 'income', expected at most 50 classes"):
        diagnose_data.read(own)
    change()(tmp_path)
    with pytest.raises(ValueError, match="--validation: found every row among --train, expected rows that nothing"):
        diagnose_data.read(replace(own, validation=own.train))


def test_columns_of_arrays_are_of_unknown_kind(tmp_path):
    for name, n in (("train", 240), ("val", 96)):
        columns = planted(0, 240, 0, 0)
        np.savez(tmp_path / f"{name}.npz", x=np.ones((n, 3)), income=columns["income"][:n])
    own = Files(str(tmp_path / "train.npz"), str(tmp_path / "val.npz"), "income")
    with pytest.raises(ValueError, match=r"--train: found float64\[240, 3\] in 'x', a column of unknown kind"):
        diagnose_data.read(own)
    np.savez(tmp_path / "train.npz", x=np.ones(3), income=np.ones(240))
    with pytest.raises(ValueError, match=r"--train: found lengths \[3, 240\]"):
        diagnose_data.read(own)
