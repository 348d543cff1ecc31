"""Embeddings: rows of datamodels as features of targets: components, clusters, and the difference of two learners.

Claim:    removing the training examples at one end of a component changes targets by their coordinate on it; clusters
          of datamodel rows follow subgroups; a network and a linear model rely on different training examples.
Command:  python -m experiments.embeddings        (`--config.smoke` takes seconds)
Expected: the table in experiments/README.md, which this command wrote.
Device:   two CPU cores; two banks of models a task and seed (network and linear model).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from sklearn.cluster import SpectralClustering
from sklearn.metrics import normalized_mutual_info_score
from sklearn.neighbors import kneighbors_graph

from d3mjax.attribution import effects
from d3mjax.reports import plots
from d3mjax.reports.page import Section
from d3mjax.reports.rows import row
from d3mjax.training import sampling
from d3mjax.types import Data
from experiments import study
from experiments.datamodels import bank_tasks
from experiments.datamodels.bank_tasks import BASE, RETRAIN
from experiments.tasks import LDS_TASKS, Task

ENDS = 6  # targets shown at each end of a component
LEARNERS = ("network minus linear model", "linear model minus network")


@dataclass(frozen=True)
class Config(bank_tasks.Config):
    """What determines the numbers."""

    components: int = 10
    tested: int = 3  # components whose ends are removed
    removed: int = 100  # training examples at each end
    repeats: int = 20  # retrainings behind each effect
    clusters: int = 10
    neighbours: int = 10  # of each target in the graph that is cut into clusters


def prepare(banks: Path, task: Task, config: Config) -> Callable:
    """`measure` of one task, compiled once for all seeds."""
    learners = (task, replace(task, hidden=()))
    makes = [bank_tasks.make_datamodels(t, config.bank, banks, smoke=config.smoke) for t in learners]
    return partial(measure, task, config, makes, bank_tasks.make_retrain(task))


def measure(
    task: Task, config: Config, makes: list[Callable], retrain: Callable, seed: int, progress: Callable
) -> study.Unit:
    """Components and what removing their ends does, clusters of three kinds of features, differences of learners."""
    found, other = (make(seed, progress) for make in makes)
    data = bank_tasks.without_duplicates(found.data, found)
    rows = effects.normalised(found.real.weight)
    parts = effects.pca(rows, num=config.components)
    facts: dict[str, Any] = {"heldout": [found.facts, other.facts]}
    facts["ends"] = remove_ends(config, retrain, data, parts, jax.random.key(seed), progress)

    features = {"datamodels": rows, "last hidden layer": hidden(task, data, seed), "pixels": data.target.x}
    facts["agreement"] = {name: clustered(config, x, data, seed) for name, x in features.items()}

    arrays = {"id": data.target.id, "explained": parts.explained, "coordinate": parts.coordinate}
    weights = (found.real.weight, other.real.weight)
    for name, pair in zip(LEARNERS, (weights, weights[::-1]), strict=True):
        apart = effects.difference(*pair, num=config.components)
        facts[name] = {"in first": float(apart.in_first[0]), "in second": float(apart.in_second[0])}
        arrays |= {f"{name}/first": apart.in_first, f"{name}/second": apart.in_second}
        arrays |= pictures(task, data, apart.components, name)
    cosine = (effects.normalised(weights[0]) * effects.normalised(weights[1])).sum(1)
    facts["cosine of learners"] = float(cosine.mean())
    return facts, jax.device_get(arrays | pictures(task, data, parts, "components"))


def remove_ends(config: Config, retrain: Callable, data: Data, parts: effects.Components, key, progress) -> dict:
    """Correlation over targets of their coordinates with the effects of removing either end of a component.

    What the training examples of largest entries help, targets of large coordinates, their removal harms: the first
    correlation should be negative, the second, of the other end, positive.
    """
    direction = parts.direction[: config.tested]
    removed = jnp.stack([effects.largest(sign * direction, config.removed) for sign in (1, -1)], 1)
    weights = ~np.asarray(removed).reshape(-1, direction.shape[1])
    options = {"repeats": config.repeats, "progress": progress}
    logits = retrain(data, jax.random.fold_in(key, RETRAIN), weights, **options)
    base = retrain(data, jax.random.fold_in(key, BASE), np.ones((1, weights.shape[1])), **options)
    margins = [bank_tasks.margins_of(a, data.target.y).mean(1) for a in (logits, base)]
    changes = (margins[0] - margins[1]).reshape(len(direction), 2, -1)
    pairs = [(parts.coordinate[:, r], changes[r, end]) for r in range(len(direction)) for end in (0, 1)]
    found = np.array([effects.agreement(*pair).pearson for pair in pairs]).reshape(-1, 2)
    return {"largest": found[:, 0].tolist(), "smallest": found[:, 1].tolist()}


def hidden(task: Task, data: Data, seed: int) -> np.ndarray:
    """Features of the targets in the last hidden layer of one network trained on everything."""
    run = task.trainer(task.steps, sampling.shuffled())
    start = run.init(jax.random.fold_in(jax.random.key(seed), BASE), data.train.x[:1])
    state, _ = jax.jit(lambda s: run.run(s, data.train, jnp.ones(len(data.train.y)), task.steps))(start)
    x = data.target.x
    for i in range(len(task.hidden)):
        layer = state.variables["params"][f"Dense_{i}"]
        x = np.maximum(np.asarray(x) @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"]), 0)
    return x


def clustered(config: Config, features, data: Data, seed: int) -> dict[str, float]:
    """Normalised mutual information of groups with spectral clusters (cosine similarity, nearest neighbours)."""
    x = np.asarray(effects.normalised(features), np.float64)
    graph = kneighbors_graph(x, config.neighbours).toarray()
    affinity = (graph + graph.T) / 2 + 1e-4  # connected, whatever the neighbours
    labels = SpectralClustering(config.clusters, affinity="precomputed", random_state=seed).fit_predict(affinity)
    return {"groups found (NMI)": float(normalized_mutual_info_score(data.target.group, labels))}


def pictures(task: Task, data: Data, parts: effects.Components, name: str) -> dict[str, np.ndarray]:
    """Targets at both ends of the first three components, as images."""
    if not task.image:
        return {}
    index = effects.neighbours(parts.coordinate.T[:3], np.arange(len(data.target.y)), num=ENDS)
    index = np.concatenate([np.asarray(end.id) for end in index], axis=1)
    images = np.asarray(data.target.x)[index].reshape(*index.shape, *task.image)
    return {f"{name}/images": images, f"{name}/classes": np.asarray(data.target.y)[index]}


def describe(task: Task, config: Config, found: list[study.Unit]) -> tuple[list[dict[str, Any]], Section]:
    """Rows on components, clusters and learners; explained variance, and targets at the ends of components."""
    facts, arrays = [facts for facts, _ in found], found[0][1]
    rows = []
    for r in range(config.tested):
        changes = {
            f"effect of removing the {end} entries": [f["ends"][end][r] for f in facts] for end in facts[0]["ends"]
        }
        explained = {"explained": [a["explained"][r] for _, a in found]}
        rows.append(row(task.name, f"component {r + 1}", {**explained, **changes}, role="ours"))
    for name in facts[0]["agreement"]:
        agreement = {m: [f["agreement"][name][m] for f in facts] for m in facts[0]["agreement"][name]}
        rows.append(row(task.name, f"clusters of {name}", agreement, role="ours"))
    for name in LEARNERS:
        shares = {f"explained {m}": [f[name][m] for f in facts] for m in facts[0][name]}
        rows.append(row(task.name, f"{name}, first component", shares, role="ours"))
    number = np.arange(1, config.components + 1)
    lines = {"datamodels": (number, np.stack([np.cumsum(a["explained"]) for _, a in found]))}
    curves = plots.curves(lines, xlabel="components", ylabel="share of the variance explained")
    figures = {"Variance of normalised datamodels that the first components explain.": curves}
    for name in ("components", *LEARNERS):
        if f"{name}/images" in arrays:
            what = "Components" if name == "components" else f"Components of {name}"
            caption = f"{what}: targets at the upper end (+) and at the lower end (−), a row each (first seed)."
            figures[caption] = _grid(task, arrays, name)
    text = (
        f"{task.about} Datamodel rows of unit length. The effect of removing the {config.removed} training examples of "
        f"largest (or smallest) entries is correlated, over targets, with their coordinate: it should be negative for "
        "one end and positive for the other. Mean cosine between the datamodels of network and linear model: "
        f"{np.mean([f['cosine of learners'] for f in facts]):.2f}."
    )
    return rows, Section(text, figures)


def _grid(task: Task, arrays, name: str):
    images, classes = arrays[f"{name}/images"], arrays[f"{name}/classes"]
    signs = ["+ "] * ENDS + ["− "] * ENDS
    titles = [f"{sign}{task.class_names[c]}" for row in classes for sign, c in zip(signs, row, strict=True)]
    return plots.image_grid(images.reshape(-1, *images.shape[2:]), titles, columns=2 * ENDS)


def main(config: Config, results: Path = Path("results"), run: str | None = None) -> Path:
    """Measure all tasks, print a table for each, and write ``results/embeddings/<run>``; rerun to resume."""
    if config.smoke:
        small = {"components": 4, "tested": 1, "removed": 100, "repeats": 2}
        config = replace(config, seeds=1, bank=bank_tasks.SMOKE, **small)
    models = 2 * config.bank.models + (2 * config.tested + 1) * config.repeats
    go = partial(prepare, results / "banks")
    return study.run_experiment(
        "embeddings", config, LDS_TASKS, go, describe, models=models, results=results, run=run, together=True
    )


if __name__ == "__main__":
    tyro.cli(main)
