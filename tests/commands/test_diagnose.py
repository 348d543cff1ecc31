"""The command that diagnoses the user's own table: suspects, files, reruns, advice and bad input."""

import csv
import shutil
import sys
from dataclasses import replace
from html import escape
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from planted_diagnoser import NETWORK, make_files, planted, planted_diagnoser, smoke

from d3mjax.commands import diagnose, diagnose_data, diagnose_report
from d3mjax.data.columns import Column
from d3mjax.data.planted.mixed_errors import KINDS
from d3mjax.diagnosis import repair, taught
from d3mjax.diagnosis.cells import WIDE
from d3mjax.runtime import diagnoser, runs, store


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("own")
    run = smoke(path)
    config = diagnose.Config(make_files(path), diagnoser=str(path / "made.npz"), networks=2, repair="change", seeds=2)
    return config, path, run


@pytest.fixture
def made(finished):
    return finished[1] / "made.npz"


def lines_of(path):
    with open(path) as file:
        return list(csv.DictReader(file))


def test_everything_is_left_behind(finished):
    _, _, run = finished
    document = store.read_json(run / "metrics.json")
    runs.validate_document(document)
    methods = {row["method"]: row["metrics"] for row in document["rows"]}
    assert list(methods) == ["diagnosis, each network alone", diagnose_report.BEFORE, diagnose_report.AFTER]
    assert all(len(methods[m]["average_accuracy"]["per_seed"]) == 2 for m in list(methods)[1:])
    verdict_line, _, findings = (run / "advice.txt").read_text().split("\n\n")
    page = (run / "report.html").read_text()
    assert all(escape(line.removeprefix("- ")) in page for line in [verdict_line, *findings.splitlines()])
    assert len(findings.splitlines()) <= diagnose_report.MOST
    assert 'alt="Worst class against average accuracy' in page
    named = ("same", "none", "pilot", "--validation has 96 rows", *(kind.capitalize() for kind in KINDS))
    assert all(name in page for name in named)
    with np.load(run / "probabilities.npz") as file:
        assert file["probabilities"].shape == (240, 3)
        assert file["id"].tolist() == planted(0, 240, 24, 8)["row"].tolist()


def test_wrong_labels_and_broken_numbers_are_found_by_the_users_names(finished):
    _, _, run = finished
    lines = lines_of(run / "suspects.csv")
    assert [float(line["probability"]) for line in lines] == sorted(
        [float(line["probability"]) for line in lines], reverse=True
    )
    of = lambda kind: {line["id"]: line["proposal"] for line in lines if line["kind"] == kind}
    assert set(of("feature error")) == {f"r0-{i}" for i in range(24, 32)}
    assert all(text.startswith("impute b: 40.0 -> ") for text in of("feature error").values())
    wrong = {f"r0-{i}" for i in range(24)}
    suspects = set(of("label error"))
    assert len(suspects & wrong) > 18
    assert len(suspects & wrong) > 0.5 * len(suspects)
    assert {text for text in of("label error").values() if text.startswith("relabel")} == {
        "relabel as low",
        "relabel as high",
    }


def test_the_repaired_table_is_the_users_but_for_what_is_proposed(finished):
    _, path, run = finished
    before, after = lines_of(path / "train.csv"), lines_of(run / "repaired.csv")
    proposals = {(line["id"], line["kind"]): line["proposal"] for line in lines_of(run / "suspects.csv")}
    assert list(after[0]) == [*before[0], "weight"]
    for old, new in zip(before, after, strict=True):
        proposal = proposals.get((old["row"], "label error"), "")
        assert (old["income"] != new["income"]) == proposal.startswith("relabel")
        changed = {name for name in ("a", "b", "age", "job") if old[name] != new[name]}
        proposed = proposals.get((old["row"], "feature error"), "")
        assert all(f"{name}: " in proposed for name in changed)
        assert (old["same"], old["none"], old["row"]) == (new["same"], new["none"], new["row"])
    assert all(float(row["weight"]) > 0 for row in after)  # broken rows are imputed, none is dropped


def job_of(config, results, run):
    return diagnose.job_of(config, diagnose_data.read(config.files), results, run, network=NETWORK)


def test_the_same_command_reads_what_is_there(finished, monkeypatch):
    config, path, run = finished
    files = ("suspects.csv", "repaired.csv", "advice.txt")
    before = [(run / name).read_bytes() for name in files], store.read_json(run / "metrics.json")["rows"]
    for name in ("look", "compare"):
        monkeypatch.setattr(diagnose, name, lambda *a, **options: pytest.fail("computed again"))
    assert diagnose.main(config, path / "results", network=NETWORK) == run
    assert ([(run / name).read_bytes() for name in files], store.read_json(run / "metrics.json")["rows"]) == before


