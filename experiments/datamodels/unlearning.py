"""Unlearning of examples, measured: ensembles of edited models beside ensembles that never saw the examples.

Claim:    where a few examples at random are forgotten, margins that metagradients predict are as near to those of
          retrained models as fine-tuning on the rest comes; nothing but retraining forgets the smallest group.
Command:  python -m experiments unlearning            (`--smoke` takes a minute)
Expected: see docs/results/attribution.md
Device:   one CPU core, five minutes a task and seed; any JAX device works.
"""

import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from d3mjax import keys, metrics
from d3mjax.attribution import outputs
from d3mjax.data import splits
from d3mjax.debiasing import last_layer
from d3mjax.reports import plots, sentences
from d3mjax.reports.page import Section
from d3mjax.reports.rows import Kind
from d3mjax.runtime import hosts
from d3mjax.training.ensemble import check_losses, map_models
from d3mjax.types import Data, Split
from d3mjax.unlearning import edits, fmd, matching
from experiments.datamodels import common, lds_trak
from experiments.datamodels import metagradient as study_of_metagradients
from experiments.study import Unit
from experiments.tasks import SHUFFLED, Task, spread

FLOOR, NOTHING = "retrained again", "no unlearning"
PREDICTED, MATCHED = "margins predicted by metagradients", "models matched to them"
TRAK, TUNED, NEWTON = "margins predicted by TRAK with curvature", "fine-tuning on the rest", "Newton step, last layer"
KINDS = {
    FLOOR: Kind("ceiling"),
    NOTHING: Kind("plain"),
    TUNED: Kind("rival"),
    NEWTON: Kind("rival"),
    TRAK: Kind("rival"),
    PREDICTED: Kind("ours"),
    MATCHED: Kind("ours"),
}


@dataclass(frozen=True)
class Config(common.Config):
    """What determines the numbers."""

    tasks: tuple[str, ...] = ("patch", "patch-smooth")
    models: int = 100  # of every ensemble
    metagradients: int = 10  # trainings differentiated
    checkpoints: int = 20  # of TRAK
    count: int = 100  # examples of a large set to forget; the small one has a tenth
    shown: int = 50  # of them at which margins are compared, and as many retained ones
    share: float = 0.1  # of the steps of training, for fine-tuning
    size: int = 256  # TRAK's projected dimension


class Points(NamedTuple):
    """Examples at which margins are read: of all forget sets, retained ones to match and to judge, and targets."""

    examples: Split
    forgotten: dict[str, np.ndarray]  # positions among the examples
    matched: np.ndarray
    retained: np.ndarray
    fresh: np.ndarray


