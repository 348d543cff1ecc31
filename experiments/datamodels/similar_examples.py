"""Similar examples: the training examples of the largest and the smallest datamodel weights of a target.

Claim:    the largest weights belong to what the model goes by, which need not be look-alikes of the target's class.
Command:  python -m experiments.similar_examples        (`--config.smoke` takes seconds)
Expected: the table in experiments/README.md, which this command wrote. On patch most large weights
          are of the rare patches.
Device:   two CPU cores; a bank of models a task and seed.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from d3mjax.attribution import effects
from d3mjax.reports import plots
from d3mjax.reports.page import Section
from d3mjax.reports.rows import row
from experiments import study
from experiments.datamodels import bank_tasks
from experiments.datamodels.bank_tasks import DRAW
from experiments.tasks import LDS_TASKS, Task

NUM = 5  # similar and opposed examples of each target


@dataclass(frozen=True)
class Config(bank_tasks.Config):
    """What determines the numbers."""

    shown: int = 8  # targets on the page, drawn at random


def prepare(banks: Path, task: Task, config: Config) -> Callable:
    """`measure` of one task, compiled once for all seeds."""
    make = bank_tasks.make_datamodels(task, config.bank, banks, smoke=config.smoke)
    return partial(measure, task, config, make)


def measure(task: Task, config: Config, make: Callable, seed: int, progress: Callable) -> study.Unit:
    """Ids and weights of the most similar and most opposed examples, and how often they share class and group."""
    found = make(seed, progress)
    data = bank_tasks.without_duplicates(found.data, found)
    train, target, rows = data.train, data.target, np.arange(len(data.train.y))
    mean = np.average(np.eye(len(task.class_names))[train.y], axis=0)
    facts: dict[str, Any] = {"heldout": found.facts, "chance": mean[target.y].mean()}
    arrays: dict[str, Any] = {"id": target.id}
    cosine = bank_tasks.cosines(target, train)
    for name, similarity in {"datamodel": np.asarray(found.real.weight), "pixels": cosine}.items():
        for kind, near in zip(("similar", "opposed"), effects.neighbours(similarity, rows, num=NUM), strict=True):
            index = np.asarray(near.id)
            same = {"class": train.y[index] == target.y[:, None], "group": train.group[index] == target.group[:, None]}
            facts[f"{name}, {kind}"] = {f"same {what}": share.mean() for what, share in same.items()}
            arrays |= {f"{name}, {kind}": train.id[index], f"{name}, {kind}, weight": np.asarray(near.weight)}
            if task.image and name == "datamodel":
                pick = np.random.default_rng((seed, DRAW)).choice(len(target.y), config.shown, replace=False)
                arrays[f"images/{kind}"] = train.x[index[pick]].reshape(-1, NUM, *task.image)
                arrays[f"classes/{kind}"] = train.y[index[pick]]
                arrays |= {"targets": target.x[pick].reshape(-1, *task.image), "classes": target.y[pick]}
    return facts, arrays


def describe(task: Task, config: Config, found: list[study.Unit]) -> tuple[list[dict[str, Any]], Section]:
    """One row a method and end, and a grid of targets between their similar and opposed examples."""
    facts = [facts for facts, _ in found]
    rows = []
    for method, role in (("datamodel", "ours"), ("pixels", "rival")):
        for name in (f"{method}, similar", f"{method}, opposed"):
            values = {m: [f[name][m] for f in facts] for m in facts[0][name]}
            rows.append(row(task.name, name, values, role=role))
    chance = {"same class": [f["chance"] for f in facts]}
    rows.append(row(task.name, "any training example", chance, role="control", settings={"controls": "chance"}))
    arrays, figures = found[0][1], {}
    if "targets" in arrays:
        caption = f"Targets, their {NUM} most similar and their {NUM} most opposed training examples (first seed)."
        figures[caption] = _grid(task, arrays)
    text = f"{task.about} Shares are over the {NUM} largest and the {NUM} smallest weights of every target."
    return rows, Section(text, figures)


def _grid(task: Task, arrays):
    images, titles = [], []
    for i, target in enumerate(arrays["targets"]):
        images += [target, *arrays["images/similar"][i], *arrays["images/opposed"][i]]
        labels = [arrays["classes"][i], *arrays["classes/similar"][i], *arrays["classes/opposed"][i]]
        signs = ["target: ", *["+ "] * NUM, *["− "] * NUM]
        titles += [f"{sign}{task.class_names[label]}" for sign, label in zip(signs, labels, strict=True)]
    return plots.image_grid(np.stack(images), titles, columns=1 + 2 * NUM)


def main(config: Config, results: Path = Path("results"), run: str | None = None) -> Path:
    """Measure all tasks, print a table for each, and write ``results/similar_examples/<run>``; rerun to resume."""
    config = replace(config, seeds=1, bank=bank_tasks.SMOKE) if config.smoke else config
    go = partial(prepare, results / "banks")
    return study.run_experiment(
        "similar_examples",
        config,
        LDS_TASKS,
        go,
        describe,
        models=config.bank.models,
        results=results,
        run=run,
        together=True,
    )


if __name__ == "__main__":
    tyro.cli(main)
