"""Parts of the studies of datamodels that have exact answers, and the banks that they share."""

import dataclasses
from functools import partial

import jax
import numpy as np
import pytest

from d3mjax.attribution import trak
from d3mjax.runtime import bank
from experiments import study
from experiments.datamodels import banks, brittleness, common, counterfactuals, lds, lds_influence, lds_trak, leakage
from experiments.datamodels import similar_examples as similar
from experiments.tasks import LDS_TASKS
from experiments.text_tasks import adamw


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize(("trainings", "expected"), [(2, np.sqrt(2 / 3)), (4, np.sqrt(0.8))])
def test_ceiling_is_the_spearman_brown_correlation_with_the_limit(trainings, expected):
    # Two halves of the trainings whose means have a correlation over masks of 1/2 (or 2/3 for pairs of trainings).
    shared, noise = np.array([1.0, -1, 1, -1]), np.array([[1.0, 1, -1, -1], [1, -1, -1, 1]])
    half = trainings // 2
    scale = np.sqrt({2: 1.0, 4: 0.5}[trainings])  # of the noise of a mean of `half` trainings of noise 1
    means = shared[:, None] + scale * noise.T
    margins = np.repeat(means, half, axis=1)[..., None]
    assert lds.ceiling(margins) == pytest.approx(expected, rel=1e-12)


def test_ceiling_of_exact_trainings_is_one(rng):
    margins = np.repeat(rng.normal(size=(6, 1, 3)), 4, axis=1)
    assert lds.ceiling(margins) == pytest.approx(1, rel=1e-12)


def test_ceiling_of_removals_is_the_share_of_variance_that_is_not_noise():
    assert counterfactuals.ceiling(np.array([-2.0, 2.0]), np.array([1.0, 3.0])) == pytest.approx(np.sqrt(0.5))
    assert counterfactuals.ceiling(np.array([-1.0, 1.0]), np.array([5.0])) == 0


def test_bias_is_the_difference_of_mean_probabilities_of_both_sides_of_pairs():
    group = np.array([0, 0, 1, 2, 3])  # groups 2 and 3 are the sides of one pair
    margins = np.array([1.0, 3.0, -1.0, 0.0, np.log(3)])
    means = lds_influence.mixed_means(margins, group, num_groups=2)
    np.testing.assert_allclose(means, [2, -1, 0.5 - 0.75], rtol=1e-12)


def test_attribution_that_is_not_finite_names_setting_and_checkpoints():
    setting, pivot = lds_trak.Setting(32, 0.01), np.ones(lds_trak.GROUP + 2, np.float32)
    pivot[-1] = np.nan

    def attribute(positions, pivots):
        zeros, finite = np.zeros((len(positions), 3), np.float32), np.ones((len(positions), 3), bool)
        return zeros, zeros, trak.Info(*map(jax.numpy.asarray, (zeros[:, 0], pivots, finite)))

    parts = lds_trak.in_groups(setting, attribute, np.arange(len(pivot)), pivot)
    assert len([next(parts) for _ in range(lds_trak.GROUP)]) == lds_trak.GROUP  # those of the first group are fine
    with pytest.raises(FloatingPointError, match=r"TRAK, SJLT, p = 32, damping 0\.01: .* checkpoints \[11\] is not"):
        next(parts)


def test_rows_of_a_bank_hold_hard_margins_and_then_soft_ones(rng):
    task = LDS_TASKS["patch"]
    target, model = task.read(10, smoke=True).target, task.network()
    variables = common.make_checkpoints(dataclasses.replace(task, steps=2))(
        task.read(10, smoke=True), banks.jax.random.split(banks.jax.random.key(0), 1)
    )
    variables = banks.jax.tree.map(lambda a: a[0], variables)
    row = np.asarray(banks.both_margins(model, variables, target))
    hard, soft = banks.hard_and_soft(row[None])
    np.testing.assert_array_equal(hard[0], banks.outputs.hard_margins(model, variables, target))
    np.testing.assert_array_equal(soft[0], banks.outputs.soft_margins(model, variables, target))


def test_duplicates_are_near_their_sources_and_training_is_untouched():
    data = LDS_TASKS["patch"].read(10, smoke=True)
    more, source = banks.with_duplicates(data, 10, banks.SMOKE)
    assert more.train is data.train
    assert len(set(source.tolist())) == 10
    copies = slice(len(data.target.y), None)
    assert (banks.cosines(more.target, data.train)[copies].argmax(1) == source).all()
    np.testing.assert_array_equal(more.target.y[copies], data.train.y[source])
    assert not np.isin(more.target.id[copies], data.train.id).any()
    again, _ = banks.with_duplicates(data, 10, banks.SMOKE)
    np.testing.assert_array_equal(again.target.x, more.target.x)


