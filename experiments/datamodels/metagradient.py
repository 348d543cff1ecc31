"""How well metagradients, the exact derivatives of trainings, predict retraining, and at what cost.

Claim:    the mean metagradient of a few ordinary trainings predicts what models trained on random halves do better than
          TRAK from as many. Of a smooth network, one predicts removal from its own run nearly exactly; with ReLU it
          does not, because training is then discontinuous: a unit that switches changes the gradient by a jump.
Command:  python -m experiments metagradient
          python -m experiments metagradient --config.tasks patch-sgd patch patch-adam --config.trainings 1 5
Expected: see docs/results/attribution.md
Device:   two CPU cores; the truth of `lds_trak` and the banks of `lds_datamodels` take most of the time, and are shared
          with them.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from d3mjax import keys, metrics
from d3mjax.attribution import metagradient, outputs, per_checkpoint
from d3mjax.data import splits
from d3mjax.networks import dense
from d3mjax.reports import plots, sentences
from d3mjax.reports.page import Section
from d3mjax.reports.rows import Kind
from d3mjax.runtime import hosts
from d3mjax.training import recipes
from d3mjax.training.ensemble import map_models
from d3mjax.types import Data
from experiments.cifar_tasks import LDS_TASKS
from experiments.datamodels import common, lds
from experiments.datamodels import metagradient_rivals as rivals
from experiments.datamodels.metagradient_rivals import named
from experiments.study import Unit
from experiments.tasks import SHUFFLED, Task, smooth_adam, spread


def smooth(task: Task) -> Task:
    """The task with GELU in place of ReLU, at a rate at which training does not magnify small changes."""
    make = partial(dense.mlp, task.hidden, len(task.class_names), activation=jax.nn.gelu)
    about = f"{task.about} The network has GELU units, and the rate is 0.02."
    return replace(task, name=f"{task.name}-smooth", about=about, make_model=make, rate=0.02)


def plain_sgd(rate: optax.ScalarOrSchedule, decay: optax.ScalarOrSchedule) -> optax.GradientTransformation:
    """SGD without momentum."""
    return recipes.momentum_sgd(rate, momentum=0.0, weight_decay=decay)


PATCH = LDS_TASKS["patch"]
OPTIMISERS = {
    "patch-sgd": replace(PATCH, name="patch-sgd", optimizer=plain_sgd, rate=0.3),
    "patch-adam": replace(PATCH, name="patch-adam", optimizer=smooth_adam, rate=0.002),
}
TASKS = {**LDS_TASKS, **OPTIMISERS, **{f"{name}-smooth": smooth(LDS_TASKS[name]) for name in ("patch", "fashion")}}


@dataclass(frozen=True)
class Config(common.Config):
    """What determines the numbers."""

    tasks: tuple[str, ...] = ("patch", "fashion", "patch-smooth", "fashion-smooth")
    subsets: int = 200  # half subsets held out as truth
    repeats: int = 20  # trainings averaged for each of them
    trainings: tuple[int, ...] = (1, 2, 5, 10, 20, 50)
    checkpoints: tuple[int, ...] = (1, 5, 20, 50)  # of TRAK, EK-FAC and nearest neighbours
    solves: tuple[int, ...] = (1, 5)  # checkpoints of influence functions, one solve a target each
    models: tuple[int, ...] = (200, 1000, 5000)  # of ridge and LASSO, on the tasks of `lds_datamodels`
    removed: tuple[int, ...] = (1, 10, 50, 200)  # examples, from the run that the metagradient is of
    sets: int = 40  # of each number removed
    size: int = 256  # TRAK's projected dimension
    damping: float = 0.01  # of influence and EK-FAC, as in `lds_influence`; .1, 1, 10 predict less by EK-FAC
    products: int = 50  # of the preconditioner of influence
    neighbours: int = 200  # of kNN; chosen among 10, 50, 200 and 1,000 by single targets of patch, seed 10
    queries: tuple[int, ...] = (10, 40, 200, 1000)  # targets of one training, whose seconds are measured


OURS, RIVAL = Kind("ours"), Kind("rival")
METAGRADIENT = "metagradient"


def counts(task: Task, config: Config) -> dict[str, tuple[int, ...]]:
    """Numbers of trainings of every method that is compared on a task."""
    of_checkpoints = dict.fromkeys((rivals.TRAK, rivals.CURVATURE, rivals.EKFAC, rivals.NEIGHBOURS), config.checkpoints)
    of_banks = dict.fromkeys((rivals.RIDGE, rivals.LASSO), config.models if task.name in LDS_TASKS else ())
    return {METAGRADIENT: config.trainings, rivals.INFLUENCE: config.solves, **of_checkpoints, **of_banks}


def of_query(targets: int) -> str:
    """The row of the seconds of one training and its replay."""
    return f"one training, {targets:,} targets"


def of_removal(count: int) -> str:
    """The row of predictions for one run."""
    return f"one run predicts itself, {count} removed"


def make_metagradients(task: Task) -> Callable:
    """``(data, keys [c]) -> tau [c t n]`` of the training of each key, compiled."""
    model, trainer = task.network(), task.trainer(task.steps, SHUFFLED)

    def one(data: Data, key):
        scores = metagradient.scores(key[None], model, trainer, data.train, data.target, task.steps)
        return scores.tau, jax.tree.map(lambda a: a[0], scores.info)

    mapped = jax.jit(lambda data, keys: map_models(one, shared=(data,), **{**spread(task), "width": 1})(keys))
    return lambda data, keys: mapped(hosts.place(data, hosts.local_mesh()), keys)


def make_removals(task: Task) -> Callable:
    """``(data, key, factors [r n]) -> soft margins [r t]`` after the same training under each row, compiled."""
    model, trainer = task.network(), task.trainer(task.steps, SHUFFLED)

    def one(data: Data, key, factors):
        variables = metagradient.rerun(key, trainer, data.train, task.steps, factors)
        return outputs.soft_margins(model, variables, data.target)

    mapped = jax.jit(lambda data, key, rows: map_models(one, shared=(data, key), **spread(task))(rows))
    return lambda data, key, rows: mapped(hosts.place(data, hosts.local_mesh()), key, rows)


def group_means(margins: Float[Array, "*r t"], target, num_groups: int) -> Float[np.ndarray, "*r G"]:
    """Means over the targets of each group."""
    return np.asarray(margins) @ np.asarray(per_checkpoint.group_mix(target.group, num_groups)[0])


def prepare(task: Task, config: Config, results: Path) -> Callable:
    """`measure` of one task, compiled once for all seeds."""
    programs = Programs(
        lds.make_truth(task, config.repeats, results),
        common.make_checkpoints(task),
        make_metagradients(task),
        make_removals(task),
        rivals.of_checkpoints(task, config),
        rivals.make_datamodels(task, config.smoke, results),
    )
    return partial(measure, task, config, programs)


class Programs(NamedTuple):
    """What the seeds of a task share."""

    truth: Callable
    checkpoints: Callable
    metagradients: Callable
    removals: Callable
    rivals: dict[str, rivals.Rival]
    datamodels: Callable


def measure(task: Task, config: Config, programs: Programs, seed: int, progress: Callable) -> Unit:
    """LDS of single targets and of group means by every method, seconds, and predictions of one run's own removals."""
    data, root = hosts.place(task.read(seed, smoke=config.smoke), hosts.local_mesh()), jax.random.key(seed)
    halves = programs.truth(data, seed, config.subsets, progress)
    num_groups = len(task.group_names)
    of_groups = halves._replace(margins=group_means(halves.margins, data.target, num_groups))

    def score(tau) -> dict[str, Any]:
        key = jax.random.fold_in(root, keys.Lds.INTERVALS)
        mean, low, high = lds.score(key, tau, halves)[0]
        columns = jnp.asarray(group_means(tau.T, data.target, num_groups).T)
        grouped = metrics.lds(columns, of_groups.masks, of_groups.outputs)
        return {"lds": mean, "interval": [low, high], "lds_groups": float(np.nanmean(grouped))}

    facts: dict[str, Any] = {"ceiling": lds.ceiling(halves.margins), "ceiling_groups": lds.ceiling(of_groups.margins)}
    own = keys.members(root, keys.Lds.CHECKPOINTS, count=max(config.trainings))
    at_once = hosts.local_mesh().size
    jax.block_until_ready(programs.metagradients(data, own[:at_once]))  # compiles
    begin, total, first = time.perf_counter(), 0, None
    for done in range(0, len(own), at_once):
        tau, info = jax.device_get(programs.metagradients(data, own[done : done + at_once]))
        metagradient.check(info)
        seconds = time.perf_counter() - begin
        first = tau[0] if first is None else first
        for count, one in enumerate(tau, done + 1):
            total = total + one
            if count in config.trainings:
                elapsed = {"seconds": seconds * count / (done + len(tau))}
                facts[named(METAGRADIENT, count)] = score(total / count) | elapsed
    scored, training = rivals.scored(programs.rivals, programs.checkpoints, data, root, score)
    for models in counts(task, config)[rivals.RIDGE]:
        for method, tau, seconds in programs.datamodels(data, seed, root, models, progress):
            scored[named(method, models)] = score(tau) | {"seconds": seconds + models * training}
    facts |= scored | removed(config, programs.removals, data, own[0], first, seed)
    return facts | queried(config, programs.metagradients, data, own[:1]), {}


