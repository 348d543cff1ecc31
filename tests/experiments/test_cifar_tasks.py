"""Tasks on the user's images, here on small made files of the same layout."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import numpy as np
import pytest
from cifar_files import write_batches

from d3mjax.data import splits
from d3mjax.networks import conv
from d3mjax.training import recipes
from experiments import cifar_tasks, local_data, study
from experiments.datamodels import banks, lds, lds_datamodels, lds_trak
from experiments.tasks import RESAMPLED, SHUFFLED


@pytest.fixture(autouse=True)
def data(tmp_path, monkeypatch):
    write_batches(tmp_path / "cifar10", train=60, test=80)
    monkeypatch.setenv(local_data.VARIABLE, str(tmp_path))
    return tmp_path


def test_cifar10_is_standardised_and_balanced():
    data = cifar_tasks.CIFAR10.read(1, smoke=True)
    assert [split.x.shape for split in data] == [(600, 192), (200, 192), (200, 192), (400, 192)]
    for split in data:
        assert len(set(splits.group_sizes(split, 10))) == 1
    np.testing.assert_allclose([data.train.x.mean(), data.train.x.std()], [0, 1], atol=1e-4)
    (image,) = cifar_tasks.CIFAR10.examples(1, data.train, np.array([3]))
    assert image.shape == (8, 8, 3)


def test_missing_files_are_named(monkeypatch, data):
    monkeypatch.setenv(local_data.VARIABLE, str(data / "none"))
    monkeypatch.setattr(local_data, "FILLED", data / "none")
    with pytest.raises(ValueError, match="found no cifar10"):
        cifar_tasks.CIFAR10.read(1)


def test_resnet9_has_the_recipe_of_the_paper():
    task = cifar_tasks.CIFAR10_RESNET9
    model, x = task.network(), np.zeros((1, 3072), np.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == 2_274_880
    assert recipes.datamodels_cifar10(model, 25_000).num_steps == task.steps
    for sampler in (SHUFFLED, RESAMPLED):
        state = jax.eval_shape(task.trainer(task.steps, sampler).init, jax.random.key(0), x)
        assert jax.tree.structure(state.variables) == jax.tree.structure(variables)
    # Another network, another bank: every shape counts.
    assert banks.shapes(model, x) != banks.shapes(cifar_tasks.CIFAR10.network(), x[:, :192])
    assert banks.shapes(cifar_tasks.CIFAR10.network(), x[:, :192])["params/_Convolution_1/kernel"] == [3, 3, 16, 32]


@pytest.mark.parametrize(("name", "labels"), [("cifar10n", "worse_label"), ("cifar10n-most", "aggre_label")])
def test_human_labels_are_the_wrong_ones(data, name, labels):
    clean = np.tile(np.arange(10, dtype=np.int8), 60)
    arrays: dict[str, Any] = {labels: (clean + (np.arange(600) < 60)) % 10}
    np.savez(data / "cifar10" / "cifar10n_labels.npz", clean_label=clean, **arrays)
    task = cifar_tasks.TASKS[name]
    noisy, right = task.read(1, smoke=True), cifar_tasks.CIFAR10.read(1, smoke=True)
    wrong = np.isin(noisy.train.id, task.wrong(1, smoke=True))
    np.testing.assert_array_equal(wrong, noisy.train.y != right.train.y)
    # The first six of each class, by published order, are called the next class.
    np.testing.assert_array_equal(wrong, noisy.train.id % 60 < 6)
    np.testing.assert_array_equal(noisy.train.y, (right.train.y + wrong) % 10)
    np.testing.assert_array_equal(noisy.train.group, noisy.train.y)
    np.testing.assert_array_equal(noisy.target.y, right.target.y)


def test_truth_is_kept(tmp_path):
    task = replace(cifar_tasks.CIFAR10, steps=3)
    data, counts = task.read(1, smoke=True), []
    first = lds.make_truth(task, 2, tmp_path)(data, 1, 3, counts.append)
    again = lds.make_truth(task, 2, tmp_path)(data, 1, 3, counts.append)
    assert counts == [0, 6, 6]  # of six models the second call reads all
    assert (np.asarray(first.masks).sum(1) == 300).all()
    assert first.margins.shape == (3, 2, 200)
    assert (first.margins[:, 0] != first.margins[:, 1]).all()
    np.testing.assert_array_equal(again.margins, first.margins)


@pytest.mark.slow
def test_studies_of_datamodels_run_on_cifar10_and_share_the_truth(tmp_path):
    small = replace(cifar_tasks.CIFAR10, make_model=partial(conv.cnn, (4, 8), 10, image=(8, 8, 3)))
    of_small = lambda module: replace(module.STUDY, tasks={"cifar10": small})
    run = lambda module: study.run(of_small(module), module.Config(tasks=("cifar10",), smoke=True), tmp_path)
    run(lds_datamodels)
    kept = {path.name for path in (tmp_path / "banks").iterdir()}
    run(lds_trak)
    assert {path.name for path in (tmp_path / "banks").iterdir()} == kept
