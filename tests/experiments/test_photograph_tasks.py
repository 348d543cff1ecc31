"""The tasks of photographs on made files of the published layouts, from files and weights to tables."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import made_images
import numpy as np
import pytest
import smoke
from networks.published_images import resnet_tensors
from safetensors.numpy import save_file

from d3mjax.data.sets import images
from d3mjax.debiasing import d3m as method
from d3mjax.debiasing import selection
from d3mjax.networks import resnets
from experiments import local_data, photograph_tasks, study
from experiments.d3m import d3m
from experiments.d3m.retraining import retrain
from experiments.tasks import Trak, columns

TINY = resnets.ResnetConfig((1, 1, 1, 1), bottleneck=False, width=8)
SEX = {name: (a + c, b + d) for name, (a, b, c, d) in made_images.COUNTS.items()}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A directory with both data sets and weights; made data go to another."""
    directory = tmp_path_factory.mktemp("data")
    made_images.waterbirds(directory / "waterbirds")
    made_images.celeba(directory / "celeba")
    (directory / "resnet50").mkdir()
    save_file(resnet_tensors(TINY), directory / "resnet50" / "model.safetensors")
    return directory, tmp_path_factory.mktemp("made")


@pytest.fixture
def tasks(sources, monkeypatch):
    """All tasks at 64 pixels with a tiny network and two steps."""
    directory, made = sources
    monkeypatch.setenv(local_data.VARIABLE, str(directory))
    readers = {
        "waterbirds": (photograph_tasks._birds, made_images.COUNTS),
        "celeba-blond": (photograph_tasks._blond, made_images.COUNTS),
        "celeba-age": (photograph_tasks._age, SEX),
    }
    recipe, names = photograph_tasks.Recipe(2, 24, 1e-3, 1e-3), (("a", "b"), tuple("0123"))
    made_tasks = {}
    for name, (read, counts) in readers.items():
        source = photograph_tasks.Source(read, counts, network=TINY, size=64, made=made)
        made_tasks |= photograph_tasks.tasks_of(name, "Made images.", source, recipe, *names)
    return {name: dataclasses.replace(task, steps=2, batch=8) for name, task in made_tasks.items()}


def test_data_are_the_same_for_network_and_head(tasks):
    for name in ("waterbirds", "celeba-blond", "celeba-age"):
        whole, head = (tasks[key].read(0) for key in (name, f"{name}-head"))
        for split, features in zip(whole, head, strict=True):
            assert (split.x.dtype, split.x.shape[1:]) == (np.uint8, (64, 64, 3))
            for part in ("y", "group", "id"):
                np.testing.assert_array_equal(getattr(split, part), getattr(features, part))
        assert head.train.x.shape == (24, TINY.features)
        np.testing.assert_allclose(head.train.x.mean(0), 0, atol=1e-4)
        shown = tasks[f"{name}-head"].examples(0, head.train, np.array([3, 1]))
        np.testing.assert_array_equal(shown, whole.train.x[[3, 1]])
        np.testing.assert_array_equal(tasks[name].examples(0, whole.train, np.array([3, 1])), shown)


def test_features_of_an_image_do_not_depend_on_the_seed(tasks):
    one, other = (tasks["waterbirds-head"].read(seed) for seed in (0, 1))
    assert one.target.id.tolist() != other.target.id.tolist()
    by_id = [dict(zip(s.id.tolist(), s.x, strict=True)) for data in (one, other) for s in (data.target, data.selection)]
    first, second = by_id[0] | by_id[1], by_id[2] | by_id[3]
    for i, x in first.items():
        np.testing.assert_array_equal(x, second[i])


def test_images_are_normalised_and_evaluated_in_parts(tasks, monkeypatch):
    x = tasks["waterbirds"].read(0).train.x
    model = tasks["waterbirds"].network()
    variables = model.init(jax.random.key(0), x[:1])
    plain = resnets.classifier(TINY, 2)
    monkeypatch.setattr("experiments.tasks.PART", 7)  # training sees the whole batch, as its statistics do
    for train in (False, True):
        logits, after = model.apply(variables, x, train=train)
        expected, expected_after = plain.apply(variables, jnp.asarray(images.normalise(x)), train=train)
        np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-4)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4), after, expected_after)


def test_what_is_missing_is_named(tasks, tmp_path, monkeypatch):
    monkeypatch.setenv(local_data.VARIABLE, str(tmp_path))
    for call, name in ((tasks["waterbirds"].network, "resnet50"), (lambda: tasks["waterbirds"].read(0), "waterbirds")):
        with pytest.raises(ValueError, match=rf"found no {name} \({name}\) in .*Origin: "):
            call()
    made_images.waterbirds(tmp_path / "waterbirds", made_images.COUNTS | {"test": (3, 3, 3, 4)})
    with pytest.raises(ValueError, match=r"test\.group: found counts \[3, 3, 3, 4\], expected the published"):
        tasks["waterbirds"].read(0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["waterbirds-head", "celeba-age-head"])
def test_d3m_runs_from_files_to_tables(name, tasks, tmp_path):
    config = d3m.Config(tasks=(name,), seeds=1, retrains=1, source=Trak(models=1, size=16), others=())
    run = study.run(dataclasses.replace(d3m.STUDY, tasks=tasks), config, tmp_path)
    methods = smoke.means(smoke.read_rows(run), name)
    assert methods.keys() == d3m.KINDS.keys()
    assert all(0 <= row["worst_group_accuracy"] <= row["average_accuracy"] <= 1 for row in methods.values())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("celeba-blond", Trak(models=1, size=16)),
        ("waterbirds", Trak(models=1, last_layer=True)),
    ],
)
def test_whole_networks_are_attributed_and_trained_again(name, source, tasks):
    task = tasks[name]
    data = task.read(0)
    made = columns(task, source, jax.random.key(0), data)
    (scores,) = method.score(made.columns, np.arange(4.0)).scores
    assert np.isfinite(scores).all()
    keep = selection.drop_lowest(scores, 6)
    (evaluation,) = retrain(task, data, jax.random.split(jax.random.key(1), 1), {"D3M": keep}).values()
    assert evaluation.test.shape == (1, 4)
