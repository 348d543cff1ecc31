"""d3mjax-debias --regression: a planted minority does better, all in the unit of the label, and what is refused."""

import csv
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from planted_files import QUICK, write_csv

from d3mjax.commands import debias, debias_data, debias_divisions, debias_recipe, debias_seed, user_model, verdict
from d3mjax.commands.debias_data import Files
from d3mjax.commands.debias_numbers import MATCHED, SHIFT, WEIGHTS
from d3mjax.commands.debias_seed import PLAIN, RANDOM, SELECTED, TARGETS_ALONE
from d3mjax.data.planted.shortcut import planted_regression
from d3mjax.debiasing import regression
from d3mjax.reports.rows import row as verdict_row
from d3mjax.runtime import runs, store

N = 600
UNIT = 250.0


def planted(part, sizes=None):
    """Columns of a part of `planted_regression`: a price around 5,000, a loud cue that few examples break."""
    data = planted_regression(0, train=N, target=400, selection=1, test=300, aligned=0.92)
    split = {"train": data.train, "val": data.target, "test": data.test}[part]
    columns = {f"x{i}": column.round(4) for i, column in enumerate(np.asarray(split.x).T)}
    return columns | {
        "price": (5000 + UNIT * np.asarray(split.y)).round(2),
        "cue": np.array(["holds", "broken"])[np.asarray(split.group)],
        "row": np.array([f"r{i}" for i in np.asarray(split.id)]),
    }