def test_other_contents_or_another_diagnoser_are_another_run(finished, made, tmp_path):
    config, path, run = finished
    rows = (path / "train.csv").read_text().splitlines()
    (tmp_path / "train.csv").write_text("\n".join([rows[0], *rows[2:], rows[1]]))
    other = replace(config, files=replace(config.files, train=str(tmp_path / "train.csv")))
    with pytest.raises(ValueError, match="another configuration: data"):
        job_of(other, path / "results", run.name)
    fitted, manifest = planted_diagnoser()
    taught.save(tmp_path / "other.npz", fitted._replace(thresholds=np.full(3, 0.5)), manifest)
    shutil.copy(made, tmp_path / "same.npz")
    same = job_of(replace(config, diagnoser=str(made)), path / "results", run.name)
    assert same.directory == run
    with pytest.raises(ValueError, match="another configuration: diagnoser"):
        job_of(replace(config, diagnoser=str(tmp_path / "other.npz")), path / "results", run.name)
    with pytest.raises(ValueError, match="another configuration: network"):
        diagnose.prepare(config, results=path / "results", run=run.name)


def test_diagnosers_that_do_not_fit_are_refused(tmp_path, made):
    config = diagnose.Config(make_files(tmp_path), diagnoser=str(tmp_path / "none.npz"))
    with pytest.raises(ValueError, match=r"--diagnoser: found no file .*none\.npz, expected one of python -m"):
        diagnose.prepare(config, results=tmp_path / "results")
    fitted, manifest = planted_diagnoser()
    other = tmp_path / "other.npz"
    taught.save(other, fitted, manifest | {"channels": ["loss", "norm"]})
    with pytest.raises(
        ValueError, match=r"--diagnoser: .*channels: found \['loss', 'norm'\], expected \['influence 0"
    ) as error:
        diagnose.prepare(replace(config, diagnoser=str(other)), results=tmp_path / "results")
    assert WIDE[-1] in str(error.value)
    other.write_bytes(made.read_bytes()[:-50])
    with pytest.raises(ValueError, match=r"--diagnoser: .*other\.npz is damaged"):
        diagnose.prepare(replace(config, diagnoser=str(other)), results=tmp_path / "results")
    diagnoser.save_diagnoser(other, {"variables": np.zeros(2), "thresholds": np.zeros(3)}, manifest)
    with pytest.raises(ValueError, match=r"--diagnoser: .* holds \['thresholds', 'variables'\], expected trees"):
        diagnose.prepare(replace(config, diagnoser=str(other)), results=tmp_path / "results")
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("name", ["networks", "seeds"])
def test_numbers_must_be_positive(tmp_path, name):
    with pytest.raises(ValueError, match=f"--{name}: found 0, expected at least 1"):
        diagnose.prepare(replace(diagnose.Config(make_files(tmp_path)), **{name: 0}), results=tmp_path)


def test_without_a_diagnoser_the_shipped_one_answers(tmp_path):
    config = diagnose.Config(make_files(tmp_path), networks=1, seeds=1)
    job = diagnose.prepare(config, results=tmp_path / "results")
    assert job.manifest == taught.shipped()[1]
    run = diagnose.work(job)
    suspects = {line["id"] for line in lines_of(run / "suspects.csv") if line["kind"] == "label error"}
    wrong = {f"r0-{i}" for i in range(24)}
    assert len(suspects & wrong) > 12
    assert len(suspects & wrong) > 0.7 * len(suspects)


def test_the_command_says_what_is_wrong_in_one_line(tmp_path, monkeypatch):
    files = make_files(tmp_path)
    line = ["d3mjax-diagnose", "--train", files.train, "--validation", files.validation, "--label"]
    monkeypatch.setattr(sys, "argv", [*line, "incom", "--drop", "same,none"])
    with pytest.raises(SystemExit, match=r"^d3mjax-diagnose: --label: found no 'incom' .* Did you mean income\?"):
        diagnose.cli()


def evaluated(precision, simple=0.3, every=0.2):
    rivals = {"trivial rules": {"precision": simple}, "every row": {"precision": every}}
    tables = {"one": {"precision": precision - 0.1}, "two": {"precision": precision + 0.1}}
    figures = {"recall": 0.5, "rivals": rivals, "tables": tables, "trivial": "the largest losses"}
    return {"precision": precision, "by_clean": [[0.8, 0.6]]} | figures


