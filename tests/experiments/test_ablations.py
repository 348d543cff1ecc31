"""Ablations of D3M run from raw data to their page; what they share is exact."""

import numpy as np
import pytest

from d3mjax.runtime import hosts, runs, store
from d3mjax.training import sampling
from experiments.d3m import (
    ablate_checkpoints,
    ablate_projection,
    ablate_regime,
    ablate_source,
    ablate_targets,
    ablate_weighting,
    ablations,
    engine,
    group_counterfactuals,
    label_errors,
    stability,
)


def run_smoke(experiment, results, **fields):
    fields = fields or {"tasks": ("patch",)}
    run = experiment.main(experiment.Config(smoke=True, **fields), results)
    document = store.read_json(run / "metrics.json")
    runs.validate_document(document)
    assert "data:image/png;base64," in (run / "report.html").read_text()
    return {row["method"]: {name: value["mean"] for name, value in row["metrics"].items()} for row in document["rows"]}


@pytest.mark.parametrize("experiment", [ablate_checkpoints, ablate_projection, ablate_weighting])
def test_every_variant_beats_plain_training_on_a_planted_cue(experiment, tmp_path):
    found = run_smoke(experiment, tmp_path)
    erm = found.pop("ERM")["worst_group_accuracy"]
    assert found.pop("SUBG")["gap_closed"] == 1
    assert len(found) > 1
    assert all(row["worst_group_accuracy"] > erm for row in found.values())
    assert all(0 < row["removed"] <= 0.5 for row in found.values())


def test_fewer_targets(tmp_path):
    found = run_smoke(ablate_targets, tmp_path)
    same, equal = (ablate_targets.named("D3M", *at) for at in ((100, "of the same mix"), (20, "in equal groups")))
    assert (found[same]["targets"], found[equal]["targets"]) == (100, 20)
    alone = found[ablate_targets.named("RWG on the targets alone", 20, "in equal groups")]
    assert "removed" not in alone  # nothing of the training set is used
    assert found[equal]["worst_group_accuracy"] > found["ERM"]["worst_group_accuracy"]


def test_sources_are_interchangeable_and_timed(tmp_path):
    found = run_smoke(ablate_source, tmp_path)
    names = {name for name in found if name.startswith("D3M by ")}
    assert {name.split(",")[0] for name in names} == {
        "D3M by TRAK",
        "D3M by TRAK of the last layer",
        "D3M by influence",
        "D3M by ridge",
        "D3M by LASSO",
    }
    assert all(found[name]["seconds"] > 0 for name in names)


def test_a_regime_is_a_task_of_its_own(tmp_path):
    assert len(ablate_regime.REGIMES) == 2 * (len(ablate_regime.STEPS) + len(ablate_regime.DECAYS) - 1)
    name = "patch, 200 steps, decay 0.001"
    assert ablate_regime.REGIMES[name].steps == 200
    assert {"ERM", "D3M", "RWG", "SUBG"} == run_smoke(ablate_regime, tmp_path, tasks=(name,)).keys()


def test_group_counterfactuals_predict_the_right_direction(tmp_path):
    found = run_smoke(group_counterfactuals, tmp_path)
    assert found["highest scores removed"]["pearson"] > 0.5
    assert found["highest scores removed"]["slope"] > 0


def test_stability_has_itself_as_reference(tmp_path):
    found = run_smoke(stability, tmp_path)
    same = found.pop("D3M, all targets")
    assert same["overlap"] == 1
    assert all(row["overlap"] < 1 for name, row in found.items() if name.startswith("D3M"))


def test_overlap_is_the_jaccard_index_and_its_chance_level():
    one, other = np.array([0, 0, 1, 1, 1, 1], bool), np.array([0, 1, 0, 1, 1, 1], bool)
    assert stability.overlap(one, other) == {"overlap": 1 / 3, "overlap by chance": pytest.approx(1 / 5)}
    assert stability.overlap(one, one)["overlap"] == 1
    assert stability.overlap(one | True, other)["overlap by chance"] == 0


def test_planted_label_errors_are_found(tmp_path):
    found = run_smoke(label_errors, tmp_path, tasks=("label-errors",))
    ours, loss = (found[label_errors.named(name, 0.05)] for name in label_errors.RANKINGS[:2])
    assert ours["precision"] > 2 * loss["precision"]
    assert ours["precision"] > 0.2 > found[label_errors.named("random", 0.05)]["precision"]
    assert ours["recall"] <= ours["precision"]  # of some 60 errors, 30 examples are looked at


def test_variants_are_judged_apart_whatever_their_order_and_fit():
    task = ablate_regime.regime(ablations.TASKS["patch"], 30, 1e-3)
    config = ablations.Config(retrains=2, smoke=True)
    samplers = {"plain": sampling.shuffled(), "resampled": sampling.resampled(), "targets": sampling.resampled()}
    fits = {fit: engine.make_fit(task, hosts.local_mesh(), s, steps=task.steps) for fit, s in samplers.items()}
    half = lambda data: np.arange(len(data.train.y)) % 2
    one = {
        "half": lambda data: ablations.Variant(half(data), {"x": 3.0}),
        "drawn": lambda data: ablations.Variant(half(data), fit="resampled"),
        "targets": lambda data: ablations.Variant(np.ones(len(data.target.y)), fit="targets"),
    }
    judge = lambda names: ablations.measure(
        task, config, lambda data, seed, progress: {n: one[n](data) for n in names}, fits, 0, print
    )
    (facts, arrays), (_, other) = judge(("half", "drawn", "targets")), judge(("targets", "half"))
    assert facts["half"] == {"removed": 0.5, "x": 3.0}
    assert facts["targets"] == {}
    for name in ("half", "targets", "ERM", "SUBG"):
        np.testing.assert_array_equal(arrays[f"test/{name}"], other[f"test/{name}"])
    assert not np.array_equal(arrays["test/half"], arrays["test/drawn"])
