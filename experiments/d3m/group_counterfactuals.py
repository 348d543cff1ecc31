"""Group counterfactuals: the predicted and the retrained change of every group's loss when examples are removed.

Claim:    the group columns say which groups gain and which lose, in the right order; how much, they underestimate.
Command:  python -m experiments.group_counterfactuals            (`--config.smoke` takes seconds)
Expected: the table in experiments/README.md, which this command wrote.
Device:   two CPU cores, some six seconds a task and seed; any JAX device works.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import tyro

from d3mjax.attribution import effects, gradients, per_checkpoint
from d3mjax.debiasing import group_weighting, selection
from d3mjax.reports import plots
from d3mjax.reports.rows import Kind, row
from experiments import study
from experiments.d3m import ablations
from experiments.d3m.ablations import Variant
from experiments.tasks import Task

KINDS = ("lowest scores", "highest scores", "random")


@dataclass(frozen=True)
class Config(ablations.Config):
    """What determines the numbers."""

    shares: tuple[float, ...] = (0.02, 0.05, 0.1, 0.2)  # of the training set, removed
    retrains: int = 10  # behind every actual change
    curvature: bool = True  # better predictions, see `experiments.lds_trak`


def named(kind: str, share: float) -> str:
    """What the stored arrays call it."""
    return f"{kind}, {share:.0%} removed"


def make(task: Task, config: Config) -> Callable:
    """Removals by D3M's score in both directions and at random, with the predicted change of each group's loss."""
    curvature = gradients.logistic_curvature if config.curvature else None
    columns = ablations.make_columns(
        task, config.source, target_output=gradients.negative_loss_output, curvature=curvature
    )
    train = ablations.make_checkpoints(task)

    def variants(data, seed, progress):
        found = train(data, ablations.keys(seed, config.source.models))
        keys = ablations.keys(seed, config.source.models, ablations.COLUMNS)
        mean = per_checkpoint.combine(*map(jnp.asarray, columns(data, keys, found.variables)))
        progress(config.source.models)
        scores = group_weighting.scores(mean, group_weighting.softmax_weights(found.losses.mean(0), beta=config.beta))
        noise = np.random.default_rng(seed).random(len(scores)).astype(np.float32)
        results = {}
        for kind, by in zip(KINDS, (scores, -scores, noise), strict=True):
            for share in config.shares:
                keep = selection.drop_lowest(by, int(share * len(noise)))
                # The column is of minus the loss, and what is removed counts with the opposite sign.
                change = np.asarray(jnp.where(keep[:, None], 0, mean).sum(0))
                results[named(kind, share)] = Variant(keep, {f"predicted/{g}": float(c) for g, c in enumerate(change)})
        return results

    return variants


def changes(task: Task, config: Config, unit: study.Unit, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Predicted and actual change of loss ``[shares G]``."""
    facts, arrays = unit
    names = [named(kind, share) for share in config.shares]
    predicted = [[facts[name][f"predicted/{g}"] for g in range(len(task.group_names))] for name in names]
    actual = [arrays[f"losses/{name}"].mean(0) - arrays["losses/ERM"].mean(0) for name in names]
    return np.array(predicted), np.array(actual)


def make_rows(config: Config) -> Callable:
    """One row a kind of removal: how predicted and actual changes agree over sizes and groups."""

    def rows(task: Task, found: list[study.Unit]) -> list[dict[str, Any]]:
        made = []
        for kind in KINDS:
            agreements = [effects.agreement(*changes(task, config, unit, kind)) for unit in found]
            per_seed = {name: [getattr(a, name) for a in agreements] for name in ("pearson", "spearman", "slope")}
            role = Kind("control", controls="number") if kind == "random" else Kind("ours")
            facts = {"role": role.role, "information": "validation groups", "settings": role.settings()}
            made.append(row(task.name, f"{kind} removed", per_seed, **facts))
        return made

    return rows


def figures(task: Task, config: Config, found) -> dict:
    """Predicted against actual changes of the first seed, a colour for each group."""
    points = {}
    for kind in KINDS:
        predicted, actual = changes(task, config, found[0], kind)
        points[kind] = {name: (predicted[:, g], actual[:, g]) for g, name in enumerate(task.group_names)}
    drawn = plots.scatters(points, xlabel="predicted change of loss", ylabel="actual change")
    return {"Change of each group's mean loss over the targets (first seed).": drawn}


def main(config: Config, results: Path = Path("results"), run: str | None = None) -> Path:
    """Run all tasks, print a table for each, and leave everything in ``results/group_counterfactuals/<run>``."""
    config = ablations.small(config, shares=(0.1, 0.2))
    about = (
        f"Shares of {', '.join(f'{share:.0%}' for share in config.shares)} of the training set are removed; predicted "
        "is the sum of group columns over what is removed, actual the mean of the retrainings less that of ERM."
    )
    name, rows = "group_counterfactuals", make_rows(config)
    return ablations.run(name, config, make, figures, about=about, results=results, run=run, rows=rows)


if __name__ == "__main__":
    tyro.cli(main)
