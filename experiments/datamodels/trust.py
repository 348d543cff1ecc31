"""How well the LDS of an attribution is predicted before any example is removed, from a few dozen trainings.

Claim:    a few random halves, corrected for the noise of training, predict the LDS of any attribution on them; signals
          that need fewer trainings do not, even by a regression on cells of other tasks.
Command:  python -m experiments trust
Expected: 32 halves predict the LDS to .07 on .88 of the cells, all cheap signals together on .24.
Device:   one CPU core, 20 minutes, a good part of it compilation.

A cell is a task, an optimiser, its rate, the size of the training set, an activation, a method, and single targets or
means of groups. The cheap signals are those of `attribution.trust` and metasmoothness.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from d3mjax import keys, metrics
from d3mjax.attribution import metagradient, outputs, per_checkpoint, trust
from d3mjax.data import splits
from d3mjax.networks import dense
from d3mjax.reports import page, plots, sentences
from d3mjax.reports.page import Section
from d3mjax.reports.rows import Kind, row
from d3mjax.runtime import hosts, preemption, runs
from d3mjax.training import masks
from d3mjax.training.ensemble import check_losses, map_models
from d3mjax.types import Data
from experiments import tasks
from experiments.datamodels import common, lds
from experiments.datamodels import metagradient as study_of_metagradients
from experiments.datamodels import metagradient_rivals as rivals
from experiments.study import Study
from experiments.tasks import SHUFFLED, Task, spread

TARGETS = 100
METAGRADIENT = study_of_metagradients.METAGRADIENT
SINGLE, GROUPS = "single targets", "group means"
HALVES, FEWER, SIGNALS = "halves", "fewer halves", ("agreement", "step", "straight", "smooth")
METHODS = (rivals.TRAK, rivals.CURVATURE, rivals.EKFAC, rivals.NEIGHBOURS)  # beside metagradients
SMALL_METHODS = (rivals.TRAK,)  # of smoke runs
WIDTH = "width of "  # half that of an interval
CHEAP, ALL = "all cheap signals, regression", "halves and all cheap signals, regression"
REGRESSIONS = {ALL: (HALVES, *SIGNALS), CHEAP: SIGNALS} | {f"{name}, regression": (name,) for name in SIGNALS}
"""What the control regressions read."""
KINDS = {HALVES: Kind("ours"), FEWER: Kind("ours")}


def _some(load: Callable, train: int, seed: int, *, smoke: bool = False) -> Data:
    data = load(seed, smoke=smoke)
    few = lambda split, count: splits.take(split, np.arange(min(count, len(split.y))))
    return data._replace(train=few(data.train, train), target=few(data.target, TARGETS))


def variants(task: Task) -> Iterator[Task]:
    """The task with 1,000 examples by each optimiser, at a higher rate, with fewer examples, and with GELU units."""
    sized = lambda n: replace(task, load=partial(_some, task.load, n), steps=200, make_model=None)
    middle = sized(1000)
    width = len(task.class_names)
    yield replace(middle, name=f"{task.name}, momentum")
    yield replace(middle, name=f"{task.name}, SGD", optimizer=study_of_metagradients.plain_sgd, rate=0.3)
    yield replace(middle, name=f"{task.name}, Adam", optimizer=tasks.smooth_adam, rate=0.002)
    yield replace(middle, name=f"{task.name}, rate times 4", rate=4 * task.rate)
    yield replace(sized(300), name=f"{task.name}, 300 examples")
    gelu = partial(dense.mlp, task.hidden, width, activation=jax.nn.gelu)
    yield replace(middle, name=f"{task.name}, GELU", make_model=gelu, rate=0.02)


BASES = (tasks.PATCH, tasks.FASHION, tasks.ADULT, tasks.BACKGROUND, tasks.DIGITS)
TASKS = {variant.name: variant for task in BASES for variant in variants(task)}


@dataclass(frozen=True)
class Config:
    """What determines the numbers."""

    tasks: tuple[str, ...] = tuple(TASKS)
    seeds: int = 1
    first_seed: int = 10
    subsets: int = 100  # half subsets held out as truth
    repeats: int = 10  # trainings averaged for each of them
    checkpoints: tuple[int, ...] = (5,)  # of every method
    size: int = 256  # TRAK's projected dimension
    damping: float = 0.01  # of EK-FAC
    products: int = 50  # read by influence alone, which is not among the methods
    solves: tuple[int, ...] = ()
    neighbours: int = 100  # of kNN
    steps: int = 8  # small steps of the weights along the scores
    halves: int = 32  # random ones, drawn for the prediction
    fewer: int = 16  # of them, as d3mjax-debias has
    trainings: int = 2  # under each row of a plan
    coverage: float = 0.85  # of cells that the interval of a regression is to hold
    tolerance: float = 0.07
    ceiling: float = 0.5  # cells below are left out: their truth is mostly noise, and over its ceiling can be anything
    smoke: bool = False

    def __post_init__(self) -> None:
        if unknown := set(self.tasks) - TASKS.keys():
            raise ValueError(f"tasks: found {sorted(unknown)}, expected names among {sorted(TASKS)}")
        if len({base_of(name) for name in self.tasks}) < 3:
            raise ValueError(f"tasks: found {self.tasks}, expected variants of 3 tasks or more: one is left out")


def base_of(task: str) -> str:
    """The task that a variant belongs to."""
    return task.split(",")[0]


class Programs(NamedTuple):
    """What the seeds of a setting share, compiled."""

    truth: Callable
    train: Callable  # (data, keys [m], weights [m n]) -> (margins [m t], losses)
    checkpoints: Callable
    metagradients: Callable
    rivals: dict[str, rivals.Rival]
    smooth: Callable  # (data, keys [r]) -> [r]


def prepare(task: Task, config: Config, results: Path) -> Callable:
    """`measure` of one setting, compiled once for all seeds."""
    trainer = task.trainer(task.steps, SHUFFLED)
    methods = rivals.of_checkpoints(task, config)
    smooth = lambda data, key: metagradient.metasmoothness(key, trainer, data.train, task.steps)
    mapped = jax.jit(lambda data, keys: map_models(smooth, shared=(data,), **spread(task))(keys))
    programs = Programs(
        lds.make_truth(task, config.repeats, results),
        common.make_training(task, outputs.soft_margins),
        common.make_checkpoints(task),
        study_of_metagradients.make_metagradients(task),
        {name: methods[name] for name in (SMALL_METHODS if config.smoke else METHODS)},
        lambda data, keys: mapped(hosts.place(data, hosts.local_mesh()), keys),
    )
    return partial(measure, config, programs)


def attributions(config: Config, programs: Programs, data: Data, root) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Name, kernel ``[c t n]`` and factor ``[c n]`` of every method."""
    count = max(config.checkpoints)
    model_keys, own = (keys.members(root, f, count=count) for f in (keys.Lds.CHECKPOINTS, keys.Lds.PROJECTIONS))
    variables = programs.checkpoints(data, model_keys)
    for name, method in programs.rivals.items():
        parts = [part[:2] for part in rivals.one_by_one(method, data, own, variables)]
        kernel, factor = (np.stack(arrays) for arrays in zip(*parts, strict=True))
        yield name, kernel, factor
    tau, info = jax.device_get(programs.metagradients(data, model_keys))
    metagradient.check(info)
    yield METAGRADIENT, tau, np.ones((count, tau.shape[-1]), np.float32)


