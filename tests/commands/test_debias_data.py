"""What is read of the user's own files, how targets are divided, and what is refused before any work."""

from dataclasses import replace

import numpy as np
import pytest
from planted_files import QUICK, make_files, planted, write_csv

from d3mjax.commands import debias, debias_data, debias_divisions
from d3mjax.commands.debias_data import Files


def test_groups_are_crossed_in_the_order_of_their_columns(tmp_path):
    rows = {"x": np.arange(8), "g": [1, 0] * 4, "h": ["b", "b", "a", "a"] * 2, "y": [0, 1] * 4}
    target = write_csv(
        tmp_path / "t.csv", {k: [v[i] for i in [0, 1, 2] * 3] for k, v in rows.items()} | {"x": range(8, 17)}
    )
    files = Files(write_csv(tmp_path / "n.csv", rows), target, "y", group="g, h", raw=True, min_group=3)
    own = debias_data.read(files)
    assert own.group_names == ("g=0, h=b", "g=1, h=a", "g=1, h=b")
    assert own.target.group.tolist() == [2, 0, 1] * 3
    assert own.train.group.tolist() == [2, 0, 1, -1] * 2  # no target is g = 0, h = a
    assert own.class_names == ("0", "1")
    assert own.train.x.tolist() == [[i] for i in range(8)]


