"""Studies of diagnosis: splits fit on the cells that they name, scores claim as by hand, bad configurations."""

import jax
import numpy as np
import pytest

from d3mjax.attribution import metagradient, outputs
from d3mjax.data import tables
from d3mjax.data.sets.shortcut_tables import TABLES, divide, small
from d3mjax.data.splits import take
from d3mjax.diagnosis.cells import trainer_of
from d3mjax.training import ensemble
from experiments import study
from experiments.diagnosis import ablate, corpus, diagnose, networks, repair
from experiments.diagnosis.corpus import SIGNALS, Stored


def stored(task, seeds=3):
    """Cells of two rules and clean ratios at every seed, of one row each."""
    nothing = np.zeros((1, 3)), np.zeros((1, 3), bool)
    return [
        Stored(task, seed, rule, rule == 1, clean, "outlier", *nothing, in_cell=(0.5, 0.5, 0.5))
        for seed in range(seeds)
        for rule in (0, 1)
        for clean in (0.5, 0.8)
    ]


@pytest.fixture
def asked(monkeypatch):
    """The cells that every call of `split_figures` fits and tests on, without doing it."""
    calls = []

    def figures(train, test, **options):
        calls.append((train, test))
        return {"trees": {str(cell.clean): {"macro_f1": 0.5} for cell in test}}

    monkeypatch.setattr(diagnose, "split_figures", figures)
    return calls


def test_a_table_is_unseen_where_it_is_left_out(asked):
    """The trees of *unseen table* are fitted on the cells of other tables and other draws alone."""
    cells = {name: stored(name) for name in ("digits", "other")}
    splits = diagnose.splits_of(diagnose.Config(in_depth=()), cells, "other", 1)
    assert list(splits) == ["new draw", "unseen table"]
    (draw, _), (table, test) = asked
    assert {(cell.task, cell.seed) for cell in draw} == {("other", 0), ("other", 2)}
    assert {(cell.task, cell.seed) for cell in table} == {("digits", 0), ("digits", 2)}
    assert {(cell.task, cell.seed) for cell in test} == {("other", 1)}


def test_rules_and_clean_ratios_are_unseen_where_they_are_left_out(asked):
    splits = diagnose.splits_of(diagnose.Config(in_depth=("other",)), {"other": stored("other")}, "other", 1)
    assert list(splits) == ["new draw", "in-cell", "unseen rule", "other clean ratio"]
    _, (half, _), *by_rule = asked
    assert {cell.seed for cell in half} == {1}
    for train, test in by_rule[:2]:
        assert {cell.rule for cell in train}.isdisjoint({cell.rule for cell in test})
    for train, test in by_rule[2:]:
        assert {cell.clean for cell in train}.isdisjoint({cell.clean for cell in test})
    assert all({cell.seed for cell in train} == {0, 2} for train, _ in by_rule)


def test_a_task_network_is_unseen_where_it_is_left_out(asked):
    cells = {name: stored(f"adult, {name}") for name in ("one", "two")}
    networks.splits_of(networks.Config(), cells, 1)
    assert len(asked) == 2 * 3  # networks, splits
    for i, (train, test) in enumerate(asked):
        (task,) = {cell.task for cell in test}
        assert {cell.seed for cell in train} == {0, 2}
        assert (task in {cell.task for cell in train}) == (i % 3 < 2)
        assert len({cell.task for cell in train}) == (1, 2, 1)[i % 3]


