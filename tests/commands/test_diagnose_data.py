"""The user's tables for diagnosis: columns, notes, and every bad input refused by name."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from planted_diagnoser import make_files, planted
from planted_files import write_csv

from d3mjax.commands import diagnose_data, inputs
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
    assert "--validation has 96 rows: few" in "\n".join(own.notes)
    assert own.card["classes"] == {"high": int((own.validation_y == 0).sum()), "low": int(own.validation_y.sum())}
    lines = inputs.show(own.card)
    for line in (
        "age     number    4 missing in --train",
        "none    dropped   all missing",
        "same    dropped   constant",
        "row     dropped   id",
        "2 rows have values in --validation that --train does not have (pilot)",
    ):
        assert line in lines


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


def test_stray_texts_are_missing_unless_the_column_is_categorical(files, tmp_path):
    columns = {name: a.copy() for name, a in planted(0, 240, 0, 0).items()}
    columns["age"] = np.where(np.arange(240) < 5, "unknown", columns["age"])
    mixed = replace(files, train=write_csv(tmp_path / "train.csv", columns))
    own = diagnose_data.read(mixed)
    assert np.isnan(own.train.columns["age"]).sum() == 9
    assert "5 texts in --train taken as missing ('unknown')" in inputs.show(own.card)
    own = diagnose_data.read(replace(mixed, categorical="age"))
    assert {"unknown", "missing", "30"} <= set(own.train.levels["age"])
    assert "age" not in diagnose_data.read(replace(mixed, drop="age")).train.columns


def test_formats_and_frames_give_the_same_table(files, tmp_path):
    sources, frames = {}, {}
    for flag, seed, n in (("train", 0, 240), ("validation", 1, 96)):
        frame = pd.read_csv(getattr(files, flag))
        frame["same"] = [True] * n
        frame.to_parquet(tmp_path / f"{flag}.parquet")
        arrays = {name: a.to_numpy() if a.dtype.kind in "bif" else a.to_numpy("U9") for name, a in frame.items()}
        np.savez(tmp_path / f"{flag}.npz", allow_pickle=False, **arrays)  # pyright: ignore[reportCallIssue]
        frames[flag], sources[flag] = frame, str(tmp_path / flag)
        assert frame.shape == (n, 8), seed
    want = diagnose_data.read(files)
    tables = [replace(files, **{flag: path + s for flag, path in sources.items()}) for s in (".npz", ".parquet")]
    for own in (*map(diagnose_data.read, tables), diagnose_data.read(files, tables=frames)):
        assert own.train.levels == want.train.levels
        for name, a in want.train.columns.items():
            np.testing.assert_array_equal(own.train.columns[name], a)
        assert own.names.tolist() == want.names.tolist()


def test_dates_are_days_and_parts_and_free_text_is_components():
    rng = np.random.default_rng(0)
    words = np.array([f"word{i}" for i in range(90)])
    tables = {}
    for name, n in (("train", 240), ("validation", 96)):
        day = pd.Series(pd.date_range("2024-03-01", periods=n)).dt.strftime("%d.%m.%Y").astype("str")
        review = pd.Series([" ".join(words[rng.integers(0, 90, 4)]) for _ in range(n)], dtype="str")
        label = pd.Series(np.array(["no", "yes"])[rng.integers(0, 2, n)], dtype="str")
        tables[name] = pd.DataFrame({"day": day, "review": review, "y": label})
    tables["train"].loc[3, "day"] = None
    own = diagnose_data.read(Files("", "", "y"), tables=tables)
    components = [f"review {i}" for i in range(diagnose_data.TEXT_WIDTH)]
    assert list(own.train.columns) == ["day", "day month", "day weekday", *components]
    np.testing.assert_array_equal(own.train.columns["day"], [0, 1, 2, np.nan, *range(4, 240)])
    assert own.train.columns["day month"][[0, 40]].tolist() == [3, 4]
    assert own.validation.columns["day"].tolist() == list(range(96))


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
    ({"label": "incom"}, change(), r"--label: found no 'incom' in --train, which has .* Did you mean income\?"),
    ({}, change("val", income=None), "--label: found no 'income' in --validation"),
    ({}, change(income=["", *SAME["income"][1:]]), "'income': found 1 missing values, first in row 0, .*: leave these"),
    ({}, change(income=SAME["a"]), "--validation: found text in the label 'income', which holds numbers"),
    (
        {},
        change(income=["low"] * 240),
        "--label: found the one class low in 'income' of --train, expected at least 2",
    ),
    ({"id": "rows"}, change(), r"--id: found no 'rows' in --train, .* Did you mean row\?"),
    ({}, change(row=["r"] * 240), "--id: found 240 rows called r in --train, expected another for each"),
    ({"drop": "jobs"}, change(), "--drop: found no 'jobs'"),
    ({"categorical": "x"}, change(), "--categorical: found no 'x'"),
    ({"drop": "income"}, change(), "--label: found 'income' in --id, --drop or --text, too"),
    ({}, change(n=99), "--train: found 99 rows, expected at least 100"),
    ({}, change("val", n=63), "--validation: found 63 rows, expected at least 64"),
    ({}, change("val", job=None), "--validation: found no column 'job', which --train has"),
    ({}, change("val", a=["x"] * 96), "--validation: column 'a': found 96 of 96 rows that are not numbers"),
    ({}, change(age=["2024-01-02"] * 120 + ["2024-02-03"] * 120), "'age': found 92 of 96 rows that are not dates"),
    ({"drop": "a, b,job,age"}, change(), "expected features that vary beside label, id"),
    ({"train": "none.csv"}, change(), r"--train: .*none\.csv"),
]


@pytest.mark.parametrize(("options", "write", "message"), BAD)
def test_bad_input_is_refused_by_name(tmp_path, options, write, message):
    write(tmp_path)
    own = Files(str(tmp_path / "train.csv"), str(tmp_path / "val.csv"), "income", id="row")
    with pytest.raises(ValueError, match=message):
        diagnose_data.read(replace(own, **options))


def test_numbers_to_predict_are_not_classes(files):
    tables = {}
    for flag in ("train", "validation"):
        frame = pd.read_csv(getattr(files, flag))
        tables[flag] = frame.assign(income=np.arange(len(frame)))
    with pytest.raises(ValueError, match="--label: found 240 different numbers in 'income' of --train: it looks like"):
        diagnose_data.read(files, tables=tables)


def test_training_rows_are_not_validation_rows(tmp_path):
    change()(tmp_path)
    own = Files(str(tmp_path / "train.csv"), str(tmp_path / "copy.csv"), "income", id="row")
    (tmp_path / "copy.csv").write_bytes((tmp_path / "train.csv").read_bytes())
    with pytest.raises(
        ValueError, match="--validation: found every example among --train, expected rows that it does not"
    ):
        diagnose_data.read(own)


def test_arrays_have_one_entry_a_row(tmp_path):
    for name, n in (("train", 240), ("val", 96)):
        columns = planted(0, 240, 0, 0)
        np.savez(tmp_path / f"{name}.npz", x=np.ones((n, 3)), income=columns["income"][:n])
    own = Files(str(tmp_path / "train.npz"), str(tmp_path / "val.npz"), "income")
    with pytest.raises(
        ValueError, match=r"--train: found float64\[240, 3\] in 'x', expected one number or text for each"
    ):
        diagnose_data.read(own)
    np.savez(tmp_path / "train.npz", x=np.ones(3), income=np.ones(240))
    with pytest.raises(ValueError, match=r"--train: found lengths \[3, 240\]"):
        diagnose_data.read(own)
