"""Training regimes: where D3M beats reweighting by true groups, and where it does not.

Claim:    where training fits everything, reweighted examples are fitted like all others and removing helps more; with
          strong regularisation reweighting is better.
Command:  python -m experiments.ablate_regime            (`--config.smoke` takes seconds)
Expected: the table in experiments/README.md, which this command wrote with `--config.seeds 4`.
Device:   two CPU cores, about a minute a regime and seed; any JAX device works.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import jax.numpy as jnp
import tyro

from d3mjax.attribution import per_checkpoint
from d3mjax.debiasing import baselines
from d3mjax.reports import plots
from d3mjax.reports.rows import Kind
from experiments.d3m import ablations
from experiments.d3m.ablations import Variant
from experiments.tasks import ADULT, PATCH, Task

STEPS = (200, 800, 3200)
DECAYS = (1e-4, 1e-3, 1e-2, 5e-2)


def regime(task: Task, steps: int, decay: float) -> Task:
    """A task trained for so long, with so much weight decay."""
    return replace(task, name=f"{task.name}, {steps} steps, decay {decay:g}", steps=steps, decay=decay)


REGIMES = {
    at.name: at
    for task in (ADULT, PATCH)
    for at in [regime(task, s, task.decay) for s in STEPS] + [regime(task, task.steps, d) for d in DECAYS]
}


@dataclass(frozen=True)
class Config(ablations.Config):
    """What determines the numbers; its tasks are regimes."""

    tasks: tuple[str, ...] = tuple(REGIMES)


def make(task: Task, config: Config) -> Callable:
    """D3M and RWG, everything trained under the regime."""
    train, columns = ablations.make_checkpoints(task), ablations.make_columns(task, config.source)

    def variants(data, seed, progress):
        found = train(data, ablations.keys(seed, config.source.models))
        keys = ablations.keys(seed, config.source.models, ablations.COLUMNS)
        mean = per_checkpoint.combine(*map(jnp.asarray, columns(data, keys, found.variables)))
        progress(config.source.models)
        by_group = baselines.balanced_weights(jnp.asarray(data.train.group), len(task.group_names))
        keep = ablations.keep(task, data, mean, found.losses.mean(0), beta=config.beta)
        return {"D3M": Variant(keep), "RWG": Variant(by_group, fit="resampled")}

    return variants


def figures(task: Task, config: Config, found) -> dict:
    """Accuracy of every group under this regime."""
    bars = {name: [arrays[f"test/{name}"].mean(0) for _, arrays in found] for name in ("ERM", "D3M", "SUBG", "RWG")}
    return {"Test accuracy of every group.": plots.bar_groups(bars, task.group_names)}


def main(config: Config, results: Path = Path("results"), run: str | None = None) -> Path:
    """Run all regimes, print a table for each, and leave everything in ``results/ablate_regime/<run>``."""
    config = ablations.small(config, tasks=config.tasks[:1])
    about = "All methods, and the checkpoints behind D3M, are trained as long and with as much weight decay as it says."
    rows = partial(ablations.rows_of, kinds={"RWG": Kind("yardstick", "validation groups")})
    named = {"about": about, "results": results, "run": run}
    return ablations.run("ablate_regime", config, make, figures, rows=rows, tasks=REGIMES, **named)


if __name__ == "__main__":
    tyro.cli(main)
