"""Every task gives sound splits; what is planted is where it is said to be."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d3mjax.data import splits
from d3mjax.networks import conv, dense
from experiments import tasks
from experiments.tasks import LDS_TASKS, SHUFFLED, TASKS, adam


@pytest.mark.parametrize("task", [*TASKS.values(), LDS_TASKS["patch"]], ids=lambda task: task.name)
def test_smoke_data_is_sound_and_repeats(task):
    data = task.read(1, smoke=True)
    np.testing.assert_array_equal(task.read(1, smoke=True).train.x, data.train.x)
    assert len(data.train.y) == 600
    assert task.read(2, smoke=True).train.id.tolist() != data.train.id.tolist()
    if task.image:
        assert data.train.x.shape == (600, np.prod(task.image))


def test_group_counts_are_as_the_tasks_say():
    trains, targets = ([1900, 100, 100, 1900], [380, 20, 20, 380])
    expected = {
        "patch": (trains, targets),
        "patch-balanced": (trains, [25] * 4),
        "background": (trains, targets),
        "background-balanced": (trains, [25] * 4),
        "digits": ([380, 20, 20, 380], [95, 5, 5, 95]),
        "label-errors": ([1000, 1400, 1000, 600], [50] * 4),
    }
    found = {name: TASKS[name].read(0) for name in expected}
    for name, (train, target) in expected.items():
        assert splits.group_sizes(found[name].train, 4).tolist() == train
        assert splits.group_sizes(found[name].target, 4).tolist() == target
        assert len(set(splits.group_sizes(found[name].test, 4).tolist())) == 1
    # Few balanced targets change nothing but the targets: same training and test images, selection of the same mix.
    few, many = found["patch-balanced"], found["patch"]
    for a, b in ((few.train, many.train), (few.test, many.test)):
        np.testing.assert_array_equal(a.x, b.x)
    assert splits.group_sizes(few.selection, 4).tolist() == splits.group_sizes(many.selection, 4).tolist()


def test_label_errors_are_the_flagged_ones_and_no_others():
    task = TASKS["label-errors"]
    train = task.read(3).train
    wrong = np.isin(train.id, task.wrong(3))
    assert wrong.sum() == len(task.wrong(3)) == 400  # 40 % of 1,000
    assert (train.group[wrong] == 1).all()  # called pullover, patch right
    # The true class by the official files: a pullover here and a coat there never share an image number.
    truth = {int(i): int(y) for s in TASKS["patch"].read(3) for i, y in zip(s.id, s.y, strict=True)}
    known = np.array([int(i) in truth for i in train.id])
    assert known.sum() > 1000
    y = np.array([truth.get(int(i), -1) for i in train.id])
    np.testing.assert_array_equal((y != train.y)[known], wrong[known])
    assert (task.wrong(4).tolist()) != task.wrong(3).tolist()


def test_networks_are_made_when_needed_and_once():
    made = []

    def make_model():
        made.append(dense.linear(2))
        return made[-1]

    task = replace(TASKS["patch"], make_model=make_model)
    assert not made
    assert task.network() is task.network() is made[0]
    assert len(made) == 1


def test_optimizers_of_tasks_decay_through_the_gradient():
    split, rate, decay = TASKS["patch"].read(0, smoke=True).train, 0.01, 0.1
    task = replace(TASKS["patch"], optimizer=adam, rate=rate, decay=decay)
    trainer = task.trainer(2, SHUFFLED)
    state = trainer.init(jax.random.key(0), split.x[:1])
    state = state._replace(variables=jax.tree.map(lambda a: jnp.where(a < 0, -1.0, 1.0), state.variables))
    after, _ = trainer.run(state, split._replace(x=np.zeros_like(split.x)), jnp.ones(len(split.y)), 1)
    # Inputs are zero: the gradient of the first layer's weights is the decay alone, and Adam's first step has its sign.
    before, kernel = (s.variables["params"]["Dense_0"]["kernel"] for s in (state, after))
    np.testing.assert_allclose(kernel, before - rate * np.sign(before), rtol=1e-5)


def test_smooth_labels_are_an_option_of_the_trainer_of_cross_entropy():
    task = tasks.PATCH
    smooth = task.trainer(50, SHUFFLED, smoothing=0.2)
    assert smooth is task.trainer(50, SHUFFLED, smoothing=0.2)
    data = task.read(0, smoke=True)
    one = lambda trainer: trainer.run(trainer.init(jax.random.key(0), data.train.x[:1]), data.train, jnp.ones(600), 50)
    plain, smoothed = (float(one(t)[1].loss[0]) for t in (task.trainer(50, SHUFFLED), smooth))
    assert plain != smoothed
    own = replace(task, make_trainer=lambda *_: smooth)
    with pytest.raises(ValueError, match=r"smoothing: found 0.2, expected 0 for the task 'patch'"):
        own.trainer(50, SHUFFLED, smoothing=0.2)


@pytest.mark.parametrize("backend", ["cpu", "gpu", "tpu"])
def test_the_convolution_depends_on_the_device(monkeypatch, backend):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    assert tasks.fastest_convolution() is (conv.convolve_shifted if backend == "cpu" else conv.convolve_lax)
