"""The projection of D3M's gradients: its dimension, its damping and its kind.

Claim:    p far below n and little damping; where n is small, much damping; sparse, dense and factored projections
          agree.
Command:  python -m experiments.ablate_projection            (`--config.smoke` takes seconds)
Expected: the table in experiments/README.md, which this command wrote.
Device:   two CPU cores, about two minutes a task and seed; any JAX device works.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import tyro

from d3mjax.attribution import per_checkpoint, projections
from d3mjax.reports import plots
from experiments.d3m import ablations
from experiments.d3m.ablations import Variant
from experiments.tasks import Task

KINDS = {"Rademacher": (projections.rademacher, 500), "tensor sketch": (projections.tensor_sketch, 500)}
"""Kinds beside the SJLT, and the rows at which each is fast on CPUs."""


@dataclass(frozen=True)
class Config(ablations.Config):
    """What determines the numbers; one of ``sizes`` and ``dampings`` is swept while the other is the source's."""

    sizes: tuple[int, ...] = (32, 64, 128, 256, 512, 1024)
    dampings: tuple[float, ...] = (0.0001, 0.001, 0.01, 0.1, 1.0)


def named(size: int, damping: float, kind: str = "SJLT") -> str:
    """What the table calls it."""
    return f"D3M, {kind}, p = {size}, damping {damping:g}"


def make(task: Task, config: Config) -> Callable:
    """The same checkpoints under every projection."""
    size, damping, rows = config.source.size, config.source.damping, config.source.microbatch
    settings = [(p, damping, "SJLT") for p in config.sizes] + [(size, d, "SJLT") for d in config.dampings]
    settings += [(size, damping, kind) for kind in KINDS]
    kinds = {"SJLT": (projections.sjlt, rows), **KINDS}
    programs = {}
    for p, d, kind in dict.fromkeys([*settings, (size, damping, "SJLT")]):
        project, microbatch = kinds[kind]
        changes = {"projection": project(p), "damping": d, "microbatch": microbatch}
        programs[named(p, d, kind)] = ablations.make_columns(task, config.source, **changes)
    train = ablations.make_checkpoints(task)

    def variants(data, seed, progress):
        found = train(data, ablations.keys(seed, config.source.models))
        keys = ablations.keys(seed, config.source.models, ablations.COLUMNS)
        keep = {}
        for name, columns in programs.items():
            mean = per_checkpoint.combine(*map(jnp.asarray, columns(data, keys, found.variables)))
            keep[name] = Variant(ablations.keep(task, data, mean, found.losses.mean(0), beta=config.beta))
        progress(config.source.models)
        return keep

    return variants


def figures(task: Task, config: Config, found) -> dict:
    """Worst-group accuracy against dimension and against damping."""
    sizes = {p: named(p, config.source.damping) for p in config.sizes}
    dampings = {d: named(config.source.size, d) for d in config.dampings}
    draw = lambda names, label: plots.curves(
        {"D3M": ablations.curve(found, names), **ablations.yardsticks(found, names)},
        xlabel=label,
        ylabel="worst-group test accuracy",
    )
    return {
        "Worst group against the dimension of the projection.": draw(sizes, "p"),
        "Worst group against the damping.": draw(dampings, "damping, of the mean eigenvalue"),
    }


def main(config: Config, results: Path = Path("results"), run: str | None = None) -> Path:
    """Run all tasks, print a table for each, and leave everything in ``results/ablate_projection/<run>``."""
    config = ablations.small(config, sizes=(32,), dampings=(0.01, 0.1))
    about = "The same checkpoints attributed under different projections; all negative scores are dropped."
    return ablations.run("ablate_projection", config, make, figures, about=about, results=results, run=run)


if __name__ == "__main__":
    tyro.cli(main)
