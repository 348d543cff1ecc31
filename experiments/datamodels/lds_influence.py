"""How well influence functions predict groups' margins and counterfactual bias after retraining.

Claim:    the GGN, damped by a hundredth of the mean curvature, predicts better than the Hessian, EK-FAC, the last layer
          alone and TRAK, and five checkpoints better than one.
Command:  python -m experiments.lds_influence        (`--config.smoke` takes seconds)
Expected: the table in experiments/README.md, which this command wrote.
Device:   two CPU cores; 2,000 trainings a task and seed for the truth, then five checkpoints; half an hour.
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
from d3mjax.reports import plots
from d3mjax.reports.page import Section
from d3mjax.reports.rows import row
from d3mjax.training import ensemble
from d3mjax.types import Data, Model, Split
from experiments import study
from experiments.bias_tasks import BiasTask, Loaded, adult_task, fashion_task
from experiments.datamodels import lds_trak

RECIPE: dict[str, Any] = {"train": 1000, "steps": 400, "batch": 50, "rate": 0.05, "decay": 1e-3, "adam": False}
ADULT = adult_task("sex", "Male", "Female", hidden=(32,), **RECIPE)
FASHION = fashion_task(0.95, hidden=(64,), **RECIPE)
TASKS = {task.name: task for task in (ADULT, FASHION)}


@dataclass(frozen=True)
class Config:
    """What determines the numbers."""

    tasks: tuple[str, ...] = tuple(TASKS)
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


def with_pairs(loaded: Loaded, num_groups: int) -> Data:
    """Targets followed by both sides of the reference pairs, as two groups more."""
    target, pairs = loaded.data.target, loaded.pairs.reference
    count = len(pairs.y)
    group = np.concatenate([target.group, np.repeat([num_groups, num_groups + 1], count)]).astype(np.int32)
    y = np.concatenate([target.y, pairs.y, pairs.y]).astype(np.int32)
    x = np.concatenate([target.x, pairs.x, pairs.flipped])
    return loaded.data._replace(target=Split(x, y, group, np.arange(len(y))))


def mixed_output(num_groups: int) -> Callable:
    """Soft margins of targets, probabilities of the true class for pairs: their means differ by the signed bias."""

    def make(model: Model, variables):
        margin = gradients.margin_output(model, variables)

        def output(params, example):
            value = margin(params, example)
            return jnp.where(example.group < num_groups, value, jax.nn.sigmoid(value))

        return output

    return make


def sources(bias_task: BiasTask, config: Config) -> dict[str, Callable]:
    """``(key, variables, data) -> (columns [n G + 2], residual)`` of one checkpoint, by name."""
    task = bias_task.task
    model, num_groups = task.network(), len(task.group_names) + 2
    output = mixed_output(len(task.group_names))

    defaults = influence.Options(damping=config.damping, microbatch=1000, target_output=output)
    sketched = trak.Options(projections.sjlt(config.size), damping=0.1, microbatch=40, target_output=output)

    def newton(options: influence.Options) -> Callable:
        def columns(_key, variables, data: Data):
            place = (model, variables, data.train, data.target, num_groups)
            found, info = influence.group_columns(*place, options=options)
            return found, info.residual.max()

        return columns

    def by_trak(options: trak.Options) -> Callable:
        def columns(key, variables, data: Data):
            place = (key, model, variables, data.train, data.target, num_groups)
            kernel, factor, info = trak.group_columns(*place, options=options)
            return kernel * factor[:, None], info.residual

        return columns

    last = f"Dense_{len(task.hidden)}"
    cg = defaults._replace(inverse=influence.by_cg(max_steps=500))
    found = {f"GGN, damping {d:g}": newton(cg._replace(damping=d)) for d in config.dampings}
    if config.controls:
        found |= {
            f"Hessian, damping {10 * config.damping:g}": newton(
                defaults._replace(damping=10 * config.damping, curvature=influence.hessian)
            ),
            f"K-FAC, damping {config.damping:g}": newton(defaults._replace(inverse=ekfac.by_ekfac(corrected=False))),
            f"GGN of the last layer, damping {config.damping:g}": newton(
                defaults._replace(keep=lambda path: last in path)
            ),
        }
    found |= {
        f"EK-FAC, damping {config.damping:g}": newton(defaults._replace(inverse=ekfac.by_ekfac())),
        f"TRAK, p = {config.size}": by_trak(sketched),
        f"TRAK with curvature, p = {config.size}": by_trak(sketched._replace(curvature=gradients.logistic_curvature)),
    }
    return found


def prepare(task: BiasTask, config: Config) -> Callable:
    """`measure` of one task, compiled once for all seeds."""
    base = task.task

    def mapped(source: Callable) -> Callable:
        return lds_trak.mapped(lambda data, key, variables: source(key, variables, data))

    programs = {name: mapped(source) for name, source in sources(task, config).items()}
    truth, train = lds_trak.make_truth(base, config.repeats), lds_trak.make_checkpoints(base)
    return partial(measure, task, config, programs, truth, train)


def measure(
    task: BiasTask, config: Config, programs: dict, truth: Callable, train: Callable, seed: int, progress: Callable
) -> study.Unit:
    """LDS of the groups' mean margins and of the signed bias, with the first of the checkpoints and with more."""
    groups, key = len(task.task.group_names), jax.random.key(seed)
    data = with_pairs(task.load(seed, smoke=config.smoke), groups)
    n, most = len(data.train.y), max(config.checkpoints)
    held = jax.random.fold_in(key, lds_trak.TRUTH)
    margins = truth(data, held, config.subsets, progress)
    member = np.eye(groups + 2)[np.asarray(data.target.group)]
    values = np.where(np.asarray(data.target.group) < groups, margins, 1 / (1 + np.exp(-margins)))
    values = with_bias(values @ (member / member.sum(0)))
    subsets = lds_trak.half_subsets(held, jnp.arange(config.subsets), n)
    keys = lambda family: ensemble.model_keys(jax.random.fold_in(key, family), jnp.arange(most))
    variables = train(data, keys(lds_trak.CHECKPOINTS))
    facts: dict[str, Any] = {"ceiling": [lds_trak.ceiling(values[..., :-1]), lds_trak.ceiling(values[..., -1:])]}
    for name, source in programs.items():
        columns, residual = jax.device_get(source(data, keys(lds_trak.PROJECTIONS), variables))
        for count in config.checkpoints:
            found = with_bias(columns[:count].mean(0))
            predicted = metrics.subset_predictions(jnp.asarray(found.T), subsets)
            lds = metrics.spearman(predicted.T, jnp.asarray(values.mean(1)).T)
            figures = {"lds": lds[:-1].mean(), "lds_bias": lds[-1], "residual": residual[:count].max()}
            facts[named(name, count)] = {metric: float(value) for metric, value in figures.items()}
    return facts, {}


