"""D3M for numbers as labels: a planted shortcut as one call, errors by hand, the unit of the labels, bad labels."""

from typing import Any

import jax
import numpy as np
import optax
import planted
import pytest

import d3mjax
from d3mjax.attribution import projections, trak
from d3mjax.data.planted.shortcut import planted_regression
from d3mjax.debiasing import d3m, regression, sources
from d3mjax.debiasing.regression import Errors
from d3mjax.types import Data

N, STEPS = 200, 60
DATA = planted_regression(seed=0, train=N, target=160, selection=160, test=400)
MODEL = d3mjax.linear(1)
TRAINER = d3mjax.make_trainer(MODEL, d3mjax.squared_error(), optax.sgd(0.1), d3mjax.shuffled(), batch_size=N)
OPTIONS = d3m.Options(
    attribution=sources.by_trak(
        regression.trak_options(trak.Options(projection=projections.identity(), damping=0.1, microbatch=50))
    ),
    retrains=2,
)
BANK = sources.Bank(models=40, block=20, steps=STEPS)


@pytest.fixture(scope="module")
def result():
    return d3mjax.debias(jax.random.key(0), MODEL, TRAINER, DATA, 2, num_steps=STEPS, checkpoints=2, options=OPTIONS)


def test_the_worst_group_gets_better_and_examples_of_the_shortcut_go(result):
    before, after = (errors.test.mean(0) for errors in (result.before, result.after))
    assert before.argmax() == 1
    assert after.max() < 0.95 * before.max()
    removed = result.weights == 0
    assert removed.any()
    scores = [result.scores[DATA.train.group == g].mean() for g in (0, 1)]
    assert scores[0] < scores[1]


def test_numbers_have_no_class_offsets(result):
    assert result.offsets is result.control is None
    assert not result.chosen.offsets
    assert all(isinstance(errors, Errors) for errors in (*result.tried.values(), result.before, result.after))


def test_errors_by_hand():
    split = lambda y, group: planted.split_of(
        np.zeros((len(y), 1), np.float32), np.asarray(y, np.float32), np.array(group)
    )
    data = Data(split([0, 2, 4], [0, 0, 0]), split([1, 1], [0, 1]), split([0, 0, 0], [0, 0, 1]), split([5, 6], [0, 1]))
    target, selected, test = (np.array(a, np.float32)[:, None] for a in ([2, 4], [3, -4, 2], [4, 8]))
    errors = regression.judge(target, selected, test, data, 2)
    planted.close(errors.losses, [1 / 2 / (8 / 3), 9 / 2 / (8 / 3)])  # the variance of 0, 2, 4 is 8/3
    planted.close(errors.selection, [np.sqrt(12.5), 2.0])
    planted.close(errors.test, [1.0, 2.0])
    planted.close(errors.test_absolute, [1.0, 2.0])
    planted.close(errors.average, np.sqrt(2.5))
    planted.close(errors.average_absolute, 1.5)
    planted.close(errors.residuals, [1.0, -2.0])


def test_a_choice_goes_by_the_worst_group_and_then_by_the_average():
    def errors(*selection):
        values: Any = np.array([selection])
        return Errors(*(values if name == "selection" else values[0] for name in Errors._fields))

    tried = {"level": errors(2.0, 2.0), "better": errors(1.0, 1.99), "worse": errors(0.1, 2.1)}
    group = np.array([0, 0, 0, 1])
    assert regression.choose(tried, group) == "better"
    assert regression.choose(tried, group, tolerance=0.1) == "worse"  # its average is the smallest by far
    assert d3m.choose(tried, group) == d3m.Choice("better", False)
    scaled = {name: each._replace(selection=1000 * each.selection) for name, each in tried.items()}
    assert regression.choose(scaled, group, tolerance=0.1) == "worse"


def test_losses_do_not_depend_on_the_unit_of_the_labels():
    variables = MODEL.init(jax.random.key(1), DATA.train.x[:1])
    scaled = Data(*(part._replace(y=128 * part.y) for part in DATA))  # a power of two: no rounding
    larger = {"params": jax.tree.map(lambda a: 128 * a, variables["params"])}
    one, other = d3m.evaluate(MODEL, variables, DATA, 2), d3m.evaluate(MODEL, larger, scaled, 2)
    planted.close(other.losses, one.losses, terms=N)
    planted.close(other.test, 128 * one.test, terms=N)


def test_datamodels_of_group_errors_rank_the_groups_alike():
    columns = sources.from_datamodels(jax.random.key(2), MODEL, TRAINER, DATA, 2, BANK)
    assert columns.right is None
    scores = np.asarray(columns.columns[0, :, 1])
    assert scores[DATA.train.group == 0].mean() < scores[DATA.train.group == 1].mean()


def test_labels_of_two_values_are_refused():
    two = Data(*(part._replace(y=np.float32(part.y > 0)) for part in DATA))
    with pytest.raises(ValueError, match=r"train\.y: found 2 different labels \[0\.0, 1\.0\].*use classification"):
        d3mjax.debias(jax.random.key(0), MODEL, TRAINER, two, 2)
