"""Ablations of how D3M computes its scores: checkpoints, projection, weights of the groups, source of the columns.

Command:  python -m experiments ablate_checkpoints | ablate_projection | ablate_weighting | ablate_source
Expected: gap closed on *patch*: 1.00 with 10 checkpoints and 0.76 with one; 1.00 at p = 256 and 0.80 at p = 1,024;
          1.00 at beta = 1 and 0.57 for the worst group alone; TRAK from 20 checkpoints in 4 s.
Device:   two CPU cores: 2, 12, 1 and (`--config.seeds 3`) 8 minutes; any JAX device works.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import numpy as np

from d3mjax.attribution import gradients, per_checkpoint, projections
from d3mjax.debiasing import group_weighting, sources
from d3mjax.debiasing.sources import Bank
from d3mjax.reports import plots
from d3mjax.types import Data
from experiments.d3m import ablations
from experiments.d3m.ablations import Variant, ablation, alignment, attribute, keep, train
from experiments.d3m.retraining import worst
from experiments.study import Unit
from experiments.tasks import SHUFFLED, SMALL_SOURCES, Influence, Task, Trak, columns, influence_options, trak_options


@dataclass(frozen=True)
class Counts(ablations.Config):
    """What determines the numbers of `ablate_checkpoints`."""

    source: Trak = field(default_factory=lambda: Trak(models=50))
    counts: tuple[int, ...] = (1, 2, 5, 10, 20, 50)


def of_count(count: int) -> str:
    """Name of a variant."""
    return f"D3M, {count} checkpoint{'s' if count > 1 else ''}"


def counts(task: Task, config: Counts, data: Data, seed: int) -> dict[str, Variant]:
    """Scores from the first few checkpoints of one set."""
    models = train(task, data, seed, config.source.models)
    kernel, factor = attribute(task, data, seed, models.variables, trak_options(task, config.source))

    def scores(c):
        return alignment(per_checkpoint.combine(kernel[:c], factor[:c]), models.losses[:c].mean(0), config.beta)

    return {of_count(c): Variant(keep(task, data, scores(c))) for c in config.counts}


CHECKPOINTS_STUDY = ablation(
    "ablate_checkpoints",
    counts,
    curves=lambda _task, config: {"checkpoints": {"D3M": {c: of_count(c) for c in config.counts}}},
    config=Counts(),
    claim="One checkpoint closes three quarters of the gap on patch, ten close it.",
    about="Scores of D3M from the first few of one set of checkpoints; all negative ones are dropped.",
    headline=("patch", "D3M, 10 checkpoints", "gap_closed"),
    minutes=2,
    smoke=lambda config: ablations.small(config, counts=(1, 2)),
)


@dataclass(frozen=True)
class Projections(ablations.Config):
    """What determines `ablate_projection`; one of ``sizes`` and ``dampings`` varies, the other is the source's."""

    sizes: tuple[int, ...] = (32, 64, 128, 256, 512, 1024)
    dampings: tuple[float, ...] = (0.0001, 0.001, 0.01, 0.1, 1.0)


DENSE = {"Rademacher": projections.rademacher, "tensor sketch": projections.tensor_sketch}
"""Kinds of projection beside the SJLT; both are fast on CPUs at 500 examples at a time."""


def projected(size: int, damping: float, kind: str = "SJLT") -> str:
    """Name of a variant."""
    return f"D3M, {kind}, p = {size}, damping {damping:g}"


def projection(task: Task, config: Projections, data: Data, seed: int) -> dict[str, Variant]:
    """The same checkpoints under every projection."""
    source, models = config.source, train(task, data, seed, config.source.models)
    size, damping = source.size, source.damping
    settings = [(p, damping, "SJLT") for p in config.sizes] + [(size, d, "SJLT") for d in config.dampings]
    settings += [(size, damping, kind) for kind in DENSE] + [(size, damping, "SJLT")]
    variants = {}
    for p, d, kind in dict.fromkeys(settings):
        recipe = source._replace(size=p, damping=d, microbatch=500 if kind in DENSE else source.microbatch)
        options = trak_options(task, recipe, DENSE.get(kind, projections.sjlt))
        b = per_checkpoint.combine(*attribute(task, data, seed, models.variables, options))
        variants[projected(p, d, kind)] = Variant(keep(task, data, alignment(b, models.losses.mean(0), config.beta)))
    return variants


def projection_curves(_task: Task, config: Projections) -> dict:
    """Over dimensions at the damping of the source, and over dampings at its dimension."""
    size, damping = config.source.size, config.source.damping
    dampings = {d: projected(size, d) for d in config.dampings}
    return {"p": {"D3M": {p: projected(p, damping) for p in config.sizes}}, "damping": {"D3M": dampings}}


PROJECTION_STUDY = ablation(
    "ablate_projection",
    projection,
    curves=projection_curves,
    config=Projections(),
    claim="D3M needs p far below n and little damping; where n is small, much damping. Kinds of projection agree.",
    about="The same checkpoints attributed under different projections; all negative scores are dropped.",
    headline=("patch", "D3M, SJLT, p = 256, damping 0.01", "gap_closed"),
    minutes=12,
    smoke=lambda config: ablations.small(config, sizes=(32,), dampings=(0.01, 0.1)),
)


@dataclass(frozen=True)
class Weightings(ablations.Config):
    """What determines the numbers of `ablate_weighting`."""

    betas: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 4.0)


