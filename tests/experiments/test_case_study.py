"""Parts of the case study: what is measured of examples, what a direction follows, its ends, and selection by class."""

from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from cifar_files import write_batches

from d3mjax.debiasing.d3m import Evaluation
from experiments import cifar_tasks, local_data
from experiments.d3m import case_study, hidden_attributes
from experiments.d3m.hidden_attributes import CASES, Case
from experiments.tasks import PATCH


def test_pictures_are_measured_by_hand():
    grey = np.zeros((2, 10, 10))
    grey[0, :5, :3] = 1.0  # above, at the left side
    grey[1, 2:8, 4:6] = 0.5  # in the middle
    measures = hidden_attributes.of_pictures(grey - 3)
    assert measures["brightness"].tolist() == [1.0, 0.5]
    assert measures["sides"].tolist() == [1.0, 0.0]
    assert measures["lower half"].tolist() == [0.0, 0.5]
    assert measures["asymmetry"].tolist() == [2.0, 0.0]
    assert "border" not in measures


def test_the_border_of_colours_is_measured_and_nothing_inside_it():
    colour = np.zeros((2, 8, 8, 3))
    colour[:, 0, 0, 1] = 1.0
    colour[0, :2, :, 0] = 1.0  # a red strip, 16 of 48 pixels of the border
    colour[1, 2:-2, 2:-2, 2] = 1.0  # blue inside
    measures = hidden_attributes.of_pictures(colour)
    np.testing.assert_allclose(measures["warm border"], [16 / 48, 0])
    np.testing.assert_allclose(measures["border"], [17 / 48 / 3, 1 / 48 / 3])


def test_pairs_are_measured_by_hand():
    measures = hidden_attributes.of_pairs(["A dog runs / A dog isn't here", "a b / c d e"])
    assert measures["length"].tolist() == [8, 6]  # with the slash
    assert measures["negation"].tolist() == [1, 0]
    np.testing.assert_allclose(measures["overlap"], [2 / 5, 0])


@pytest.mark.parametrize("name", ["coat-brightness"])
def test_groups_of_a_case_are_label_by_value(name):
    case = CASES[name]
    data = case.task.read(0, smoke=True)
    assert data.train.group.tolist() == (2 * data.train.y + data.train.group % 2).tolist()
    assert np.mean(data.train.group % 2) == 0.5  # cut at the median of the training images
    bright = hidden_attributes.of_pictures(case.task.examples(0, data.train, np.arange(600)))["brightness"]
    assert bright[data.train.group % 2 == 1].min() >= bright[data.train.group % 2 == 0].max()


def test_the_border_of_photographs_is_hidden(tmp_path, monkeypatch):
    write_batches(tmp_path / "cifar10", train=60, test=80)
    monkeypatch.setenv(local_data.VARIABLE, str(tmp_path))
    monkeypatch.setattr(cifar_tasks, "DECODED", tmp_path / "decoded")
    task = CASES["plane-border"].task
    data = task.read(0, smoke=True)
    assert [split.x.shape for split in data] == [(120, 192), (40, 192), (40, 192), (80, 192)]
    assert [sorted(set(split.y.tolist())) for split in data] == [[0, 1]] * 4
    assert np.mean(data.train.group % 2) <= 0.5
    border = hidden_attributes.of_pictures(task.examples(0, data.train, np.arange(120)))["border"]
    assert border[data.train.group % 2 == 1].min() > border[data.train.group % 2 == 0].max()
    # Made images are grey, by class and number: birds, of class 2, are brighter than airplanes.
    assert np.mean(data.train.group[data.train.y == 1] % 2) > np.mean(data.train.group[data.train.y == 0] % 2)
    assert task.network().init(jax.random.key(0), data.train.x[:1])["params"]["Dense_0"]["bias"].shape == (2,)


def test_candidates_are_the_hidden_values_and_measures_above_the_median_of_the_class():
    y, group = np.array([0, 0, 0, 1, 1]), np.array([0, 1, 1, 2, 2])
    case = Case(PATCH, ("dark", "bright", ""), lambda raw: {"size": np.array(raw)})
    bits = case_study.candidates(case, [1.0, 2.0, 3.0, 9.0, 8.0], y, group)
    assert list(bits) == ["hidden", "size"]
    np.testing.assert_array_equal(bits["hidden"], [0, 1, 1, np.nan, np.nan])
    np.testing.assert_array_equal(bits["size"], [0, 0, 1, 1, 0])
    auc = case_study.aucs(np.array([3.0, 1.0, 2.0, 0.0, 0.0]), bits["hidden"], y, 2)
    assert auc == [1.0, None]


def test_a_measure_that_most_of_a_class_have_is_cut_below_it():
    case = Case(PATCH, ("a", "b"), lambda raw: {"negation": np.array(raw)})
    bits = case_study.candidates(case, [1.0, 1.0, 0.0], np.zeros(3, int), np.array([0, 1, 0]))
    assert bits["negation"].tolist() == [1, 1, 0]


def test_several_values_are_candidates_of_their_own():
    case = Case(PATCH, ("a", "b", "c"), lambda raw: {})
    bits = case_study.candidates(case, None, np.zeros(3, int), np.arange(3))
    assert {name: bit.tolist() for name, bit in bits.items()} == {
        "hidden: a": [1, 0, 0],
        "hidden: b": [0, 1, 0],
        "hidden: c": [0, 0, 1],
    }


def test_ends_are_of_the_class_from_the_ends_inwards(monkeypatch):
    monkeypatch.setattr(case_study, "ENDS", 2)
    score, of_class = np.array([5.0, 1.0, 9.0, 2.0, 7.0, 3.0]), np.array([1, 1, 0, 1, 1, 1], bool)
    assert case_study.ends(score, of_class).tolist() == [1, 3, 4, 0]


def test_classes_are_judged_by_the_sizes_of_their_groups():
    accuracies: Any = np.array(
        [[1.0, 0.5, np.nan, 0.2]]
    )  # three groups of class 0, of which one is empty; one of class 1
    nothing: Any = np.zeros(1)
    evaluation = Evaluation(nothing, accuracies, *[nothing] * (len(Evaluation._fields) - 2))
    split: Any = SimpleNamespace(group=np.array([0, 0, 0, 1, 3]), y=np.array([0, 0, 0, 0, 1]))
    judged = case_study.by_class({"ERM": evaluation}, split, 2)
    np.testing.assert_allclose(judged["ERM"].selection, [[3.5 / 4, 0.2]])
