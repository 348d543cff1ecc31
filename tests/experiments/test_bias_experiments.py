"""Experiments on counterfactual bias: their tasks, what they choose, and small runs whose tables are checked."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from d3mjax.attribution import influence, projections, trak
from d3mjax.data.sets import adult
from d3mjax.runtime import store
from d3mjax.types import Split
from d3mjax.unlearning import edits
from d3mjax.unlearning.edits import Bias
from experiments import bias_tasks
from experiments.bias import fmd, fmd_against_d3m, fmd_edits, influence_on_bias, pair_controls
from experiments.datamodels import lds_influence

SEX = adult.COLUMNS["sex"]


def rows_by_name(run):
    return {row["method"]: row["metrics"] for row in store.read_json(run / "metrics.json")["rows"]}


def test_pairs_show_the_stereotype_first_and_differ_in_the_attribute_alone():
    loaded = bias_tasks.ADULT_SEX.load(0, smoke=True)
    for pairs in loaded.pairs:
        male = np.asarray(pairs.x)[:, SEX][:, 1] == 1
        np.testing.assert_array_equal(male, pairs.y == 1)
        rest = np.delete(np.asarray(pairs.x) - pairs.flipped, np.r_[SEX], axis=1)
        assert (rest == 0).all()
        assert (np.asarray(pairs.x)[:, SEX] == np.asarray(pairs.flipped)[:, SEX][:, ::-1]).all()


@pytest.mark.parametrize("task", [bias_tasks.ADULT_SEX, bias_tasks.ADULT_RACE, bias_tasks.PATCH_PAIRS])
def test_versions_and_drop_do_not_depend_on_the_attribute(task):
    pairs = task.load(0, smoke=True).pairs.report
    versions = task.versions(pairs.x)
    np.testing.assert_allclose(versions, task.versions(pairs.flipped), atol=1e-6)
    np.testing.assert_allclose(task.drop(pairs.x), task.drop(pairs.flipped), atol=1e-6)
    distance = np.abs(versions - pairs.x[None]).max(2)
    assert np.median(distance.min(0)) < 1e-5 < np.median(distance.max(0))  # one version is the example itself


def test_the_step_is_the_best_allowed_or_none():
    task, config = bias_tasks.ADULT_SEX, fmd.Config(tasks=())
    bias = lambda absolute, accuracy: Bias(*map(jnp.asarray, (absolute, absolute, absolute, accuracy)))
    start = (bias(0.3, 0.8), np.asarray(0.7))
    found = (bias([0.2, 0.1, 0.05], [0.795, 0.8, 0.5]), np.array([0.7, 0.695, 0.9]))
    assert fmd.choose(task, config, found, start) == 1  # the third loses 5 points over both sides
    assert fmd.choose(replace(task, goal="accuracy"), config, found, start) == -1  # .7, then .7, .695 and .5
    even = (bias([0.2, 0.1], [0.75, 0.78]), np.array([0.76, 0.9]))
    assert fmd.choose(replace(task, goal="accuracy"), config, even, start) == 1
    worse = (bias([0.4], [0.8]), np.array([0.6]))
    assert fmd.choose(task, config, worse, start) == -1
    assert fmd.choose(replace(task, goal="accuracy"), config, worse, start) == -1


def test_edits_and_retraining_stand_side_by_side(tmp_path):
    run = fmd_against_d3m.main(fmd_against_d3m.Config(tasks=("adult-sex",), smoke=True), tmp_path)
    rows = rows_by_name(run)
    mean = lambda name, metric: rows[name][metric]["mean"]
    for name in ("average over the attribute", "trained without the attribute"):
        assert mean(name, "bias") == mean(name, "flip_rate") == 0
    assert mean("FMD, sign flipped", "signed_bias") > mean("refit", "signed_bias") > mean("FMD", "signed_bias")
    tempered = "temperature of FMD's bias"
    assert mean(tempered, "bias") == pytest.approx(mean("FMD", "bias"), abs=1e-3)
    for metric in ("accuracy", "flip_rate", "parity_gap"):
        assert mean(tempered, metric) == mean("refit", metric)
    assert mean("D3M", "worst_group_accuracy") > mean("no edit", "worst_group_accuracy")
    assert fmd_against_d3m.main(fmd_against_d3m.Config(tasks=("adult-sex",), smoke=True), tmp_path) == run


def test_the_whole_network_is_curved_by_a_part_that_counts_as_all():
    task = bias_tasks.adult_task("sex", "Male", "Female", train=600, hidden=(4,))
    loaded, model = task.load(0, smoke=True), task.task.network()
    raw = fmd_edits.Parts(loaded.data.train, loaded.data.test, *loaded.pairs)
    params = model.init(jax.random.key(0), raw.train.x[:1])["params"]
    problems = [
        fmd_edits.make_whole(model, params, raw, damping=0.01, most=most).problem for most in (150, 600, 10_000)
    ]
    v = jax.random.normal(jax.random.key(1), ravel_pytree(params)[0].shape)
    part, whole, more = (np.asarray(influence.ggn(problem)(v)) for problem in problems)
    np.testing.assert_array_equal(whole, more)
    np.testing.assert_allclose([p.weights.sum() for p in problems], 600)
    np.testing.assert_allclose([p.damping for p in problems], 6)
    assert 0 < np.linalg.norm(part - whole) < 0.5 * np.linalg.norm(whole)  # 150 are not all, but much alike


def test_report_pairs_decide_nothing():
    config = fmd.Config(tasks=(), etas=(0.3, 1.0), rounds=2, newton_rounds=2, whole_rounds=1)
    task = bias_tasks.adult_task("sex", "Male", "Female", train=600, hidden=(16,), steps=60)
    programs, loaded = fmd.make_programs(task, config), task.load(0, smoke=True)
    few = jax.tree.map(lambda a: np.array(a)[::-1][: len(a) // 2], loaded.pairs.report)
    facts, warm = [], set()
    for report in (loaded.pairs.report, few):
        given = loaded._replace(pairs=loaded.pairs._replace(report=report))
        here = replace(task, load=lambda seed, *, smoke, given=given: given)
        facts.append(fmd.measure(here, config, programs, warm, None, 0, lambda count: None)[0])
    one, other = facts
    assert one["steps"] == other["steps"]
    assert max(one["steps"].values()) >= 0
    for name in one["steps"]:
        assert one[name]["accuracy"] == other[name]["accuracy"]  # on the test set
        assert one[name]["bias"] != other[name]["bias"]


def test_flips_are_of_a_random_value_of_the_attribute():
    task = bias_tasks.ADULT_SEX
    x = np.asarray(task.load(0, smoke=True).data.train.x)
    x = np.concatenate([x, x])  # more than are flipped at a time
    found = pair_controls.at_random(task, x, 0)
    np.testing.assert_array_equal(np.delete(found, np.r_[SEX], axis=1), np.delete(x, np.r_[SEX], axis=1))
    np.testing.assert_array_equal(found[:, SEX].sum(1), 1)
    assert abs((found != x).any(1).mean() - 0.5) < 0.06


def test_trak_on_bias_is_that_of_each_pair():
    task = bias_tasks.adult_task("sex", "Male", "Female", train=600, hidden=(8,))
    loaded = task.load(0, smoke=True)
    train, pairs, model = loaded.data.train, loaded.pairs.reference, task.task.network()
    variables = model.init(jax.random.key(0), train.x[:1])
    key = jax.random.key(1)
    at_first = jax.random.fold_in(key, 0)  # as that of the first checkpoint
    found = influence_on_bias.by_trak(at_first, model, variables, train, pairs, size=32)
    options = trak.Options(projections.sjlt(32), target_output=influence_on_bias.probability_output)
    one, other = (
        trak.scores(key, model, jax.tree.map(lambda a: a[None], variables), train, target, options=options).tau
        for target in (Split(x, pairs.y, pairs.y, pairs.y) for x in (pairs.x, pairs.flipped))
    )
    d = edits.differences(model, variables, pairs)
    expected = [(jnp.sign(d)[:, None] * (one - other)).mean(0), (one - other).mean(0)]
    np.testing.assert_allclose(found, np.stack(expected, 1), rtol=1e-3, atol=1e-3 * np.abs(expected[0]).max())


def test_removal_by_influence_is_told_with_its_prediction(tmp_path):
    run = influence_on_bias.main(influence_on_bias.Config(tasks=("adult-sex",), smoke=True), tmp_path)
    rows = rows_by_name(run)
    top, chosen = rows["whole network, 20 removed"], rows["whole network, self-chosen"]
    assert top["removed"]["mean"] == pytest.approx(20 / 600)
    change = top["signed_bias"]["mean"] - rows["no removal"]["signed_bias"]["mean"]
    assert top["signed_change"]["mean"] == pytest.approx(change, abs=1e-6)
    assert 0 < chosen["removed"]["mean"] < 1
    for name in ("number by one step", "in rounds"):
        assert round(600 * rows[f"whole network, {name}"]["removed"]["mean"]) in (0, 10, 20)
    assert "TRAK, 20 removed" in rows
    unit = dict(np.load(run / "units" / "adult-sex-10.npz"))
    assert len(unit["on_bias/whole network"]) == len(unit["on_bias/last layer"]) == len(unit["id"]) == 600


def test_influence_predicts_margins_and_bias(tmp_path):
    run = lds_influence.main(lds_influence.Config(tasks=("adult-sex",), smoke=True), tmp_path)
    ggn = rows_by_name(run)["GGN, damping 0.01, 2 checkpoints"]
    assert ggn["lds"]["mean"] > 0.6  # .83 at this seed; 20 subsets leave about .1 of noise
    assert ggn["lds_bias"]["mean"] > 0.6
    values = np.arange(12.0).reshape(2, 6) ** 2
    np.testing.assert_array_equal(lds_influence.with_bias(values)[:, :4], values[:, :4])
    np.testing.assert_array_equal(lds_influence.with_bias(values)[:, 4], values[:, 4] - values[:, 5])
