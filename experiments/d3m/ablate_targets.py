"""How many targets D3M needs, and of which mix, beside training on those same targets.

Claim:    D3M makes more of any set of targets than training on it does, and most where they are few.
Command:  python -m experiments.ablate_targets            (`--config.smoke` takes seconds)
Expected: the table in experiments/README.md, which this command wrote.
Device:   two CPU cores, some fifteen seconds a task and seed; any JAX device works.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import tyro

from d3mjax.attribution import per_checkpoint
from d3mjax.debiasing import baselines, selection
from d3mjax.reports import plots
from d3mjax.reports.rows import Kind
from experiments.d3m import ablations
from experiments.d3m.ablations import Variant
from experiments.tasks import Task

METHODS = ("D3M", "RWG on the targets alone")


@dataclass(frozen=True)
class Config(ablations.Config):
    """What determines the numbers."""

    sizes: tuple[int, ...] = (50, 100, 200, 400, 800)  # with the mix of the whole target set
    each: tuple[int, ...] = (2, 5, 10, 20)  # targets of every group


def named(method: str, count: int, mix: str) -> str:
    """What the table calls it."""
    return f"{method}, {count} targets {mix}"


def make(task: Task, config: Config) -> Callable:
    """The same checkpoints, asked by smaller and smaller target sets; each contains the next."""
    train, columns = ablations.make_checkpoints(task), ablations.make_columns(task, config.source)
    num_groups = len(task.group_names)

    def variants(data, seed, progress):
        found = train(data, ablations.keys(seed, config.source.models))
        keys = ablations.keys(seed, config.source.models, ablations.COLUMNS)
        group = np.asarray(data.target.group)
        order = np.random.default_rng(seed).random(len(group)).astype(np.float32)
        overall, within = (np.asarray(selection.rank_within(order, cell)) for cell in (np.zeros_like(group), group))
        sets = {(size, "of the same mix"): overall < size for size in config.sizes}
        sets |= {(k * num_groups, "in equal groups"): within < k for k in config.each}
        results = {}
        for (count, mix), chosen in sets.items():
            some = jnp.where(jnp.asarray(chosen), jnp.asarray(group), -1)
            fewer = data._replace(target=data.target._replace(group=some))
            mean = np.array(per_checkpoint.combine(*map(jnp.asarray, columns(fewer, keys, found.variables))))
            # A group without targets has no column, and no say.
            absent = np.bincount(group[chosen], minlength=num_groups) == 0
            losses = np.where(absent, np.nan, found.losses.mean(0))
            keep = ablations.keep(task, data, np.where(absent, 0, mean), losses, beta=config.beta)
            cell = jnp.where(chosen, group, num_groups)
            alone = np.where(chosen, baselines.balanced_weights(cell, num_groups + 1), 0)
            results[named(METHODS[0], count, mix)] = Variant(keep, {"targets": int(chosen.sum())})
            results[named(METHODS[1], count, mix)] = Variant(alone, {"targets": int(chosen.sum())}, "targets")
        progress(config.source.models)
        return results

    return variants


def counts_of(task: Task, config: Config) -> dict[str, Sequence[int]]:
    """Numbers of targets by their mix."""
    return {"of the same mix": config.sizes, "in equal groups": [k * len(task.group_names) for k in config.each]}


def rows_of(config: Config, task: Task, found) -> list:
    """One row a method and target set."""
    kind = Kind("control", "validation groups", "targets alone")
    names = [named(METHODS[1], count, mix) for mix, at in counts_of(task, config).items() for count in at]
    return ablations.rows_of(task, found, dict.fromkeys(names, kind))


def figures(task: Task, config: Config, found) -> dict:
    """Worst-group accuracy against the number of targets, for both mixes."""
    drawn = {}
    for mix, at in counts_of(task, config).items():
        lines = {m: ablations.curve(found, {count: named(m, count, mix) for count in at}) for m in METHODS}
        lines |= ablations.yardsticks(found, at)
        caption = f"Worst group against the number of targets, {mix}."
        drawn[caption] = plots.curves(lines, xlabel="targets", ylabel="worst-group test accuracy")
    return drawn


def main(config: Config, results: Path = Path("results"), run: str | None = None) -> Path:
    """Run all tasks, print a table for each, and leave everything in ``results/ablate_targets/<run>``."""
    config = ablations.small(config, sizes=(100,), each=(2, 5))
    about = "Fewer targets of the same mix, or equally many of each group; D3M beside training on the same targets."
    rows = partial(rows_of, config)
    return ablations.run("ablate_targets", config, make, figures, about=about, results=results, run=run, rows=rows)


if __name__ == "__main__":
    tyro.cli(main)
