"""How many checkpoints D3M needs.

Claim:    one closes three quarters of the gap on patch, ten close it.
Command:  python -m experiments.ablate_checkpoints            (`--config.smoke` takes seconds)
Expected: the table in experiments/README.md, which this command wrote.
Device:   two CPU cores, some ten seconds a task and seed; any JAX device works.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import jax.numpy as jnp
import tyro

from d3mjax.attribution import per_checkpoint
from d3mjax.reports import plots
from experiments.d3m import ablations, engine
from experiments.d3m.ablations import Variant
from experiments.tasks import Task


@dataclass(frozen=True)
class Config(ablations.Config):
    """What determines the numbers."""

    source: engine.Trak = field(default_factory=lambda: engine.Trak(models=50))
    counts: tuple[int, ...] = (1, 2, 5, 10, 20, 50)


def named(count: int) -> str:
    """What the table calls it."""
    return f"D3M, {count} checkpoint{'s' if count > 1 else ''}"


def make(task: Task, config: Config) -> Callable:
    """Scores from the first few checkpoints of one set."""
    train, columns = ablations.make_checkpoints(task), ablations.make_columns(task, config.source)

    def variants(data, seed, progress):
        found = train(data, ablations.keys(seed, config.source.models))
        kernel, factor = columns(data, ablations.keys(seed, config.source.models, ablations.COLUMNS), found.variables)
        progress(config.source.models)

        def keep(c):
            mean = per_checkpoint.combine(jnp.asarray(kernel[:c]), jnp.asarray(factor[:c]))
            return ablations.keep(task, data, mean, found.losses[:c].mean(0), beta=config.beta)

        return {named(c): Variant(keep(c)) for c in config.counts}

    return variants


def figures(task: Task, config: Config, found) -> dict:
    """Worst-group accuracy against their number."""
    names = {c: named(c) for c in config.counts}
    lines = {"D3M": ablations.curve(found, names), **ablations.yardsticks(found, config.counts)}
    drawn = plots.curves(lines, xlabel="checkpoints", ylabel="worst-group test accuracy", ticks=config.counts)
    return {"Worst group against the number of checkpoints behind the scores.": drawn}


def main(config: Config, results: Path = Path("results"), run: str | None = None) -> Path:
    """Run all tasks, print a table for each, and leave everything in ``results/ablate_checkpoints/<run>``."""
    config = ablations.small(config, counts=(1, 2))
    about = "Scores of D3M from the first few of one set of checkpoints; all negative ones are dropped."
    return ablations.run("ablate_checkpoints", config, make, figures, about=about, results=results, run=run)


if __name__ == "__main__":
    tyro.cli(main)