def test_details_on_a_kind_follow_from_the_evaluation_of_the_diagnoser():
    claimed = np.arange(50) < 10
    advice = lambda figures: diagnose_report._kind(KINDS[0], claimed, figures)
    good = advice(evaluated(0.7))
    for number in ("10 of 50", "20.0%", "70%", "60% to 80%", "60% where 80%", "50% of such rows", "30%", "20%"):
        assert number in good
    verdicts = [advice(evaluated(0.7)), advice(evaluated(0.4)), advice(evaluated(0.32))]
    verdicts.append(advice(evaluated(0.7) | {"precision": None}))
    parts = ("Most claims are right", "Most claims are wrong", "The trivial rule does as well", "not known")
    assert [[part in verdict for part in parts] for verdict in verdicts] == np.eye(4, dtype=bool).tolist()


def test_broken_rows_have_weight_zero_on_demand(finished):
    config, path, _ = finished
    job = job_of(config, path / "results", None)
    units = [unit for s in range(2) if (unit := runs.read_unit(job.directory, f"network-{s}"))]
    dropped = diagnose.decide(job._replace(config=replace(config, broken="drop")), units)
    assert (dropped.repaired.weights == 0).sum() == dropped.diagnosis.claims[:, 1].sum() == 8


def test_by_default_rows_weigh_by_their_probability_to_be_sound(finished):
    config, path, _ = finished
    job = job_of(config, path / "results", None)
    units = [unit for s in range(2) if (unit := runs.read_unit(job.directory, f"network-{s}"))]
    decision = diagnose.decide(job._replace(config=replace(config, repair="weigh")), units)
    p, repaired = decision.diagnosis.probabilities, decision.repaired
    np.testing.assert_allclose(repaired.weights, (1 - p[:, 0]) * (1 - p[:, 1]), rtol=1e-5)
    np.testing.assert_array_equal(repaired.labels, job.data.y)
    assert repaired.table is job.data.train
    wrong = np.isin(job.data.names, [f"r0-{i}" for i in range(32)])
    assert repaired.weights[wrong].mean() < 0.5 * repaired.weights[~wrong].mean()
    i = int(np.flatnonzero(job.data.names == "r0-0")[0])
    other = job.data.class_names[1 - job.data.y[i]]
    proposal = diagnose_report._proposal(job.data, decision, i, repair.LABEL)
    assert proposal == f"weight {repaired.weights[i]:.2f}; other rows predict {other}"
    text = diagnose_report._caution(decision)
    assert f"{(repaired.weights < 0.5).sum()} of 240 rows weigh less than a half" in text


def test_a_dry_run_leaves_the_data_card_alone(made, tmp_path, capsys):
    config = diagnose.Config(make_files(tmp_path), diagnoser=str(made))
    run = diagnose.work(diagnose.prepare(config, results=tmp_path / "results", dry_run=True))
    kinds = {column["name"]: column["kind"] for column in store.read_json(run / "data.json")["columns"]}
    assert (kinds["a"], kinds["job"], kinds["same"]) == ("number", "category", "dropped")
    assert "job     category  4 levels; 2 missing in --train" in capsys.readouterr().out
    assert not (run / "metrics.json").exists()


def test_suspected_texts_are_shown_the_likeliest_first():
    raw = pd.DataFrame({"a": [1, 2, 3, 4], "review": ["w", "x", "y", "z"]})
    kinds = (Column("a", "number"), Column("review", "text"))
    nothing: Any = None
    data = diagnose_data.UserTable(*[nothing] * len(diagnose_data.UserTable._fields))
    names = np.array(["r0", "r1", "r2", "r3"])
    data = data._replace(columns=kinds, raw=raw, names=names, y=np.array([0, 1, 0, 1]), class_names=("n", "p"))
    probabilities = np.array([[0.7, 0, 0], [0.2, 0, 0], [0.9, 0, 0], [0.8, 0, 0]])
    claims = np.array([[1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0, 0]], bool)
    info = SimpleNamespace(proposed=np.array([1, 0, 1, 0]))
    diagnosis: Any = SimpleNamespace(probabilities=probabilities, claims=claims, info=info)
    decision = diagnose_report.Decision(diagnosis, claims, nothing, nothing, nothing)
    (lines,) = diagnose_report.suspected_texts(data, decision).values()
    assert [(line["id"], line["text"], line["label"]) for line in lines] == [("r2", "y", "n"), ("r0", "w", "n")]
    assert lines[0]["proposal"] == "relabel as p"
    assert diagnose_report.suspected_texts(data._replace(columns=kinds[:1]), decision) == {}
