"""The command for the user's own files: what it leaves behind, which models it takes, and what it concludes."""

import csv
import sys
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest
from planted_files import QUICK, make_files, planted

from d3mjax.commands import debias, debias_report, debias_seed
from d3mjax.commands.debias_seed import MATCHED, PLAIN, SELECTED, TARGETS_ALONE
from d3mjax.debiasing import d3m
from d3mjax.reports.rows import row
from d3mjax.runtime import runs, store


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The configuration, the directory of the files, the run, and how many training programs were compiled."""
    programs: Any = d3m._retrained
    path, before = tmp_path_factory.mktemp("own"), programs._cache_size()
    config = debias.Config(make_files(path), **QUICK)
    run = debias.main(config, path / "results")
    return config, path, run, programs._cache_size() - before


def read_lines(run):
    with open(run / "examples.csv") as file:
        return list(csv.DictReader(file))


def test_the_shortcut_is_found_and_everything_is_left_behind(finished):
    _, _, run, compiled = finished
    document = store.read_json(run / "metrics.json")
    runs.validate_document(document)
    wga = {row["method"]: row["metrics"]["worst_group_accuracy"]["mean"] for row in document["rows"]}
    assert list(wga) == list(debias_report.METHODS)
    assert wga[SELECTED] > wga[PLAIN] + 0.1
    assert compiled == 2  # one for the training set and one for the targets alone, whatever the seed and weights
    assert {"advice.txt", "examples.csv", "report.html", "scores.npz"} <= {path.name for path in run.iterdir()}


def test_the_list_goes_by_the_users_ids_lowest_scores_first(finished):
    _, _, run, _ = finished
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
    config, path, run, _ = finished
    before = store.read_json(run / "metrics.json")["rows"], (run / "examples.csv").read_bytes()
    (run / "units" / "train-1.npz").unlink()
    computed, measure = [], debias_seed.measure
    monkeypatch.setattr(
        debias_seed, "measure", lambda recipe, seed, bar: (computed.append(seed), measure(recipe, seed, bar))[1]
    )
    assert debias.main(config, path / "results") == run
    assert computed == [1]
    assert (store.read_json(run / "metrics.json")["rows"], (run / "examples.csv").read_bytes()) == before


def test_other_contents_of_a_file_are_another_run(finished, tmp_path):
    config, path, run, _ = finished
    rows = (path / "train.csv").read_text().splitlines()
    (tmp_path / "train.csv").write_text("\n".join([rows[0], *rows[2:], rows[1]]))
    other = replace(config, files=replace(config.files, train=str(tmp_path / "train.csv")))
    assert debias.prepare(other, results=path / "results").directory != run
    with pytest.raises(ValueError, match="another configuration: data"):
        debias.prepare(other, results=path / "results", run=run.name)


@pytest.mark.parametrize("field", ["seeds", "retrains", "checkpoints", "steps"])
def test_numbers_must_be_positive(tmp_path, field):
    few: dict[str, Any] = QUICK | {field: 0}
    config = debias.Config(make_files(tmp_path), **few)
    with pytest.raises(ValueError, match=f"--{field}: found 0, expected at least 1"):
        debias.prepare(config, results=tmp_path / "results")


MODELS = """
from flax import linen

