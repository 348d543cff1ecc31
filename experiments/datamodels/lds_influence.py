"""How well influence functions predict groups' margins and counterfactual bias after retraining.

Claim:    the GGN, damped by a hundredth of the mean curvature, predicts better than the Hessian, EK-FAC, the last layer
          alone and TRAK, and five checkpoints better than one.
Command:  python -m experiments lds_influence
Expected: on adult-sex 0.883 ± 0.022 for the GGN with five checkpoints, 0.681 ± 0.041 for EK-FAC.
Device:   two CPU cores, 30 minutes; 2,000 trainings a task and seed for the truth, then five checkpoints.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from d3mjax import keys, metrics
from d3mjax.attribution import curvatures, ekfac, gradients, influence, inverses, projections, trak
from d3mjax.reports import plots
from d3mjax.reports.page import Section
from d3mjax.reports.rows import Kind
from d3mjax.types import Data, Model, Split
from experiments.bias_tasks import BiasTask, Loaded, adult_task, fashion_task
from experiments.datamodels import common, lds
from experiments.study import Unit
from experiments.tasks import sgd

RECIPE: dict[str, Any] = {"train": 1000, "steps": 400, "batch": 50, "rate": 0.05, "decay": 1e-3, "optimizer": sgd}
ADULT = adult_task("sex", "Male", "Female", hidden=(32,), **RECIPE)
FASHION = fashion_task(0.95, hidden=(64,), **RECIPE)
TASKS = {task.name: task for task in (ADULT, FASHION)}


@dataclass(frozen=True)
class Config(common.Config):
    """What determines the numbers."""

    tasks: tuple[str, ...] = tuple(TASKS)
    seeds: int = 5
    subsets: int = 100  # half subsets held out as truth
    repeats: int = 20  # trainings averaged for each of them
    checkpoints: tuple[int, ...] = (1, 2, 5)
    dampings: tuple[float, ...] = (0.0001, 0.001, 0.01, 0.1, 1.0)  # of the sum of weights, for the GGN by CG
    damping: float = 0.01  # everywhere else
    size: int = 256  # TRAK's projected dimension
    controls: bool = True  # the Hessian, K-FAC and the last layer alone, too


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


def mixed_means(margins: np.ndarray, group: np.ndarray, num_groups: int) -> np.ndarray:
    """Means of `mixed_output` over groups with the signed bias last, ``[... G + 1]``, from soft margins ``[... t]``."""
    member = np.eye(num_groups + 2)[group]
    values = np.where(group < num_groups, margins, 1 / (1 + np.exp(-margins)))
    return with_bias(values @ (member / member.sum(0)))


def with_bias(values: np.ndarray) -> np.ndarray:
    """``[... G + 2]`` with the difference of the last two in their place, the signed bias."""
    return np.concatenate([values[..., :-2], values[..., -2:-1] - values[..., -1:]], -1)


class Source(NamedTuple):
    """One attribution of groups, `influence.group_columns` or `trak.group_columns`, with its options."""

    attribute: Callable
    options: influence.Options | trak.Options
    kind: Kind = Kind("rival")


def sources(task: BiasTask, config: Config) -> dict[str, Source]:
    """All attributions that are compared, by name."""
    output, damping = mixed_output(len(task.task.group_names)), config.damping
    ggn = influence.Options(damping=damping, microbatch=1000, target_output=output)
    sketched = trak.Options(projections.sjlt(config.size), damping=0.1, microbatch=40, target_output=output)
    by_cg, kfac = ggn._replace(inverse=inverses.by_cg(max_steps=500)), ekfac.by_ekfac(corrected=False)
    last, curvature = f"Dense_{len(task.task.hidden)}", gradients.logistic_curvature
    newton = partial(Source, influence.group_columns)
    ours = {f"GGN, damping {d:g}": newton(by_cg._replace(damping=d), Kind("ours")) for d in config.dampings}
    controls = {
        f"Hessian, damping {10 * damping:g}": newton(ggn._replace(damping=10 * damping, curvature=curvatures.hessian)),
        f"K-FAC, damping {damping:g}": newton(ggn._replace(inverse=kfac)),
        f"GGN of the last layer, damping {damping:g}": newton(ggn._replace(keep=lambda path: last in path)),
    }
    return {
        **ours,
        **(controls if config.controls else {}),
        f"EK-FAC, damping {damping:g}": newton(ggn._replace(inverse=ekfac.by_ekfac())),
        f"TRAK, p = {config.size}": Source(trak.group_columns, sketched),
        f"TRAK with curvature, p = {config.size}": Source(trak.group_columns, sketched._replace(curvature=curvature)),
    }


def make_columns(task: BiasTask, source: Source) -> Callable:
    """``(data, keys [c], variables [c]) -> (columns [c n G + 2], residual [c])``, compiled."""
    model, num_groups = task.task.network(), len(task.task.group_names) + 2

    def columns(data: Data, key, variables):
        arrays = (key, model, variables, data.train, data.target, num_groups)
        kernel, factor, info = source.attribute(*arrays, options=source.options)
        return kernel * factor[:, None], info.residual.max()

    return common.over_models(columns)


def prepare(task: BiasTask, config: Config, results: Path) -> Callable:
    """`measure` of one task, compiled once for all seeds."""
    programs = {name: make_columns(task, source) for name, source in sources(task, config).items()}
    truth, checkpoints = lds.make_truth(task.task, config.repeats, results), common.make_checkpoints(task.task)
    return partial(measure, task, config, programs, truth, checkpoints)


def measure(
    task: BiasTask, config: Config, programs: dict, truth: Callable, checkpoints: Callable, seed: int, progress
) -> Unit:
    """LDS of the groups' mean margins and of the signed bias, with the first of the checkpoints and with more."""
    groups, root = len(task.task.group_names), jax.random.key(seed)
    data = with_pairs(task.load(seed, smoke=config.smoke), groups)
    halves = truth(data, seed, config.subsets, progress)
    halves = halves._replace(margins=mixed_means(halves.margins, np.asarray(data.target.group), groups))
    members = partial(keys.members, root, count=max(config.checkpoints))
    variables = checkpoints(data, members(keys.Lds.CHECKPOINTS))
    parts = (halves.margins[..., :-1], halves.margins[..., -1:])
    facts: dict[str, Any] = {"ceiling": [lds.ceiling(part) for part in parts]}
    for name, source in programs.items():
        columns, residual = jax.device_get(source(data, members(keys.Lds.PROJECTIONS), variables))
        for count in config.checkpoints:
            mean_columns = with_bias(columns[:count].mean(0))
            scores = metrics.lds(mean_columns.T, halves.masks, halves.outputs)
            values = {"lds": scores[:-1].mean(), "lds_bias": scores[-1], "residual": residual[:count].max()}
            facts[named(name, count)] = {metric: float(value) for metric, value in values.items()}
    return facts, {}