def forget_sets(task: Task, config: Config, train: Split, losses: np.ndarray, rng) -> dict[str, np.ndarray]:
    """Train examples to forget, by name; ``losses [n]`` of trained models."""
    n, group, count = len(train.y), np.asarray(train.group), config.count
    smallest = np.bincount(group, minlength=len(task.group_names)).argmin()
    minority = rng.permutation(np.flatnonzero(group == smallest))[:count]
    flat = np.asarray(train.x).reshape(n, -1)
    one = rng.choice(minority)
    distance = np.where(np.asarray(train.y) == train.y[one], ((flat - flat[one]) ** 2).sum(1), np.inf)
    return {
        "few at random": rng.permutation(n)[: count // 10],
        "many at random": rng.permutation(n)[:count],
        "of the smallest group": minority,
        "most alike": np.argsort(distance, kind="stable")[:count],
        "of highest loss": np.argsort(-losses, kind="stable")[:count],
    }


def points_of(data: Data, sets: Mapping[str, np.ndarray], shown: int, rng) -> Points:
    """Margins are read at ``shown`` examples of every set, and at as many of each other kind."""
    some = {name: rows[:shown] for name, rows in sets.items()}
    rest = rng.permutation(np.setdiff1d(np.arange(len(data.train.y)), np.concatenate(list(sets.values()))))
    rows = np.concatenate([*some.values(), rest[: 2 * shown]])
    stops = np.cumsum([0, *(len(a) for a in some.values()), *2 * [min(shown, len(rest) // 2)]])
    parts = [np.arange(a, b) for a, b in itertools.pairwise(stops)]
    fresh = np.arange(min(shown, len(data.target.y)))
    examples = splits.concatenate(splits.take(data.train, rows), splits.take(data.target, fresh))
    forgotten = dict(zip(some, parts, strict=False))
    return Points(examples, forgotten, parts[-2], parts[-1], stops[-1] + fresh)


def make_edit(task: Task, config: Config) -> Callable:
    """``(data, points, keys [m], variables [m], forgotten [n]) -> margins [m t]`` of both editing rivals, compiled."""
    model, steps = task.network(), max(1, int(config.share * task.steps))
    trainer = task.trainer(steps, SHUFFLED)

    def one(data, points, forgotten, key, variables):
        weights = 1.0 - forgotten
        state = trainer.init(key, jax.tree.map(lambda a: a[:1], data.train.x))
        tuned, info = trainer.run(state._replace(variables=variables), data.train, weights, steps)
        path = last_layer.find(variables["params"], len(task.class_names))
        features = fmd.features_of(model, variables, path)(data.train)
        head = fmd.head_at(variables, path)
        editable = fmd.last_layer_of(head, features, len(task.class_names), damping=task.decay)
        moved = edits.remove(editable.problem, editable.inverse, forgotten > 0).params
        seen = fmd.features_of(model, variables, path)(points)
        margins = {
            TUNED: outputs.soft_margins(model, tuned.variables, points),
            NEWTON: outputs.soft_margins(editable.model, {"params": moved}, seen),
        }
        return margins, info.loss

    mapped = jax.jit(lambda d, p, f, k, v: map_models(one, shared=(d, p, f), **spread(task))(k, v))
    return lambda data, *arrays: mapped(hosts.place(data, hosts.local_mesh()), *arrays)


def make_match(task: Task) -> Callable:
    """``(points, examples, keys [m], variables [m], wanted [m k]) -> margins [m t]`` of matched models, compiled."""
    model = task.network()

    def one(points, examples, key, variables, wanted):
        found = matching.match(key, model, variables, examples, wanted)
        return outputs.soft_margins(model, found, points)

    return jax.jit(lambda p, e, k, v, w: map_models(one, shared=(p, e), **spread(task))(k, v, w))


class Programs(NamedTuple):
    """What the seeds of a task share, compiled."""

    train: Callable  # (data, keys [m], weights [m n]) -> (variables [m], losses [m s])
    read: Callable  # (data, variables [m]) -> margins of the targets [m t]
    metagradients: Callable
    kernels: Callable  # of TRAK
    edit: Callable
    match: Callable


def prepare(task: Task, config: Config, _results: Path) -> Callable:
    """`measure` of one task, compiled once for all seeds."""
    model = task.network()
    programs = Programs(
        common.make_training(task, lambda model, variables, target: variables),
        common.over_models(lambda data, variables: outputs.soft_margins(model, variables, data.target)),
        study_of_metagradients.make_metagradients(task),
        lds_trak.make_kernels(task, setting(config)),
        make_edit(task, config),
        make_match(task),
    )
    return partial(measure, task, config, programs)


def setting(config: Config) -> lds_trak.Setting:
    """Of TRAK."""
    return lds_trak.Setting(config.size, 0.1, curvature=True)


def attributed(config: Config, programs: Programs, data: Data, root, variables) -> dict[str, np.ndarray]:
    """Mean change of the margin of every point by the weight of every train example ``[t n]``, by method."""
    own = keys.members(root, keys.Lds.CHECKPOINTS, config.metagradients)
    at_once = hosts.local_mesh().size
    parts = [programs.metagradients(data, own[i : i + at_once])[0] for i in range(0, len(own), at_once)]
    some = jax.tree.map(lambda a: a[: config.checkpoints], variables)
    projected = keys.members(root, keys.Lds.PROJECTIONS, config.checkpoints)
    each = list(lds_trak.in_groups(setting(config), partial(programs.kernels, data), projected, some))
    kernel, factor = (np.mean([part[i] for part in each], 0) for i in (0, 1))
    return {PREDICTED: np.concatenate([np.asarray(a) for a in parts]).mean(0), TRAK: kernel * factor}


def measure(task: Task, config: Config, programs: Programs, seed: int, progress: Callable) -> Unit:
    """KLOM of every method on every forget set of one data seed."""
    data, root, rng = task.read(seed, smoke=config.smoke), jax.random.key(seed), np.random.default_rng(seed)
    family = lambda which: keys.members(root, which, config.models)
    ones = np.ones((config.models, len(data.train.y)), np.float32)

    def trained(keys, weights):
        variables, losses = programs.train(data, keys, weights)
        check_losses(np.asarray(losses), np.arange(len(losses)))
        progress(len(losses))
        return variables

    read = lambda variables, target: np.asarray(programs.read(data._replace(target=target), variables))
    variables = trained(family(keys.Unlearning.ORIGINAL), ones)
    losses = np.logaddexp(0, -read(variables, data.train)).mean(0)
    sets = forget_sets(task, config, data.train, losses, rng)
    points = points_of(data, sets, config.shown, rng)
    data = data._replace(target=points.examples)
    margins = read(variables, points.examples)
    begin = time.perf_counter()
    tau = attributed(config, programs, data, root, variables)
    facts: dict[str, Any] = {"seconds of attribution": time.perf_counter() - begin}
    for name, rows in sets.items():
        forgotten = np.isin(np.arange(len(data.train.y)), rows)
        without = ones * ~forgotten
        oracle, again = (
            read(trained(family(which), without), points.examples)
            for which in (keys.Unlearning.ORACLE, keys.Unlearning.FLOOR)
        )
        after = {NOTHING: margins, FLOOR: again}
        arrays = points.examples, forgotten.astype(np.float32), family(keys.Unlearning.TUNE), variables
        edited, losses = programs.edit(data, *arrays)
        check_losses(np.asarray(losses), np.arange(config.models))
        after |= edited
        after |= {method: np.asarray(matching.without(margins, of, forgotten)) for method, of in tau.items()}
        at = np.concatenate([points.forgotten[name], points.matched])
        examples = splits.take(points.examples, at)
        wanted = after[PREDICTED][:, at]
        after[MATCHED] = programs.match(points.examples, examples, family(keys.Unlearning.MATCH), variables, wanted)
        rest = np.concatenate([points.retained, points.fresh])
        judged = {method: np.asarray(metrics.klom(oracle, np.asarray(m))) for method, m in after.items()}
        facts[name] = {
            method: {
                "klom_forgotten": float(values[points.forgotten[name]].mean()),
                "klom_forgotten_95": float(np.quantile(values[points.forgotten[name]], 0.95)),
                "klom_rest": float(values[rest].mean()),
            }
            for method, values in judged.items()
        }
    return facts, {}


def describe(task: Task, config: Config, units: list[Unit]) -> tuple[list[dict[str, Any]], dict[str, Section]]:
    """One row a method and forget set, a section a set."""
    rows, sections = [], {}
    for name in (name for name in units[0][0] if name != "seconds of attribution"):
        title = f"{task.name}, {name}"
        facts = [facts[name] for facts, _ in units]
        of_set = [{**one, "task": title} for one in common.rows_of(task, facts, KINDS)]
        pairs = [(PREDICTED, rival) for rival in (TUNED, NEWTON, TRAK)] + [(MATCHED, TUNED)]
        shown = "KLOM of the forgotten (less is better)"
        findings = sentences.comparisons(of_set, pairs, metric="klom_forgotten", name=shown)
        values = {method: [[f[method]["klom_forgotten"], f[method]["klom_rest"]] for f in facts] for method in KINDS}
        bars = plots.bar_groups(values, ("forgotten", "all others"), ylabel="KLOM, nats", share=False)
        text = (
            f"{task.about} {config.models} models an ensemble. klom: KL divergence of margins between models retrained "
            "without the set and models after unlearning, mean over examples of the set, and over retained and fresh "
            "ones (rest); _95: its 95th percentile. *Retrained again* is the level of noise."
        )
        sections[title] = Section(text, {"KLOM by method.": bars}, findings)
        rows += of_set
    return rows, sections


STUDY = common.study(
    "unlearning",
    claim="Margins predicted by metagradients are as near to those of models retrained without some random examples as "
    "fine-tuning on the rest comes; nothing but retraining forgets the smallest group.",
    config=Config(),
    tasks=study_of_metagradients.TASKS,
    prepare=prepare,
    describe=describe,
    minutes=30,
    headline=("patch, many at random", PREDICTED, "klom_forgotten"),
    shipped=("patch-smooth",),
    few={"seeds": 1, "models": 8, "metagradients": 2, "checkpoints": 2, "count": 40, "shown": 10, "size": 32},
    models=lambda config: 12 * config.models,
)
