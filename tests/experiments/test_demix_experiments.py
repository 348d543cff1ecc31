"""Diagnosis from planted errors to its page, on few rows: splits keep apart what they say, and reruns find it again."""

import numpy as np
import pytest

from d3mjax.runtime import runs, store
from experiments.diagnosis import demix_ablate, demix_cells, demix_corpus, demix_diagnose, demix_networks, demix_repair
from experiments.diagnosis.demix_tables import TABLES, divide


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return tmp_path_factory.mktemp("results")


@pytest.fixture(scope="module")
def diagnosed(results):
    return demix_diagnose.main(demix_diagnose.Config(smoke=True), results)


def rows_of(run):
    document = store.read_json(run / "metrics.json")
    runs.validate_document(document)
    return document["rows"]


def test_every_split_has_its_table(diagnosed):
    rows = rows_of(diagnosed)
    splits = {row["task"] for row in rows if row["task"].startswith("digits")}
    for split in ("in-cell", "new draw", "unseen rule", "other clean ratio"):
        assert f"digits, {split}, clean ratio 0.5" in splits
    drawn = {row["method"]: row["metrics"] for row in rows if row["task"] == "digits, new draw, clean ratio 0.8"}
    assert set(demix_diagnose.MAIN) <= set(drawn)
    assert {"best single scores", "flag everything", "L: loss", "S: SC = y", "S: knowing the rule"} <= set(drawn)
    # Everything flagged: recall 1, precision the share, which is .1 and .15: F1 2 s / (1 + s).
    assert drawn["flag everything"]["label_f1"]["mean"] == pytest.approx(0.2 / 1.1, abs=0.05)
    assert "label_f1" not in drawn["S: SC = y"]
    page = (diagnosed / "report.html").read_text()
    assert "Fitted on cells of the other rules" in page


def test_a_second_run_computes_nothing(diagnosed, results, monkeypatch):
    before = rows_of(diagnosed)
    monkeypatch.setattr(demix_corpus, "collect", lambda *args: lambda *more: pytest.fail("made cells again"))
    monkeypatch.setattr(demix_diagnose, "splits_of", lambda *args: pytest.fail("measured again"))
    assert rows_of(demix_diagnose.main(demix_diagnose.Config(smoke=True), results)) == before


def test_a_table_is_unseen_where_it_is_left_out(diagnosed, results, monkeypatch):
    """What fits the trees of *unseen table* are the cells of other tables and other draws alone."""
    cells = stored(results)
    corpus = {name: [cell._replace(task=name) for cell in cells] for name in ("digits", "other")}
    asked = []
    monkeypatch.setattr(
        demix_diagnose, "split_figures", lambda train, test, **options: asked.append((train, test)) or {"trees": {}}
    )
    found = demix_diagnose.splits_of(demix_diagnose.Config(in_depth=()), corpus, "other", 1)
    assert list(found) == ["new draw", "unseen table"]
    (draw, _), (table, test) = asked
    assert {(cell.task, cell.seed) for cell in draw} == {("other", 0), ("other", 2)}
    assert {(cell.task, cell.seed) for cell in table} == {("digits", 0), ("digits", 2)}
    assert {(cell.task, cell.seed) for cell in test} == {("other", 1)}


def stored(results):
    task = demix_corpus.small(TABLES["digits"], smoke=True)
    (run,) = (run for run in (results / "demix_cells").iterdir() if runs.read_unit(run, "digits-1"))
    units = [runs.read_unit(run, f"digits-{seed}") for seed in range(3)]
    return [cell for seed, unit in enumerate(units) if unit for cell in demix_corpus.read(task, seed, unit)]


def test_cells_hold_what_was_planted(results, diagnosed):
    task = demix_corpus.small(TABLES["digits"], smoke=True)
    cells = [cell for cell in stored(results) if cell.seed == 1]
    assert [(cell.rule, cell.clean) for cell in cells] == [(0, 0.5), (0, 0.8), (1, 0.5), (1, 0.8)]
    parts = divide(task)
    for cell in cells:
        planned = demix_cells.plan(task, parts, task.rules[cell.rule], cell.clean, 100 + cell.rule)
        assert cell.kind == demix_corpus.kind_of(planned)
        share = planned.train.flags.mean(0)
        np.testing.assert_allclose(cell.flags.mean(0), share, atol=0.06)  # 150 of 200 rows
        assert cell.features.shape == (150, len(demix_cells.FEATURES))
        assert cell.signals.min() > 0
        assert cell.signals.max() < 1


