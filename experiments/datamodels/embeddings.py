"""Embeddings: rows of datamodels as features of targets: components, clusters, and the difference of two learners.

Claim:    removing the training examples at one end of a component changes targets by their coordinate on it; clusters
          of datamodel rows follow subgroups; a network and a linear model rely on different training examples.
Command:  python -m experiments embeddings
Expected: on patch a correlation of -0.828 ± 0.088 of the first coordinate with the effect of removing the largest
          entries, and 0.827 ± 0.075 for the smallest.
Device:   two CPU cores, 13 minutes: two banks of models a task and seed, of a network and of a linear model.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.cluster import SpectralClustering
from sklearn.metrics import normalized_mutual_info_score
from sklearn.neighbors import kneighbors_graph

from d3mjax import keys
from d3mjax.attribution import effects
from d3mjax.reports import plots
from d3mjax.reports.page import Section
from d3mjax.reports.rows import Kind, row
from d3mjax.types import Data
from experiments.datamodels import banks, common
from experiments.study import Unit
from experiments.tasks import Task

ENDS = 6  # targets shown at each end of a component
FEATURES = {"datamodels": Kind("ours"), "last hidden layer": Kind("rival"), "pixels": Kind("rival")}
LEARNERS = ("network minus linear model", "linear model minus network")


@dataclass(frozen=True)
class Config(banks.Config):
    """What determines the numbers."""

    components: int = 10
    tested: int = 3  # components whose ends are removed
    removed: int = 100  # training examples at each end
    repeats: int = 20  # retrainings behind each effect
    clusters: int = 10
    neighbours: int = 10  # of each target in the graph that is cut into clusters


def prepare(task: Task, config: Config, results: Path) -> Callable:
    """`measure` of one task, compiled once for all seeds."""
    fitted = [banks.make_datamodels(learner, config, results) for learner in (task, replace(task, hidden=()))]
    return partial(measure, task, config, fitted, common.make_retrain(task), common.make_checkpoints(task))


def measure(
    task: Task, config: Config, fitted: list[Callable], retrain: Callable, checkpoints: Callable, seed: int, progress
) -> Unit:
    """Components and effects of removing their ends, clusters of three kinds of features, differences of learners."""
    bank, other = (make(seed, progress) for make in fitted)
    root, (data, weight) = jax.random.key(seed), bank.without_duplicates()
    weights = (weight, other.without_duplicates()[1])
    rows = effects.normalised(weight)
    parts = effects.pca(rows, num=config.components)
    facts: dict[str, Any] = {"heldout": [bank.facts, other.facts]}
    facts["ends"] = remove_ends(config, retrain, data, parts, root, progress)

    variables = checkpoints(data, jax.random.fold_in(root, keys.Bank.BASE)[None])
    features = zip(FEATURES, (rows, hidden(task, variables, data.target.x), data.target.x), strict=True)
    facts["agreement"] = {name: clustered(config, x, data, seed) for name, x in features}

    arrays = {"id": data.target.id, "explained": parts.explained, "coordinate": parts.coordinate}
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

    Training examples of large entries help targets of large coordinates, so their removal harms those: the first
    correlation should be negative, the second, of the other end, positive.
    """
    direction = parts.direction[: config.tested]
    removed = jnp.stack([effects.largest(sign * direction, config.removed) for sign in (1, -1)], 1)
    weights = ~np.asarray(removed).reshape(-1, direction.shape[1])

    def margins(family: int, kept) -> np.ndarray:
        logits = retrain(data, jax.random.fold_in(key, family), kept, repeats=config.repeats, progress=progress)
        return common.hard_margins(logits, data.target.y).mean(1)

    changes = margins(keys.Bank.RETRAIN, weights) - margins(keys.Bank.BASE, np.ones((1, weights.shape[1])))
    changes = changes.reshape(len(direction), 2, -1)
    correlation = lambda r, end: float(effects.agreement(parts.coordinate[:, r], changes[r, end]).pearson)
    ends = enumerate(("largest", "smallest"))
    return {name: [correlation(r, end) for r in range(len(direction))] for end, name in ends}


def hidden(task: Task, variables, x) -> np.ndarray:
    """Features ``[t d]`` in the last hidden layer of the first of some networks."""
    for i in range(len(task.hidden)):
        kernel, bias = (np.asarray(variables["params"][f"Dense_{i}"][name][0]) for name in ("kernel", "bias"))
        x = np.maximum(np.asarray(x) @ kernel + bias, 0)
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


def describe(task: Task, config: Config, units: list[Unit]) -> tuple[list[dict[str, Any]], Section]:
    """Rows on components, clusters and learners; explained variance, and targets at the ends of components."""
    facts, arrays, rows = [facts for facts, _ in units], units[0][1], []
    for r in range(config.tested):
        changes = {
            f"effect of removing the {end} entries": [f["ends"][end][r] for f in facts] for end in facts[0]["ends"]
        }
        explained = {"explained": [a["explained"][r] for _, a in units]}
        rows.append(row(task.name, f"component {r + 1}", {**explained, **changes}, role="ours"))
    for name, kind in FEATURES.items():
        agreement = {m: [f["agreement"][name][m] for f in facts] for m in facts[0]["agreement"][name]}
        rows.append(row(task.name, f"clusters of {name}", agreement, role=kind.role))
    for name in LEARNERS:
        shares = {f"explained {m}": [f[name][m] for f in facts] for m in facts[0][name]}
        rows.append(row(task.name, f"{name}, first component", shares, role="ours"))
    number = np.arange(1, config.components + 1)
    lines = {"datamodels": (number, np.stack([np.cumsum(a["explained"]) for _, a in units]))}
    curves = plots.curves(lines, xlabel="components", ylabel="share of the variance explained")
    figures = {"Variance of normalised datamodels that the first components explain.": curves}
    for name, title in (("components", "Components"), *((name, f"Components of {name}") for name in LEARNERS)):
        if f"{name}/images" in arrays:
            caption = f"{title}: targets at the upper end (+) and at the lower end (−), a row each (first seed)."
            figures[caption] = common.image_rows(
                task, arrays[f"{name}/images"], arrays[f"{name}/classes"], ["+ "] * ENDS + ["− "] * ENDS
            )
    text = (
        f"{task.about} Datamodel rows of unit length. The effect of removing the {config.removed} training examples of "
        f"largest (or smallest) entries is correlated, over targets, with their coordinate: it should be negative for "
        "one end and positive for the other. Mean cosine between the datamodels of network and linear model: "
        f"{np.mean([f['cosine of learners'] for f in facts]):.2f}."
    )
    return rows, Section(text, figures)


STUDY = replace(
    banks.study(
        "embeddings",
        measure,
        describe,
        claim="Components of datamodel rows predict which removals move which targets; clusters follow subgroups.",
        config=Config(),
        minutes=13,
        headline=("patch", "component 1", "effect of removing the largest entries"),
        few={"components": 4, "tested": 1, "removed": 100, "repeats": 2},
        # The second bank is of the linear model.
        retrainings=lambda config: config.bank.models + (2 * config.tested + 1) * config.repeats,
    ),
    prepare=prepare,
)
