"""The command for the user's own files: what it reads and refuses, how it divides, what it leaves, and what it says."""

import csv
import sys
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest

from d3mjax.data import arrays, fashion_spurious
from d3mjax.runtime import record
from experiments import debias, debias_data, debias_report, engine, report
from experiments.debias_data import Files

QUICK: dict[str, Any] = {"steps": 200, "checkpoints": 4, "seeds": 2, "retrains": 1}


def planted(seed, n, aligned):
    """Columns of n examples: feature a tells the class, feature b the group, which mostly goes with the class."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, n)
    s = np.where(rng.random(n) < aligned, y, 1 - y)
    columns = {"a": 3.0 * y + rng.normal(size=n), "b": 6.0 * s + rng.normal(size=n)}
    columns |= {f"noise{i}": rng.normal(size=n) for i in range(8)}
    return columns | {
        "job": np.array(["cook", "clerk", "smith"])[rng.integers(0, 3, n)],
        "sex": np.array(["F", "M"])[s],
        "income": np.array(["low", "high"])[y],
        "row": np.array([f"r{seed}-{i}" for i in range(n)]),
    }


def write_csv(path, columns):
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return str(path)


def make_files(path):
    write_csv(path / "train.csv", {k: v for k, v in planted(0, 600, 0.95).items() if k != "sex"})
    write_csv(path / "val.csv", planted(1, 400, 0.75))
    return Files(str(path / "train.csv"), str(path / "val.csv"), "income", group="income,sex", id="row")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path, programs = tmp_path_factory.mktemp("own"), []

    def compiled_once(*args, original=engine.make_programs):
        programs.extend([] if programs else [original(*args)])
        return programs[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "make_programs", compiled_once)
        config = debias.Config(make_files(path), **QUICK)
        yield config, path, debias.main(config, path / "results")


def read_lines(run):
    with open(run / "examples.csv") as file:
        return list(csv.DictReader(file))


def test_the_shortcut_is_found_and_everything_is_left_behind(finished):
    _, _, run = finished
    document = record.read_json(run / "metrics.json")
    record.validate_document(document)
    wga = {row["method"]: row["metrics"]["worst_group_accuracy"]["mean"] for row in document["rows"]}
    assert list(wga) == list(debias_report.METHODS)
    assert wga["D3M, k by selection"] > wga["ERM"] + 0.1
    assert (run / "report.html").read_text().count("data:image/png;base64,") == 4
    assert (run / "advice.txt").read_text().count("\n- ") >= 5


def test_the_list_goes_by_the_users_ids_lowest_scores_first(finished):
    _, _, run = finished
    lines = read_lines(run)
    scores = [float(line["score"]) for line in lines]
    assert sorted(line["id"] for line in lines) == sorted(planted(0, 600, 0.95)["row"])
    assert scores == sorted(scores)
    assert [int(line["rank"]) for line in lines] == list(range(600))
    removed = sum(line["keep"] == "0" for line in lines)
    assert [line["keep"] for line in lines] == ["0"] * removed + ["1"] * (600 - removed)
    with np.load(run / "scores.npz") as file:
        order = np.argsort(file["rank"])
        assert file["id"][order].tolist() == [line["id"] for line in lines]
        np.testing.assert_allclose(file["score_per_seed"].mean(0)[order], scores, rtol=1e-5)
        assert removed == round((~file["kept_per_seed"]).sum(1).mean())


def test_the_same_command_resumes_and_repeats_its_numbers(finished, monkeypatch):
    config, path, run = finished
    before = record.read_json(run / "metrics.json")["rows"], (run / "examples.csv").read_bytes()
    (run / "units" / "train-1.npz").unlink()
    computed = []
    monkeypatch.setattr(debias, "debias", lambda *a, original=debias.debias: (computed.append(a[3]), original(*a))[1])
    assert debias.main(config, path / "results") == run
    assert computed == [1]
    assert (record.read_json(run / "metrics.json")["rows"], (run / "examples.csv").read_bytes()) == before


def test_other_contents_of_a_file_are_another_run(finished, tmp_path):
    config, path, run = finished
    rows = (path / "train.csv").read_text().splitlines()
    (tmp_path / "train.csv").write_text("\n".join([rows[0], *rows[2:], rows[1]]))
    other = replace(config, files=replace(config.files, train=str(tmp_path / "train.csv")))
    assert debias.prepare(other, path / "results").directory != run
    with pytest.raises(ValueError, match="holds another configuration: data is"):
        debias.prepare(other, path / "results", run.name)


def test_groups_are_crossed_in_the_order_of_their_columns(tmp_path):
    rows = {"x": np.arange(8), "g": [1, 0] * 4, "h": ["b", "b", "a", "a"] * 2, "y": [0, 1] * 4}
    target = write_csv(
        tmp_path / "t.csv", {k: [v[i] for i in [0, 1, 2] * 3] for k, v in rows.items()} | {"x": range(9)}
    )
    files = Files(write_csv(tmp_path / "n.csv", rows), target, "y", group="g, h", raw=True)
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
            np.testing.assert_array_equal(a, b)


def test_features_are_standardised_as_in_training_and_text_is_the_same_in_all_files(tmp_path):
    own = debias_data.read(make_files(tmp_path))
    assert own.train.x.shape[1] == own.target.x.shape[1] == 10 + 3
    np.testing.assert_allclose(own.train.x.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(own.train.x.std(0), 1, atol=1e-5)
    assert abs(own.target.x.mean()) > 1e-4
    path = tmp_path / "c.csv"
    write_csv(path, planted(0, 60, 0.9) | {"b": np.ones(60)})
    constant = debias_data.read(replace(make_files(tmp_path), train=str(path)))
    assert not constant.target.x[:, 1].any()


def test_tfds_by_name(tmp_path, monkeypatch):
    spec = fashion_spurious.Task(train=40, targets=(9, 9, 9, 9), selection=40, test=40)
    fashion_spurious.load_fashion_spurious(spec, data_dir=tmp_path)
    monkeypatch.setattr(arrays, "read_tfds", partial(arrays.read_tfds, data_dir=tmp_path))
    name = f"tfds:fashion_spurious/{fashion_spurious.config(spec).name}"
    own = debias_data.read(Files(f"{name}:train", f"{name}:target", "y", group="group", feature="image"))
    assert own.train.x.shape == (40, 14, 14, 1)
    assert np.bincount(own.target.group).tolist() == [9] * 4
    assert own.train.x.std() == pytest.approx(1, abs=1e-5)
    with pytest.raises(ValueError, match="--target: found 'tfds:mnist', expected tfds:NAME:SPLIT"):
        debias_data.read(Files(f"{name}:train", "tfds:mnist", "y", group="group", feature="image"))


def test_targets_are_dealt_out_evenly_in_groups_and_classes():
    group = np.repeat([0, 1, 2], [40, 8, 3])
    y = np.concatenate([np.tile([0, 1], 24), [0, 1, 1]])
    part = debias_data.deal(group, y, 0, debias_data.PARTS)
    assert np.bincount(part).tolist() == [25, 13, 13]
    for g, size in ((0, 20), (1, 4)):
        for c in (0, 1):
            cell = part[(group == g) & (y == c)]
            assert np.bincount(cell).tolist() == [size // 2, size // 4, size // 4]
    assert sorted(part[group == 2]) == [0, 1, 2]
    np.testing.assert_array_equal(part, debias_data.deal(group, y, 0, debias_data.PARTS))
    assert (part != debias_data.deal(group, y, 1, debias_data.PARTS)).any()


def test_a_test_set_reports_and_is_the_same_for_every_seed(tmp_path):
    files = make_files(tmp_path)
    files = replace(files, test=write_csv(tmp_path / "test.csv", planted(2, 50, 0.5)))
    own = debias_data.read(files)
    a, b = debias_data.divide(own, 0), debias_data.divide(own, 1)
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
    ({"group": None}, None, "--group: found none, expected the column"),
    ({"train": "{}/none.csv"}, None, r"--train: path: .*none.csv is missing"),
    ({"target": "{}/train.txt"}, None, r"--target: found '.*train.txt', expected a .csv, .parquet, .npz file, or tfds"),
    (
        {"target": "{}/val.npz"},
        lambda path: (path / "val.npz").write_bytes(b"PK damaged"),
        "--target: .* is missing or damaged",
    ),
    ({"label": "incom"}, None, "--label: found no 'incom' in --train .* Did you mean income?"),
    ({"group": "sx"}, None, "--group: found no 'sx' in --target .* Did you mean sex?"),
    ({"id": "rows"}, None, "--id: found no 'rows' in --train .* Did you mean row?"),
    ({"drop": "age"}, None, r"--drop: found \['age'\], expected columns of --train"),
    ({}, change("val", job=None), r"--target: found no columns \['job'\], which --train has"),
    ({}, change("val", sex=["", "F", "M"] * 80), "--target .*, column 'sex': found 80 missing values, first in row 0"),
    ({}, change("val", sex=["F"] * 240, income=["low"] * 240), r"--group: found one group in --target"),
    (
        {},
        change("val", sex=FEW, income=["low"] * 240),
        r"found so many examples of groups: {'income=low, sex=X': 2}; exp",
    ),
    (
        {},
        change("val", income=["mid", "low", "high"] * 80),
        r"--train: found no example of class \['mid'\] of 'income'",
    ),
    ({}, change("train", income=["low"] * 240), r"--train: found no example of class \['high'\]"),
    ({"label": "a"}, None, "--label: found float64.* in --train, expected whole numbers or text"),
    ({"group": "b"}, None, "--group: found float64.* in --train, expected whole numbers or text"),
    (TEST, change("test", sex=["F"] * 240), r"--test: found no example of groups \['.*sex=M'.*, which --target has"),
    (
        TEST,
        change("test", sex=["X", "F", "M"] * 80),
        r"--target: found no example of groups .*sex=X.* which --test has",
    ),
    (
        {},
        change("train", job=[f"j{i}" for i in range(240)]),
        "found 243 different texts in 'job', expected 200 or --drop",
    ),
    ({}, change("val", a=[np.nan, *range(239)]), "--target.x: found NaN or infinity, first in row 0"),
    ({"target": "{}/train.csv", "group": "income"}, None, "--target: found every example among --train"),
]


@pytest.mark.parametrize(("fields", "prepare", "message"), BAD)
def test_bad_files_are_refused_before_anything_is_written(tmp_path, fields, prepare, message):
    files = make_files(tmp_path)
    if prepare:
        prepare(tmp_path)
    files = replace(files, **{k: v and v.format(tmp_path) for k, v in fields.items()})
    with pytest.raises(ValueError, match=message):
        debias.prepare(debias.Config(files, **QUICK), tmp_path / "results")
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("field", ["seeds", "retrains", "checkpoints", "steps"])
def test_numbers_must_be_positive(tmp_path, field):
    few: dict[str, Any] = QUICK | {field: 0}
    config = debias.Config(make_files(tmp_path), **few)
    with pytest.raises(ValueError, match=f"--{field}: found 0, expected at least 1"):
        debias.prepare(config, tmp_path / "results")


MODELS = """
import jax.numpy as jnp
from flax import linen
from d3mjax.training import models