def queried(config: Config, metagradients: Callable, data: Data, key) -> dict[str, Any]:
    """Seconds of one training and its replay against the number of targets."""
    facts = {}
    for targets in config.queries:
        part = data._replace(target=splits.take(data.target, np.arange(targets) % len(data.target.y)))
        jax.block_until_ready(metagradients(part, key))  # compiles
        begin = time.perf_counter()
        jax.block_until_ready(metagradients(part, key))
        facts[of_query(targets)] = {"seconds": time.perf_counter() - begin}
    return facts


def removed(config: Config, removals: Callable, data: Data, key, tau, seed: int) -> dict[str, Any]:
    """Rank correlation and slope of actual on predicted changes when random sets leave the run of ``key``."""
    rng, n, facts = np.random.default_rng(seed), len(data.train.y), {}
    before = np.asarray(removals(data, key, jnp.ones((1, n))))[0]
    for count in config.removed:
        out = np.stack([rng.permutation(n) < count for _ in range(config.sets)]).astype(np.float32)
        actual, predicted = np.asarray(removals(data, key, 1 - out)) - before[None], -out @ tau.T
        correlation = metrics.spearman(jnp.asarray(predicted.T), jnp.asarray(actual.T))
        slope = (actual * predicted).sum() / (predicted**2).sum()
        facts[of_removal(count)] = {"lds": float(np.nanmean(correlation)), "slope": float(slope)}
    return facts


