"""Planted label errors: are they among the lowest scores, beside ranking by loss and by self-influence?

Claim:    D3M's lowest scores are mostly wrong labels, as it asks which examples hurt the group that they hurt.
Command:  python -m experiments.label_errors            (`--config.smoke` takes seconds)
Expected: the table in experiments/README.md, which this command wrote.
Device:   two CPU cores, some fourteen seconds a seed; any JAX device works.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import tyro

from d3mjax.attribution import effects, per_checkpoint
from d3mjax.debiasing import group_weighting, selection
from d3mjax.reports import plots
from d3mjax.reports.rows import Kind
from experiments.d3m import ablations, main_table
from experiments.d3m.ablations import Variant
from experiments.tasks import Task


@dataclass(frozen=True)
class Config(ablations.Config):
    """What determines the numbers."""

    tasks: tuple[str, ...] = ("label-errors",)
    seeds: int = 5
    shares: tuple[float, ...] = (0.01, 0.02, 0.05, 0.1, 0.2)  # of the training set, looked at and removed


RANKINGS = ("lowest D3M score", "highest loss", "highest self-influence", "random")


def named(ranking: str, share: float) -> str:
    """What the table calls it."""
    return f"{ranking}, {share:.0%} removed"


def make(task: Task, config: Config) -> Callable:
    """Remove the first of every ranking, and count the wrong labels among them."""
    train, columns = ablations.make_checkpoints(task), ablations.make_columns(task, config.source)
    rank = main_table.make_rank(task, config.source)

    def variants(data, seed, progress):
        seed_keys = ablations.keys(seed, config.source.models)
        found = train(data, seed_keys)
        keys = ablations.keys(seed, config.source.models, ablations.COLUMNS)
        mean = per_checkpoint.combine(*map(jnp.asarray, columns(data, keys, found.variables)))
        progress(config.source.models)
        scores = group_weighting.scores(mean, group_weighting.softmax_weights(found.losses.mean(0), beta=config.beta))
        losses, influence = rank(data, seed_keys)
        noise = np.random.default_rng(seed).random(len(scores)).astype(np.float32)
        wrong = np.isin(data.train.id, task.wrong(seed, smoke=config.smoke))
        results = {}
        for ranking, by in zip(RANKINGS, (scores, -losses, -influence, noise), strict=True):
            quality = float(effects.retrieval(-jnp.asarray(by), wrong).average_precision)
            for share in config.shares:
                keep = selection.drop_lowest(by, int(share * len(noise)))
                precision = float(selection.share_of_removed(jnp.asarray(wrong), keep))
                recall = float((wrong & ~np.asarray(keep)).sum() / wrong.sum())
                facts = {"precision": precision, "recall": recall, "average precision": quality}
                results[named(ranking, share)] = Variant(keep, facts)
        return results

    return variants


def figures(task: Task, config: Config, found) -> dict:
    """Precision, and the worst group after removal, against the share of the training set."""
    ranked = {r: {share: named(r, share) for share in config.shares} for r in RANKINGS}
    precision = {
        r: (list(names), np.array([[facts[name]["precision"] for name in names.values()] for facts, _ in found]))
        for r, names in ranked.items()
    }
    worst = {r: ablations.curve(found, names) for r, names in ranked.items()}
    label = {"xlabel": "share of the training set", "ticks": config.shares}
    return {
        "Share of wrong labels among the first of each ranking.": plots.curves(precision, ylabel="precision", **label),
        "Worst group after removing them.": plots.curves(worst, ylabel="worst-group test accuracy", **label),
    }


def main(config: Config, results: Path = Path("results"), run: str | None = None) -> Path:
    """Run all tasks, print a table for each, and leave everything in ``results/label_errors/<run>``."""
    config = ablations.small(config, shares=(0.05, 0.1))
    about = "Precision: the share of wrong labels among the first of each ranking."
    kinds = {
        named(ranking, share): Kind("control", "validation groups", "number" if ranking == "random" else "score")
        for ranking in RANKINGS[1:]
        for share in config.shares
    }
    rows = partial(ablations.rows_of, kinds=kinds)
    return ablations.run("label_errors", config, make, figures, about=about, results=results, run=run, rows=rows)


if __name__ == "__main__":
    tyro.cli(main)
