"""How well TRAK predicts retraining: LDS against checkpoints, projection, its dimension, damping and curvature.

Claim:    more checkpoints always help; the projection is a regulariser, best far below n; sparse and dense projections
          are as good; the curvature that TRAK leaves out of its Gram matrix is worth more than twice the checkpoints.
Command:  python -m experiments lds_trak
Expected: on patch 0.868 ± 0.006 for TRAK with curvature (p = 256, 50 checkpoints), 0.746 ± 0.012 without.
Device:   two CPU cores, 81 minutes; the truth takes most of them, 4,000 trainings a seed and task.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from d3mjax import keys
from d3mjax.attribution import gradients, outputs, projections, trak
from d3mjax.reports.page import Section
from d3mjax.runtime import hosts
from experiments.cifar_tasks import LDS_TASKS
from experiments.datamodels import common, lds
from experiments.study import Unit
from experiments.tasks import Task

GROUP = 10  # checkpoints whose kernels are in memory at a time


@dataclass(frozen=True)
class Config(common.Config):
    """What determines the numbers."""

    subsets: int = 200  # half subsets held out as truth
    repeats: int = 20  # trainings averaged for each of them
    checkpoints: tuple[int, ...] = (1, 2, 5, 10, 20, 50)
    sizes: tuple[int, ...] = (64, 128, 256, 512, 1024)  # projected dimensions, at `damping`
    dampings: tuple[float, ...] = (0.001, 0.01, 0.1, 1.0)  # of the mean eigenvalue, at `size`
    size: int = 256
    damping: float = 0.1
    dense: tuple[int, ...] = (256,)  # projected dimensions of a Rademacher beside the SJLT
    sketch: tuple[int, ...] = (256,)  # the same of a tensor sketch
    curvature: tuple[int, ...] = (256, 512)  # projected dimensions with p (1 - p) in the Gram, which TRAK leaves out


class Setting(NamedTuple):
    """Options of one attribution."""

    size: int
    damping: float
    projection: Literal["SJLT", "Rademacher", "tensor sketch"] = "SJLT"
    curvature: bool = False

    @property
    def title(self) -> str:
        """Its name in tables."""
        kind = "TRAK with curvature" if self.curvature else "TRAK"
        return f"{kind}, {self.projection}, p = {self.size}, damping {self.damping:g}"

    def named(self, checkpoints: int) -> str:
        """Its name among stored arrays."""
        return "/".join(map(str, (*self, checkpoints)))


PROJECTIONS = {  # and gradients at a time, the fastest on CPUs
    "SJLT": (projections.sjlt, 40),
    "Rademacher": (projections.rademacher, 500),
    "tensor sketch": (projections.tensor_sketch, 500),
}


def settings(config: Config) -> list[Setting]:
    """Dimension and damping, one swept while the other stays; then projections and curvature."""
    swept = [Setting(size, config.damping) for size in config.sizes]
    swept += [Setting(config.size, damping) for damping in config.dampings]
    swept += [Setting(size, config.damping, "Rademacher") for size in config.dense]
    swept += [Setting(size, config.damping, "tensor sketch") for size in config.sketch]
    swept += [Setting(size, config.damping, curvature=True) for size in config.curvature]
    return sorted({Setting(config.size, config.damping), *swept})


def make_kernels(task: Task, setting: Setting) -> Callable:
    """``(data, keys [c], variables [c]) -> (kernel [c t n], q [c n], info)``: `trak.scores` before the means over c."""
    model = task.network()
    make, rows = PROJECTIONS[setting.projection]
    curvature = gradients.logistic_curvature if setting.curvature else None
    options = trak.Options(make(setting.size), setting.damping, factor=gradients.no_factor, curvature=curvature)
    options = options._replace(microbatch=rows)

    def one(data, key, variables):
        stacked = jax.tree.map(lambda a: a[None], variables)
        scores = trak.scores(key, model, stacked, data.train, data.target, options=options)
        info = jax.tree.map(lambda a: a[0], scores.info)
        return scores.tau, jax.nn.sigmoid(-outputs.soft_margins(model, variables, data.train)), info

    return common.over_models(one)


def prepare(task: Task, config: Config, results: Path) -> Callable:
    """`measure` of one task, compiled once for all seeds."""
    kernels = {setting: make_kernels(task, setting) for setting in settings(config)}
    truth, checkpoints = lds.make_truth(task, config.repeats, results), common.make_checkpoints(task)
    return partial(measure, task, config, kernels, truth, checkpoints)


def measure(
    task: Task, config: Config, kernels: dict, truth: Callable, checkpoints: Callable, seed: int, progress: Callable
) -> Unit:
    """LDS of every setting on one data seed: mean and interval for JSON, and the LDS of every target."""
    data, root = hosts.place(task.read(seed, smoke=config.smoke), hosts.local_mesh()), jax.random.key(seed)
    halves = truth(data, seed, config.subsets, progress)
    members = partial(keys.members, root, count=max(config.checkpoints))
    variables = checkpoints(data, members(keys.Lds.CHECKPOINTS))
    facts: dict[str, Any] = {"ceiling": lds.ceiling(halves.margins)}
    arrays = {}
    for setting, attribute in kernels.items():
        kernel, factor = np.zeros((len(data.target.y), len(data.train.y))), np.zeros(len(data.train.y))
        parts = in_groups(setting, partial(attribute, data), members(keys.Lds.PROJECTIONS), variables)
        for c, (one_kernel, one_factor) in enumerate(parts, start=1):
            kernel, factor = kernel + one_kernel, factor + one_factor
            if c in config.checkpoints:
                tau, name = (kernel / c * (factor / c)).astype(np.float32), setting.named(c)
                interval_key = jax.random.fold_in(root, keys.Lds.INTERVALS)
                facts[name], arrays[name] = lds.score(interval_key, tau, halves)
    return facts, arrays


def in_groups(setting: Setting, attribute: Callable, model_keys, variables):
    """Kernel and q of each checkpoint, `GROUP` of them computed at a time.

    Raises FloatingPointError, which names setting and checkpoints, where they are not finite.
    """
    for first in range(0, len(model_keys), GROUP):
        part = jax.tree.map(lambda a, first=first: a[first : first + GROUP], (model_keys, variables))
        kernel, factor, info = jax.device_get(attribute(*part))
        try:
            trak.check(info, checkpoint_ids=range(first, first + len(kernel)))
        except FloatingPointError as error:
            raise FloatingPointError(f"{setting.title}: {error}") from error
        yield from zip(kernel, factor, strict=True)


def describe(task: Task, config: Config, units: list[Unit]) -> tuple[list[dict[str, Any]], Section]:
    """One row a setting, one for the ceiling, and LDS curves."""
    facts, rows, main = [facts for facts, _ in units], [], Setting(config.size, config.damping)
    for setting in settings(config):
        for c in config.checkpoints if setting == main else config.checkpoints[-2:]:
            scores = [fact[setting.named(c)] for fact in facts]
            options = {**setting._asdict(), "checkpoints": c}
            rows.append(lds.row(task.name, f"{setting.title}, {lds.counted(c)}", scores, "ours", options))
    rows.append(lds.ceiling_row(task.name, {"lds": [fact["ceiling"] for fact in facts]}, repeats=config.repeats))

    ends = (min(config.checkpoints), max(config.checkpoints))
    kinds = [Setting(p, config.damping, curvature=curved) for curved in (False, True) for p in config.sizes]
    by_count = {at.title: [at.named(c) for c in config.checkpoints] for at in kinds if at in settings(config)}
    by_size = {lds.counted(c): [Setting(p, config.damping).named(c) for p in config.sizes] for c in ends}
    by_damping = {lds.counted(c): [Setting(config.size, d).named(c) for d in config.dampings] for c in ends}
    figures = {
        f"LDS against the number of checkpoints, damping {config.damping:g}.": lds.curve(
            config.checkpoints, by_count, facts, "checkpoints"
        ),
        f"LDS against the projected dimension, damping {config.damping:g}.": lds.curve(
            config.sizes, by_size, facts, "projected dimension p"
        ),
        f"LDS against damping, p = {config.size}.": lds.curve(
            config.dampings, by_damping, facts, "damping / mean eigenvalue"
        ),
    }
    return rows, Section(lds.text(task, config, config.repeats), figures)


STUDY = common.study(
    "lds_trak",
    claim="TRAK predicts retraining better with more checkpoints, and much better with the curvature of the loss.",
    config=Config(),
    tasks=LDS_TASKS,
    prepare=prepare,
    describe=describe,
    minutes=81,
    headline=("patch", "TRAK with curvature, SJLT, p = 256, damping 0.1, 50 checkpoints", "lds"),
    few={"seeds": 2, "subsets": 10, "repeats": 2, "checkpoints": (1, 2), "sizes": (32,), "dampings": (0.1,), "size": 32}
    | {"dense": (), "sketch": (32,), "curvature": (32,)},
    models=lambda config: config.subsets * config.repeats,
    together=True,
)
