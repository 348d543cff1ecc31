"""Similar examples: the training examples of the largest and the smallest datamodel weights of a target.

Claim:    the largest weights belong to what the model goes by, which need not be look-alikes of the target's class.
Command:  python -m experiments similar_examples
Expected: on patch 0.412 ± 0.025 of the five largest weights are of the target's class: most are of the rare patches.
Device:   two CPU cores, 10 minutes: a bank of models a task and seed, that of counterfactuals.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from d3mjax import keys
from d3mjax.attribution import effects
from d3mjax.reports.page import Section
from d3mjax.reports.rows import Kind, row
from experiments.datamodels import banks, common
from experiments.study import Unit
from experiments.tasks import Task

NUM = 5  # similar and opposed examples of each target
ENDS = ("similar", "opposed")
KINDS = {
    f"{method}, {end}": Kind(role) for method, role in (("datamodel", "ours"), ("pixels", "rival")) for end in ENDS
}


@dataclass(frozen=True)
class Config(banks.Config):
    """What determines the numbers."""

    shown: int = 8  # targets on the page, drawn at random


def measure(task: Task, config: Config, fitted: Callable, _retrain, seed: int, progress: Callable) -> Unit:
    """Ids and weights of the most similar and most opposed examples, and how often they share class and group."""
    bank = fitted(seed, progress)
    data, weight = bank.without_duplicates()
    train, target, rows = data.train, data.target, np.arange(len(data.train.y))
    mean = np.average(np.eye(len(task.class_names))[train.y], axis=0)
    facts: dict[str, Any] = {"heldout": bank.facts, "chance": mean[target.y].mean()}
    arrays: dict[str, Any] = {"id": target.id}
    for name, similarity in {"datamodel": np.asarray(weight), "pixels": banks.cosines(target, train)}.items():
        for kind, near in zip(ENDS, effects.neighbours(similarity, rows, num=NUM), strict=True):
            index = np.asarray(near.id)
            same = {"class": train.y[index] == target.y[:, None], "group": train.group[index] == target.group[:, None]}
            facts[f"{name}, {kind}"] = {f"same {what}": share.mean() for what, share in same.items()}
            arrays |= {f"{name}, {kind}": train.id[index], f"{name}, {kind}, weight": np.asarray(near.weight)}
            if task.image and name == "datamodel":
                rng = np.random.default_rng((seed, keys.Bank.DRAW))
                pick = rng.choice(len(target.y), config.shown, replace=False)
                arrays[f"images/{kind}"] = train.x[index[pick]].reshape(-1, NUM, *task.image)
                arrays[f"classes/{kind}"] = train.y[index[pick]]
                arrays |= {"targets": target.x[pick].reshape(-1, *task.image), "classes": target.y[pick]}
    return facts, arrays


def describe(task: Task, config: Config, units: list[Unit]) -> tuple[list[dict[str, Any]], Section]:
    """One row a method and end, and a grid of targets between their similar and opposed examples."""
    facts, arrays = [facts for facts, _ in units], units[0][1]
    chance = {"same class": [f["chance"] for f in facts]}
    by_chance = row(task.name, "any training example", chance, role="control", settings={"controls": "chance"})
    rows = [*common.rows_of(task, facts, KINDS), by_chance]
    figures = {}
    if "targets" in arrays:
        caption = f"Targets, their {NUM} most similar and their {NUM} most opposed training examples (first seed)."
        images = [arrays["targets"][:, None], arrays["images/similar"], arrays["images/opposed"]]
        classes = [arrays["classes"][:, None], arrays["classes/similar"], arrays["classes/opposed"]]
        signs = ["target: ", *["+ "] * NUM, *["− "] * NUM]
        figures[caption] = common.image_rows(task, np.concatenate(images, 1), np.concatenate(classes, 1), signs)
    text = f"{task.about} Shares are over the {NUM} largest and the {NUM} smallest weights of every target."
    return rows, Section(text, figures)


STUDY = banks.study(
    "similar_examples",
    measure,
    describe,
    claim="The largest weights belong to what the model goes by, which need not be look-alikes of the target's class.",
    config=Config(),
    minutes=10,
    headline=("patch", "datamodel, similar", "same class"),
)