def test_scores_without_training_claim_what_they_would_by_hand():
    """Scores of two values claim the larger, whatever its share; the best score of each type in training is joined."""
    rng = np.random.default_rng(0)
    n = 200

    def cell(share):
        flags = rng.random((n, 3)) < share
        signals = rng.random((n, len(SIGNALS))).astype(np.float32)
        signals[:, SIGNALS.index("L: loss")] = np.where(flags[:, 0], 0.95, signals[:, 0] * 0.8)
        yes = rng.random(n) < 0.5
        flags[:, 2] = yes & (rng.random(n) < 0.6)
        signals[:, SIGNALS.index("S: SC = y")] = np.where(yes, 0.75, 0.25)  # ranks of two equally frequent values
        return Stored("x", 0, 0, True, 0.5, "scale", np.zeros((n, 1), np.float32), flags, signals), yes

    (train, _), (test, yes) = cell(0.2), cell(0.1)
    results = diagnose.rivals([train], [test])
    ((_, claimed),) = results["best single scores"]
    np.testing.assert_array_equal(claimed[:, 0], test.flags[:, 0])
    np.testing.assert_array_equal(claimed[:, 2], yes)
    ((values, _),) = results["S: JTT error set"]
    np.testing.assert_array_equal(np.unique(values[:, 2]), [0, 1])


def test_train_validation_and_test_rows_are_disjoint_and_errors_drawn_anew():
    task = small(TABLES["planted"])
    parts = divide(task)
    first, second = (corpus.plan(task, parts, task.rules[0], 0.5, seed) for seed in (0, 1))
    ids = [set(table.id.tolist()) for table, _ in parts]
    assert len(set.union(*ids)) == sum(map(len, ids))
    assert set(first.train.table.id.tolist()) <= ids[0]
    assert set(first.validation.table.id.tolist()) <= ids[1]
    assert (first.train.table.id != second.train.table.id).any()


@pytest.mark.slow
def test_the_channel_of_metagradients_is_what_removal_does_in_the_training_of_the_cell():
    task, key = small(TABLES["planted"])._replace(train=60), jax.random.key(3)
    parts = divide(task)
    splits = [corpus.plan(task, parts, task.rules[k], 0.5, k).splits for k in (0, 1)]
    columns = list(tables.slices(parts.train[0]).values())
    _, _, exact, info = ablate.make_channels(task, ablate.MLP2, columns, forms=5)(key, splits)
    metagradient.check(jax.tree.map(np.concatenate, info))
    model, steps = ablate.MLP2.make(columns, task.classes), ablate.SMOOTH.steps
    smooth, few = trainer_of(model, ablate.SMOOTH, task.train), np.arange(5)
    for j, (train, validation) in enumerate(splits):
        look = lambda variables, v=take(validation, few): -outputs.losses(model, variables, v)
        of_model, removal = ensemble.model_keys(key, np.arange(2))[j], -np.eye(60, dtype=np.float32)[:3]
        _, changes = metagradient.along(of_model, smooth, train, steps, removal, look)
        # Harmful rows, whose removal raises the output, are positive; the largest of all rows has size 1.
        channel = np.asarray(exact[j], np.float32)
        scale = np.median(np.asarray(changes) / channel[:3])
        assert scale > 0
        assert np.abs(channel).max() == 1
        # Half precision, and 200 steps in float32 by two programs.
        np.testing.assert_allclose(channel[:3], changes / scale, rtol=5e-3, atol=1e-4)


@pytest.mark.parametrize("module", [diagnose, repair, ablate])
def test_unknown_tables_are_refused(module, tmp_path):
    with pytest.raises(ValueError, match=r"tasks: found \['nothing'\], expected names among"):
        study.run(module.STUDY, module.Config(tasks=("nothing",)), tmp_path)
    assert not list(tmp_path.iterdir())


def test_networks_and_seeds_are_checked():
    with pytest.raises(ValueError, match="networks: found"):
        ablate.Config(networks=("other",))
    with pytest.raises(ValueError, match="models: found"):
        ablate.Config(models=("mlp 64-32",))
    with pytest.raises(ValueError, match=r"networks: found \['mlp 64-32'\], expected two at least of"):
        networks.Config(networks=("mlp 64-32",))
    with pytest.raises(ValueError, match="seeds: found 2, expected at least 3"):
        diagnose.Config(seeds=2)
