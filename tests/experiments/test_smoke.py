"""Every experiment runs from raw data to its report on little data; the same command run again resumes."""

import numpy as np
import pytest

from d3mjax.runtime import runs, store
from experiments import study
from experiments.d3m import d3m, engine
from experiments.datamodels import lds_trak

CONFIG = d3m.Config(tasks=("patch",), smoke=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    results = tmp_path_factory.mktemp("results")
    return results, d3m.main(CONFIG, results)


def test_d3m_leaves_tables_scores_and_a_page(finished):
    _, run = finished
    document = store.read_json(run / "metrics.json")
    runs.validate_document(document)
    methods = {row["method"] for row in document["rows"]}
    assert {"ERM", "D3M, drop negative", "D3M, 10 % removed", "D3M, by selection", "SUBY", "SUBG", "RWG"} <= methods
    page = (run / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 5
    assert "http" not in page.replace("http-equiv", "")


def test_checkpoints_are_looked_at_one_by_one(finished):
    _, run = finished
    rows = store.read_json(run / "metrics.json")["rows"]
    patch = {row["method"]: row for row in rows if row["task"] == "patch"}
    rule = patch["D3M, drop negative"]
    with np.load(run / "units" / "patch-10.npz") as unit:
        suspect, kept = unit["suspect"], unit["kept"]
    assert rule["metrics"]["suspects"]["per_seed"][0] == pytest.approx(suspect.mean())
    assert rule["metrics"]["suspects_removed"]["per_seed"][0] == pytest.approx(suspect[~kept].mean())
    assert {"suspects_removed", "effective_checkpoints"}.isdisjoint(patch["ERM"]["metrics"])
    assert 1 <= rule["metrics"]["effective_checkpoints"]["mean"] <= rule["settings"]["checkpoints"] == 2
    page = (run / "report.html").read_text()
    for sentence in ("Label-error suspects are training examples", "Averaging the 2 checkpoints behind the scores"):
        assert page.count(sentence) == 1


def test_scores_and_kept_examples_are_joined_by_id(finished):
    _, run = finished
    with np.load(run / "units" / "patch-10.npz") as unit:
        assert len(unit["id"]) == len(unit["score"]) == len(unit["kept"]) == 600
        assert len(set(unit["id"].tolist())) == 600
        lowest = np.sort(unit["score"])[: (~unit["kept"]).sum()]
        assert set(unit["score"][~unit["kept"]]) == set(lowest)


def test_the_same_command_resumes_and_repeats_its_numbers(finished, monkeypatch):
    results, run = finished
    before = store.read_json(run / "metrics.json")["rows"]
    (run / "units" / "patch-11.npz").unlink()
    computed = []
    monkeypatch.setattr(d3m, "debias", lambda *a, original=d3m.debias: (computed.append(a[3]), original(*a))[1])
    assert d3m.main(CONFIG, results) == run
    assert computed == [11]
    assert store.read_json(run / "metrics.json")["rows"] == before


def test_an_unknown_task_is_refused_before_any_work(tmp_path):
    with pytest.raises(ValueError, match=r"tasks: found \['cats'\], expected names among \['adult', 'adult-balanced'"):
        d3m.main(d3m.Config(tasks=("cats",)), tmp_path)
    assert not list(tmp_path.iterdir())


def test_datamodels_can_be_the_source_of_group_columns(tmp_path):
    run = d3m.main(d3m.Config(tasks=("patch",), source=engine.Bank(), smoke=True), tmp_path)
    rows = store.read_json(run / "metrics.json")["rows"]
    removed = {row["method"]: row["metrics"]["removed"]["mean"] for row in rows if "removed" in row["metrics"]}
    assert removed["D3M, 10 % removed"] == pytest.approx(0.1)
    assert 0.2 < removed["D3M, drop negative"] <= 0.5
    assert not any({"suspects", "effective_checkpoints"} & row["metrics"].keys() for row in rows)


def test_lds_of_trak_lies_between_chance_and_the_ceiling(tmp_path):
    run = study.run(lds_trak.STUDY, lds_trak.Config(tasks=("patch",), smoke=True), tmp_path)
    rows = store.read_json(run / "metrics.json")["rows"]
    lds = {row["method"]: row["metrics"]["lds"]["mean"] for row in rows}
    ceiling = lds.pop("ceiling set by retraining noise")
    # Ten masks: a single target's correlation has standard deviation 1/3 by chance, the mean over targets less.
    assert all(0.1 < value < ceiling <= 1 for value in lds.values())
    for row in rows[:-1]:
        for (low, high), value in zip(row["settings"]["intervals"], row["metrics"]["lds"]["per_seed"], strict=True):
            assert low < value < high
    assert (run / "report.html").read_text().count("data:image/png;base64,") == 3