def describe(task: Task, config: Config, units: list[Unit]) -> tuple[list[dict[str, Any]], Section]:
    """One row a method and number of trainings, those of removal, and the ceilings; LDS against trainings and time."""
    facts, methods = [facts for facts, _ in units], counts(task, config)
    kinds = {named(m, c): OURS if m == METAGRADIENT else RIVAL for m, numbers in methods.items() for c in numbers}
    kinds |= {of_removal(count): OURS for count in config.removed}
    kinds |= {of_query(targets): OURS for targets in config.queries}
    shown = [{name: {k: v for k, v in f[name].items() if k != "interval"} for name in kinds} for f in facts]
    rows = common.rows_of(task, shown, kinds)
    ceilings = {"lds": [f["ceiling"] for f in facts], "lds_groups": [f["ceiling_groups"] for f in facts]}
    rows.append(lds.ceiling_row(task.name, ceilings, repeats=config.repeats))
    query = [[f[of_query(targets)]["seconds"] for targets in config.queries] for f in facts]

    def lines(metric: str, x: Callable):
        value = lambda f, m, c: f[named(m, c)][metric]
        return {
            m: (x(m, numbers), np.array([[value(f, m, c) for c in numbers] for f in facts]))
            for m, numbers in methods.items()
            if numbers
        }

    of_count = lambda method, numbers: numbers
    of_time = lambda method, numbers: [np.mean([f[named(method, c)]["seconds"] for f in facts]) for c in numbers]
    figures = {
        "LDS of single targets against trainings.": plots.curves(
            lines("lds", of_count), xlabel="trainings", ylabel="LDS (mean over targets)"
        ),
        "LDS of group means against trainings.": plots.curves(
            lines("lds_groups", of_count), xlabel="trainings", ylabel="LDS (mean over groups)"
        ),
        "LDS of single targets against seconds, training included, compilation not.": plots.curves(
            lines("lds", of_time), xlabel="seconds", ylabel="LDS (mean over targets)"
        ),
        "Seconds of one training and its replay against the number of targets.": plots.curves(
            {METAGRADIENT: (config.queries, np.array(query))}, xlabel="targets", ylabel="seconds"
        ),
    }
    both = sorted(set(config.trainings) & set(config.checkpoints))[-2:]
    pairs = [(named(METAGRADIENT, c), named(rival, c)) for c in both for rival in (rivals.CURVATURE, rivals.TRAK)]
    findings = sentences.comparisons(rows, pairs, metric="lds", name="LDS of single targets")
    findings += sentences.comparisons(rows, pairs, metric="lds_groups", name="LDS of group means")
    return rows, Section(lds.text(task, config, config.repeats), figures, findings)


STUDY = common.study(
    "metagradient",
    claim="The mean metagradient of a few trainings predicts retraining better than TRAK from as many; in a smooth "
    "network one training predicts the removal of a few examples from its own run nearly exactly.",
    config=Config(),
    tasks=TASKS,
    prepare=prepare,
    describe=describe,
    minutes=90,
    headline=("patch", named(METAGRADIENT, 20), "lds"),
    shipped=("patch-smooth",),
    few={"seeds": 1, "subsets": 10, "repeats": 2, "trainings": (1, 2), "checkpoints": (1, 2), "removed": (1, 5)}
    | {"sets": 4, "size": 32, "solves": (1,), "models": (48,), "products": 8, "neighbours": 5, "queries": (4,)},
    models=lambda config: config.subsets * config.repeats + max(config.models, default=0),
    together=True,
)
