"""Experiments on counterfactual bias: their tasks and controls, and what decides."""

from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest

from d3mjax.data.sets import adult
from d3mjax.types import Pairs
from experiments import bias_tasks
from experiments.bias import fmd, pair_controls

SEX = adult.COLUMNS["sex"]


def test_pairs_show_the_stereotype_first_and_differ_in_the_attribute_alone():
    for pairs in bias_tasks.ADULT_SEX.load(0, smoke=True).pairs:
        x, flipped = np.asarray(pairs.x), np.asarray(pairs.flipped)
        np.testing.assert_array_equal(x[:, SEX][:, 1] == 1, pairs.y == 1)  # male
        np.testing.assert_array_equal(x[:, SEX], flipped[:, SEX][:, ::-1])
        rest, other = (np.delete(a, np.r_[SEX], axis=1) for a in (x, flipped))
        np.testing.assert_array_equal(rest, other)


@pytest.mark.parametrize("task", [bias_tasks.ADULT_SEX, bias_tasks.ADULT_RACE, bias_tasks.PATCH_PAIRS])
def test_versions_and_drop_do_not_depend_on_the_attribute(task):
    pairs = task.load(0, smoke=True).pairs.report
    versions = task.versions(pairs.x)
    np.testing.assert_allclose(versions, task.versions(pairs.flipped), atol=1e-6)
    np.testing.assert_allclose(task.drop(pairs.x), task.drop(pairs.flipped), atol=1e-6)
    distance = np.abs(versions - pairs.x[None]).max(2)
    assert np.median(distance.min(0)) < 1e-5 < np.median(distance.max(0))  # one version is the example itself


def test_flips_are_of_a_random_value_of_the_attribute():
    task = bias_tasks.ADULT_SEX
    x = np.asarray(task.load(0, smoke=True).data.train.x)
    x = np.concatenate([x, x])  # more than are flipped at a time
    flips = pair_controls.at_random(task, x, 0)
    rest, other = (np.delete(a, np.r_[SEX], axis=1) for a in (flips, x))
    np.testing.assert_array_equal(rest, other)
    np.testing.assert_array_equal(flips[:, SEX].sum(1), 1)
    assert abs((flips != x).any(1).mean() - 0.5) < 3 * 0.5 / len(x) ** 0.5


def test_the_temperature_gives_the_bias():
    logits = {"aligned": np.array([[3.0, 0.0], [0.0, 2.0]]), "conflicting": np.array([[1.0, 0.0], [0.5, 0.0]])}
    absent: Any = None
    parts = pair_controls.Parts(*[absent] * 4, report=Pairs(None, None, np.array([0, 1])))
    at: Any = lambda temperature: {side: np.asarray(jax.nn.softmax(a / temperature)) for side, a in logits.items()}
    bias = lambda p: np.abs([p["aligned"][i, i] - p["conflicting"][i, i] for i in (0, 1)]).mean()
    temperature = pair_controls.at_temperature(at, parts, 0.5 * bias(at(1.0)))
    np.testing.assert_allclose(bias(at(temperature)), 0.5 * bias(at(1.0)), rtol=1e-4)  # 20 bisections of 1..100


@pytest.mark.slow
def test_report_pairs_decide_nothing():
    config = fmd.Config(tasks=(), etas=(0.3, 1.0), rounds=2, newton_rounds=2, whole_rounds=1)
    task = bias_tasks.adult_task("sex", "Male", "Female", train=600, hidden=(16,), steps=60)
    programs, loaded = fmd.make_programs(task, config), task.load(0, smoke=True)
    few = jax.tree.map(lambda a: np.array(a)[::-1][: len(a) // 2], loaded.pairs.report)
    facts, warm = [], set()
    for report in (loaded.pairs.report, few):
        changed = loaded._replace(pairs=loaded.pairs._replace(report=report))
        other = replace(task, load=lambda seed, *, smoke, changed=changed: changed)
        facts.append(fmd.measure(other, config, programs, warm, None, 0, lambda count: None)[0])
    one, other = facts
    assert one["steps"] == other["steps"]
    assert max(one["steps"].values()) >= 0
    for name in one["steps"]:
        assert one[name]["accuracy"] == other[name]["accuracy"]  # on the test set
        assert one[name]["bias"] != other[name]["bias"]