def make_files(path):
    train = {name: column for name, column in planted("train").items() if name != "cue"}
    paths = write_csv(path / "train.csv", train), write_csv(path / "val.csv", planted("val"))
    return Files(*paths, "price", group="cue", id="row", regression=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The configuration, the directory of the files, the run, and how many training programs were compiled."""
    programs: Any = debias_recipe._trained
    path, before = tmp_path_factory.mktemp("numbers"), programs._cache_size()
    options: dict[str, Any] = QUICK | {"steps": 300}
    config = debias.Config(make_files(path), **options)
    run = debias.main(config, path / "results")
    return config, path, run, programs._cache_size() - before


def rows_of(run):
    return {row["method"]: row for row in store.read_json(run / "metrics.json")["rows"]}


def test_the_worst_group_does_better_and_every_number_is_in_the_unit_of_the_label(finished):
    _, _, run, compiled = finished
    runs.validate_document(store.read_json(run / "metrics.json"))
    rows = rows_of(run)
    assert list(rows)[:7] == [PLAIN, SHIFT, WEIGHTS, RANDOM, MATCHED, TARGETS_ALONE, debias_seed.NEGATIVE]
    worst = {name: row["metrics"]["worst_group_rms_error"]["mean"] for name, row in rows.items()}
    assert worst[SELECTED] < 0.95 * worst[PLAIN]
    assert rows[SELECTED]["metrics"]["removed"]["mean"] > 0
    assert compiled == 2
    for row in rows.values():
        of = {name: value["mean"] for name, value in row["metrics"].items()}
        assert UNIT / 20 < of["rms_error"] <= of["worst_group_rms_error"] < 2 * UNIT
        assert of["worst_group_absolute_error"] < of["worst_group_rms_error"]
        assert of["mean_absolute_error"] < of["rms_error"]
    advice, page = (run / "advice.txt").read_text(), (run / "report.html").read_text()
    assert advice.split("\n\n")[0] in page
    assert "accuracy" not in advice
    assert "class" not in advice
    assert "in the unit of price" in page


def test_examples_of_the_cue_go_first(finished):
    _, _, run, _ = finished
    with open(run / "examples.csv") as file:
        lines = list(csv.DictReader(file))
    group = dict(zip(planted("train")["row"], planted("train")["cue"], strict=True))
    scores = [float(line["score"]) for line in lines]
    assert scores == sorted(scores)
    share = lambda part: np.mean([group[line["id"]] == "broken" for line in part])
    assert share(lines[: N // 4]) < share(lines[-N // 4 :])
    assert sum(line["keep"] == "0" for line in lines) > 0


def test_the_same_command_resumes_and_repeats_its_numbers(finished, monkeypatch):
    config, path, run, _ = finished
    before = store.read_json(run / "metrics.json")["rows"]
    (run / "units" / "train-1.npz").unlink()
    computed, measure = [], debias_seed.measure
    monkeypatch.setattr(debias_seed, "measure", lambda *args: (computed.append(args[2]), measure(*args))[1])
    assert debias.main(replace(config, max_loss=0.3), path / "results") == run
    assert computed == [1]
    assert store.read_json(run / "metrics.json")["rows"] == before


def test_a_dry_run_stops_after_the_card(finished):
    config, path, _, _ = finished
    job = debias.prepare(config, results=path / "dry", dry_run=True)
    assert debias.work(job) == job.directory
    assert [file.name for file in job.directory.glob("*.html")] == []
    card = store.read_json(job.directory / "data.json")
    assert card["label"] == "price"
    assert "classes" not in card
    assert set(card["groups"]) == {"cue=holds", "cue=broken"}


def test_errors_are_those_of_the_predictions_and_a_shift_is_the_best_number_to_add(finished):
    config, *_ = finished
    data = debias_data.read(config.files)
    counts, schedule = debias_recipe.counts_of(N, quick=True), debias_recipe.schedule_of(N)
    recipe = debias_recipe.make_recipe(debias.dense.mlp((4,), 1), data, schedule=schedule, counts=counts, auto=False)
    parts = debias_divisions.divide(data, 0)
    assert data.scale is not None
    predictions = np.zeros((2, len(recipe.pool.y), 1), np.float32)
    predictions[1] = 0.5
    errors = debias_seed.evaluate(recipe, parts, predictions)
    restored = np.asarray(parts.test.y) * data.scale.std
    for model, added in enumerate((0.0, 0.5 * data.scale.std)):
        expected = [np.sqrt(np.mean((restored[parts.test.group == g] - added) ** 2)) for g in (0, 1)]
        np.testing.assert_allclose(errors.test[model], expected, rtol=1e-5)
    shifts = debias_seed.debias_numbers.shifts(recipe, parts, predictions)
    np.testing.assert_allclose(shifts[0] - shifts[1], 0.5, atol=1e-5)
    y, group = (np.concatenate([getattr(part, name) for part in parts[1:3]]) for name in ("y", "group"))
    worst = lambda c: max(np.mean((y[group == g] - c) ** 2) for g in (0, 1))
    grid = np.linspace(-1, 1, 2001)
    assert worst(shifts[0]) <= min(map(worst, grid)) + 1e-6


def test_divisions_are_even_in_groups_and_intervals_of_the_label_and_differ(finished):
    config, *_ = finished
    data = debias_data.read(config.files)
    parts = [debias_divisions.divide(data, seed) for seed in (0, 1)]
    for division in parts:
        assert np.ptp([len(division.target.y) / 2, len(division.selection.y), len(division.test.y)]) <= 2
        quarters = [np.quantile(part.y, [0.25, 0.5, 0.75]) for part in division[1:]]
        np.testing.assert_allclose(quarters[1], quarters[0], atol=0.2)
        np.testing.assert_allclose(quarters[2], quarters[0], atol=0.2)
    assert set(parts[0].test.id) != set(parts[1].test.id)
    names = debias_divisions.strata_names(data)
    strata = debias_divisions.strata(data, data.train.y)
    assert len(names) == len(np.unique(strata)) == 10
    assert names[0].startswith("below ")
    low, high = map(float, names[4].split(" to "))
    inside = np.asarray(planted("train")["price"])[strata == 4]
    assert low - 5 <= inside.min() <= inside.max() <= high + 5  # names have three digits


def test_groups_may_be_quantiles_of_the_label(tmp_path):
    data = debias_data.read(replace(make_files(tmp_path), group="price:4"))
    assert np.bincount(data.target.group).tolist() == [100] * 4
    assert all("price" in name for name in data.group_names)


MODELS = """
from flax import linen
def small(outputs): return linen.Dense(outputs)
def wide(outputs): return linen.Dense(outputs + 1)
def positive(outputs): return linen.Sequential([linen.Dense(outputs), linen.softplus])
"""


def test_a_model_of_the_user_has_one_output(tmp_path):
    (tmp_path / "m.py").write_text(MODELS)
    x = np.linspace(0, 1, 12, dtype=np.float32).reshape(4, 3)
    for name in ("small", "positive"):
        model = user_model.load_model(f"{tmp_path}/m.py:{name}", None, x)
        assert model.apply(model.init(jax.random.key(0), x), jnp.asarray(x))[0].shape == (4, 1)
    with pytest.raises(ValueError, match=r"\[2, 2\] of features \[2, 3\] in evaluation, expected predictions float32"):
        user_model.load_model(f"{tmp_path}/m.py:wide", None, x)


def changed(**columns):
    return lambda path: write_csv(path / "train.csv", planted("train") | columns)


NUMBERS = np.asarray(planted("train")["price"], np.float64)
BAD = [
    ({}, changed(price=(NUMBERS > 5000).astype(int)), r"--label: found 2 different values in 'price'.*like a class"),
    ({}, changed(price=np.full(N, 7)), r"--label: found 1 different values in 'price' of --train"),
    ({}, changed(price=np.where(np.arange(N) == 3, np.inf, NUMBERS)), r"found 1 infinite values .* first in row 3"),
    ({}, changed(price=np.where(np.arange(N) == 3, "", NUMBERS.astype(str))), r"'price': found 1 missing values"),
    ({}, changed(price=np.where(np.arange(N) == 5, "cheap", NUMBERS.astype(str))), r"found 'cheap' in 'price'.*row 5"),
    ({}, changed(price=NUMBERS * 1e300), r"--label: y: found labels of mean .* expected finite ones"),
    ({"label": "row"}, None, r"--label: found 'row' in --id or --drop"),
    ({"group": None, "auto": True}, None, r"--auto: found --regression, expected classes.*--group 'price:4'"),
    ({"group": "row"}, None, r"--validation: found so few examples of groups|--group: found"),
    (
        {},
        lambda path: write_csv(path / "val.csv", planted("val") | {"cue": np.full(400, "holds")}),
        r"--group: found one group in --validation",
    ),
    ({"regression": False}, None, r"--label: found numbers such as .* --regression predicts numbers"),
]


@pytest.mark.parametrize(("fields", "prepare", "message"), BAD)
def test_bad_labels_are_refused_before_anything_is_written(tmp_path, fields, prepare, message):
    files = replace(make_files(tmp_path), **fields)
    if prepare:
        prepare(tmp_path)
    with pytest.raises(ValueError, match=message):
        debias.prepare(debias.Config(files, **QUICK), results=tmp_path / "results")
    assert not (tmp_path / "results").exists()


def test_numbers_far_from_every_prediction_are_suspects():
    residuals = np.array([0.0, 1.0, -1.0, 0.5, -0.5, 8.0])
    # The median is .25 and the median distance from it .75: three deviations are 3.34.
    assert regression.fits(residuals).tolist() == [True] * 5 + [False]


def test_a_shift_ends_where_parabolas_cross_or_at_the_bottom_of_one():
    rng = np.random.default_rng(0)
    for _ in range(20):
        residuals, group = rng.normal(size=60) * rng.exponential(size=60), rng.integers(0, 3, 60)
        residuals += group * rng.normal()
        group[:5] = -1
        worst = lambda c, r=residuals, g=group: max(np.mean((r[g == k] - c) ** 2) for k in range(3))
        shift = float(regression.shift(residuals, group, 4))  # group 3 is empty
        grid = shift + np.linspace(-1, 1, 401)
        assert worst(shift) <= min(map(worst, grid)) * (1 + 1e-5)
    assert float(regression.shift(np.ones(60), np.full(60, -1), 3)) == 0


def made(method, error, overall=10.0, *, role="ours", removed=0.2, deviation=0.1, seeds=3, **settings):
    values = {"worst_group_rms_error": error + deviation * np.linspace(-1, 1, 3)[:seeds]}
    values |= {"rms_error": [overall] * seeds, "removed": [removed] * seeds}
    return verdict_row("t", method, values, role=role, settings=settings)


def table(ours, *, shift=20.0, weights=20.0, targets=20.0, overall=10.0, **options):
    control = lambda name, error, controls, removed=0.0: made(
        name, error, role="control", controls=controls, removed=removed, **options
    )
    return [
        made("plain", 20.0, role="plain", removed=0.0, **options),
        control("shift", shift, "shift"),
        control("weights", weights, "label weights"),
        control("random", 20.0, "number", 0.2),
        control("matched", 20.0, "label balance", 0.2),
        control("targets", targets, "targets alone"),
        made("ours", ours, overall, selected=True, **options),
    ]


def decided(rows, error=0.0, **options):
    sizes = {"target": [90, 30], "selection": [45, 15], "test": [45, 15]}
    influences = {row["method"]: np.array([error if row["role"] == "ours" else 0.0]) for row in rows}
    return verdict.decide(rows, sizes, ("big", "small"), influences, **options)


@pytest.mark.parametrize(
    ("rows", "options", "action"),
    [
        (table(15), {}, verdict.DROP),
        (table(15, shift=15), {}, verdict.SHIFT),
        (table(15, weights=14), {}, verdict.BALANCE_LABELS),
        (table(15, targets=14), {}, verdict.TARGETS),
        (table(19.9), {}, verdict.LEAVE),
        (table(25), {}, verdict.LEAVE),
        (table(15, overall=10.6), {}, verdict.LEAVE),  # six per cent more error over all
        (table(15, overall=10.6), {"max_loss": 0.07}, verdict.DROP),
        (table(15), {"error": 3.0}, verdict.LEAVE),  # two standard errors are 6
        (table(18.9, seeds=1), {}, verdict.DROP),  # a single seed: a twentieth of 20 counts as none
        (table(19.1, seeds=1), {}, verdict.LEAVE),
    ],
)
def test_smaller_errors_win(rows, options, action):
    assert decided(rows, **options).action == action


def test_the_sentence_is_of_errors():
    assert decided(table(15, overall=9.8)).sentence == (
        "Drop them: ours lowers the error of the worst group from 20 to 15; average error changes by -2.0 %."
    )
    assert "5 % more error (--max-loss)" in decided(table(15, overall=12)).reasons[0]
