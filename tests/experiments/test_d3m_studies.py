"""The studies of D3M in their parts: rules, settings, judging and programs, each against a known answer."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d3mjax.attribution import outputs
from d3mjax.debiasing.sources import Bank
from d3mjax.keys import members
from d3mjax.runtime import hosts
from experiments.d3m import ablate_problem, ablations, auto_d3m, main_table, removal_rules, retraining, smote
from experiments.d3m.ablations import Variant
from experiments.d3m.tuned_methods import Setting, settings
from experiments.tasks import PATCH, SHUFFLED, TASKS, Trak, columns

TASK = replace(PATCH, steps=3)
SMALL_TRAK = Trak(models=2, size=32)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_gap_closed_is_one_for_the_best_yardstick():
    per_seed = {"ERM": [0.2, 0.4], "SUBG": [0.6, 0.8], "RWG": [0.5, 0.5], "GroupDRO": [0.4, 0.4], "ours": [0.6, 0.4]}
    wga = {name: np.array(values) for name, values in per_seed.items()}
    best = [wga[name] for name in main_table.YARDSTICKS]
    # ERM .3, best yardstick .7, ours .5
    closed = {name: retraining.gap_closed(values, wga["ERM"], best).mean() for name, values in wga.items()}
    assert closed == pytest.approx({"ERM": 0, "SUBG": 1, "RWG": 0.5, "GroupDRO": 0.25, "ours": 0.5})
    assert np.isnan(retraining.gap_closed(wga["ours"], np.array([0.9, 0.9]), best)).all()


def test_worst_group_is_that_of_each_model_before_the_mean_over_models():
    arrays = {"test/a": np.array([[0.2, 0.8], [0.6, 0.4]]), "average/a": np.array([0.5, 0.7])}
    values = retraining.accuracies([({}, arrays)], "a")
    np.testing.assert_allclose(values["worst_group_accuracy"], [0.3])
    np.testing.assert_allclose(values["average_accuracy"], [0.6])
    np.testing.assert_allclose(retraining.by_group([({}, arrays)], ["a"])["a"], [[0.4, 0.6]])


def test_overlap_is_the_jaccard_index_and_its_chance_level():
    one, other = np.array([0, 0, 1, 1, 1, 1], bool), np.array([0, 1, 0, 1, 1, 1], bool)
    assert ablate_problem.overlap(one, other) == {"overlap": 1 / 3, "overlap by chance": pytest.approx(1 / 5)}
    assert ablate_problem.overlap(one, one)["overlap"] == 1
    assert ablate_problem.overlap(one | True, other)["overlap by chance"] == 0


def test_a_regime_changes_steps_and_decay_and_nothing_else():
    assert len(ablate_problem.REGIMES) == 12  # two tasks; 3 lengths and 4 decays that share one
    for name, expected in {
        "patch, 200 steps, decay 0.001": replace(PATCH, steps=200),
        "adult, 800 steps, decay 0.05": replace(TASKS["adult"], decay=0.05),
    }.items():
        assert ablate_problem.REGIMES[name] == replace(expected, name=name)


def test_all_methods_share_one_list_of_settings_with_the_default_first():
    drawn = settings(PATCH, 10)
    assert drawn[0] == Setting(PATCH.rate, PATCH.decay, 1.0)
    assert drawn[:4] == settings(PATCH, 4)
    assert len(set(drawn)) == 10


def test_fewer_targets_are_the_first_of_the_two_rarest_groups():
    data = PATCH.read(10, smoke=True)
    fewer = auto_d3m.fewer_targets(data, 2)
    group = np.asarray(data.target.group)
    kept = np.isin(data.target.id, fewer.target.id)
    for g in range(4):
        members_of_group = np.flatnonzero(group == g)
        expected = members_of_group[:2] if g in (1, 2) else members_of_group
        np.testing.assert_array_equal(np.flatnonzero(kept & (group == g)), expected)
    assert auto_d3m.fewer_targets(data, None) is data


def test_the_rule_of_auto_gives_an_empty_group_no_weight():
    tau = np.array([[1, -1, 2, 1], [3, -3, -2, 1], [0, 0, 0, 0]], np.float32)  # [t n]
    margins, y = np.array([[1, 1, 5]], np.float32), np.array([0, 1, 0, 1])
    attributed = auto_d3m.Attributed(tau, tau @ tau.T, tau @ tau.T, margins)
    # Mean rows (2, -2, 0, 1) and 0; group 1 has no target.
    keep = auto_d3m.keep_mask(attributed, np.array([0, 0, 2]), y, 2, beta=1.0)
    np.testing.assert_array_equal(keep, [True, False, True, True])


def test_difficulty_is_the_error_of_the_same_trainings_stopped_early():
    task, keys = replace(PATCH, steps=30), jax.random.split(jax.random.key(0), 2)
    train, model = task.read(0, smoke=True).train, task.network()
    norms = auto_d3m.difficulty(task, train, keys)
    for key, row in zip(keys, norms, strict=True):
        trainer = task.trainer(30, SHUFFLED)
        state, _ = trainer.run(trainer.init(key, train.x[:1]), train, jnp.ones(len(train.y)), 3)
        # Two compiled programs of three steps.
        np.testing.assert_allclose(row, outputs.error_norms(model, state.variables, train), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="early: found 5, expected at most the 2 checkpoints"):
        auto_d3m.Config(source=SMALL_TRAK, metagradients=0)


def test_rules_of_one_size_remove_as_many(rng):
    kernel = jnp.asarray(rng.normal(size=(3, 600, 4)), jnp.float32)
    attributed = removal_rules.Attributed(kernel, jnp.ones((3, 600)), jnp.ones((3, 600), bool), jnp.arange(4.0))
    config = removal_rules.Config()
    weights = removal_rules.rules(attributed, jnp.asarray(rng.integers(2, size=600)), 2, config)
    removed = {name.removeprefix("D3M, "): int((rows == 0).sum()) for name, rows in weights.items()}
    scores = np.asarray(removal_rules.score(attributed, config.beta))
    lowest = np.argsort(scores, kind="stable")[:60]
    np.testing.assert_array_equal(np.flatnonzero(weights["D3M, lowest"] == 0), np.sort(lowest))
    assert removed["lowest, the rest soft"] == removed["step"] == 60
    assert removed["lowest of each class"] in (59, 60)  # rounded down in each of two classes
    assert (removed["half a step"], removed["soft"]) == (30, 0)
    assert removed["surely harmful"] < removed["drop negative"] == min((scores < 0).sum(), 300)  # at most half


def test_controls_of_the_main_table_remove_as_many(rng):
    data = TASK.read(0, smoke=True)
    losses, influence = (rng.normal(size=len(data.train.y)).astype(np.float32) for _ in range(2))
    keys = jax.random.split(jax.random.key(0), 3)
    masks = main_table.controls(TASK, data, (losses, influence), 70, keys)
    assert masks.keys() == main_table.CONTROLS.keys()
    for rows in masks.values():
        np.testing.assert_array_equal((~np.asarray(rows)).sum(1), [70, 70, 70])
    kept = np.asarray(masks["highest loss removed"][0])
    assert losses[~kept].min() > losses[kept].max()


def test_variants_are_judged_apart_whatever_their_order_and_fit():
    task = replace(PATCH, steps=30)
    config = ablations.Config(retrains=2, smoke=True)
    half = lambda data: np.arange(len(data.train.y)) % 2
    one = {
        "half": lambda data: Variant(half(data), {"x": 3.0}),
        "drawn": lambda data: Variant(half(data), fit="resampled"),
        "targets": lambda data: Variant(np.ones(len(data.target.y)), fit="targets"),
    }

    def judge(*names):
        variants = lambda task, config, data, seed: {name: one[name](data) for name in names}
        return ablations.measure(variants, task, config, 0, lambda count: None)

    (facts, arrays), (_, other) = judge("half", "drawn", "targets"), judge("targets", "half")
    assert facts["half"] == {"removed": 0.5, "x": 3.0}
    assert facts["targets"] == {}
    for name in ("half", "targets", "ERM", "SUBG"):
        np.testing.assert_array_equal(arrays[f"test/{name}"], other[f"test/{name}"])
    assert not np.array_equal(arrays["test/half"], arrays["test/drawn"])


@pytest.fixture
def copies(monkeypatch):
    """Shapes of all arrays that are copied to devices of a mesh."""
    shapes = []

    def copying(shape, *rest, original=jax.make_array_from_callback):
        shapes.append(shape)
        return original(shape, *rest)

    monkeypatch.setattr(jax, "make_array_from_callback", copying)
    return shapes


@pytest.fixture
def traces(monkeypatch):
    """One entry whenever a program that computes logits is traced."""
    calls = []

    def tracing(*args, original=outputs.logits, **options):
        calls.append(1)
        return original(*args, **options)

    monkeypatch.setattr(outputs, "logits", tracing)
    return calls


def test_retraining_neither_copies_placed_data_again_nor_traces_again(copies, traces):
    task = replace(TASK, name="copies")  # of its own: programs are kept by task
    data, keys = task.read(0, smoke=True), members(jax.random.key(0), 0, 2)
    on_device, weights = hosts.place(data, hosts.local_mesh()), {"ERM": np.ones(600)}
    first = retraining.retrain(task, on_device, keys, weights)
    traced = len(traces)
    assert len(copies) == len(jax.tree.leaves(data))
    again = retraining.retrain(task, on_device, keys, weights)
    assert len(copies) == len(jax.tree.leaves(data))
    from_host = retraining.retrain(task, data, keys, weights)
    assert len(traces) == traced > 0  # whether the library copies or the caller has, it is compiled once
    for other in (again, from_host):
        jax.tree.map(np.testing.assert_array_equal, other, first)


@pytest.mark.parametrize("source", [SMALL_TRAK, Bank(models=24, block=8, steps=2)], ids=["TRAK", "datamodels"])
def test_columns_of_a_second_seed_compile_nothing_anew(source, copies, traces):
    task = replace(TASK, name=type(source).__name__)
    data = task.read(0, smoke=True)
    on_device = hosts.place(data, hosts.local_mesh())
    first = columns(task, source, jax.random.key(0), on_device)
    traced = len(traces)
    second = columns(replace(task), source, jax.random.key(1), on_device)
    assert first.columns.shape == second.columns.shape == (1, 600, 4)
    assert not np.array_equal(first.columns, second.columns)
    assert len(copies) == len(jax.tree.leaves(data))
    assert len(traces) == traced


CELL = np.repeat([0, 1, 3], [20, 4, 9])


@pytest.fixture
def features(rng):
    return (rng.normal(size=(33, 3)) + 10 * CELL[:, None]).astype(np.float32)


def test_cells_become_equal_and_new_examples_lie_on_segments_within_their_cell(features):
    x, cell = smote.oversample(features, CELL, 0)
    np.testing.assert_array_equal(np.bincount(cell), [20, 20, 0, 20])
    np.testing.assert_array_equal(x[:33], features)
    for new, of_cell in zip(x[33:], cell[33:], strict=True):
        a = features[of_cell == CELL]
        through = np.linalg.norm(new - a, axis=1)
        gap = through[:, None] + through[None] - np.linalg.norm(a[:, None] - a[None], axis=2)
        assert gap[~np.eye(len(a), dtype=bool)].min() < 1e-4
    again, _ = smote.oversample(features, CELL, 0)
    np.testing.assert_array_equal(x, again)


def test_one_hot_columns_stay_one_hot(features, rng):
    colour = np.eye(4, dtype=np.float32)[rng.integers(3, size=33)]  # the last level never occurs
    mixed = np.concatenate([features[:, :1], colour, features[:, 1:]], axis=1)
    x, cell = smote.oversample(mixed, CELL, 1, categorical=[slice(1, 5)])
    np.testing.assert_array_equal(np.bincount(cell), [20, 20, 0, 20])
    np.testing.assert_allclose(x[:33], mixed, rtol=1e-6)
    assert set(np.unique(x[:, 1:5])) == {0, 1}
    np.testing.assert_array_equal(x[:, 1:5].sum(1), 1)
    np.testing.assert_array_equal(x[:, 4], 0)


def test_a_cell_of_one_example_has_no_segment(features):
    with pytest.raises(ValueError, match="found one of 1 example, expected at least 2"):
        smote.oversample(features, (np.arange(33) == 0).astype(int), 0)
