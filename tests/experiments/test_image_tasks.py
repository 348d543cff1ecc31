"""Tasks on the user's images, here on small made files of the same layout."""

import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from d3mjax.data import splits
from d3mjax.training import recipes
from experiments import image_tasks, local_data, study
from experiments.datamodels import banks, counterfactuals, lds_datamodels, lds_trak
from experiments.tasks import RESAMPLED, SHUFFLED

sys.path.insert(0, str(Path(__file__).parents[1] / "data" / "sets"))
from cifar_files import write_batches


@pytest.fixture(autouse=True)
def data(tmp_path, monkeypatch):
    write_batches(tmp_path / "cifar10", train=60, test=80)
    monkeypatch.setenv(local_data.VARIABLE, str(tmp_path))
    return tmp_path


def test_cifar10_is_standardised_and_balanced():
    data = image_tasks.CIFAR10.read(1, smoke=True)
    assert [split.x.shape for split in data] == [(600, 192), (200, 192), (200, 192), (400, 192)]
    for split in data:
        assert len(set(splits.group_sizes(split, 10))) == 1
    np.testing.assert_allclose([data.train.x.mean(), data.train.x.std()], [0, 1], atol=1e-4)
    (image,) = image_tasks.CIFAR10.examples(1, data.train, np.array([3]))
    assert image.shape == (8, 8, 3)


def test_missing_files_are_named(monkeypatch, data):
    monkeypatch.setenv(local_data.VARIABLE, str(data / "none"))
    monkeypatch.setattr(local_data, "FILLED", data / "none")
    with pytest.raises(ValueError, match="found no cifar10"):
        image_tasks.CIFAR10.read(1)


def test_resnet9_has_the_recipe_of_the_paper():
    task = image_tasks.CIFAR10_RESNET9
    model, x = task.network(), np.zeros((1, 3072), np.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == 2_274_880
    assert recipes.datamodels_cifar10(model, 25_000).num_steps == task.steps
    for sampler in (SHUFFLED, RESAMPLED):
        state = jax.eval_shape(task.trainer(task.steps, sampler).init, jax.random.key(0), x)
        assert jax.tree.structure(state.variables) == jax.tree.structure(variables)
    # Another network, another bank: every shape counts.
    assert banks.shapes(model, x) != banks.shapes(image_tasks.CIFAR10.network(), x[:, :192])
    assert banks.shapes(image_tasks.CIFAR10.network(), x[:, :192])["params/_Convolution_1/kernel"] == [3, 3, 16, 32]


def test_studies_of_datamodels_run_on_cifar10_and_share_their_models(tmp_path):
    few = {"tasks": ("cifar10",), "smoke": True}
    run = lambda module, **fields: study.run(module.STUDY, replace(module.Config(**few), **fields), tmp_path)
    run(lds_datamodels)
    kept = {path.name for path in (tmp_path / "banks").iterdir()}
    run(lds_trak)
    assert {path.name for path in (tmp_path / "banks").iterdir()} == kept  # one truth for both
    run(counterfactuals)