def test_targets_flip_exactly_without_the_example_that_carries_them():
    config, split = brittleness.Config(repeats=2), LDS_TASKS["patch"].read(10, smoke=True)
    three = banks.jax.tree.map(lambda a: np.asarray(a)[:3], split.target)

    def retrain(data, key, weights, *, repeats, labels, progress):
        """Target i is right as long as example i has its weight and its label."""
        labels = np.broadcast_to(data.train.y, weights.shape) if labels is None else labels
        right = (np.asarray(weights) > 0) & (labels == data.train.y)
        margins = np.repeat(np.where(right, 1.0, -1.0)[:, None, :3], repeats, axis=1)
        own = np.eye(2)[np.asarray(data.target.y)]
        return margins[..., None] * (2 * own - 1)

    n = len(split.train.y)
    own, others = np.zeros((3, n), bool), np.zeros((3, n), bool)
    own[range(3), range(3)], others[:, 5] = True, True
    flips = lambda **label: brittleness.flips(
        config, retrain, split._replace(target=three), None, print, [own, others, own | others], **label
    )
    np.testing.assert_array_equal(flips(), [[True, False, True]] * 3)
    np.testing.assert_array_equal(flips(label=1 - split.train.y[:3]), [[True, False, True]] * 3)
    np.testing.assert_array_equal(flips(label=split.train.y[:3])[:, 0], [False] * 3)  # the label that it has


def test_effects_of_every_kind_of_removal_are_cut_from_their_arrays():
    config = counterfactuals.Config(counts=(10, 20), random_counts=(5, 6, 7), random_sets=2)
    arrays = {"actual/own": np.arange(4 * 6).reshape(4, 6), "actual/random": np.arange(4 * 6).reshape(4, 6)}
    parts = counterfactuals.by_kind(config, arrays, "actual")
    np.testing.assert_array_equal(parts["most harmful"][1], [6 + 2, 6 + 3])
    np.testing.assert_array_equal(parts["random"][1], [[6, 8, 10], [7, 9, 11]])  # sets, counts


def test_smoke_runs_of_default_tasks_need_no_download():
    default = similar.Config()
    assert similar.STUDY.smoke(default).tasks == ("patch",)
    assert similar.STUDY.smoke(dataclasses.replace(default, tasks=("fashion",))).tasks == ("fashion",)
    assert lds_influence.STUDY.smoke(lds_influence.Config()).tasks == ("adult-sex",)


@pytest.mark.parametrize("optimizer", [partial(adamw), lambda rate, decay: adamw(rate, decay)])
def test_a_recipe_without_a_name_makes_no_bank(tmp_path, optimizer):
    task = dataclasses.replace(LDS_TASKS["patch"], optimizer=optimizer)
    with pytest.raises(ValueError, match=r"patch\.optimizer: found .*, expected a function with a name"):
        banks.make_bank(task, tmp_path, banks.both_margins)


@pytest.mark.slow
def test_a_second_study_reads_the_bank_of_the_first(tmp_path):
    def blocks():
        return {path: path.stat().st_mtime_ns for path in (tmp_path / "banks").glob("*/block-*")}

    study.run(leakage.STUDY, dataclasses.replace(leakage.Config(), smoke=True), tmp_path)
    first = blocks()
    study.run(similar.STUDY, dataclasses.replace(similar.Config(), smoke=True), tmp_path)
    assert first
    assert blocks() == first


def test_banks_of_one_share_are_those_of_lds_datamodels(tmp_path):
    task, config = (
        dataclasses.replace(LDS_TASKS["patch"], steps=3),
        banks.Config(bank=banks.Recipe(models=40, min_share=0.5, max_share=0.5, duplicates=0, lambdas=3), smoke=True),
    )
    data, subsets, counts = task.read(10, smoke=True), banks.Subsets(0.5), []
    fill = banks.make_bank(task, tmp_path / "banks", banks.both_margins)
    filled, _ = fill(data, 10, subsets.key(jax.random.key(10)), subsets.design(600), 40, counts.append)
    fitted = banks.make_datamodels(task, config, tmp_path)(10, counts.append)
    assert counts == [0, 40, 40]  # the second reads all 40
    assert (bank.masks(filled).sum(1) == 300).all()
    same, weight = fitted.without_duplicates()
    np.testing.assert_array_equal(same.target.id, data.target.id)
    assert weight.shape == (200, 600)
