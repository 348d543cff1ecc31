"""Stability: does D3M remove the same examples when checkpoints or targets are drawn again, and does it matter?

Claim:    removed sets overlap far more than chance, and less than their effect does.
Command:  python -m experiments.stability            (`--config.smoke` takes seconds)
Expected: the table in experiments/README.md, which this command wrote.
Device:   two CPU cores, about two minutes a task and seed; any JAX device works.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import tyro

from d3mjax.attribution import per_checkpoint
from d3mjax.reports import plots
from experiments.d3m import ablations
from experiments.d3m.ablations import Variant
from experiments.tasks import Task

SOURCES = ("all targets", "other checkpoints", "one half of the targets", "the other half of the targets")


@dataclass(frozen=True)
class Config(ablations.Config):
    """What determines the numbers."""


def overlap(one: np.ndarray, other: np.ndarray) -> dict[str, float]:
    """Jaccard index of what two keep masks remove, and what random sets of their sizes would have on average."""
    a, b = (float((~mask).mean()) for mask in (one, other))
    both, either = (~one & ~other).sum(), (~one | ~other).sum()
    return {"overlap": float(both / max(either, 1)), "overlap by chance": a * b / max(a + b - a * b, 1e-9)}


def make(task: Task, config: Config) -> Callable:
    """D3M's rule from one set of checkpoints and all targets, and with either replaced."""
    train, columns = ablations.make_checkpoints(task), ablations.make_columns(task, config.source)

    def variants(data, seed, progress):
        draw = lambda family: ablations.keys(seed, config.source.models, family)
        first = (train(data, draw(ablations.CHECKPOINTS)), draw(ablations.COLUMNS))
        other = (train(data, draw(ablations.OTHER)), draw(ablations.OTHER + 1))
        progress(config.source.models)
        group = jnp.asarray(data.target.group)
        half = jnp.asarray(np.random.default_rng(seed).permutation(len(group)) % 2 == 0)
        sides = (group, group, jnp.where(half, group, -1), jnp.where(half, -1, group))
        keep = {}
        for name, (found, keys), side in zip(SOURCES, (first, other, first, first), sides, strict=True):
            fewer = data._replace(target=data.target._replace(group=side))
            mean = per_checkpoint.combine(*map(jnp.asarray, columns(fewer, keys, found.variables)))
            keep[name] = ablations.keep(task, data, mean, found.losses.mean(0), beta=config.beta)
        reference = keep[SOURCES[0]]
        return {f"D3M, {name}": Variant(mask, overlap(reference, mask)) for name, mask in keep.items()}

    return variants


def figures(task: Task, config: Config, found) -> dict:
    """Accuracy of every group with every removed set."""
    names = ("ERM", *(f"D3M, {name}" for name in SOURCES))
    bars = {name: [arrays[f"test/{name}"].mean(0) for _, arrays in found] for name in names}
    return {"Test accuracy of every group.": plots.bar_groups(bars, task.group_names)}


def main(config: Config, results: Path = Path("results"), run: str | None = None) -> Path:
    """Run all tasks, print a table for each, and leave everything in ``results/stability/<run>``."""
    config = ablations.small(config)
    about = "Overlap: the Jaccard index of the removed sets with that of the first row, 1 if they are the same."
    return ablations.run("stability", config, make, figures, about=about, results=results, run=run)


if __name__ == "__main__":
    tyro.cli(main)
