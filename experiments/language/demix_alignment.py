"""Which preference pairs are wrong, how, and what repair by kind does to a model that learns from them.

Claim:    trees on influence vectors find swapped sides and damaged responses better than single scores; a comparison
          of lengths is better for pairs against a length bias; exchanging the sides believed wrong recovers most of
          what wrong labels cost.
Command:  python -m experiments demix_alignment
Expected: see docs/results/language.md
Device:   two CPU cores; any JAX device works.

The pairs are real, the errors are planted (`pair_errors`); diagnosers are taught on other draws, by cells of rewards on
frozen features, which train in a second. ``--config.model smollm2`` diagnoses and repairs DPO of a language model.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from d3mjax.attribution import outputs
from d3mjax.data.planted import pair_errors
from d3mjax.data.sets import preferences
from d3mjax.data.sets.preferences import Preferences
from d3mjax.diagnosis import cells, repair, taught
from d3mjax.diagnosis.cells import FEATURES
from d3mjax.reports import plots, sentences
from d3mjax.reports.page import Section
from d3mjax.reports.rows import WGA, Kind
from d3mjax.runtime import runs
from d3mjax.training import ensemble
from d3mjax.types import Table
from experiments import diagnoses, text_tasks
from experiments.diagnoses import EVERYTHING, OURS, PAIRS, Taught, measured
from experiments.language import pair_cells
from experiments.language.pair_cells import REWARDS, SIGNALS, Learner
from experiments.preference_tasks import PAIR_TASKS, PairTask, make_features, small, split_of, standardised
from experiments.study import Study
from experiments.tasks import spread


@dataclass(frozen=True)
class Config:
    """What determines the numbers."""

    tasks: tuple[str, ...] = ("kindness", "commonsense")
    cleans: tuple[float, ...] = (0.5, 0.8)
    share: float = 0.15  # of pairs that prefer the shorter side
    seeds: int = 5
    first_seed: int = 10
    teaching: int = 4  # draws 0 and on that diagnosers are taught on, none of which reports
    train: int = 2000
    validation: int = 512
    rounds: int = 60  # trees of a forest
    retrains: int = 5  # models behind every number of one draw
    model: str = REWARDS  # "smollm2", or the file or folder of another Llama or GPT-2: DPO of it
    test: int | None = None  # pairs that report; None: all
    smoke: bool = False

    def __post_init__(self) -> None:
        if self.teaching > self.first_seed:
            raise ValueError(f"first_seed: found {self.first_seed}, expected {self.teaching} or more: others teach")


SHARES = (0.6, 0.15, 0.25)  # of the questions: training, validation, test
DIRTY, CLEAN = "dirty", "clean"
RECOMMENDED = "recommended: sides, cautious; equal weights, too, where the guard warns"
KNOWING = "best single scores, knowing the length bias"
KINDS = {
    EVERYTHING: Kind("control", controls="number"),
    KNOWING: Kind("ceiling"),
    DIRTY: Kind("plain"),
    CLEAN: Kind("ceiling"),
    "drop as many at random": Kind("control", controls="number"),
}
"""Kinds of rows; trees, and predicted and recommended repairs, are ours, oracles ceilings, single scores rivals."""


class Drawn(NamedTuple):
    """A draw of divisions and errors at one clean ratio."""

    train: pair_errors.Errors
    validation: pair_errors.Errors
    table: Table  # of the training pairs
    pairs: tuple[Any, ...]  # train and validation as the model sees them
    seen: tuple[Any, ...]  # and with features of the sides


def draw(config: Config, learner: Learner, features: Callable, parts: Sequence[Preferences], clean: float, seed: int):
    """Errors drawn by ``seed`` in training and validation pairs alike."""
    key = jax.random.key(seed)
    sizes = (config.train, config.validation)
    options = [pair_errors.Options(clean=clean, share=config.share, size=size) for size in sizes]
    train, validation = (
        pair_errors.inject(jax.random.fold_in(key, i), part, options=option)
        for i, (part, option) in enumerate(zip(parts[:2], options, strict=True))
    )
    dirty = train.pairs, validation.pairs
    raw = [features(pairs) for pairs in dirty]
    table = pair_cells.table_of(train.pairs, raw[0])
    as_model = tuple(split_of(pairs, learner.inputs(pairs, train.pairs)) for pairs in dirty)
    seen = tuple(split_of(pairs, standardised(x, raw[0])) for pairs, x in zip(dirty, raw, strict=True))
    return Drawn(train, validation, table, as_model, seen)


class Made(NamedTuple):
    """What all draws of a task share."""

    pairs: Preferences
    learner: Learner
    collect: Callable[[int], tuple[list[Drawn], list[cells.Cell]]]  # (seed) -> draws and cells at all clean ratios


def at_once(config: Config) -> dict[str, Any]:
    """``width`` and ``mesh`` of `ensemble.map_models`; one language model at a time."""
    return spread() if config.model == REWARDS else {"width": 1, "mesh": None}


def make_task(task: PairTask, config: Config) -> Made:
    """The pairs of a task, its learner, and the function that makes its cells."""
    pairs = task.load()
    features = make_features(task, pairs)
    if config.model == REWARDS:
        learned = pair_cells.rewards(features)
    else:
        learned = pair_cells.dpo(pair_cells.language_model(config.model), config.train, text_tasks.MINILM.made)
    train = pair_cells.make_train(learned, config.train, **at_once(config))

    def collect(seed):
        parts = preferences.divide(pairs, seed, SHARES)
        drawn = [draw(config, learned, features, parts, clean, seed) for clean in config.cleans]
        arrays = [d.pairs for d in drawn], [d.seen for d in drawn], [d.table for d in drawn]
        return drawn, train(jax.random.key(seed), *arrays)

    return Made(pairs, learned, collect)


def described(drawn: Drawn, cell: cells.Cell) -> dict[str, np.ndarray]:
    """Features for trees, flags and signals of a cell; every pair is of label 0, its preferred side being first."""
    zeros = np.zeros(len(drawn.table.id), np.int32)
    of_cell = {"features": cells.features(cell, zeros, 1), "flags": drawn.train.flags}
    shorter = preferences.shorter_preferred(drawn.train.pairs).astype(bool)
    return of_cell | {"signals": pair_cells.signals(cell, drawn.table, drawn.seen[0]), "shorter": shorter}


def teach(task: PairTask, config: Config, results: Any, made: Made | None = None) -> Taught:
    """Trees and thresholds from the teaching draws, which are made where ``results`` does not have them yet."""
    names = ("train", "validation", "cleans", "share", "teaching", "smoke")
    facts = {name: getattr(config, name) for name in names} | {"task": task.name, "cleans": list(config.cleans)}
    facts |= {"features": list(FEATURES), "signals": list(SIGNALS)}
    run_dir = runs.open_run(results, "alignment_cells", facts)
    make = cache(lambda: make_task(task, config) if made is None else made)

    def unit(seed, progress):
        each = [described(*pair) for pair in zip(*make().collect(seed), strict=True)]
        progress(1)
        return {}, {name: np.stack([one[name] for one in each]) for name in each[0]}

    units = runs.run_units(run_dir, task.name, range(config.teaching), unit, models=1)
    arrays = {name: np.concatenate([a[name] for _, a in units]) for name in units[0][1]}  # [cells n ...]
    draws = np.repeat(np.arange(config.teaching), len(config.cleans))
    return diagnoses.teach(arrays, draws, SIGNALS, rounds=config.rounds)


def training_sets(drawn: Drawn, correct: Any, probabilities: Any, claimed: Any, seed: int) -> dict[str, tuple]:
    """Labels and weights of every training set by name; a label that is changed exchanges the sides."""
    table, y, truth = drawn.table, drawn.train.pairs.y, drawn.train.flags
    ones = np.ones(len(y), np.float32)
    fix = partial(repair.repair, table, y, num_classes=2)
    only = lambda flags, *types: flags & np.isin(np.arange(3), types)[None]
    careful = repair.cautious(claimed, probabilities)
    keep = (~claimed.any(1)).astype(np.float32)
    recommended, _ = repair.recommended(table, y, only(claimed, 0, 2), probabilities, num_classes=2, correct=correct)
    sets = {
        "predicted, as published": fix(claimed),
        "predicted, sides exchanged": fix(only(claimed, 0)),
        "predicted, sides exchanged, cautious": fix(only(careful, 0)),
        "predicted, sides exchanged and groups of equal weight": fix(only(claimed, 0, 2), weigh=repair.equal_groups),
        "predicted, sides exchanged, broken dropped": fix(only(claimed, 0, 1)),
        RECOMMENDED: recommended,
        "oracle, as published": fix(truth),
        "oracle, sides exchanged": fix(only(truth, 0)),
        "oracle, groups of equal weight": fix(truth, weigh=repair.equal_groups),
    }
    made = {name: (one.labels, one.weights) for name, one in sets.items()}
    random = np.random.default_rng(seed).permutation(keep)
    return {DIRTY: (y, ones), **made, "drop all detected": (y, keep), "drop as many at random": (y, random)}


def make_evaluate(config: Config, learner: Learner) -> Callable:
    """``(key, training pairs, y [m n], weights [m n], test) -> margins [m t]``, means over ``retrains`` models."""

    @jax.jit
    def train(shared, key, split, labels, weights, test):
        model = learner.model(shared)
        trainer = learner.trainer(model, config.train)
        look = lambda variables, test: outputs.hard_margins(model, variables, test, microbatch=learner.microbatch)
        keys = jax.random.split(key, config.retrains)
        repeated = lambda a: jnp.repeat(a, config.retrains, axis=0)
        each = jnp.tile(keys, len(labels))  # the same starts for all: sets differ in their data alone
        split = split._replace(y=repeated(labels))
        options = {"look": look, "shared": (test,), **at_once(config)}
        return ensemble.train_many(trainer, each, split, repeated(weights), learner.steps, **options)

    def evaluate(key, split, labels, weights, test):
        margins, losses = jax.device_get(train(learner.shared, key, split, labels, weights, test))
        ensemble.check_losses(losses, np.arange(len(losses)))
        return margins.reshape(len(labels), config.retrains, -1)

    return evaluate


def accuracies(margins: np.ndarray, test: Preferences) -> dict[str, float]:
    """Preference accuracy on clean pairs, by the length of the preferred side, and the mean reward margin."""
    right, longer = (margins > 0).mean(0), preferences.longer(test)
    groups = [right[longer == test.y].mean(), right[longer == 1 - test.y].mean()]
    of = {"accuracy": right.mean(), "longer_preferred": groups[0], "shorter_preferred": groups[1], WGA: min(groups)}
    return {name: float(value) for name, value in of.items()} | {"reward_margin": float(margins.mean())}


def prepare(task: PairTask, config: Config, results: Any) -> Callable[..., runs.Unit]:
    """``measure(seed, progress)``: diagnosis and repair of every clean ratio of one draw."""
    pairs, learner, collect = made = make_task(task, config)
    fast = replace(config, model=REWARDS)
    taught_by = teach(task, fast, results, made if config.model == REWARDS else None)
    others = [PAIR_TASKS[name] for name in config.tasks if name != task.name]
    elsewhere = {f"trees taught on {other.name}": teach(other, fast, results).trees[OURS] for other in others}
    elsewhere["trees taught on tables"] = taught.shipped()[0]
    evaluate = make_evaluate(config, learner)

    def measure(seed, progress):
        test = preferences.divide(pairs, seed, SHARES)[2]
        test = preferences.take(test, np.arange(min(config.test or len(test.y), len(test.y))))
        facts: dict[str, Any] = {}
        for clean, drawn, cell in zip(config.cleans, *collect(seed), strict=True):
            of = described(drawn, cell)
            claimed = diagnoses.diagnoses(of, taught_by, elsewhere, {KNOWING: of["shorter"]})
            measures = {
                name: measured(values, flags, of["flags"], row="pairs") for name, (values, flags) in claimed.items()
            }
            correct = cell.logits[:, 0] > cell.logits[:, 1]
            probabilities, flagged = claimed[OURS]
            sets = training_sets(drawn, correct, probabilities, flagged, seed)
            labels, weights = (np.stack([one[i] for one in sets.values()]) for i in (0, 1))
            of_test = lambda by, test=test: split_of(test, learner.inputs(test, by))
            key = jax.random.key(100 + seed)
            margins = list(evaluate(key, drawn.pairs[0], labels, weights, of_test(drawn.train.pairs)))
            before = drawn.train.clean
            split = split_of(before, learner.inputs(before, before))
            margins += list(evaluate(key, split, before.y[None], np.ones((1, len(before.y))), of_test(before)))
            repaired = {n: accuracies(m, test) for n, m in zip([*sets, CLEAN], margins, strict=True)}
            facts[str(clean)] = {"diagnosis": measures, "repair": repaired}
            progress(1)
        return facts, {}

    return measure


def describe(task: PairTask, config: Config, units: Sequence[runs.Unit]) -> tuple[list[dict], dict[str, Section]]:
    """One row a method and clean ratio, of diagnosis and of repair; accuracies of every training set as a figure."""
    rows, sections = [], {}
    for name, part, of_part in diagnoses.rows_of(task.name, config.cleans, units, KINDS):
        rows += of_part
        if part == "diagnosis":
            text = f"{task.about} {config.train:,} training pairs with planted errors, {config.validation} others."
            verdicts = sentences.comparisons(of_part, PAIRS, metric="macro_f1", name="Macro-F1")
            sections[name] = Section(text, diagnoses.f1_figure(of_part), verdicts)
        else:
            both = lambda r: tuple(r["metrics"][metric]["per_seed"] for metric in ("accuracy", "shorter_preferred"))
            points = {r["method"]: both(r) for r in of_part}
            axes = {"xlabel": "preference accuracy", "ylabel": "where the shorter side is preferred"}
            text = "Clean pairs of other questions. The diagnoser was taught on other draws."
            figures = {"Both accuracies of every training set.": plots.tradeoff(points, **axes)}
            pairs = [(RECOMMENDED, DIRTY), (RECOMMENDED, "drop all detected"), (CLEAN, DIRTY)]
            verdicts = sentences.comparisons(of_part, pairs, metric="accuracy", name="Preference accuracy")
            sections[name] = Section(text, figures, [*verdicts, *sentences.conclusions(of_part)[:1]])
    return rows, sections


STUDY = Study(
    "demix_alignment",
    claim="In preference pairs, trees on influence vectors find swapped sides and damaged responses better than "
    "single scores; for a length bias, comparing lengths is better. Exchanging sides recovers most of what wrong "
    "labels cost.",
    config=Config(),
    tasks=PAIR_TASKS,
    prepare=prepare,
    describe=describe,
    minutes=15,
    headline=("kindness, diagnosis, clean ratio 0.5", OURS, "macro_f1"),
    smoke=lambda config: replace(
        config, tasks=("kindness",), seeds=1, first_seed=2, teaching=2, train=60, validation=24, rounds=5, retrains=1
    ),
    small=small,
    models=lambda config: len(config.cleans),
)