OUTPUTS = {"margin": gradients.margin_output, "minus loss": gradients.negative_loss_output}
WEIGHTINGS = {
    "uniform": group_weighting.uniform_weights,
    "losses": group_weighting.loss_weights,
    "worst group": group_weighting.worst_weights,
}


def weighting(task: Task, config: Weightings, data: Data, seed: int) -> dict[str, Variant]:
    """The same checkpoints, with every weighting of the groups and both outputs of the targets."""
    models = train(task, data, seed, config.source.models)
    losses, variants = models.losses.mean(0), {}
    weights = {f"beta = {beta:g}": group_weighting.softmax_weights(losses, beta=beta) for beta in config.betas}
    weights |= {name: weigh(losses) for name, weigh in WEIGHTINGS.items()}
    for output, target_output in OUTPUTS.items():
        options = trak_options(task, config.source)._replace(target_output=target_output)
        b = per_checkpoint.combine(*attribute(task, data, seed, models.variables, options))
        for name, group_weights in weights.items():
            scores = group_weighting.scores(b, group_weights)
            variants[f"D3M, {name}, {output}"] = Variant(keep(task, data, scores))
    return variants


WEIGHTING_STUDY = ablation(
    "ablate_weighting",
    weighting,
    curves=lambda _task, config: {
        "beta": {f"D3M, {o}": {b: f"D3M, beta = {b:g}, {o}" for b in config.betas} for o in OUTPUTS}
    },
    config=Weightings(),
    claim="Softmax weights with beta near 1 are safe, the worst group alone is not; the margin is the better output.",
    about="Group columns of the margin or of minus the loss, weighed by the groups' losses in several ways.",
    headline=("patch", "D3M, beta = 1, margin", "gap_closed"),
    minutes=1,
    smoke=lambda config: ablations.small(config, betas=(1.0, 2.0)),
)


@dataclass(frozen=True)
class Sources(ablations.Config):
    """What determines the numbers of `ablate_source`."""

    checkpoints: tuple[int, ...] = (5, 20)
    influence: Influence = field(default_factory=Influence)
    banks: tuple[Bank, ...] = field(default_factory=lambda: (Bank(1000), Bank(5000), Bank(5000, fit="LASSO")))


def source(task: Task, config: Sources, data: Data, seed: int) -> dict[str, Variant]:
    """Every source on the same data; each but datamodels runs once before it is timed, to compile."""
    recipes = {
        "TRAK": trak_options(task, config.source),
        "TRAK of the last layer": trak_options(task, config.source._replace(last_layer=True)),
        "influence": influence_options(config.influence),
    }
    losses, variants = train(task, data, seed, max(config.checkpoints)).losses.mean(0), {}

    def add(name: str, work: Callable[[], Any]):
        begin = time.perf_counter()
        b = np.asarray(work())
        seconds = {"seconds": time.perf_counter() - begin}
        variants[f"D3M by {name}"] = Variant(keep(task, data, alignment(b, losses, config.beta)), seconds)

    def from_checkpoints(count, options):
        return per_checkpoint.combine(*attribute(task, data, seed, train(task, data, seed, count).variables, options))

    for count in config.checkpoints:
        for name, options in recipes.items():
            from_checkpoints(count, options)
            add(f"{name}, {count} checkpoints", lambda c=count, o=options: from_checkpoints(c, o))
    for count in config.checkpoints:
        run_back = partial(metagradients, task, jax.random.key(seed), data)
        run_back(count)
        add(f"metagradients, {count} trainings", partial(run_back, count))
    for bank in config.banks:
        by_bank = lambda bank=bank: columns(task, bank, jax.random.key(seed), data).columns[0]
        add(f"{bank.fit}, {bank.models:,} subset models", by_bank)
    return variants


def metagradients(task: Task, key, data: Data, count: int) -> np.ndarray:
    """Group columns ``[n G]`` of ``count`` trainings, each run backwards."""
    recipe = (task.network(), task.trainer(task.steps, SHUFFLED), data, len(task.group_names), task.steps)
    return sources.from_metagradients(key, *recipe, checkpoints=count).columns[0]


def source_figures(_task: Task, _config: Sources, units: list[Unit]) -> dict:
    """Worst-group accuracy against seconds."""
    timed = [name for name, facts in units[0][0].items() if "seconds" in facts]
    seconds = {name: [np.mean([facts[name]["seconds"] for facts, _ in units])] for name in timed}
    points = {name.removeprefix("D3M by "): (seconds[name], worst(units, name)[:, None]) for name in timed}
    label = {"xlabel": "seconds to the scores", "ylabel": "worst-group test accuracy"}
    return {"Worst group against the cost of the scores.": plots.curves(points, **label, ticks=(0.1, 1, 10, 100))}


SOURCE_STUDY = ablation(
    "ablate_source",
    source,
    figures=source_figures,
    config=Sources(),
    claim="TRAK from twenty checkpoints does as well as thousands of subset models, in less time.",
    about="Group columns from TRAK, its last layer alone, influence functions (GGN, conjugate gradients), "
    "metagradients, ridge and LASSO datamodels of small subsets; negative scores are dropped. Seconds: training and "
    "attribution up to the columns, without compilation but for datamodels.",
    headline=("adult", "D3M by TRAK, 20 checkpoints", "gap_closed"),
    minutes=15,
    smoke=lambda config: ablations.small(
        config, checkpoints=(2,), banks=(SMALL_SOURCES[Bank], SMALL_SOURCES[Bank]._replace(fit="LASSO"))
    ),
)
