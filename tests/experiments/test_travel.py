"""Judging tables by others: measures by hand on small cells, folds that hold tables apart, rivals without flags."""

import json

import numpy as np
import pytest
from scipy.stats import rankdata

from d3mjax.data import tables
from d3mjax.data.planted import table_errors
from d3mjax.data.sets.shortcut_tables import TABLES, TableTask, divide
from d3mjax.diagnosis import claims, taught, trees
from d3mjax.runtime import store
from experiments.diagnosis import (
    many_tables,
    pretrain,
    travel,
    travel_cells,
    travel_measures,
    travel_repair,
    travel_rivals,
    travel_teach,
)
from experiments.diagnosis.travel_cells import FEATURES, Small


def made(task, seed, n=40, clean=0.8):
    """A cell whose features of label, value and label share show its flags."""
    rng = np.random.default_rng([*task.encode(), seed])
    flags = rng.random((n, 3)) < 0.25
    features = rng.normal(size=(n, len(FEATURES))).astype(np.float32)
    for k, name in enumerate(("loss", "far", "left out")):
        features[:, FEATURES.index(name)] += 6 * flags[:, k]
    y = rng.integers(0, 2, n)
    p = np.where(flags[:, :1], 0.05, 0.95) * np.eye(2)[y] + np.where(flags[:, :1], 0.95, 0.05) * np.eye(2)[1 - y]
    return Small(task, seed, 0, clean, "typos", features, flags, y, flags[:, 2], p.astype(np.float32), p)


CELLS = [made(task, seed) for task in "abcd" for seed in (0, 1)]


def test_claims_are_counted_by_hand():
    cell = CELLS[0]._replace(flags=np.array([[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 0]], bool))
    claimed = np.array([[1, 0, 1], [0, 1, 0], [1, 1, 0], [0, 0, 0]], bool)
    figures = travel_measures.of_claims(cell, claimed)
    assert (figures["label_f1"], figures["feature_f1"]) == (0.5, 2 / 3)
    assert np.isnan(figures["minority_f1"])  # none occurs
    assert figures["macro_f1"] == pytest.approx((0.5 + 2 / 3) / 2)
    assert (figures["label_precision"], figures["label_recall"]) == (0.5, 0.5)
    p = np.array([[0.9, 0.1, 0.4], [0.2, 0.7, 0], [0.6, 0.8, 0], [0.1, 0, 0]])
    sums = travel_measures.of_probabilities(cell, p, claimed)
    assert sums["label_expected"] == pytest.approx(1.5)
    assert (sums["label_hits"], sums["label_claims"], sums["feature_hits"]) == (1, 2, 1)


def test_means_gaps_and_shares_are_by_table():
    values = np.arange(8.0)
    means = travel_measures.averaged({"x": values, "y": np.full(8, np.nan)}, CELLS, np.array([True] * 6 + [False] * 2))
    assert means == {"x": [2.0, 3.0]}
    assert travel_measures.by_table(values, CELLS) == {"a": 0.5, "b": 2.5, "c": 4.5, "d": 6.5}
    ours = {f"{kind}_{name}": np.ones(8) for kind in travel_measures.TYPES for name in ("expected", "hits", "claims")}
    ours["label_hits"] = np.array([1.0, 1, 1, 0, 1, 0.92, 0, 0])
    np.testing.assert_allclose(travel_measures.precision_gaps(ours, CELLS)["label"], [0, 0.5, 0.04, 1], atol=1e-12)
    ours |= {"macro_f1": values, "label_auprc": values}
    rival = {"macro_f1": np.full(8, 3.0)}
    measures = {"ours": ours, travel_measures.SCORES: rival, travel_measures.UNTRAINED: {"macro_f1": np.full(8, 5.0)}}
    measures |= {name: {"label_auprc": np.full(8, 1.0)} for name in travel_rivals.LABEL}
    measures[next(iter(travel_rivals.CLEANLAB))] = {"label_auprc": np.full(8, 4.0)}
    shares = travel_measures.shares(measures, "ours", CELLS)
    assert shares["macro_f1_above_rivals"] == [0.25]
    assert shares["label_auprc_above_cleanlab"] == [0.5]
    assert shares["label_precision_within_5_points"] == [0.5]
    assert shares["feature_precision_within_5_points"] == [1.0]


def test_folds_hold_tables_apart_and_flags_of_a_table_do_not_change_its_probabilities():
    fold = travel.folds_of("dbca", 2)
    assert fold == travel.folds_of("abcd", 2)
    assert sorted(fold.values()) == [0, 0, 1, 1]
    apart, one = travel.folds_of("abcd", 4), travel.folds_of("abcd", 4)["a"]
    config = travel.Config(tasks=("adult", "wages", "bank", "letter"), folds=4, fitted=40, rounds=5)
    selected = np.ones(len(FEATURES), bool)
    first = travel.judge(CELLS, selected, config, apart)
    changed = [cell._replace(flags=~cell.flags) if apart[cell.task] == one else cell for cell in CELLS]
    again = travel.judge(changed, selected, config, apart)
    flags = np.concatenate([cell.flags for cell in CELLS])
    assert (first["fixed"] == flags).mean() > 0.8
    # The forests of table a have not seen it; those of other tables have, whose log-odds calibrate them.
    rows = np.repeat([cell.task == "a" for cell in CELLS], 40)
    for before, after in zip(first["probabilities"][rows].T, again["probabilities"][rows].T, strict=True):
        assert np.corrcoef(rankdata(before), rankdata(after))[0, 1] > 0.9999