def test_tables_and_arrays_are_read_alike(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    read = []
    parts = {"train": planted(0, 30, 0.9), "target": planted(1, 40, 0.5)}
    for suffix in (".csv", ".parquet", ".npz"):
        paths = {name: str(tmp_path / f"{name}{suffix}") for name in parts}
        for name, columns in parts.items():
            columns = {k: v for k, v in columns.items() if k in ("a", "b", "sex", "income")}
            if suffix == ".csv":
                write_csv(paths[name], columns)
            elif suffix == ".parquet":
                pq.write_table(pa.table(columns), paths[name])
            else:
                arrays_of = {"x": np.stack([columns["a"], columns["b"]], 1)} | columns
                np.savez(paths[name], **arrays_of)  # pyright: ignore[reportArgumentType]
        read.append(debias_data.read(Files(paths["train"], paths["target"], "income", group="sex")))
    for own in read[1:]:
        assert own.class_names == read[0].class_names == ("high", "low")
        assert own.group_names == read[0].group_names == ("sex=F", "sex=M")
        for a, b in zip((*own.train, *own.target), (*read[0].train, *read[0].target), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)


def test_without_groups_the_classes_divide_the_targets(tmp_path):
    own = debias_data.read(replace(make_files(tmp_path), group=None, auto=True))
    assert own.group_names == own.class_names == ("high", "low")
    np.testing.assert_array_equal(own.target.group, own.target.y)
    assert own.target_names.tolist() == planted(1, 400, 0.75)["row"].tolist()
    sizes = [np.bincount(part.group) for part in debias_divisions.divide(own, 0)[1:]]
    assert np.ptp(sizes[1] - sizes[2]) <= 1
    assert np.ptp(sizes[0] - 2 * sizes[1]) <= 2


def test_features_are_standardised_as_in_training_and_text_is_the_same_in_all_files(tmp_path):
    own = debias_data.read(make_files(tmp_path))
    assert own.train.x.shape[1] == own.target.x.shape[1] == 10 + 3
    np.testing.assert_allclose(own.train.x.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(own.train.x.std(0), 1, atol=1e-5)
    assert abs(own.target.x.mean()) > 1e-4
    path = tmp_path / "c.csv"
    write_csv(path, planted(0, 60, 0.9) | {"b": np.ones(60)})
    constant = debias_data.read(replace(make_files(tmp_path), train=str(path)))
    assert constant.target.x.shape[1] == 9 + 3


def test_missing_numbers_are_the_training_median_and_an_indicator_and_missing_text_a_level(tmp_path):
    files = make_files(tmp_path)
    train = planted(0, 600, 0.95)
    numbers = train["a"].astype(str)
    numbers[:3] = ["", "NA", "nan"]
    job = np.where(np.arange(600) < 2, "", train["job"])
    write_csv(tmp_path / "train.csv", {k: v for k, v in train.items() if k != "sex"} | {"a": numbers, "job": job})
    data = debias_data.read(replace(files, raw=True))
    np.testing.assert_allclose(data.train.x[:3, 0], np.median(train["a"][3:]), rtol=1e-6)
    np.testing.assert_allclose(data.train.x[3:, 0], train["a"][3:], rtol=1e-6)
    assert data.train.x[:, 1].tolist() == [1] * 3 + [0] * 597
    jobs = data.train.x[:, -4:]  # clerk, cook, missing, smith
    assert jobs[:2].argmax(1).tolist() == [2, 2]
    assert jobs[2:, 2].sum() == 0


def test_targets_are_dealt_out_evenly_in_groups_and_classes():
    group = np.repeat([0, 1, 2], [40, 8, 3])
    y = np.concatenate([np.tile([0, 1], 24), [0, 1, 1]])
    part = debias_divisions.deal(group, y, 0, debias_divisions.PARTS)
    assert np.bincount(part).tolist() == [25, 13, 13]
    for g, size in ((0, 20), (1, 4)):
        for c in (0, 1):
            cell = part[(group == g) & (y == c)]
            assert np.bincount(cell).tolist() == [size // 2, size // 4, size // 4]
    assert sorted(part[group == 2]) == [0, 1, 2]
    np.testing.assert_array_equal(part, debias_divisions.deal(group, y, 0, debias_divisions.PARTS))
    assert (part != debias_divisions.deal(group, y, 1, debias_divisions.PARTS)).any()


def test_a_test_set_reports_and_is_the_same_for_every_seed(tmp_path):
    files = make_files(tmp_path)
    files = replace(files, min_group=3, test=write_csv(tmp_path / "test.csv", planted(2, 50, 0.5)))
    own = debias_data.read(files)
    a, b = debias_divisions.divide(own, 0), debias_divisions.divide(own, 1)
    assert (len(a.target.y), len(a.selection.y), len(a.test.y)) == (267, 133, 50)
    np.testing.assert_array_equal(a.test.id, b.test.id)
    assert set(a.target.id) != set(b.target.id)
    assert set(a.target.id) | set(a.selection.id) == set(b.target.id) | set(b.selection.id) == set(own.target.id)


def change(name, **columns):
    """A file of another content: columns replaced, or left out where None."""

    def apply(path):
        source = planted(2 if name == "test" else 1 if name == "val" else 0, 240, 0.8) | columns
        write_csv(path / f"{name}.csv", {k: v for k, v in source.items() if v is not None})

    return apply


TEST = {"test": "{}/test.csv"}
FEW = np.where(np.arange(240) < 2, "X", "M")
BAD = [
    ({"group": None}, None, "--group: found none, expected the column .* or --auto"),
    ({"auto": True}, None, "--group, --auto: found both, expected --group, or --auto"),
    (
        {"auto": True, "group": None},
        change("val", income=np.where(np.arange(240) < 2, "high", "low")),
        r"--validation: found so few examples of classes: {'high': 2}; expected at least 3",
    ),
    ({"train": "{}/none.csv"}, None, r"--train: .*none.csv"),
    ({"target": "{}/val.npz"}, None, r"--train: found tables and arrays together"),
    ({"min_group": 300}, None, "found so few examples of groups: .* expected at least 300"),
    ({"label": "incom"}, None, "--label: found no 'incom' in --train, .* Did you mean income?"),
    ({"group": "sx"}, None, "--group: found no 'sx' in --validation, .* Did you mean sex?"),
    ({"id": "rows"}, None, "--id: found no 'rows' in --train, .* Did you mean row?"),
    ({"drop": "rob"}, None, r"--drop: found no 'rob' in --train, which has .* Did you mean .*job"),
    ({}, change("val", job=None), "--validation: found no column 'job', which --train has"),
    ({}, change("val", sex=["F"] * 240, income=["low"] * 240), r"--group: found one group in --validation"),
    (
        {},
        change("val", sex=FEW, income=["low", "high"] * 120),
        r"found so few examples of groups: {'other': 2}; exp",
    ),
    (
        {},
        change("val", income=["mid", "low", "high"] * 80),
        r"--train: found no example of class mid of 'income'",
    ),
    ({}, change("train", income=["low"] * 240), "--label: found the one class low in 'income' of --train"),
    ({"label": "a"}, None, "--label: found numbers such as .* in 'a' of --train: it looks like a number to predict"),
    (
        {"group": "b"},
        None,
        "found 400 different numbers in .b., expected at most 20 values, or quantiles",
    ),
    (
        TEST,
        change("test", sex=["F"] * 240),
        r"--test: found so few examples of groups: {'other': 0}; expected at least 10",
    ),
    (
        TEST,
        change("test", sex=["X", "F", "M"] * 80),
        r"--validation: found so few examples of groups: {'other': 0}",
    ),
    (
        {"target": "{}/copy.csv", "group": "income"},
        lambda path: (path / "copy.csv").write_bytes((path / "train.csv").read_bytes()),
        "--validation: found every example among --train",
    ),
    ({"target": "{}/train.csv", "group": "income"}, None, "--validation: found the file of --train"),
]


@pytest.mark.parametrize(("fields", "prepare", "message"), BAD)
def test_bad_files_are_refused_before_anything_is_written(tmp_path, fields, prepare, message):
    files = make_files(tmp_path)
    if prepare:
        prepare(tmp_path)
    files = replace(files, **{k: v.format(tmp_path) if isinstance(v, str) else v for k, v in fields.items()})
    with pytest.raises(ValueError, match=message):
        debias.prepare(debias.Config(files, **QUICK), results=tmp_path / "results")
    assert not (tmp_path / "results").exists()
