"""How well TRAK predicts retraining: LDS against checkpoints, projection, its dimension, damping and curvature.

Claim:    more checkpoints always help; the projection is a regulariser, best far below n; sparse and dense projections
          are as good; the curvature that TRAK leaves out of its Gram matrix is worth more than twice the checkpoints.
Command:  python -m experiments.lds_trak        (`--config.smoke` takes seconds)
Expected: the table in experiments/README.md, which this command wrote.
Device:   two CPU cores; the truth takes most of the time, 4,000 trainings a seed and task.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from d3mjax import metrics
from d3mjax.attribution import gradients, outputs, projections, trak
from d3mjax.reports import plots
from d3mjax.reports.page import Section
from d3mjax.reports.rows import row
from d3mjax.runtime import hosts
from d3mjax.runtime.hosts import models_at_once
from d3mjax.runtime.sweep import sweep
from d3mjax.training import ensemble, masks, sampling
from d3mjax.types import Data
from experiments import study
from experiments.tasks import LDS_TASKS, Task

TRUTH, CHECKPOINTS, PROJECTIONS, INTERVALS = range(4)  # families of keys
GROUP = 10  # checkpoints whose kernels are in memory at a time


@dataclass(frozen=True)
class Config:
    """What determines the numbers."""

    tasks: tuple[str, ...] = ("patch", "fashion")
    seeds: int = 3
    first_seed: int = 10
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
    smoke: bool = False


class Setting(NamedTuple):
    """How to attribute."""

    size: int
    damping: float
    projection: Literal["SJLT", "Rademacher", "tensor sketch"] = "SJLT"
    curvature: bool = False

    @property
    def title(self) -> str:
        """What the tables call it."""
        kind = "TRAK with curvature" if self.curvature else "TRAK"
        return f"{kind}, {self.projection}, p = {self.size}, damping {self.damping:g}"

    def named(self, checkpoints: int) -> str:
        """What the stored arrays call it."""
        return "/".join(map(str, (*self, checkpoints)))


PROJECTIONS_OF = {
    "SJLT": (projections.sjlt, 40),
    "Rademacher": (projections.rademacher, 500),
    "tensor sketch": (projections.tensor_sketch, 500),
}


def half_subsets(key, ids, num_examples: int):
    """The masks held out as truth."""
    return masks.fixed_size(jax.random.fold_in(key, 0), ids, num_examples, num_examples // 2)


def make_truth(task: Task, repeats: int, *, sweep: Callable = sweep) -> Callable:
    """``truth(data, key, subsets, progress) -> margins [subsets repeats t]`` of models trained on half subsets.

    ``sweep``: `shared_sweep` where all hosts work on one seed.
    """
    model, run = task.network(), task.trainer(task.steps, sampling.shuffled())

    def one(data: Data, key, mask):
        state, info = run.run(run.init(key, data.train.x[:1]), data.train, mask.astype(jnp.float32), task.steps)
        return outputs.soft_margins(model, state.variables, data.target), info.loss

    train = mapped(one)

    def truth(data: Data, key, subsets: int, progress: Callable):
        def block(ids):
            keys = ensemble.model_keys(jax.random.fold_in(key, 1), ids)
            return train(here, keys, half_subsets(key, ids // repeats, len(data.train.y)))

        here = hosts.place(data, hosts.local_mesh())  # once for all blocks
        ids = np.arange(subsets * repeats)
        found = sweep(block, ids, block=min(len(ids), 200), progress=progress)
        return found.reshape(-1, repeats, len(data.target.y))

    return truth


def make_checkpoints(task: Task) -> Callable:
    """``(data, keys [c]) -> variables`` trained on all of the training set."""
    run = task.trainer(task.steps, sampling.shuffled())

    def one(data: Data, key):
        weights = jnp.ones(data.train.y.shape[0])
        return run.run(run.init(key, data.train.x[:1]), data.train, weights, task.steps)[0].variables

    return mapped(one)


def make_kernels(task: Task, setting: Setting) -> Callable:
    """``(data, keys [c], variables [c]) -> (kernel [c t n], q [c n])``: `trak.scores` before the means over c."""
    model = task.network()
    make, rows = PROJECTIONS_OF[setting.projection]
    options = trak.Options(
        make(setting.size),
        damping=setting.damping,
        microbatch=rows,  # fastest on CPUs
        factor=gradients.no_factor,
        curvature=gradients.logistic_curvature if setting.curvature else None,
    )

    def one(data: Data, key, variables):
        stacked = jax.tree.map(lambda a: a[None], variables)
        found = trak.scores(key, model, stacked, data.train, data.target, options=options)
        return found.tau, jax.nn.sigmoid(-outputs.soft_margins(model, variables, data.train))

    return mapped(one)


def mapped(one: Callable) -> Callable:
    """``one(data, *arguments)`` of one model, for arguments with a leading model axis, over all devices.

    The data are copied to every device, unless they lie there already.
    """
    devices = hosts.local_mesh()
    spread = jax.jit(
        lambda data, *a: ensemble.map_models(one, width=models_at_once(), mesh=devices, shared=(data,))(*a)
    )
    return lambda data, *a: spread(hosts.place(data, devices), *a)


def settings(config: Config) -> list[Setting]:
    """Dimension and damping, one swept while the other stays; then what else can be chosen."""
    swept = [Setting(size, config.damping) for size in config.sizes]
    swept += [Setting(config.size, damping) for damping in config.dampings]
    swept += [Setting(size, config.damping, "Rademacher") for size in config.dense]
    swept += [Setting(size, config.damping, "tensor sketch") for size in config.sketch]
    swept += [Setting(size, config.damping, curvature=True) for size in config.curvature]
    return sorted({Setting(config.size, config.damping), *swept})


def prepare(task: Task, config: Config) -> Callable:
    """`measure` of one task, compiled once for all seeds."""
    programs: dict[Any, Callable] = {at: make_kernels(task, at) for at in settings(config)}
    programs |= {"truth": make_truth(task, config.repeats), "checkpoints": make_checkpoints(task)}
    programs["interval"] = jax.jit(partial(metrics.lds_interval, num_resamples=300))
    return partial(measure, task, config, programs)


def measure(task: Task, config: Config, programs: dict, seed: int, progress: Callable) -> study.Unit:
    """LDS of every setting on one data seed: mean and interval for JSON, and the LDS of every target."""
    data, key = hosts.place(task.read(seed, smoke=config.smoke), hosts.local_mesh()), jax.random.key(seed)
    n, most = len(data.train.y), max(config.checkpoints)
    margins = programs["truth"](data, jax.random.fold_in(key, TRUTH), config.subsets, progress)
    truth = jnp.asarray(margins.mean(1))
    subsets = half_subsets(jax.random.fold_in(key, TRUTH), jnp.arange(config.subsets), n)
    keys = lambda family: ensemble.model_keys(jax.random.fold_in(key, family), jnp.arange(most))
    variables = programs["checkpoints"](data, keys(CHECKPOINTS))

    facts: dict[str, Any] = {"ceiling": ceiling(margins)}
    arrays = {}
    for setting in settings(config):
        kernel, factor = np.zeros((len(data.target.y), n)), np.zeros(n)
        attribute = partial(programs[setting], data)
        for c, (one_kernel, one_factor) in enumerate(in_groups(attribute, keys(PROJECTIONS), variables)):
            kernel, factor = kernel + one_kernel, factor + one_factor
            if c + 1 in config.checkpoints:
                tau = (kernel / (c + 1) * (factor / (c + 1))).astype(np.float32)
                predicted = metrics.subset_predictions(jnp.asarray(tau), subsets)
                name = setting.named(c + 1)
                arrays[name] = np.asarray(metrics.spearman(predicted.T, truth.T))
                interval = programs["interval"](jax.random.fold_in(key, INTERVALS), predicted, truth)
                facts[name] = [float(np.nanmean(arrays[name])), *map(float, interval)]
    return facts, arrays


def in_groups(attribute: Callable, keys, variables):
    """What ``attribute`` gives for each checkpoint, `GROUP` of them at a time."""
    for first in range(0, len(keys), GROUP):
        part = jax.tree.map(lambda a, first=first: a[first : first + GROUP], (keys, variables))
        yield from zip(*jax.device_get(attribute(*part)), strict=True)


def ceiling(margins: np.ndarray) -> float:
    """Correlation of the truth with itself if it were averaged without end: ``sqrt(s r / (1 + (s - 1) r))``.

    r, the correlation over masks of two single trainings, comes from two halves of the repeats (Spearman-Brown).
    """
    half = margins.shape[1] // 2
    a, b = margins[:, :half].mean(1), margins[:, half : 2 * half].mean(1)
    a, b = a - a.mean(0), b - b.mean(0)
    r = float(np.mean((a * b).sum(0) / np.sqrt((a**2).sum(0) * (b**2).sum(0))))
    single = r / (half - (half - 1) * r)
    return float(np.sqrt(max(margins.shape[1] * single / (1 + (margins.shape[1] - 1) * single), 0.0)))


def describe(task: Task, config: Config, found: list[study.Unit]) -> tuple[list[dict[str, Any]], Section]:
    """Rows and what the page shows of a task."""
    facts = [facts for facts, _ in found]
    return rows_of(task.name, config, facts), section(task, config, facts)


def rows_of(task: str, config: Config, facts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a setting, and one for the ceiling; ``intervals`` resample masks and targets of one seed."""
    rows, main = [], Setting(config.size, config.damping)
    for setting in settings(config):
        for c in config.checkpoints if setting == main else config.checkpoints[-2:]:
            found = [fact[setting.named(c)] for fact in facts]
            more = {**setting._asdict(), "checkpoints": c, "intervals": [f[1:] for f in found]}
            name = f"{setting.title}, {counted_as(c)}"
            rows.append(row(task, name, {"lds": [f[0] for f in found]}, role="ours", settings=more))
    ceiling = {"lds": [fact["ceiling"] for fact in facts]}
    repeats = {"repeats": config.repeats}
    return [*rows, row(task, "ceiling set by retraining noise", ceiling, role="ceiling", settings=repeats)]


