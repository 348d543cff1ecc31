"""The smoke runs of all studies: what is smaller than a study's own smoke configuration, and what its numbers show.

`tests/experiments/test_smoke.py` runs them; ``make freeze`` stores their rows in ``tests/frozen/rows.json.gz``.
"""

import dataclasses
import gzip
import hashlib
import importlib.metadata
import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np

from d3mjax.runtime import runs, store
from experiments import study
from experiments.__main__ import studies

FROZEN = Path(__file__).parent / "frozen" / "rows.json.gz"
Means = dict[str, dict[str, Any]]
"""By method: its row, with the mean over seeds of each metric in place of the metric."""


class Smoke(NamedTuple):
    """One study on little data."""

    fields: Mapping[str, Any] = MappingProxyType({})  # of the configuration, beside ``smoke``
    checks: Sequence[Callable[[Means, Path], None]] = ()  # of the rows of the first task, and the directory of the run
    quick: bool = False  # some seconds: in the fast tier


def means(rows: list[dict[str, Any]], task: str) -> Means:
    """Rows of one task by method, metrics as means over seeds."""
    of_task = [row for row in rows if row["task"] == task]
    return {row["method"]: {**row, **{name: m["mean"] for name, m in row["metrics"].items()}} for row in of_task}


def ours_beat_plain(methods: Means, run: Path) -> None:
    """Every row of ours has a better worst group than plain training."""
    (plain,) = (row for row in methods.values() if row["role"] == "plain")
    ours = [row for row in methods.values() if row["role"] == "ours"]
    assert ours
    assert all(row["worst_group_accuracy"] > plain["worst_group_accuracy"] for row in ours)


def d3m_keeps_what_it_scores(methods: Means, run: Path) -> None:
    """The rule removes the lowest scores, arrays are joined by id, and suspects are counted among the removed."""
    rule = methods["D3M, drop negative"]
    arrays = _arrays(run, "patch-10")
    assert len(set(arrays["id"].tolist())) == len(arrays["score"]) == len(arrays["kept"])
    lowest = np.sort(arrays["score"])[: (~arrays["kept"]).sum()]
    assert set(arrays["score"][~arrays["kept"]]) == set(lowest)
    first = lambda name: rule["metrics"][name]["per_seed"][0]
    np.testing.assert_allclose(first("suspects"), arrays["suspect"].mean())
    np.testing.assert_allclose(first("suspects_removed"), arrays["suspect"][~arrays["kept"]].mean())
    assert 1 <= rule["effective_checkpoints"] <= rule["settings"]["checkpoints"] == 2
    assert {"suspects_removed", "effective_checkpoints"}.isdisjoint(methods["ERM"])


def descent_empties_nobody(methods: Means, run: Path) -> None:
    """Weights from equal ones leave everybody in; the control deals out the same weights."""
    assert methods["ERM"]["effective"] == 1 > methods["descent from equal weights"]["effective"]
    assert methods["descent from equal weights"]["emptied"] == 0 < methods["D3M, 10 % removed"]["emptied"]
    ours, dealt = (methods[name] for name in ("descent from D3M, soft", "its weights dealt out again in each class"))
    np.testing.assert_allclose(ours["effective"], dealt["effective"], rtol=1e-5)


