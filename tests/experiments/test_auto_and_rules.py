"""The experiments on pseudo-groups and removal rules run from raw data to their pages on little data."""

import numpy as np
import pytest

from d3mjax.runtime import runs, store
from experiments.d3m import auto_d3m, removal_rules


def rows_of(run, task):
    document = store.read_json(run / "metrics.json")
    runs.validate_document(document)
    return {row["method"]: row for row in document["rows"] if row["task"] == task}


def test_groups_found_without_labels_stand_beside_the_true_ones(tmp_path):
    run = auto_d3m.main(auto_d3m.Config(tasks=("patch", "patch-none"), smoke=True), tmp_path)
    patch, none = rows_of(run, "patch"), rows_of(run, "patch-none")
    assert patch["AUTO-D3M"]["information"] == "none"
    assert patch["D3M, true groups"]["information"] == "validation groups"
    assert 0.5 <= patch["AUTO-D3M"]["metrics"]["attribute_auc"]["mean"] <= 1
    for metric in ("worst_group_accuracy", "average_accuracy", "removed"):  # refused: plain training to the last bit
        assert none["AUTO-D3M"]["metrics"][metric] == none["ERM"]["metrics"][metric]
    assert none["AUTO-D3M"]["metrics"]["refused"]["mean"] == 1
    with np.load(run / "units" / "patch-none-10.npz") as unit:
        np.testing.assert_array_equal(np.bincount(unit["target_group"], minlength=4)[1:3], 0)
    assert (run / "report.html").read_text().count("data:image/png;base64,") == 4


def test_fewer_targets_are_the_first_of_the_two_rarest_groups():
    data = auto_d3m.tasks.PATCH.read(10, smoke=True)
    fewer = auto_d3m.fewer_targets(data, 2)
    group = np.asarray(data.target.group)
    kept = np.isin(data.target.id, fewer.target.id)
    for g in range(4):
        members = np.flatnonzero(group == g)
        expected = members[:2] if g in (1, 2) else members
        np.testing.assert_array_equal(np.flatnonzero(kept & (group == g)), expected)
    assert auto_d3m.fewer_targets(data, None) is data


def test_rules_of_one_size_remove_as_many(tmp_path):
    run = removal_rules.main(removal_rules.Config(tasks=("patch",), smoke=True), tmp_path)
    rows = rows_of(run, "patch")
    removed = {name: row["metrics"]["removed"]["mean"] for name, row in rows.items()}
    for name in ("lowest", "lowest of each class", "lowest in rounds", "step", "lowest, damping 1", "step, damping 1"):
        assert removed[f"D3M, {name}"] == pytest.approx(0.1, abs=0.004)
    assert removed["D3M, half a step"] == pytest.approx(0.05)
    assert removed["ERM"] == removed["D3M, soft"] == 0
    assert removed["D3M, k by selection"] <= 0.1
    assert (
        rows["D3M, soft"]["metrics"]["effective_size"]["mean"] < 1 == rows["ERM"]["metrics"]["effective_size"]["mean"]
    )
    with np.load(run / "units" / "patch-10.npz") as unit:
        lowest, rounds = unit["weights/D3M, lowest"], unit["weights/D3M, lowest in rounds"]
        order = np.argsort(unit["score"], kind="stable")
        np.testing.assert_array_equal(np.flatnonzero(lowest == 0), np.sort(order[:60]))
        assert (rounds == 0).sum() == 60  # 30 in each of two rounds
    assert (run / "report.html").read_text().count("data:image/png;base64,") == 3
