"""The command for the user's own files: what it leaves behind, which models it takes, and what it concludes."""

import csv
import sys
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest
from planted_files import QUICK, make_files, planted

from d3mjax.commands import debias, debias_recipe, debias_report, debias_seed, measures, verdict
from d3mjax.commands.debias_seed import MATCHED, OFFSETS, PLAIN, RANDOM, SELECTED, TARGETS_ALONE
from d3mjax.runtime import runs, store


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The configuration, the directory of the files, the run, and how many training programs were compiled."""
    programs: Any = debias_recipe._trained
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
    assert [method for method in debias_report.METHODS if method in wga] == list(wga)
    assert wga[SELECTED] > wga[PLAIN] + 0.05
    assert compiled == 2  # one for the training set and one for the targets alone, whatever the seed and weights
    assert {"advice.txt", "examples.csv", "report.html", "scores.npz"} <= {path.name for path in run.iterdir()}
    verdict_line, table, findings = (run / "advice.txt").read_text().split("\n\n")
    assert verdict_line in (run / "report.html").read_text()
    assert [line.split("  ")[0] for line in table.splitlines()[2:]] == list(wga)
    assert len(findings.splitlines()) <= debias_report.MOST


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
    monkeypatch.setattr(debias_seed, "measure", lambda *args: (computed.append(args[2]), measure(*args))[1])
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


def made_units(kept=(), *, test=15):
    """Two seeds whose numbers are given by method: worst group and average, 0.2 removed by all but plain training."""
    accuracies = {PLAIN: 0.5, OFFSETS: 0.55, RANDOM: 0.51, MATCHED: 0.52, TARGETS_ALONE: 0.6, SELECTED: 0.8}
    sizes = {part: [90, size] for part, size in (("target", 30), ("selection", 15), ("test", test))}
    extra = {"suspects": 0.02, "effective_checkpoints": 2.0, "checkpoints": 20, "offsets": True, "sizes": sizes}
    removed = {PLAIN: 0.0, RANDOM: 0.2, MATCHED: 0.2, SELECTED: 0.2}
    facts = extra | {"removed": removed, "suspects_removed": {SELECTED: 0.3}}
    arrays = [
        {f"test/{m}": np.array([[0.95, a + seed / 50]]) for m, a in accuracies.items()}
        | {f"average/{m}": np.array([0.9]) for m in accuracies}
        | {f"influence/{m}": np.array([0.0, a / 100]) for m, a in accuracies.items()}
        | {"kept": k, f"offsets/{SELECTED}": np.array([[0.0, 1.0], [0.0, 2.0]])}
        for seed, k in enumerate(kept)
    ]
    return [(facts, a) for a in arrays]


KEPT = np.arange(10) >= 2


def test_rows_have_the_roles_that_the_verdict_needs():
    units = made_units([KEPT, KEPT])
    rows = {row["method"]: row for row in debias_report.rows_of("t", units)}
    assert list(rows) == [PLAIN, OFFSETS, RANDOM, MATCHED, TARGETS_ALONE, SELECTED]  # those that were measured
    assert {m: verdict.action_of(row) for m, row in rows.items()} == {
        PLAIN: verdict.LEAVE,
        OFFSETS: verdict.THRESHOLD,
        RANDOM: verdict.LEAVE,
        MATCHED: verdict.BALANCE,
        TARGETS_ALONE: verdict.TARGETS,
        SELECTED: verdict.BOTH,
    }
    assert rows[SELECTED]["settings"]["selected"]
    assert debias_report.decide(list(rows.values()), units, ["big", "small"], 0.05).action == verdict.BOTH


def test_findings_follow_the_verdict_and_are_few():
    units = made_units([KEPT, np.roll(KEPT, 1)])
    rows = debias_report.rows_of("t", units)
    result = debias_report.decide(rows, units, ["big", "small"], 0.05)
    findings = debias_report.findings(result, rows, units, ["no", "yes"])
    assert findings[0] == result.sentence
    assert len(findings) <= 1 + debias_report.MOST
    short = [[word for word in one.split() if word[0].isalnum()] for text in findings for one in text.split(". ")]
    assert max(map(len, short)) <= 25
    for part in ("first 20.0%", "no +0.00, yes +1.50", "30% of the dropped"):
        assert any(part in sentence for sentence in findings)
    # Each seed drops two of ten; one of them is the same.
    kept = [arrays["kept"] for _, arrays in units]
    assert "drops 50% (20% by chance)" in next(debias_report._agreement(kept))
    assert "+28.0 ± 2.0 points, above" in next(debias_report._against(rows[-1], rows[3], "others", lambda row: 0.0))
    assert "+28.0 ± 2.0 points, level" in next(debias_report._against(rows[-1], rows[3], "others", lambda row: 0.2))
    # The influence of the second example is .8 / 100, and .5 / 100 in plain training.
    ours, plain = debias_report.influences_of(units)[SELECTED], debias_report.influences_of(units)[PLAIN]
    np.testing.assert_allclose(ours - plain, [0, 0.003], rtol=1e-6)
    assert "error of 0.3 points by the reporting examples, 15 of" in next(
        debias_report._chance([45, 15], 0.003, measures.ACCURACIES)
    )


@pytest.mark.parametrize(("effective", "noisy"), [(10.4, False), (10.6, True)])
def test_scores_are_noise_where_checkpoints_share_less_than_half(effective, noisy):
    (facts, arrays), *_ = made_units([KEPT])
    ours = debias_report.rows_of("t", [(facts | {"effective_checkpoints": effective}, arrays)])[-1]
    assert bool(list(debias_report._noise(ours))) == noisy


def test_the_limit_on_average_accuracy_is_a_share(finished):
    config, path, run, _ = finished
    with pytest.raises(ValueError, match="--max-loss: found 5, expected a share"):
        debias.prepare(replace(config, max_loss=5.0), results=path / "results")
    assert debias.prepare(replace(config, max_loss=0.1), results=path / "results").directory == run


def test_seeds_are_put_together_by_mean_score():
    scores, kept = np.array([[3.0, -1, 0, 2], [1, 0, -2, 4]]), np.array([[1, 0, 1, 1], [0, 0, 0, 1]], bool)
    units = [
        ({"reading": 1}, {"score": np.stack([-s, s]), "kept": k, "suspect": k})
        for s, k in zip(scores, kept, strict=True)
    ]
    ranking = debias_report.rank(units, np.array([0, 0, 1, 1]))
    assert ranking.score.tolist() == [2, -0.5, -1, 3]
    assert ranking.rank.tolist() == [2, 1, 0, 3]
    assert ranking.keep.tolist() == [True, False, False, True]
    assert ranking.suspect.tolist() == [0.5, 0, 0.5, 1]