def small(num_classes): return linen.Dense(num_classes)
def wide(num_classes): return linen.Dense(num_classes + 1)
def plain(num_classes): return models.linear(num_classes)
def flat(num_classes): return models.from_functions(lambda key, x: {}, lambda params, x: x.sum())
def other(num_classes): return "a model"
def broken(num_classes): raise RuntimeError("no GPU")
def picky(num_classes): return models.from_functions(lambda key, x: {}, lambda params, x: x.reshape(7, 7))
"""


@pytest.fixture
def in_models(tmp_path, monkeypatch):
    (tmp_path / "own_models.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "own_models", raising=False)


@pytest.mark.parametrize("name", ["small", "plain"])
def test_models_of_the_user(in_models, name):
    model = debias.load_model(f"own_models:{name}", 3, np.zeros((5, 2), np.float32))
    logits, _ = model.apply(model.init(debias.jax.random.key(0), np.ones((4, 2))), np.ones((4, 2)))
    assert logits.shape == (4, 3)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("own_models:wide", r"makes \[2, 4\] of features \[2, 2\], expected logits \[2, 3\]"),
        ("own_models:flat", r"makes \[\] of features \[2, 2\], expected logits \[2, 3\]"),
        ("own_models:other", "returned str, expected a flax linen module or a d3mjax Model"),
        ("own_models:broken", r"failed \(RuntimeError: no GPU\), expected module:function"),
        ("own_models:picky", r"failed on features \[2, 2\]"),
        ("own_models:nothing", r"failed \(AttributeError"),
        ("no_such_module:f", r"failed \(ModuleNotFoundError"),
        ("own_models", "failed"),
    ],
)
def test_models_that_do_not_fit_are_refused(in_models, spec, message):
    with pytest.raises(ValueError, match=f"--model: '{spec}' {message}"):
        debias.load_model(spec, 3, np.zeros((5, 2), np.float32))


def test_the_command_says_what_is_wrong_in_one_line(tmp_path, monkeypatch):
    files = make_files(tmp_path)
    line = ["d3mjax-debias", "--train", files.train, "--target", files.target, "--label", "income"]
    monkeypatch.setattr(sys, "argv", line)
    with pytest.raises(SystemExit, match=r"^d3mjax-debias: --group: found none"):
        debias.cli()
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(sys, "argv", [*line, "--group", "sex", "--drop", "row", "--results", str(tmp_path / "file")])
    with pytest.raises(SystemExit, match=r"^d3mjax-debias: cannot write results to"):
        debias.cli()


def made_rows(ours, erm, matched, targets, removed=0.2):
    per_seed = {
        "ERM": erm,
        "class-matched random removal": matched,
        "RWG on the targets alone": targets,
        "D3M, k by selection": ours,
    }
    extra = {"suspects": [0.02] * 2, "suspects_removed": [0.3] * 2, "effective_checkpoints": [2.0] * 2}
    more = {"removed": [removed] * 2, "average_accuracy": [0.9] * 2, **extra}
    return [
        report.row("t", method, {"worst_group_accuracy": values} | more, settings={"checkpoints": 20})
        for method, values in per_seed.items()
    ]


def told(rows, sizes=(30, 15, 15)):
    facts = {"sizes": {part: [90, size] for part, size in zip(debias_report.PARTS, sizes, strict=True)}}
    kept = np.arange(10) >= 2
    return debias_report.advice(rows, [(facts, {"kept": kept}), (facts, {"kept": np.roll(kept, 1)})], ["big", "small"])


def test_advice_follows_from_the_numbers():
    good = told(made_rows([0.8, 0.82], [0.5, 0.51], [0.5, 0.52], [0.6, 0.61]))
    assert good[0].startswith("Dropping 20.0% of the training examples moves the worst group from 50.5 ± 0.7 % to 81.0")
    assert "+30.5 ± 1.6 points, more than the spread: drop them." in good[0]
    assert "class balance does not explain it" in good[1]
    assert "your training set is worth having" in good[2]
    # Standard error of a share of 0.81 among 15: sqrt(0.81 * 0.19 / 15) = 0.101.
    assert "small (30 for scoring, 15 for selection, 15 for report): a fair number." in good[3]
    assert "near 81% measured on 15 examples is uncertain by 10.1 points" in good[3]
    assert "2.0 ± 0.0" in good[4].replace("2.0 %", "2.0 ± 0.0 %")
    assert "correcting labels may beat dropping" in good[4]
    # Each seed drops two of ten; one of them is the same.
    assert "another drops 50% (20% by chance)" in good[5]
    bad = told(made_rows([0.5, 0.6], [0.5, 0.61], [0.8, 0.81], [0.5, 0.6]), sizes=(6, 3, 3))
    assert "within the spread: do not count on it" in bad[0]
    assert "balance your classes instead" in bad[1]
    assert "adding your targets to the training set is the simpler way" in bad[2]
    assert "too few to choose by: collect more" in bad[3]
    nothing = made_rows([0.5, 0.6], [0.5, 0.6], [0.5, 0.6], [0.9, 0.91], removed=0.0)
    none = told(nothing)
    assert none[0].startswith("Keep your training set")
    assert "says little" not in none[0]
    assert "Its smallest group has 3 examples, so this says little" in told(nothing, sizes=(6, 3, 3))[0]
    assert "they do better: train on them" in none[2]


def test_seeds_are_put_together_by_mean_score():
    scores, kept = np.array([[3.0, -1, 0, 2], [1, 0, -2, 4]]), np.array([[1, 0, 1, 1], [0, 0, 0, 1]], bool)
    units = [({}, {"score": s, "kept": k, "suspect": k}) for s, k in zip(scores, kept, strict=True)]
    final = debias_report.final(units, np.array([0, 0, 1, 1]), 2)
    assert final.score.tolist() == [2, -0.5, -1, 3]
    assert final.rank.tolist() == [2, 1, 0, 3]
    assert final.keep.tolist() == [True, False, False, True]
    assert final.suspect.tolist() == [0.5, 0, 0.5, 1]