def named(source: str, checkpoints: int) -> str:
    """Its name in the table and among stored facts."""
    return f"{source}, {lds.counted(checkpoints)}"


def describe(task: BiasTask, config: Config, units: list[Unit]) -> tuple[list[dict[str, Any]], Section]:
    """One row a source and number of checkpoints; LDS against damping."""
    facts = [facts for facts, _ in units]
    kinds = {named(name, c): source.kind for name, source in sources(task, config).items() for c in config.checkpoints}
    ceiling = {metric: [f["ceiling"][i] for f in facts] for i, metric in enumerate(("lds", "lds_bias"))}
    rows = [*common.rows_of(task.task, facts, kinds), lds.ceiling_row(task.name, ceiling)]

    def figure(metric: str, label: str):
        at = lambda count: [[f[named(f"GGN, damping {d:g}", count)][metric] for d in config.dampings] for f in facts]
        lines = {lds.counted(count): (config.dampings, np.array(at(count))) for count in config.checkpoints}
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


STUDY = common.study(
    "lds_influence",
    claim="The GGN predicts group margins and counterfactual bias better than the Hessian, EK-FAC, the last layer and "
    "TRAK.",
    config=Config(),
    tasks=TASKS,
    prepare=prepare,
    describe=describe,
    minutes=30,
    headline=("adult-sex", "GGN, damping 0.01, 5 checkpoints", "lds"),
    few={"seeds": 1, "subsets": 20, "repeats": 2, "checkpoints": (1, 2), "dampings": (0.01, 0.1), "size": 32}
    | {"controls": False},
    shipped=(ADULT.name,),
    models=lambda config: config.subsets * config.repeats,
    together=True,
)