def with_bias(values: np.ndarray) -> np.ndarray:
    """``[... G + 2]`` with the difference of the last two in their place, the signed bias."""
    return np.concatenate([values[..., :-2], values[..., -2:-1] - values[..., -1:]], -1)


def named(source: str, checkpoints: int) -> str:
    """What the table calls it."""
    return f"{source}, {lds_trak.counted_as(checkpoints)}"


def describe(task: BiasTask, config: Config, found: list[study.Unit]) -> tuple[list[dict[str, Any]], Section]:
    """One row a source and number of checkpoints; LDS against damping."""
    facts = [facts for facts, _ in found]
    rows = []
    for name in (name for name in facts[0] if name != "ceiling"):
        values = {metric: [fact[name][metric] for fact in facts] for metric in ("lds", "lds_bias", "residual")}
        rows.append(row(task.name, name, values, role="ours"))
    ceiling = {metric: [f["ceiling"][i] for f in facts] for i, metric in enumerate(("lds", "lds_bias"))}
    rows.append(row(task.name, "ceiling set by retraining noise", ceiling, role="ceiling"))

    def figure(metric: str, label: str):
        at = lambda count: [[f[named(f"GGN, damping {d:g}", count)][metric] for d in config.dampings] for f in facts]
        lines = {lds_trak.counted_as(count): (config.dampings, np.array(at(count))) for count in config.checkpoints}
        return plots.curves(lines, xlabel="damping / sum of weights", ylabel=label)

    text = (
        f"{task.task.about} Truth: mean margins of the groups of the target set, and the signed bias of the reference "
        f"pairs, under {config.subsets} half subsets, {config.repeats} trainings each. Residual: the largest of the "
        "solves, by the GGN (the Hessian in its row), which EK-FAC and K-FAC only approximate."
    )
    figures = {
        "LDS of the groups' margins, GGN, against damping.": figure("lds", "LDS (mean over groups)"),
        "LDS of the signed bias, GGN, against damping.": figure("lds_bias", "LDS of the signed bias"),
    }
    return rows, Section(text, figures)


def main(config: Config, results: Path = Path("results"), run: str | None = None) -> Path:
    """Measure all sources, print a table for each task, and write ``results/lds_influence/<run>``; rerun to resume."""
    if config.smoke:
        small = {"checkpoints": (1, 2), "dampings": (0.01, 0.1), "size": 32, "controls": False}
        config = replace(config, seeds=1, subsets=20, repeats=2, **small)
    models = config.subsets * config.repeats
    return study.run_experiment(
        "lds_influence", config, TASKS, prepare, describe, models=models, results=results, run=run
    )


if __name__ == "__main__":
    tyro.cli(main)