def counted_as(checkpoints: int) -> str:
    """A number of checkpoints in words."""
    return f"{checkpoints} checkpoint{'s' * (checkpoints > 1)}"


def section(task: Task, config: Config, facts: list[dict[str, Any]]) -> Section:
    """LDS curves; bands are standard deviations over data seeds."""
    ends = (min(config.checkpoints), max(config.checkpoints))

    def lines(x, *curves):  # curves: (label, (setting, checkpoints) at each x)
        value = lambda setting, c: [fact[setting.named(c)][0] for fact in facts]
        return {label: (x, np.array([value(*at) for at in ats]).T) for label, ats in curves}

    counted = [Setting(p, config.damping, curvature=curved) for curved in (False, True) for p in config.sizes]
    by_count = [(at.title, [(at, c) for c in config.checkpoints]) for at in counted if at in settings(config)]
    by_size = [(counted_as(c), [(Setting(p, config.damping), c) for p in config.sizes]) for c in ends]
    by_damping = [(counted_as(c), [(Setting(config.size, d), c) for d in config.dampings]) for c in ends]
    draw = partial(plots.curves, ylabel="LDS (mean over targets)")
    figures = {
        f"LDS against the number of checkpoints, damping {config.damping:g}.": draw(
            lines(config.checkpoints, *by_count), xlabel="checkpoints"
        ),
        f"LDS against the projected dimension, damping {config.damping:g}.": draw(
            lines(config.sizes, *by_size), xlabel="projected dimension p"
        ),
        f"LDS against damping, p = {config.size}.": draw(
            lines(config.dampings, *by_damping), xlabel="damping / mean eigenvalue"
        ),
    }
    text = (
        f"{task.about} n = 2,000 training examples; truth: {config.subsets} half subsets, {config.repeats} trainings "
        "each, none of them used for attribution."
    )
    return Section(text, figures)


def main(config: Config, results: Path = Path("results"), run: str | None = None) -> Path:
    """Measure all settings, print a table for each task, and write ``results/lds_trak/<run>``; rerun to resume."""
    if config.smoke:
        small = {"checkpoints": (1, 2), "sizes": (32,), "dampings": (0.1,), "size": 32}
        small |= {"dense": (), "sketch": (32,), "curvature": (32,)}
        config = replace(config, seeds=2, subsets=10, repeats=2, **small)
    models = config.subsets * config.repeats
    return study.run_experiment(
        "lds_trak", config, LDS_TASKS, prepare, describe, models=models, results=results, run=run
    )


if __name__ == "__main__":
    tyro.cli(main)
