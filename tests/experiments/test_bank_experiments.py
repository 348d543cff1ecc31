"""Every experiment on datamodels runs from raw data to its report, and all of them share one small bank."""

import numpy as np
import pytest

from d3mjax.runtime import runs, store
from experiments.datamodels import (
    bank_tasks,
    brittleness,
    counterfactuals,
    embeddings,
    lds_datamodels,
    leakage,
    similar_examples,
)
from experiments.tasks import LDS_TASKS


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return tmp_path_factory.mktemp("results")


def run_smoke(experiment, results, num_figures):
    config = experiment.Config(tasks=("patch",), smoke=True)
    run = experiment.main(config, results)
    document = store.read_json(run / "metrics.json")
    runs.validate_document(document)
    assert (run / "report.html").read_text().count("data:image/png;base64,") == num_figures
    metrics = {
        row["method"]: {name: value["mean"] for name, value in row["metrics"].items()} for row in document["rows"]
    }
    with np.load(run / "units" / "patch-10.npz") as unit:
        return metrics, {name: unit[name] for name in unit.files}


def test_counterfactuals(results):
    metrics, arrays = run_smoke(counterfactuals, results, 1)
    assert metrics.keys() == {f"{kind} removed" for kind in counterfactuals.KINDS}
    config = counterfactuals.Config(counts=(10, 100), random_counts=(20, 100), random_sets=2)
    predicted, actual = (counterfactuals.by_kind(config, arrays, what) for what in ("predicted", "actual"))
    assert predicted["most helpful"].shape == actual["most helpful"].shape == (3, 2)
    assert predicted["random"].shape == actual["random"].shape == (3, 2, 2)  # targets, sets, counts
    assert (predicted["most helpful"] <= 0).all()
    assert (predicted["most harmful"] >= 0).all()
    assert actual["most helpful"].mean() < actual["most harmful"].mean()


def test_brittleness(results):
    metrics, arrays = run_smoke(brittleness, results, 1)
    assert arrays["curves"].shape == (4, 3, 2)
    assert (arrays["margins"][arrays["picked"]] > 0).all()
    sizes = arrays["sizes"]
    for plain, inflated in ((0, 1), (2, 3)):
        assert ((sizes[:, plain] < 0) == (sizes[:, inflated] < 0)).all()
        assert (sizes[:, inflated] >= sizes[:, plain]).all()
    curve = [metrics[f"{k} examples: {brittleness.METHODS[0]}"]["flipped, of all"] for k in (20, 200)]
    assert curve[0] <= curve[1]


def test_leakage(results):
    metrics, arrays = run_smoke(leakage, results, 2)
    assert arrays["planted"].sum() == 10
    assert arrays["planted"][-10:].all()
    assert metrics["nearest by pixels"]["average precision"] > 10 / 210  # chance
    assert metrics["nearest by pixels"]["source has the largest weight"] == 1


def test_similar_examples(results):
    metrics, arrays = run_smoke(similar_examples, results, 1)
    assert metrics["datamodel, similar"]["same class"] > 0.5 > metrics["datamodel, opposed"]["same class"]
    assert arrays["datamodel, similar"].shape == (200, similar_examples.NUM)


def test_embeddings(results):
    metrics, _ = run_smoke(embeddings, results, 4)
    assert 0 < metrics["component 1"]["explained"] < 1
    for name in embeddings.LEARNERS:
        first = metrics[f"{name}, first component"]
        assert first["explained in first"] > first["explained in second"]


def test_a_second_experiment_finds_the_bank_of_the_first(tmp_path):
    run_smoke(leakage, tmp_path, 2)
    blocks = {path: path.stat().st_mtime_ns for path in (tmp_path / "banks").glob("*/block-*")}
    run_smoke(similar_examples, tmp_path, 1)
    assert blocks
    assert blocks == {path: path.stat().st_mtime_ns for path in (tmp_path / "banks").glob("*/block-*")}


def test_duplicates_are_near_their_sources_and_training_is_untouched():
    data = LDS_TASKS["patch"].read(10, smoke=True)
    more, source = bank_tasks.with_duplicates(data, 10, bank_tasks.SMOKE)
    assert more.train is data.train
    assert len(set(source.tolist())) == 10
    copies = more.target.x[-10:]
    assert (bank_tasks.cosines(more.target, data.train)[-10:].argmax(1) == source).all()
    assert np.abs(copies - data.train.x[source]).max() < 3
    assert not np.isin(more.target.id[-10:], data.train.id).any()
    again, _ = bank_tasks.with_duplicates(data, 10, bank_tasks.SMOKE)
    np.testing.assert_array_equal(again.target.x, more.target.x)


def test_lds_of_datamodels(results):
    metrics, arrays = run_smoke(lds_datamodels, results, 3)
    settings = lds_datamodels.settings(lds_datamodels.Config(models=(48,), swept=48, shares=(0.5,), repeats=(1, 2)))
    assert len(settings) == 2
    assert len(metrics) == 2 * len(lds_datamodels.METHODS) + 1
    expected = {lds_datamodels.named(*at, method) for at in settings for method in lds_datamodels.METHODS}
    assert arrays.keys() - {"__json__"} == expected
    assert metrics["LASSO, 48 models on 50% subsets"]["lds"] > 0.1  # noise alone would have a deviation of .02
