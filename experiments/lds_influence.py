"""How well influence functions predict the groups' margins after retraining: curvature, solver, damping, checkpoints.

Claim:    the GGN, damped by a hundredth of the mean curvature, predicts better than the Hessian, EK-FAC, the last layer
          alone and TRAK, and five checkpoints better than one.
Command:  python -m experiments.lds_influence        (`--config.smoke` takes seconds)
Expected: not measured yet beyond `--config.smoke`.
Device:   two CPU cores; 2,000 trainings a task and seed for the truth, then five checkpoints.
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

from d3mjax import metrics
from d3mjax.attribution import ekfac, gradients, influence, projections, trak
from d3mjax.training import ensemble
from d3mjax.types import Data
from experiments import engine, lds_trak, plots, report, units
from experiments.tasks import SMALL_TASKS, Task


@dataclass(frozen=True)
class Config:
    """What determines the numbers."""

    tasks: tuple[str, ...] = ("adult", "patch")
    seeds: int = 5
    first_seed: int = 10
    subsets: int = 100  # half subsets held out as truth
    repeats: int = 20  # trainings averaged for each of them
    checkpoints: tuple[int, ...] = (1, 2, 5)
    dampings: tuple[float, ...] = (0.0001, 0.001, 0.01, 0.1, 1.0)  # of the sum of weights, for the GGN by CG
    damping: float = 0.01  # everywhere else
    size: int = 256  # TRAK's projected dimension
    controls: bool = True  # the Hessian, K-FAC and the last layer alone, too
    smoke: bool = False


def sources(task: Task, config: Config) -> dict[str, Callable]:
    """``(key, variables, data) -> (columns [n G], residual)`` of one checkpoint, by name."""
    model, num_groups = engine.network(task), len(task.group_names)

    def newton(damping: float, **options: Any) -> Callable:
        def columns(_key, variables, data: Data):
            place = (model, variables, data.train, data.target, num_groups)
            found, info = influence.group_columns(*place, damping=damping, microbatch=1000, **options)
            return found, info.residual.max()

        return columns

    def by_trak(**options: Any) -> Callable:
        options |= {"projection": projections.sjlt(config.size), "damping": 0.1, "microbatch": 40}

        def columns(key, variables, data: Data):
            place = (key, model, variables, data.train, data.target, num_groups)
            kernel, factor, info = trak.group_columns(*place, **options)
            return kernel * factor[:, None], info.residual

        return columns

    last = f"Dense_{len(task.hidden)}"
    found = {f"GGN, damping {d:g}": newton(d, inverse=influence.by_cg(max_steps=500)) for d in config.dampings}
    if config.controls:
        found |= {
            f"Hessian, damping {10 * config.damping:g}": newton(10 * config.damping, curvature=influence.hessian),
            f"K-FAC, damping {config.damping:g}": newton(config.damping, inverse=ekfac.by_ekfac(corrected=False)),
            f"GGN of the last layer, damping {config.damping:g}": newton(
                config.damping, keep=lambda path: last in path
            ),
        }
    found |= {
        f"EK-FAC, damping {config.damping:g}": newton(config.damping, inverse=ekfac.by_ekfac()),
        f"TRAK, p = {config.size}": by_trak(),
        f"TRAK with curvature, p = {config.size}": by_trak(curvature=gradients.logistic_curvature),
    }
    return found


def prepare(task: Task, config: Config) -> Callable:
    """`measure` of one task, compiled once for all seeds."""

    def mapped(source: Callable) -> Callable:
        return lds_trak.mapped(lambda data, key, variables: source(key, variables, data))

    programs = {name: mapped(source) for name, source in sources(task, config).items()}
    truth, train = lds_trak.make_truth(task, config.repeats), lds_trak.make_checkpoints(task)
    return partial(measure, task, config, programs, truth, train)


def measure(
    task: Task, config: Config, programs: dict, truth: Callable, train: Callable, seed: int, progress: Callable
) -> units.Unit:
    """LDS of the groups' mean margins under every source, with the first of the checkpoints and with more."""
    data, key = task.read(seed, smoke=config.smoke), jax.random.key(seed)
    n, most, groups = len(data.train.y), max(config.checkpoints), len(task.group_names)
    held = jax.random.fold_in(key, lds_trak.TRUTH)
    margins = truth(data, held, config.subsets, progress)
    member = np.eye(groups)[np.asarray(data.target.group)]
    margins = margins @ (member / member.sum(0))
    subsets = lds_trak.half_subsets(held, jnp.arange(config.subsets), n)
    keys = lambda family: ensemble.model_keys(jax.random.fold_in(key, family), jnp.arange(most))
    variables = train(data, keys(lds_trak.CHECKPOINTS))
    facts: dict[str, Any] = {"ceiling": lds_trak.ceiling(margins)}
    for name, source in programs.items():
        columns, residual = jax.device_get(source(data, keys(lds_trak.PROJECTIONS), variables))
        for count in config.checkpoints:
            predicted = metrics.subset_predictions(jnp.asarray(columns[:count].mean(0).T), subsets)
            lds = metrics.spearman(predicted.T, jnp.asarray(margins.mean(1)).T)
            facts[named(name, count)] = {"lds": float(lds.mean()), "residual": float(residual[:count].max())}
    return facts, {}


def named(source: str, checkpoints: int) -> str:
    """What the table calls it."""
    return f"{source}, {lds_trak.counted_as(checkpoints)}"


def describe(task: Task, config: Config, found: list[units.Unit]) -> tuple[list[dict[str, Any]], report.Section]:
    """One row a source and number of checkpoints; LDS against damping."""
    facts = [facts for facts, _ in found]
    rows = []
    for name in (name for name in facts[0] if name != "ceiling"):
        values = {metric: [fact[name][metric] for fact in facts] for metric in ("lds", "residual")}
        rows.append(report.row(task.name, name, values))
    rows.append(report.row(task.name, "ceiling set by retraining noise", {"lds": [f["ceiling"] for f in facts]}))
    lds = lambda count: np.array(
        [[f[named(f"GGN, damping {d:g}", count)]["lds"] for d in config.dampings] for f in facts]
    )
    lines = {lds_trak.counted_as(count): (config.dampings, lds(count)) for count in config.checkpoints}
    figure = plots.curves(lines, xlabel="damping / sum of weights", ylabel="LDS (mean over groups)")
    text = (
        f"{task.about} n = 1,000 training examples; truth: mean margins of the groups of the target set under "
        f"{config.subsets} half subsets, {config.repeats} trainings each. Residual: the largest of the solves, by the "
        "GGN (the Hessian in its row), which EK-FAC and K-FAC only approximate."
    )
    return rows, report.Section(text, {"LDS of the GGN against damping.": figure})


def main(config: Config, results: Path = Path("results"), run: str | None = None) -> Path:
    """Measure all sources, print a table for each task, and write ``results/lds_influence/<run>``; rerun to resume."""
    if config.smoke:
        small = {"checkpoints": (1, 2), "dampings": (0.01, 0.1), "size": 32, "controls": False}
        config = replace(config, seeds=1, subsets=20, repeats=2, **small)
    models = config.subsets * config.repeats
    return units.run_experiment(
        "lds_influence", config, SMALL_TASKS, prepare, describe, models=models, results=results, run=run
    )


if __name__ == "__main__":
    tyro.cli(main)