def test_the_diagnoser_reads_all_features_and_has_the_figures_of_tables_left_out(tmp_path):
    config = travel.Config(tasks=("adult", "wages", "bank", "letter"), folds=4, fitted=20, rounds=5)
    fold, selected = travel.folds_of("abcd", 4), travel.METHODS[travel.OURS]
    judged, grown, options = (
        travel.judge(CELLS, selected, config, fold),
        travel.grown_on(CELLS, config),
        travel.options_of(config),
    )
    assert grown.sum() == 20 * len(CELLS)
    rows, manifest, digests = travel_teach.write(tmp_path / "made.npz", CELLS, judged, config)
    fitted, stored = taught.load(tmp_path / "made.npz")
    assert stored["evaluation"] == json.loads(store.json_text(manifest["evaluation"]))
    assert digests == {"rows": manifest["rows"], "arrays": taught.digest(fitted)}
    features, flags = (np.concatenate([getattr(cell, name) for cell in CELLS]) for name in ("features", "flags"))
    used = trees.fit(
        features[grown][:, selected],
        flags[grown],
        np.repeat(np.arange(4), 40),
        options=options,
        odds=judged["odds"][grown],
    )
    p = np.asarray(trees.predict(fitted, features))
    np.testing.assert_array_equal(p, trees.predict(used, features[:, selected]))
    np.testing.assert_array_equal(trees.claim(fitted, p), claims.expected_best(p))
    assert claims.macro_f1(trees.claim(fitted, p), flags) > 0.8
    # Figures of the claims in each cell, of both cells of a table and draw together, means over tables and draws.
    best = [claims.expected_best(q) for q in np.split(judged["probabilities"], len(CELLS))]
    precision = np.mean([(b & c.flags).sum(0) / b.sum(0) for b, c in zip(best, CELLS, strict=True)], axis=0)
    (row,) = [r for r in rows if (r["task"], r["method"]) == (pretrain.ALL, "diagnoser")]
    for kind, expected in zip(manifest["evaluation"], precision, strict=True):
        assert manifest["evaluation"][kind]["precision"] == row["metrics"][f"{kind} precision"]["mean"]
        assert row["metrics"][f"{kind} precision"]["mean"] == pytest.approx(expected, rel=1e-5)


def test_rivals_need_no_flags():
    for cell in CELLS[:3]:
        scores = travel_rivals.scores(cell)
        blind = travel_rivals.scores(cell._replace(flags=~cell.flags))
        assert all(np.array_equal(scores[name], blind[name]) for name in scores)
        for name in (*travel_rivals.CLEANLAB, "L: loss", "F: largest robust z", "S: left-out loss"):
            k = "LFS".index(name[0])
            assert travel_measures.average_precision(scores[name], cell.flags[:, k]) > 0.95
        np.testing.assert_array_equal(travel_rivals.suspects(cell, "networks"), cell.flags[:, 0])
        claimed = travel_rivals.without_flags(cell)
        assert claimed[:, 2].sum() == np.bincount(cell.y).min()
    measures = travel_measures.of_rivals(CELLS, travel.folds_of("abcd", 2))
    assert measures[travel_measures.SCORES]["macro_f1"].min() > 0.7
    assert (measures[travel_measures.RULE]["minority_auprc"] == 1).all()


def test_a_table_without_rules_is_completed():
    table, y = TABLES["planted"].load()
    task = many_tables.complete(TableTask("made", "", lambda: (table, y), ()), 300, 128)
    assert 1 <= len(task.rules) <= many_tables.RULES
    assert (task.train, task.validation, task.num_classes) == (300, 128, 2)
    few = tables.take(table, np.arange(400))
    small = many_tables.complete(TableTask("few", "", lambda: (few, y[:400]), ()), 300, 128)
    assert small.cuts != task.cuts
    assert small.train < 300
    form, pairs = travel_cells.planted(small, divide(small), (0.5, 0.8), 1)
    assert form in table_errors.FORMS
    for clean, (train, validation) in zip((0.5, 0.8), pairs, strict=True):
        assert len(train.labels) == small.train
        assert len(validation.labels) == small.validation
        assert train.flags[:, :2].sum(0).tolist() == [int((1 - clean) * small.train / 2 + 1e-9)] * 2
    again = travel_cells.planted(small, divide(small), (0.5, 0.8), 1)
    np.testing.assert_array_equal(again[1][1][0].flags, pairs[1][0].flags)
    (x, held), (other, _) = travel_cells.encoded(pairs)
    assert x.x.shape[1] == held.x.shape[1] == other.x.shape[1]


def test_accuracies_and_shares_of_tables_by_hand():
    y, group = np.array([0, 0, 1, 1]), np.array([0, 0, 2, 2])
    figures = travel_repair.accuracies(np.array([[0, 0, 1, 0], [1, 1, 1, 1]]), y, group)
    assert figures == {"accuracy": [0.75, 0.5], "worst group": [0.5, 0.0]}
    gain = np.array([0.02, -0.005, -0.05, 0.0])[:, None, None] * np.ones((4, 1, 2))
    worst = np.array([0.4, 0.6])[None, None] * np.ones((4, 1, 1))  # deviation 0.141
    change = np.array([0.1, -0.1, -0.2, 0.0])[:, None, None] * np.ones((4, 1, 2))
    assert list(travel_repair.shares(gain, change, worst).values()) == [0.25, 0.75, 0.75]


def test_bad_configurations_are_refused():
    with pytest.raises(ValueError, match="folds: found 5 for 2 tables, expected 2 up to as many"):
        travel.Config(tasks=("adult", "wages"))
    with pytest.raises(ValueError, match=r"tasks: found \['iris'\], expected names among"):
        travel.Config(tasks=("adult", "iris"), folds=2)