def rules_of_one_size(methods: Means, run: Path) -> None:
    """Rules that are given a share remove it, in rounds too."""
    arrays = _arrays(run, "patch-10")
    count = len(arrays["score"])
    for name in ("lowest", "lowest of each class", "lowest in rounds", "step", "lowest, damping 1", "step, damping 1"):
        assert abs(methods[f"D3M, {name}"]["removed"] - 0.1) <= 2 / count
    assert methods["ERM"]["removed"] == methods["D3M, soft"]["removed"] == 0
    assert methods["D3M, soft"]["effective_size"] < 1 == methods["ERM"]["effective_size"]
    order = np.argsort(arrays["score"], kind="stable")
    np.testing.assert_array_equal(np.flatnonzero(arrays["weights/D3M, lowest"] == 0), np.sort(order[: count // 10]))


def refusal_is_plain_training(methods: Means, run: Path) -> None:
    """Without a shortcut AUTO-D3M refuses, and its models are those of plain training to the last bit."""
    auto, plain = methods["AUTO-D3M"], methods["ERM"]
    assert auto["information"] == "none"
    assert auto["refused"] == 1
    for name in ("worst_group_accuracy", "average_accuracy", "removed"):
        assert auto["metrics"][name] == plain["metrics"][name]


def controls_remove_as_many(methods: Means, run: Path) -> None:
    """Controls of equal number remove as many as the rule; every method is tuned with one budget."""
    rule = methods["D3M, drop negative"]["removed"]
    sized = [row for row in methods.values() if row["settings"].get("controls") == "number" and "removed" in row]
    assert sized
    for row in sized:
        np.testing.assert_allclose(row["removed"], rule)
    assert methods["RWG"]["removed"] == 0
    assert methods["D3M, by selection, at most 10 % removed"]["removed"] <= 0.1 + 1e-6
    assert {row["information"] for row in methods.values()} == {"none", "validation groups", "training groups"}
    (chosen,) = methods["GroupDRO"]["settings"]["chosen"]
    assert {"rate", "decay", "share", "eta", "selection_score", "with_offsets"} == chosen.keys()
    assert "worst_group_with_offsets" in methods["GroupDRO"]
    assert "worst_group_with_offsets" not in methods["ERM, class offsets"]


def itself_as_reference(methods: Means, run: Path) -> None:
    """The removals of D3M overlap with themselves alone in full."""
    assert methods["D3M, all targets"]["overlap"] == 1
    others = [row["overlap"] for name, row in methods.items() if name != "D3M, all targets" and "overlap" in row]
    assert others
    assert max(others) < 1


def finds_label_errors(methods: Means, run: Path) -> None:
    """The lowest scores are wrong labels more often than those of highest loss, and than chance."""
    precision = {name: row["precision"] for name, row in methods.items() if "precision" in row}
    ours, loss, random = (precision[f"{name}, 5% removed"] for name in ("lowest D3M score", "highest loss", "random"))
    assert ours > 2 * max(loss, 0.1)
    assert ours > random


def suggests_suspects(methods: Means, run: Path) -> None:
    """Planted errors of one group are found by D3M; every label suspected is right for as many as are wrong."""
    every = methods["every label"]
    assert every["recall"] == every["suspected"] == 1
    np.testing.assert_allclose(every["precision"], _arrays(run, "label-errors-10")["wrong"].mean(), rtol=1e-6)
    assert methods["D3M, right targets"]["auprc"] > 2 * every["precision"]
    assert all(methods[name]["auc"] > 0.5 for name in methods if name != "every label")


def predicts_group_losses(methods: Means, run: Path) -> None:
    """Scores predict what removal does to a group, in direction and size."""
    assert methods["highest scores removed"]["pearson"] > 0.5
    assert methods["highest scores removed"]["slope"] > 0


def between_chance_and_ceiling(methods: Means, run: Path) -> None:
    """LDS is above the noise of few masks and below the ceiling, within its interval."""
    ceiling = methods["ceiling set by retraining noise"]["lds"]
    scores = [row for name, row in methods.items() if not name.startswith("ceiling")]
    # Few masks: a single target's correlation has a standard deviation of 1/3 by chance, the mean over targets less.
    assert all(0.1 < row["lds"] < ceiling <= 1 for row in scores)
    for row in scores:
        for (low, high), value in zip(row["settings"]["intervals"], row["metrics"]["lds"]["per_seed"], strict=True):
            assert low < value < high


def one_run_predicts_itself(methods: Means, run: Path) -> None:
    """The removal of one example from the run that was differentiated is predicted, slope included."""
    own = methods["one run predicts itself, 1 removed"]
    assert own["lds"] > 0.9
    assert 0.8 < own["slope"] < 1.25
    assert methods["metagradient, 2 trainings"]["lds"] < methods["ceiling set by retraining noise"]["lds"]


def halves_are_of_all_cells(methods: Means, run: Path) -> None:
    """Single targets and groups are half of the cells each, and shares are shares."""
    halves, single, groups = (methods[name] for name in ("halves", "halves: single targets", "halves: group means"))
    for metric in ("within", "covered", "error", "lds"):
        np.testing.assert_allclose(halves[metric], (single[metric] + groups[metric]) / 2, rtol=1e-6)
    assert all(0 <= row[metric] <= 1 for row in methods.values() for metric in ("within", "covered"))
    assert len(list((run / "units").iterdir())) == 3


def predictions_are_between(methods: Means, run: Path) -> None:
    """Predicted margins of forgotten examples are nearer to retrained models than those of untouched ones."""
    klom = {name: row["klom_forgotten"] for name, row in methods.items()}
    assert 0 <= klom["retrained again"] < klom["no unlearning"]
    assert klom["margins predicted by metagradients"] < klom["no unlearning"]


def lasso_is_above_noise(methods: Means, run: Path) -> None:
    """LASSO datamodels of few models are above the noise, which has a standard deviation of .02."""
    assert methods["LASSO, 48 models on 50% subsets"]["lds"] > 0.1


def influence_predicts_margins_and_bias(methods: Means, run: Path) -> None:
    """Influence functions predict retraining: .83 at this seed, where 20 subsets leave a noise of about .1."""
    row = methods["GGN, damping 0.01, 2 checkpoints"]
    assert min(row["lds"], row["lds_bias"]) > 0.6


def copies_are_nearest(methods: Means, run: Path) -> None:
    """Planted copies are nearest to their sources by pixels, and above chance."""
    assert methods["nearest by pixels"]["source has the largest weight"] == 1
    assert methods["nearest by pixels"]["average precision"] > 10 / 210


def similar_share_classes(methods: Means, run: Path) -> None:
    """Similar examples share the class more often than opposed ones."""
    assert methods["datamodel, similar"]["same class"] > methods["datamodel, opposed"]["same class"]


def learners_differ_where_they_should(methods: Means, run: Path) -> None:
    """Components of the difference of two learners explain the first more than the second."""
    rows = [row for row in methods.values() if "explained in first" in row]
    assert len(rows) == 2
    assert all(row["explained in first"] > row["explained in second"] for row in rows)


def removals_follow_predictions(methods: Means, run: Path) -> None:
    """Predicted and true effects of the removal of many examples go together."""
    assert methods["most harmful removed"]["pearson"] > 0.5
    assert methods["random removed"]["pearson"] > 0.5


def more_removed_more_flipped(methods: Means, run: Path) -> None:
    """More removals flip at least as many targets."""
    few, many = (methods[f"{k} examples: datamodel, relabelled"]["flipped, of all"] for k in (20, 200))
    assert few <= many


def bias_falls(methods: Means, run: Path) -> None:
    """FMD leaves less bias than the head that is refitted, its mirror image more."""
    bias = {name: row["bias"] for name, row in methods.items()}
    assert bias["FMD"] < bias["refit"] < bias["FMD, sign flipped"]


def removal_beside_its_prediction(methods: Means, run: Path) -> None:
    """Change of bias is against the model without removal; every number removed is a share of n."""
    top, plain = methods["whole network, 20 removed"], methods["no removal"]
    np.testing.assert_allclose(top["removed"], 20 / 600, rtol=1e-6)
    np.testing.assert_allclose(top["signed_change"], top["signed_bias"] - plain["signed_bias"], atol=1e-6)
    arrays = _arrays(run, "adult-sex-10")
    assert len(arrays["on_bias/whole network"]) == len(arrays["on_bias/last layer"]) == len(arrays["id"]) == 600


def flagging_everything_has_a_known_f1(methods: Means, run: Path) -> None:
    """With everything flagged recall is 1 and precision the share of errors s, .25 on average: F1 is 2 s / (1 + s)."""
    assert {"trees", "best single scores", "flag everything", "L: loss"} <= methods.keys()
    np.testing.assert_allclose(methods["flag everything"]["label_f1"], 2 * 0.25 / 1.25, atol=0.1)
    assert methods["trees"]["label_f1"] > methods["flag everything"]["label_f1"]


def minorities_stay(methods: Means, run: Path) -> None:
    """Calibration by planted labels and features changes no claim of a minority."""
    before, after = (row for name, row in methods.items() if name.startswith(("calibrated", "planted labels")))
    assert before["minority_f1"] == after["minority_f1"]
    assert before["label_f1"] != after["label_f1"]


def flagging_all_is_right_for_a_quarter(methods: Means, run: Path) -> None:
    """At clean ratio .5 a quarter of the labels is wrong; diagnosers that know nothing of a table beat chance there."""
    np.testing.assert_allclose(methods["flag everything"]["label_f1"], 2 * 0.25 / 1.25, atol=0.02)
    np.testing.assert_allclose(methods["flag everything"]["label_precision"], 0.25, atol=0.01)
    assert methods["numbers of rows, relative to the table"]["label_auprc"] > 0.35
    assert methods["L: cleanlab, self-confidence, of trees"]["label_auprc"] > 0.35


def controls_take_the_step(methods: Means, run: Path) -> None:
    """Controls of the sign take the step of the edit; every row is measured once."""
    edit = methods["FMD, related kept"]
    for control in ("sign flipped", "random signs"):
        assert methods[f"FMD, related kept, {control}"]["settings"]["steps"] == edit["settings"]["steps"]
    assert methods["no edit"]["share of the way"] == 0
    arrays = _arrays(run, "terms-10")
    assert sorted(arrays["id"].tolist()) == list(range(len(arrays["id"])))
    assert arrays["no edit"].shape == (len(arrays["id"]), 3)


def random_removal_takes_as_many(methods: Means, run: Path) -> None:
    """The control removes as many pairs as D3M, and the page shows pairs of lowest score."""
    removed = {name: methods[name]["removed"] for name in ("random removal", "D3M, by selection")}
    assert 0 < removed["random removal"] == removed["D3M, by selection"] <= 0.5
    assert "Training pairs of lowest score" in (run / "report.html").read_text()


def oracle_repair_lowers_the_error(methods: Means, run: Path) -> None:
    """Without the planted errors the test error is smaller, in the unit of the labels as over that of the dirty set."""
    rows = json.loads((run / "metrics.json").read_text())["rows"]
    task = next(row["task"] for row in rows if ", repair, " in row["task"])
    repaired = means(rows, task)
    oracle, dirty = repaired["oracle, dropped"], repaired["dirty"]
    assert oracle["rms_error"] < dirty["rms_error"]
    assert oracle["error_over_dirty"] < dirty["error_over_dirty"] == 1


def oracle_repair_helps(methods: Means, run: Path) -> None:
    """With the true errors repaired accuracy rises."""
    assert methods["oracle, labels and features"]["average_accuracy"] > methods["dirty"]["average_accuracy"]


def _arrays(run: Path, unit: str) -> dict[str, np.ndarray]:
    found = runs.read_unit(run, unit)
    assert found is not None
    return found[1]


def swapped_sides_are_found(methods: Means, run: Path) -> None:
    """Trees find swapped sides better than flagging everything; the minority is what the rule leaves, errors apart."""
    assert methods["trees"]["label_f1"] > methods["flag everything"]["label_f1"]
    assert methods["best single scores, knowing the length bias"]["minority_f1"] > 0.3


def broken_records_are_detected(methods: Means, run: Path) -> None:
    """Trees detect broken records better than flagging everything; knowing the rule helps with its minority."""
    assert methods["trees"]["feature_f1"] > methods["flag everything"]["feature_f1"]
    assert methods["best single scores, knowing the rule"]["minority_f1"] > 0.3


PATCH = {"tasks": ("patch",)}
SMOKES = {
    "d3m": Smoke(PATCH, (ours_beat_plain, d3m_keeps_what_it_scores), quick=True),
    "main_table": Smoke({"tasks": ("adult",)}, (controls_remove_as_many,)),
    "d3m_alignment": Smoke({"tasks": ("kindness",)}, (controls_remove_as_many,)),
    "auto_d3m": Smoke({"tasks": ("patch-none", "patch")}, (refusal_is_plain_training,)),
    "case_study": Smoke({"tasks": ("coat-brightness",)}),
    "removal_rules": Smoke(PATCH, (rules_of_one_size,)),
    "weight_descent": Smoke(PATCH, (descent_empties_nobody,)),
    "ablate_checkpoints": Smoke(PATCH, (ours_beat_plain,)),
    "ablate_projection": Smoke(PATCH, (ours_beat_plain,)),
    "ablate_weighting": Smoke(PATCH, (ours_beat_plain,)),
    "ablate_targets": Smoke(PATCH),
    "ablate_source": Smoke(PATCH),
    "ablate_regime": Smoke({"tasks": ("patch, 200 steps, decay 0.001",)}),
    "stability": Smoke(PATCH, (itself_as_reference,)),
    "label_errors": Smoke({"tasks": ("label-errors",)}, (finds_label_errors,)),
    "natural_label_errors": Smoke({"tasks": ("label-errors",)}, (suggests_suspects,)),
    "group_counterfactuals": Smoke(PATCH, (predicts_group_losses,)),
    "lds_trak": Smoke(PATCH, (between_chance_and_ceiling,)),
    "lds_datamodels": Smoke(PATCH, (lasso_is_above_noise,)),
    "lds_influence": Smoke({"tasks": ("adult-sex",)}, (influence_predicts_margins_and_bias,)),
    "metagradient": Smoke({"tasks": ("patch-smooth",)}, (one_run_predicts_itself,)),
    "trust": Smoke(checks=(halves_are_of_all_cells,)),
    "unlearning": Smoke({"tasks": ("patch-smooth",)}, (predictions_are_between,)),
    "counterfactuals": Smoke(PATCH, (removals_follow_predictions,)),
    "brittleness": Smoke(PATCH, (more_removed_more_flipped,)),
    "leakage": Smoke(PATCH, (copies_are_nearest,)),
    "similar_examples": Smoke(PATCH, (similar_share_classes,)),
    "embeddings": Smoke(PATCH, (learners_differ_where_they_should,)),
    "fmd_adult": Smoke({"tasks": ("adult-sex",)}, (bias_falls,)),
    "fmd_coloured": Smoke({"tasks": ("fashion-0.95",)}),
    "fmd_mnist": Smoke({"tasks": ("mnist-0.95",)}, (bias_falls,)),
    "fmd_against_d3m": Smoke(PATCH),
    "influence_on_bias": Smoke({"tasks": ("adult-sex",)}, (removal_beside_its_prediction,)),
    "fmd_language": Smoke({"tasks": ("terms",)}, (controls_take_the_step,)),
    "demix_diagnose": Smoke({}, (flagging_everything_has_a_known_f1,)),
    "demix_networks": Smoke(),
    "demix_ablate": Smoke(),
    "demix_repair": Smoke({}, (oracle_repair_helps,)),
    "demix_pretrain": Smoke(),
    "demix_number_pretrain": Smoke(),
    "demix_tables": Smoke({}, (flagging_all_is_right_for_a_quarter,)),
    "demix_tables_pretrain": Smoke(),
    "demix_tables_repair": Smoke(),
    "demix_tables_planted": Smoke({}, (minorities_stay,)),
    "demix_regression": Smoke({}, (oracle_repair_lowers_the_error,)),
    "language": Smoke({}, (random_removal_takes_as_many,)),
    "demix_alignment": Smoke({}, (swapped_sides_are_found,)),
    "demix_recommendation": Smoke({}, (broken_records_are_detected,)),
}


def names_of(wing: str) -> list[str]:
    """Studies of one wing of ``experiments``."""
    return [name for name, study in studies().items() if type(study.config).__module__.split(".")[1] == wing]


def execute(name: str, results: Path) -> Path:
    """Run or resume the smoke run of a study; returns its directory."""
    chosen = studies()[name]
    path = study.run(chosen, dataclasses.replace(chosen.config, smoke=True, **SMOKES[name].fields), results)
    return path if path.is_dir() else path.parent


def machine() -> dict[str, Any]:
    """What the last bit of a number depends on: processor, cores, versions and the compiler's options."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else [platform.processor()]
    facts = sorted(
        {line for line in lines if line.split(":")[0].strip() in ("model name", "flags") or not cpu.exists()}
    )
    names = ("jax", "jaxlib", "numpy", "scikit-learn", "flax", "optax")
    return {
        "cpu": hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16],
        "model": next((line.split(":")[-1].strip() for line in facts if line.startswith("model name")), facts[0]),
        "cores": os.cpu_count(),
        "devices": jax.device_count(),
        "flags": os.environ.get("XLA_FLAGS", ""),
        "versions": {name: importlib.metadata.version(name) for name in names},
    }


def comparable(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows without what a clock or a memory meter made."""
    measured = lambda name: "second" in name or name in ("peak_memory_mib", "ratio")
    parts = ("task", "method", "role", "information")
    return [
        {name: row[name] for name in parts}
        | {"settings": {k: v for k, v in row["settings"].items() if not measured(k)}}
        | {"metrics": {k: v["per_seed"] for k, v in row["metrics"].items() if not measured(k)}}
        for row in rows
    ]


def read_rows(run: Path) -> list[dict[str, Any]]:
    """Rows of a finished run, whose document is valid."""
    document = store.read_json(run / "metrics.json")
    runs.validate_document(document)
    return document["rows"]


def read_frozen() -> dict[str, Any]:
    """``{study: {"machine", "rows"}}`` as ``make freeze`` left them."""
    return json.loads(gzip.decompress(FROZEN.read_bytes()))
