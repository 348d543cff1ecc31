"""Where D3M's group columns come from: TRAK, its last layer, influence functions, datamodels; with what each costs.

Claim:    TRAK from some twenty checkpoints does as well as thousands of subset models, in less time.
Command:  python -m experiments.ablate_source            (`--config.smoke` takes seconds)
Expected: the table in experiments/README.md, which this command wrote with `--config.seeds 3`.
Device:   two CPU cores, about three minutes a task and seed; any JAX device works. Seconds leave compilation out, but
          for datamodels, where it is little beside thousands of trainings.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from d3mjax.attribution import per_checkpoint
from d3mjax.reports import plots
from d3mjax.runtime import hosts
from experiments.d3m import ablations, engine
from experiments.d3m.ablations import Variant
from experiments.tasks import Task


@dataclass(frozen=True)
class Config(ablations.Config):
    """What determines the numbers."""

    checkpoints: tuple[int, ...] = (5, 20)
    influence: engine.Influence = field(default_factory=engine.Influence)
    banks: tuple[engine.Bank, ...] = field(
        default_factory=lambda: (engine.Bank(1000), engine.Bank(5000), engine.Bank(5000, fit="LASSO"))
    )


def make(task: Task, config: Config) -> Callable:
    """Every source on the same data; each but datamodels is run once before it is timed."""
    train, devices = ablations.make_checkpoints(task), hosts.local_mesh()
    attributes = {
        "TRAK": ablations.make_columns(task, config.source),
        "TRAK of the last layer": ablations.make_columns(task, config.source._replace(last_layer=True)),
        "influence": ablations.make_influence(task, config.influence),
    }
    banks = {bank: engine.make_datamodel_columns(task, devices, bank) for bank in config.banks}
    quiet, warm = (lambda count: None), {f"{bank.fit}, {bank.models:,} subset models" for bank in banks}

    def by_trak(data, seed, count: int, attribute: Callable):
        found = train(data, ablations.keys(seed, count))
        return per_checkpoint.combine(
            *map(jnp.asarray, attribute(data, ablations.keys(seed, count, ablations.COLUMNS), found[0]))
        )

    def variants(data, seed, progress):
        losses = train(data, ablations.keys(seed, max(config.checkpoints))).losses.mean(0)
        sources: dict[str, Callable] = {
            f"{name}, {count} checkpoints": partial(by_trak, data, seed, count, attribute)
            for count in config.checkpoints
            for name, attribute in attributes.items()
        }
        for bank, columns in banks.items():
            name = f"{bank.fit}, {bank.models:,} subset models"
            sources[name] = lambda columns=columns: columns(data, jax.random.key(seed), quiet)[0][0]
        results = {}
        for name, source in sources.items():
            if name not in warm:
                source()
                warm.add(name)
            begin = time.perf_counter()
            found = np.asarray(source())
            seconds = time.perf_counter() - begin
            results[f"D3M by {name}"] = Variant(
                ablations.keep(task, data, found, losses, beta=config.beta), {"seconds": seconds}
            )
        progress(config.source.models)
        return results

    return variants


def figures(task: Task, config: Config, found) -> dict:
    """Worst-group accuracy against seconds."""
    points = {}
    for name in found[0][0]:
        if name.startswith("D3M by "):
            seconds = np.mean([facts[name]["seconds"] for facts, _ in found])
            points[name.removeprefix("D3M by ")] = ([seconds], ablations.worst(found, name)[:, None])
    ticks = (0.1, 1, 10, 100)
    drawn = plots.curves(points, xlabel="seconds to the scores", ylabel="worst-group test accuracy", ticks=ticks)
    return {"Worst group against what the scores cost.": drawn}


def main(config: Config, results: Path = Path("results"), run: str | None = None) -> Path:
    """Run all tasks, print a table for each, and leave everything in ``results/ablate_source/<run>``."""
    bank = engine.SMOKE[engine.Bank]
    config = ablations.small(config, checkpoints=(2,), banks=(bank, bank._replace(fit="LASSO")))
    about = (
        "Group columns from TRAK, from its last layer alone, from influence functions (GGN, conjugate gradients), and "
        "from ridge and LASSO datamodels of small subsets; "
        "negative scores are dropped. Seconds: training and attribution up to the columns; compilation is left out "
        "but for datamodels."
    )
    return ablations.run("ablate_source", config, make, figures, about=about, results=results, run=run)


if __name__ == "__main__":
    tyro.cli(main)
