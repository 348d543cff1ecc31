"""Files as users have them, end to end: what went wrong once, and what is right."""

import csv
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from d3mjax.commands import debias
from d3mjax.commands.debias_data import Files

TINY: dict[str, Any] = {"steps": 30, "checkpoints": 2, "seeds": 1, "retrains": 2}
SIZES = {"train": 300, "validation": 240}


def people(seed, n):
    """Rows of age, hours, sex, job and a label that depends on them."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame({"age": rng.normal(40, 10, n).round(2), "hours": rng.integers(10, 60, n)})
    frame["sex"] = rng.choice(["f", "m"], n)
    frame["job"] = rng.choice(["a", "b", "c"], n)
    frame["y"] = (frame["age"] / 10 + frame["hours"] / 20 + rng.normal(size=n) > 5.5).astype(int)
    return frame


@pytest.fixture
def frames():
    return {name: people(seed, size) for seed, (name, size) in enumerate(SIZES.items())}


def files_of(path, frames, suffix="csv", **options):
    """The frames as files, without an index unless it has a name."""
    paths = {}
    for name, frame in frames.items():
        paths[name] = str(path / f"{name}.{suffix}")
        if suffix == "csv":
            frame.to_csv(paths[name], index=options.get("index", False))
        else:
            frame.to_parquet(paths[name], index=False)
    fields: dict[str, Any] = {"label": "y", "group": "sex", **options}
    fields.pop("index", None)
    return Files(paths["train"], paths["validation"], **fields)


def prepared(path, files, **options):
    """The job, and the data card by column."""
    job = debias.prepare(debias.Config(files, **TINY | options), results=path / "results")
    card = json.loads((job.directory / "data.json").read_text())
    return job, {column["name"]: column for column in card["columns"]}, card


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_text_that_looks_like_numbers_is_a_category(tmp_path, frames, suffix):
    for seed, frame in enumerate(frames.values()):
        frame["zip"] = np.random.default_rng(seed).choice(["00501", "10001", "94110"], len(frame))
    _, columns, _ = prepared(tmp_path, files_of(tmp_path, frames, suffix))
    assert columns["zip"]["kind"] == "category"
    assert columns["zip"]["levels"] == ["00501", "10001", "94110"]


def test_a_class_too_rare_to_split_is_noted_and_the_run_ends(tmp_path, frames):
    for frame in frames.values():
        frame["y"] = np.where(frame["y"] == 1, "yes", "no")
    frames["train"].loc[[3, 77], "y"] = "rare"
    files = files_of(tmp_path, frames)
    _, _, card = prepared(tmp_path, files)
    assert any("class rare (2)" in note for note in card["notes"])
    run = debias.main(debias.Config(files, **TINY), tmp_path / "results")
    with open(run / "examples.csv") as file:
        kept = {int(line["id"]) for line in csv.DictReader(file) if line["keep"] == "1"}
    assert kept & {3, 77}


def test_the_row_index_of_a_frame_is_left_out(tmp_path, frames):
    frames = {name: frame.sort_values("y").reset_index(drop=True) for name, frame in frames.items()}
    job, columns, _ = prepared(tmp_path, files_of(tmp_path, frames, index=True))
    (index,) = (column for name, column in columns.items() if name not in frames["train"])
    assert (index["kind"], index["note"]) == ("dropped", "row index")
    assert job.data.train.x.shape[1] == 2 + 3  # age and hours, and the levels of job


def test_missing_numbers_are_alike_in_all_formats(tmp_path, frames):
    frames["train"].loc[[1, 5, 9], "age"] = np.nan
    x = {}
    for suffix in ("csv", "parquet"):
        job, columns, _ = prepared(tmp_path, files_of(tmp_path, frames, suffix))
        x[suffix] = job.data.train.x
        assert columns["age"]["missing"] == {"--train": 3, "--validation": 0}
    np.testing.assert_array_equal(x["csv"], x["parquet"])
    assert x["csv"].shape[1] == 2 + 1 + 3  # and whether age is missing
    assert len(np.unique(x["csv"][[1, 5, 9], 0])) == 1


def test_large_numbers_keep_their_last_digits(tmp_path, frames):
    for seed, frame in enumerate(frames.values()):
        frame["t"] = 1_700_000_000 + np.random.default_rng(seed).permutation(3600)[: len(frame)]
    job, _, _ = prepared(tmp_path, files_of(tmp_path, frames))
    assert max(len(np.unique(column)) for column in job.data.train.x.T) == SIZES["train"]


def test_ids_come_out_as_they_went_in(tmp_path, frames):
    frames["train"]["acct"] = [f"{i:05}" for i in range(SIZES["train"])]
    run = debias.main(debias.Config(files_of(tmp_path, frames, id="acct"), **TINY), tmp_path / "results")
    with open(run / "examples.csv") as file:
        assert {line["id"] for line in csv.DictReader(file)} == set(frames["train"]["acct"])


def test_a_number_to_predict_is_refused(tmp_path, frames):
    for frame in frames.values():
        frame["visits"] = (frame["age"] * 3).round().astype(int)
    with pytest.raises(ValueError, match="in 'visits' of --train: it looks like a number to predict, not a class"):
        prepared(tmp_path, files_of(tmp_path, frames, label="visits"))
    assert not (tmp_path / "results").exists()


def test_targets_that_are_training_rows_do_not_score(tmp_path, frames):
    frames["validation"].iloc[:30] = frames["train"].iloc[:30]
    job, _, card = prepared(tmp_path, files_of(tmp_path, frames))
    assert len(job.data.target.y) == SIZES["validation"] - 30
    assert any("30 of 240 rows equal rows of --train" in note for note in card["notes"])


def test_a_test_set_shares_no_rows_with_the_targets(tmp_path, frames):
    files = files_of(tmp_path, frames)
    with pytest.raises(ValueError, match="--test: found every example among --validation, expected rows that it does"):
        prepared(tmp_path, replace(files, test=files.target))
    frames["test"] = pd.concat([people(9, 100), frames["validation"].iloc[:20]])
    test = str(tmp_path / "test.csv")
    frames["test"].to_csv(test, index=False)
    job, _, card = prepared(tmp_path, replace(files, test=test))
    assert job.data.test is not None
    assert len(job.data.test.y) == 100
    assert any("20 of 120 rows equal rows of --validation" in note for note in card["notes"])


@pytest.mark.parametrize("rate", [0.0, float("inf")])
def test_rates_must_be_positive_and_finite(tmp_path, frames, rate):
    with pytest.raises(ValueError, match=r"--rate: found .*, expected a positive number"):
        prepared(tmp_path, files_of(tmp_path, frames), rate=rate)


def test_a_copy_of_the_label_is_left_out(tmp_path, frames):
    for frame in frames.values():
        frame["outcome"] = np.where(frame["y"] == 1, "paid", "open")
    _, columns, _ = prepared(tmp_path, files_of(tmp_path, frames))
    assert (columns["outcome"]["kind"], columns["outcome"]["note"]) == (
        "dropped",
        "equals the label y, one to one",
    )


def test_a_shortcut_that_is_perfect_in_training_stays(tmp_path, frames):
    for name, frame in frames.items():
        frame["mark"] = frame["y"] if name == "train" else frame["y"] * (np.arange(len(frame)) % 3 > 0)
    job, columns, _ = prepared(tmp_path, files_of(tmp_path, frames))
    assert columns["mark"]["kind"] == "number"
    assert columns["mark"]["note"] == "equals the label y in --train alone: a shortcut"
    assert job.data.train.x.shape[1] == 2 + 3 + 1


def test_group_columns_are_features_on_request(tmp_path, frames):
    files = files_of(tmp_path, frames)
    job, columns, _ = prepared(tmp_path, files)
    assert columns["sex"] == {**columns["sex"], "kind": "dropped", "note": "group"}
    more, columns, _ = prepared(tmp_path, replace(files, group_as_feature=True))
    assert columns["sex"]["kind"] == "category"
    assert more.data.train.x.shape[1] == job.data.train.x.shape[1] + 2
    assert job.data.group_names == more.data.group_names == ("sex=f", "sex=m")


def test_groups_of_quantiles_and_of_overlapping_columns(tmp_path, frames):
    for seed, frame in enumerate(frames.values()):
        rng = np.random.default_rng(seed)
        frame["black"], frame["muslim"] = rng.choice(["yes", "no"], len(frame)), rng.random(len(frame)) < 0.5
    files = files_of(tmp_path, frames, group="age:2", any_of="black,muslim")
    job, _, card = prepared(tmp_path, files)
    assert len(job.data.group_names) == len(card["groups"]) == 4
    assert sum(card["groups"].values()) == SIZES["validation"]


def test_targets_too_many_for_auto_are_refused_before_work(tmp_path, frames, monkeypatch):
    monkeypatch.setattr(debias, "AUTO_BYTES", 4 * SIZES["train"] * SIZES["validation"] - 1)
    with pytest.raises(
        ValueError, match="--auto: found 240 targets and 300 training examples, whose attribution takes"
    ):
        prepared(tmp_path, files_of(tmp_path, frames, group=None, auto=True))


def test_a_dry_run_stops_after_the_data_card(tmp_path, frames, capsys):
    config = debias.Config(files_of(tmp_path, frames), **TINY)
    run = debias.work(debias.prepare(config, results=tmp_path / "results", dry_run=True))
    assert (run / "data.json").exists()
    assert not (run / "metrics.json").exists()
    assert "age" in capsys.readouterr().out


def test_frames_take_the_place_of_files(tmp_path, frames):
    files = Files("people", "held out", label="y", group="sex")
    run = debias.main(debias.Config(files, **TINY), tmp_path / "results", tables=frames)
    same = debias.main(debias.Config(files_of(tmp_path, frames), **TINY), tmp_path / "results")
    examples = [(path / "examples.csv").read_text() for path in (run, same)]
    assert examples[0] == examples[1]
    with pytest.raises(ValueError, match=r"tables: found \['train'\], expected also \['validation'\]"):
        debias.main(debias.Config(files, **TINY), tmp_path / "results", tables={"train": frames["train"]})
    with pytest.raises(ValueError, match=r"tables: found also \['test'\], expected \['train', 'validation'\]"):
        debias.main(debias.Config(files, **TINY), tmp_path / "results", tables=frames | {"test": frames["train"]})


@pytest.mark.slow
def test_a_folder_of_images_in_the_layout_of_waterbirds(tmp_path):
    pillow = pytest.importorskip("PIL.Image")
    (tmp_path / "birds").mkdir()
    rng, n = np.random.default_rng(0), 160
    frame = pd.DataFrame({"img_id": range(n), "img_filename": [f"{i}.png" for i in range(n)]})
    frame["y"], frame["place"] = rng.integers(0, 2, n), rng.integers(0, 2, n)
    frame["split"] = np.repeat([0, 1, 2], [80, 50, 30])
    for name, y in zip(frame["img_filename"], frame["y"], strict=True):
        pixels = rng.integers(0, 128, (12, 10, 3)) + 120 * y
        pillow.fromarray(pixels.astype(np.uint8)).save(tmp_path / "birds" / name)
    path = str(tmp_path / "metadata.csv")
    frame.to_csv(path, index=False)
    options: dict[str, Any] = {"images": str(tmp_path / "birds"), "image_size": 8, "min_group": 3, "test": path}
    files = Files(path, path, "y", group="place", **options)
    job, _, _ = prepared(tmp_path, files)
    assert job.image == (8, 8, 3)
    assert job.data.test is not None
    assert [len(part.y) for part in (job.data.train, job.data.target, job.data.test)] == [80, 50, 30]
    run = debias.work(job)
    assert (run / "report.html").stat().st_size > 10_000
    (tmp_path / "birds" / "3.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"--images: .* found 1 of 80 images missing or damaged: 3\.png"):
        prepared(tmp_path, files)