def measure(config: Config, programs: Programs, seed: int, progress: Callable, *, task: Task) -> runs.Unit:
    """LDS and signals of every method in one setting."""
    data, root = task.read(seed, smoke=config.smoke), jax.random.key(seed)
    halves = programs.truth(data, seed, config.subsets, progress)
    data = hosts.place(data, hosts.local_mesh())

    def trained(weights) -> np.ndarray:
        """Margins ``[m r t]`` of models trained r times under each row, from the same keys."""
        member = keys.members(root, keys.Trust.TRAIN, config.trainings)
        model_keys, rows = jnp.tile(member, len(weights)), np.repeat(weights, config.trainings, 0)
        margins, losses = jax.device_get(programs.train(data, model_keys, rows))
        check_losses(losses, np.arange(len(losses)))
        return margins.reshape(len(weights), config.trainings, -1)

    smooth = np.asarray(programs.smooth(data, keys.members(root, keys.Trust.SMOOTHNESS, config.trainings))).mean()
    groups = np.asarray(per_checkpoint.group_mix(data.target.group, len(task.group_names))[0])
    mixes = {SINGLE: np.eye(len(groups), dtype=np.float32), GROUPS: groups}
    limits = {kind: lds.ceiling(halves.margins @ mix) for kind, mix in mixes.items()}
    key_of_steps, key_of_few = jax.random.split(jax.random.fold_in(root, keys.Trust.DRAW))
    n = len(data.train.y)
    few = np.asarray(masks.fixed_size(key_of_few, np.arange(config.halves), n, n // 2), np.float32)
    plain, *of_few = trained(np.concatenate([np.ones((1, n), np.float32), few]))
    arrays: dict[str, np.ndarray] = {"plain": plain, "few": np.stack(of_few)}
    facts: dict[str, Any] = {"smooth": float(smooth)}
    for name, kernel, factor in attributions(config, programs, data, root):
        for kind, mix in mixes.items():
            columns = (np.moveaxis(kernel, 1, 2) @ mix).swapaxes(1, 2)  # [c k n]
            tau = columns.mean(0) * factor.mean(0)
            change = np.asarray(trust.along_scores(key_of_steps, tau, steps=config.steps))
            whole, half = np.split(trained(np.concatenate([1 + change, 1 + change / 2])), 2)
            arrays |= {f"predicted/{name}, {kind}": change @ tau.T, f"few/{name}, {kind}": few @ tau.T}
            arrays |= {f"actual/{name}, {kind}": np.stack([whole, half]) @ mix, f"mix/{kind}": mix}
            measured = np.nanmean(metrics.lds(tau, halves.masks, np.asarray(halves.outputs) @ mix))
            agreement = trust.agreement(columns.var(-1), columns.mean(0).var(-1))
            facts[f"{name}, {kind}"] = {"lds": float(measured / max(limits[kind], 0.05)), "ceiling": limits[kind]}
            facts[f"{name}, {kind}"] |= {"agreement": float(agreement)}
    return facts, arrays


def signals_of(unit: runs.Unit, cell: str, config: Config) -> dict[str, float]:
    """The predicted LDS of one cell by all halves and by fewer, half the width of their intervals, and the signals."""
    facts, arrays = unit
    mix = arrays[f"mix/{SINGLE if cell.endswith(SINGLE) else GROUPS}"]
    plain = (arrays["plain"] @ mix).mean(0)
    whole, half = (each.mean(1) - plain for each in arrays[f"actual/{cell}"])
    signals: dict[str, Any] = {"agreement": facts[cell]["agreement"], "smooth": facts["smooth"]}
    signals |= {"step": trust.step_fit(arrays[f"predicted/{cell}"], whole), "straight": trust.step_fit(half, whole)}
    for name, count in ((HALVES, config.halves), (FEWER, config.fewer)):
        found = trust.predicted_lds(arrays[f"few/{cell}"][:count], (arrays["few"] @ mix)[:count])
        signals |= {name: found.lds, WIDTH + name: (found.high - found.low) / 2}
    return {name: float(value) for name, value in signals.items()}


class Cells(NamedTuple):
    """All cells, one entry each."""

    base: np.ndarray  # names of tasks
    setting: np.ndarray
    method: np.ndarray
    lds: np.ndarray
    signals: dict[str, np.ndarray]


def left_out(
    cells: Cells, selected: Sequence[str], coverage: float
) -> tuple[Float[np.ndarray, "b"], Float[np.ndarray, "b"]]:
    """LDS of every cell by a ridge regression on the cells of other tasks, and half the width of its interval.

    The error of a regression is measured on the tasks that it was taught on, each of them left out in turn.
    """
    x = np.stack([cells.signals[name] for name in selected], 1)
    predicted, width = np.zeros(len(cells.lds)), np.zeros(len(cells.lds))
    for base in np.unique(cells.base):
        out = cells.base == base
        inner = np.abs(_crossed(x[~out], cells.lds[~out], cells.base[~out]) - cells.lds[~out])
        width[out] = np.quantile(inner, coverage)
        predicted[out] = _ridge(x[~out], cells.lds[~out], x[out])
    return predicted, width


def _crossed(x, y, base) -> np.ndarray:
    """Predictions of every cell by those of other tasks."""
    predicted = np.zeros(len(y))
    for name in np.unique(base):
        predicted[base == name] = _ridge(x[base != name], y[base != name], x[base == name])
    return predicted


def _ridge(x, y, new) -> np.ndarray:
    found = make_pipeline(StandardScaler(), Ridge(0.1 * len(y))).fit(x, y)
    return np.clip(found.predict(new), -1, 1)


def cells_of(run_dir: Path, config: Config, results: Path) -> Cells:
    """The cells of all settings, made where the run does not have them yet."""
    seeds = range(config.first_seed, config.first_seed + config.seeds)
    found = []
    for name in config.tasks:
        task = small(TASKS[name]) if config.smoke else TASKS[name]
        measure = partial(prepare(task, config, results), task=task)
        units = runs.run_units(run_dir, name, seeds, measure, models=config.subsets * config.repeats)
        for unit in units:
            for cell, facts in unit[0].items():
                if cell != "smooth" and facts["ceiling"] >= config.ceiling:
                    found.append((name, cell, facts | signals_of(unit, cell, config)))
    names, methods, values = zip(*found, strict=True)
    signals = {name: np.array([one[name] for one in values]) for name in values[0] if name != "lds"}
    scores = np.array([one["lds"] for one in values])
    return Cells(np.array([base_of(name) for name in names]), np.array(names), np.array(methods), scores, signals)


def work(config: Config, results: Path, run: str | None) -> Path:
    """Measure all cells, judge every prediction, regressions on tasks left out, and write the run."""
    begin = time.perf_counter()
    hosts.start()
    with preemption.at_once():
        run_dir = runs.open_run(results, "trust", asdict(config), run)
        cells = cells_of(run_dir, config, results)
        judged = {name: (cells.signals[name], cells.signals[WIDTH + name]) for name in (HALVES, FEWER)}
        judged |= {name: left_out(cells, selected, config.coverage) for name, selected in REGRESSIONS.items()}
        rows = rows_of(cells, judged, config)
        settings, attributions = len(set(cells.setting)), len(set(cells.method))
        text = (
            f"{len(cells.lds)} cells: {settings} of {len(config.tasks)} settings of {len(set(cells.base))} tasks times "
            f"{attributions} attributions, {max(config.checkpoints)} checkpoints each; means over cells, spread over "
            f"tasks. LDS: measured on {config.subsets} halves of {config.repeats} trainings, over its ceiling; where "
            f"that is below {config.ceiling:g} no cell is counted. *Halves*: {config.halves} of {config.trainings} "
            f"trainings, *fewer halves*: {config.fewer}. Regressions were taught on the other tasks alone. *within*: "
            f"share of cells predicted to {config.tolerance:g}; *covered*: whose interval holds the LDS, of width "
            "± *width*."
        )
        parts = {kind: np.char.endswith(cells.method, kind) for kind in (SINGLE, GROUPS)}
        points = {
            name: {kind: (judged[name][0][at], cells.lds[at]) for kind, at in parts.items()} for name in (HALVES, CHEAP)
        }
        figure = plots.scatters(points, xlabel="predicted LDS", ylabel="measured LDS")
        title = f"Share of cells whose LDS is predicted to {config.tolerance:g}"
        findings = sentences.comparisons(rows, [(HALVES, CHEAP), (HALVES, ALL)], metric="within", name=title)
        section = Section(text, {"Measured against predicted LDS; every point is a cell.": figure}, findings)
        page.finish(run_dir, "trust", asdict(config), rows, {"cells": section}, time.perf_counter() - begin)
    return run_dir


def rows_of(cells: Cells, judged: dict[str, Any], config: Config) -> list[dict[str, Any]]:
    """One row a prediction; of the halves also one for single targets and for groups, and one an attribution."""
    rows, bases = [], np.unique(cells.base)

    def of(name: str, title: str, chosen: np.ndarray, role: str) -> dict[str, Any]:
        predicted, width = judged[name]
        error = np.abs(predicted - cells.lds)
        means = lambda values: [float(values[chosen & (cells.base == base)].mean()) for base in bases]
        values = {"within": means(error <= config.tolerance), "covered": means(error <= width), "error": means(error)}
        values |= {"width": means(width), "lds": means(cells.lds)}
        return row("cells", title, values, role=role, settings=KINDS.get(name, Kind(role)).settings())

    everything = np.ones(len(cells.lds), bool)
    rows += [of(name, name, everything, KINDS.get(name, Kind("rival")).role) for name in judged]
    for part in (SINGLE, GROUPS, *dict.fromkeys(cells.method.tolist())):
        rows.append(of(HALVES, f"{HALVES}: {part}", np.char.endswith(cells.method, part), "ours"))
    return rows


def small(task: Task) -> Task:
    """The setting of a smoke run."""
    return replace(task, steps=40)


STUDY = Study(
    "trust",
    claim="A few random halves, corrected for the noise of training, predict the LDS of an attribution; signals that "
    "need fewer trainings do not.",
    config=Config(),
    tasks=TASKS,
    minutes=20,
    work=work,
    headline=("cells", HALVES, "within"),
    smoke=lambda config: replace(
        config,
        tasks=("patch, momentum", "digits, SGD", "adult, Adam") if config.tasks == tuple(TASKS) else config.tasks,
        subsets=8,
        repeats=2,
        checkpoints=(2,),
        size=32,
        neighbours=5,
        steps=2,
        halves=6,
        fewer=4,
        ceiling=0.0,
    ),
)