def small(num_classes): return linen.Dense(num_classes)
"""


@pytest.fixture
def in_models(tmp_path, monkeypatch):
    (tmp_path / "own_models.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "own_models", raising=False)


def test_the_users_model_is_what_is_trained(in_models, tmp_path):
    config = debias.Config(make_files(tmp_path), model="own_models:small", **QUICK)
    job = debias.prepare(config, results=tmp_path / "results")
    assert jax.tree.map(np.shape, job.model.init(jax.random.key(0), job.data.train.x[:1])) == {
        "params": {"bias": (2,), "kernel": (13, 2)}
    }


@pytest.mark.parametrize("option", ["--validation", "--target"])
def test_what_is_wrong_is_one_line(tmp_path, monkeypatch, option):
    files = make_files(tmp_path)
    line = ["d3mjax-debias", "--train", files.train, option, files.target, "--label", "income"]
    monkeypatch.setattr(sys, "argv", line)
    with pytest.raises(SystemExit, match=r"^d3mjax-debias: --group: found none"):
        debias.cli()
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(sys, "argv", [*line, "--group", "sex", "--drop", "row", "--results", str(tmp_path / "file")])
    with pytest.raises(SystemExit, match=r"^d3mjax-debias: cannot write results to"):
        debias.cli()


def test_a_training_that_diverges_is_one_line(tmp_path, monkeypatch):
    files = make_files(tmp_path)
    line = ["d3mjax-debias", "--train", files.train, "--validation", files.target, "--label", "income"]
    rate = ["--group", "sex", "--rate", "1e30", "--steps", "5", "--results", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", [*line, *rate, "--drop", "row"])
    with pytest.raises(SystemExit, match=r"^d3mjax-debias: training diverged: .*lower the learning rate"):
        debias.cli()


def made_rows(ours, plain, matched, targets, removed=0.2):
    per_seed = {PLAIN: plain, MATCHED: matched, TARGETS_ALONE: targets, SELECTED: ours}
    extra = {"suspects": [0.02] * 2, "suspects_removed": [0.3] * 2, "effective_checkpoints": [2.0] * 2}
    more = {"removed": [removed] * 2, "average_accuracy": [0.9] * 2, **extra}
    return [
        row(
            *("t", method, {"worst_group_accuracy": values} | more),
            role=debias_report.METHODS[method].role,
            settings=debias_report.METHODS[method].settings() | {"checkpoints": 20},
        )
        for method, values in per_seed.items()
    ]


def advice_of(rows, sizes=(30, 15, 15)):
    facts = {"sizes": {part: [90, size] for part, size in zip(debias_report.PARTS, sizes, strict=True)}}
    kept = np.arange(10) >= 2
    units = [(facts, {"kept": kept}), (facts, {"kept": np.roll(kept, 1)})]
    return debias_report.advice(rows, units, ["big", "small"])


@pytest.mark.parametrize(
    ("rows", "sizes", "verdicts"),
    [
        (
            made_rows([0.8, 0.82], [0.5, 0.51], [0.5, 0.52], [0.6, 0.61]),
            (30, 15, 15),
            ("drop them", "does not explain it", "worth having", "a fair number"),
        ),
        (
            made_rows([0.5, 0.6], [0.5, 0.61], [0.8, 0.81], [0.5, 0.6]),
            (6, 3, 3),
            ("do not count on it", "balance your classes instead", "the simpler way", "too few to choose by"),
        ),
        (
            made_rows([0.5, 0.6], [0.5, 0.6], [0.5, 0.6], [0.9, 0.91], removed=0.0),
            (15, 15, 15),
            ("Keep your training set", "may explain all of it", "train on them", "few: more targets"),
        ),
    ],
)
def test_the_verdicts_follow_from_the_numbers(rows, sizes, verdicts):
    for sentence, verdict in zip(advice_of(rows, sizes), verdicts, strict=False):
        assert verdict in sentence


def test_the_numbers_of_the_advice():
    worth_it, _, _, size, suspects, agreement = advice_of(
        made_rows([0.8, 0.82], [0.5, 0.51], [0.5, 0.52], [0.6, 0.61])
    )[:6]
    assert "+30.5 ± 1.6 points" in worth_it
    # Standard error of a share of 0.81 among 15: sqrt(0.81 * 0.19 / 15) = 0.101.
    assert "10.1 points" in size
    assert "correcting labels may beat dropping" in suspects
    # Each seed drops two of ten; one of them is the same.
    assert "drops 50% (20% by chance)" in agreement


def test_few_examples_to_select_on_make_keeping_everything_doubtful():
    rows = made_rows([0.5, 0.6], [0.5, 0.6], [0.5, 0.6], [0.9, 0.91], removed=0.0)
    assert len(advice_of(rows, sizes=(6, 3, 3))[0]) > len(advice_of(rows)[0])


def test_seeds_are_put_together_by_mean_score():
    scores, kept = np.array([[3.0, -1, 0, 2], [1, 0, -2, 4]]), np.array([[1, 0, 1, 1], [0, 0, 0, 1]], bool)
    units = [
        ({"reading": 1}, {"score": np.stack([-s, s]), "kept": k, "suspect": k})
        for s, k in zip(scores, kept, strict=True)
    ]
    ranking = debias_report.rank(units, np.array([0, 0, 1, 1]), 2)
    assert ranking.score.tolist() == [2, -0.5, -1, 3]
    assert ranking.rank.tolist() == [2, 1, 0, 3]
    assert ranking.keep.tolist() == [True, False, False, True]
    assert ranking.suspect.tolist() == [0.5, 0, 0.5, 1]
