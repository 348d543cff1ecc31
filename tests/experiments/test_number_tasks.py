"""Tasks of numbers on a made wheel: standardised labels, rare groups, and D3M from data to page."""

import json

import jax
import made_bikes
import numpy as np
import pytest

from d3mjax.data.sets import number_tables
from experiments import local_data, number_tasks, study
from experiments.__main__ import studies
from experiments.d3m import d3m_numbers


@pytest.fixture
def bikes(tmp_path, monkeypatch):
    """The made wheel where `local_data` looks for it."""
    monkeypatch.setenv(local_data.VARIABLE, str(tmp_path))
    monkeypatch.setitem(local_data.SOURCES, "islp", local_data.SOURCES["islp"]._replace(sha256={}))
    number_tasks._read.cache_clear()
    made_bikes.write(tmp_path)
    yield tmp_path
    number_tasks._read.cache_clear()


def test_labels_are_standardised_by_those_of_training(bikes):
    task = number_tasks.BIKE
    assert task.scale is not None
    data, scale = task.read(3, smoke=True), task.scale(3, smoke=True)
    _, labels = number_tables.bike(bikes / "islp-0.6.0-py3-none-any.whl").load()
    np.testing.assert_allclose([data.train.y.mean(), data.train.y.std()], [0, 1], atol=1e-5)
    for part in data:
        np.testing.assert_allclose(part.y * scale.std + scale.mean, labels[part.id], rtol=1e-5, atol=1e-3)
    variables = task.network().init(jax.random.key(0), data.train.x[:1])
    assert task.network().apply(variables, data.test.x[:5])[0].shape == (5, 1)


def test_days_off_are_rare_in_training_alone(bikes):
    data = number_tasks.BIKE.read(0, smoke=True)
    shares = [(part.group >= 2).mean() for part in data]
    np.testing.assert_allclose(shares[0], number_tasks.RARE, atol=1e-6)
    assert min(shares[1:]) > 0.15
    seasons = number_tasks.BIKE_SEASONS.read(0, smoke=True)
    assert (seasons.train.group >= 2).mean() > 0.3


def test_methods_that_need_classes_are_left_out():
    assert not [name for name in d3m_numbers.KINDS if "class" in name or "SUBY" in name]


@pytest.mark.slow
def test_the_study_runs_from_data_to_page(bikes):
    d3m = studies()["d3m"]
    config = d3m.smoke(type(d3m.config)(tasks=("bike",), seeds=1, smoke=True))
    run = study.run(d3m, config, bikes)
    rows = json.loads((run / "metrics.json").read_text())["rows"]
    assert [row["method"] for row in rows] == list(d3m_numbers.KINDS)
    metrics = {row["method"]: row["metrics"] for row in rows}
    worst = lambda method: metrics[method]["worst_group_rms_error"]["mean"]
    assert worst("ERM") > metrics["ERM"]["rms_error"]["mean"] > 10  # bicycles, not deviations
    assert worst("D3M, drop negative") < worst("highest scores removed")
    assert metrics["random removal"]["removed"]["mean"] == metrics["D3M, drop negative"]["removed"]["mean"]