def test_scores_without_training_claim_what_they_would_by_hand():
    """Yes-or-no scores claim their yes, whatever its share; the best of each type on the training cells are joined."""
    rng = np.random.default_rng(0)
    n, names = 200, demix_corpus.SIGNALS

    def cell(share):
        flags = rng.random((n, 3)) < share
        signals = rng.random((n, len(names))).astype(np.float32)
        signals[:, names.index("L: loss")] = np.where(flags[:, 0], 0.95, signals[:, 0] * 0.8)
        yes = rng.random(n) < 0.5
        flags[:, 2] = yes & (rng.random(n) < 0.6)
        signals[:, names.index("S: SC = y")] = np.where(yes, 0.75, 0.25)  # ranks of two values that are equally many
        nothing = np.zeros((n, 1), np.float32)
        return demix_corpus.Stored("x", 0, 0, True, 0.5, "scale", nothing, flags, signals), yes

    (train, _), (test, yes) = cell(0.2), cell(0.1)
    found = demix_diagnose.rivals([train], [test])
    ((_, claimed),) = found["best single scores"]
    np.testing.assert_array_equal(claimed[:, 0], test.flags[:, 0])
    np.testing.assert_array_equal(claimed[:, 2], yes)
    ((values, _),) = found["S: JTT error set"]
    np.testing.assert_array_equal(np.unique(values[:, 2]), [0, 1])


def test_train_validation_and_test_rows_are_disjoint_and_errors_drawn_anew():
    task = demix_corpus.small(TABLES["planted"], smoke=True)
    parts = divide(task)
    first, second = (demix_cells.plan(task, parts, task.rules[0], 0.5, seed) for seed in (0, 1))
    ids = [set(table.id.tolist()) for table, _ in parts]
    assert len(set.union(*ids)) == sum(map(len, ids))
    assert set(first.train.table.id.tolist()) <= ids[0]
    assert set(first.validation.table.id.tolist()) <= ids[1]
    assert (first.train.table.id != second.train.table.id).any()


def test_repair_beside_its_controls(results):
    config = demix_repair.Config(smoke=True)
    rows = rows_of(demix_repair.main(config, results))
    of = {row["method"]: row["metrics"] for row in rows if row["task"] == "digits, balanced rules, clean ratio 0.5"}
    assert {"dirty", demix_repair.RECOMMENDED, "oracle, as published", "drop as many at random"} <= set(of)
    bold, careful = (of[name]["risk_by_the_guard"]["mean"] for name in ("predicted, labels alone", demix_repair.LABELS))
    assert bold >= careful  # the guard counts rows that are turned, and the careful turn fewer
    assert of["oracle, labels and features"]["average_accuracy"]["mean"] > of["dirty"]["average_accuracy"]["mean"]


def test_ablations_of_channels_and_networks(results):
    rows = rows_of(demix_ablate.main(demix_ablate.Config(smoke=True), results))
    methods = {row["method"] for row in rows if row["task"] == "planted, new draw, clean ratio 0.5"}
    assert {"trees: curvature alone", "trees: TRAK and channels 1-3", "trees: t = 16 and channels 1-3"} <= methods
    assert "mean pool: the same" in methods
    unseen = {row["method"] for row in rows if row["task"] == "planted, unseen task network, clean ratio 0.5"}
    assert unseen == {"trees: t = 16, 40 rows of each cell of 1 task networks", "mean pool: the same"}


def test_a_task_network_is_unseen_where_it_is_left_out(results, monkeypatch):
    config, asked = demix_networks.Config(smoke=True), []
    figures = {"trees": {str(clean): {"macro_f1": 0.5} for clean in config.cleans}}
    monkeypatch.setattr(
        demix_diagnose, "split_figures", lambda train, test, **options: asked.append((train, test)) or figures
    )
    demix_networks.main(config, results)
    assert len(asked) == 3 * 3 * 2  # draws, splits, networks
    for i, (train, test) in enumerate(asked):
        (task,), (seed,) = ({getattr(c, name) for c in test} for name in ("task", "seed"))
        assert seed not in {c.seed for c in train}
        assert (task in {c.task for c in train}) == (i % 3 < 2)
        assert len({c.task for c in train}) == (1, 2, 1)[i % 3]


@pytest.mark.parametrize("module", [demix_diagnose, demix_repair, demix_ablate])
def test_unknown_tables_are_refused(module, results):
    with pytest.raises(ValueError, match=r"tasks: found \['nothing'\], expected names among"):
        module.main(module.Config(tasks=("nothing",)), results)


def test_networks_and_seeds_are_checked(results):
    with pytest.raises(ValueError, match="networks: found"):
        demix_ablate.main(demix_ablate.Config(networks=("other",)), results)
    with pytest.raises(ValueError, match="models: found"):
        demix_ablate.main(demix_ablate.Config(models=("mlp 64-32",)), results)
    with pytest.raises(ValueError, match=r"networks: found \['mlp 64-32'\], expected two at least of"):
        demix_networks.main(demix_networks.Config(networks=("mlp 64-32",)), results)
    with pytest.raises(ValueError, match="seeds: found 2, expected at least 3"):
        demix_diagnose.main(demix_diagnose.Config(seeds=2), results)
