"""The main table runs from data to report with every method in it; its settings and its gap are what they say."""

import pytest

from d3mjax.reports.rows import row
from d3mjax.runtime import runs, store
from experiments.d3m import main_table, tuned_methods
from experiments.tasks import TASKS


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    run = main_table.main(main_table.Config(tasks=("adult",), smoke=True), tmp_path_factory.mktemp("results"))
    document = store.read_json(run / "metrics.json")
    runs.validate_document(document)
    assert (run / "report.html").exists()
    return {row["method"]: row for row in document["rows"]}


def test_every_method_is_there_and_says_what_it_was_told(rows):
    told = {name: row["information"] for name, row in rows.items()}
    none = {"ERM", "ERM, tuned without groups", "RWY", "SUBY", "random removal", "class-matched random removal"}
    none |= {"highest loss removed", "lowest loss removed", "highest self-influence removed"}
    oracle = {"SUBG", "RWG", "GroupDRO", "SMOTE", "DFR on training data"}
    oracle |= {"group-matched random removal", "majority-random removal"}
    assert {name for name, information in told.items() if information == "none"} == none
    assert {name for name, information in told.items() if information == "training groups"} == oracle
    assert {"JTT", "DFR on validation data *", "ERM, tuned with groups", "RWG on the targets alone"} < told.keys()
    assert {"train and targets together", "D3M, drop negative", "D3M, by selection"} < told.keys()


def test_settings_name_the_budget_and_the_choice_of_each_seed(rows):
    (chosen,) = rows["GroupDRO"]["settings"]["chosen"]
    assert {"rate", "decay", "share", "eta", "selection_score"} == chosen.keys()
    assert rows["GroupDRO"]["settings"]["budget"] == 2
    assert {"up", "first", "errors", "precision", "recall"} < rows["JTT"]["settings"]["chosen"][0].keys()
    best, little = (rows[f"D3M, by selection{also}"] for also in ("", ", at most 10 % removed"))
    assert best["settings"]["budget"] == little["settings"]["budget"] == 10
    (chosen,) = little["settings"]["chosen"]
    assert chosen.endswith(("/0.1", "soft"))
    assert little["metrics"]["removed"]["mean"] <= 0.1 + 1e-6
    assert "removed" not in rows["RWG on the targets alone"]["metrics"]
    assert rows["RWG"]["metrics"]["removed"]["mean"] == 0


def test_controls_remove_as_many_as_the_rule(rows):
    removed = {name: row["metrics"]["removed"]["mean"] for name, row in rows.items() if "removed" in row["metrics"]}
    for name in main_table.CONTROLS:
        assert removed[name] == pytest.approx(removed["D3M, drop negative"])


def test_gap_closed_is_one_for_the_best_yardstick():
    wga = {"ERM": [0.2, 0.4], "SUBG": [0.6, 0.8], "RWG": [0.5, 0.5], "GroupDRO": [0.4, 0.4], "ours": [0.6, 0.4]}
    found = main_table.with_gap([row("t", n, {"worst_group_accuracy": v}, role="ours") for n, v in wga.items()])
    gap = {row["method"]: row["metrics"]["gap_closed"]["mean"] for row in found}
    # ERM .3, best yardstick .7, ours .5
    assert gap == pytest.approx({"ERM": 0, "SUBG": 1, "RWG": 0.5, "GroupDRO": 0.25, "ours": 0.5})
    worse = {"ERM": [0.9], "SUBG": [0.6], "RWG": [0.5], "GroupDRO": [0.4]}
    (first, *_) = main_table.with_gap([row("t", n, {"worst_group_accuracy": v}, role="ours") for n, v in worse.items()])
    assert first["metrics"]["gap_closed"]["mean"] is None


def test_all_methods_share_one_list_of_settings_with_the_default_first():
    task = TASKS["patch"]
    found = tuned_methods.settings(task, 10)
    assert found[0] == tuned_methods.Setting(task.rate, task.decay, 1.0)
    assert found[:4] == tuned_methods.settings(task, 4)
    assert len(set(found)) == 10
