"""Which interactions of a recommender are wrong, how, and what repair by kind does to the next one trained.

Claim:    trees on influence vectors detect flipped clicks and broken records of users and items better than single
          scores; repair of labels helps where wrong ones harm, and harms where they weaken a shortcut.
Command:  python -m experiments demix_recommendation
Expected: macro-F1 0.641 on *movielens* at clean ratio 0.5, single scores 0.522; see docs/results/recommendation.md
Device:   two CPU cores; any JAX device works.

Samples and models are those of DeMix (DIN, DIEN), errors are planted (`interaction_errors`); diagnosers are taught on
other draws of negatives and errors. The test part is later than all others, clean, and does not follow the rule.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from d3mjax import metrics
from d3mjax.attribution import outputs
from d3mjax.data.planted import interaction_errors, mixed_errors
from d3mjax.data.planted.mixed_errors import Rule
from d3mjax.data.sets import ratings
from d3mjax.data.sets.ratings import Ratings, Samples
from d3mjax.diagnosis import cells, repair, taught
from d3mjax.diagnosis.cells import FEATURES
from d3mjax.reports import plots, sentences
from d3mjax.reports.page import Section
from d3mjax.reports.rows import Kind
from d3mjax.runtime import runs
from d3mjax.training import ensemble
from experiments import diagnoses
from experiments.diagnoses import EVERYTHING, OURS, PAIRS, Taught, measured
from experiments.rating_tasks import RATING_TASKS, RatingTask, small
from experiments.recommendation import rating_cells
from experiments.recommendation.rating_cells import NETWORKS, SIGNALS, Learner
from experiments.study import Study
from experiments.tasks import spread


@dataclass(frozen=True)
class Config:
    """What determines the numbers."""

    tasks: tuple[str, ...] = ("movielens", "lectures")
    cleans: tuple[float, ...] = (0.5, 0.8)
    share: float = 0.1  # of samples against the rule
    seeds: int = 5
    first_seed: int = 10
    teaching: int = 4  # draws 0 and on that diagnosers are taught on, none of which reports
    train: int = 4000
    validation: int = 512
    last: int = 10  # interactions of a user in each part; published: 1
    history: int = 30  # items before, at most; published: 100
    network: str = "din"  # or "dien"
    rounds: int = 60  # trees of a forest
    retrains: int = 5  # models behind every number of one draw
    smoke: bool = False

    def __post_init__(self) -> None:
        if self.teaching > self.first_seed:
            raise ValueError(f"first_seed: found {self.first_seed}, expected {self.teaching} or more: others teach")
        if self.network not in NETWORKS:
            raise ValueError(f"network: found {self.network!r}, expected one of {sorted(NETWORKS)}")


DIRTY, CLEAN, POPULARITY = "dirty", "clean", "popularity"
RECOMMENDED = "recommended: labels, cautious; equal weights, too, where the guard warns"
KNOWING = "best single scores, knowing the rule"
KNOWING_RATIO = "best single scores, knowing the clean ratio"
PROPENSITY = "kernel-balanced propensity"
KINDS = {
    EVERYTHING: Kind("control", controls="number"),
    KNOWING: Kind("ceiling"),
    DIRTY: Kind("plain"),
    CLEAN: Kind("ceiling"),
    POPULARITY: Kind("control", controls="popularity"),
    "drop as many at random": Kind("control", controls="number"),
}
"""Kinds of rows; trees, and predicted and recommended repairs, are ours, oracles ceilings, single scores rivals."""


class Drawn(NamedTuple):
    """A draw of errors at one clean ratio."""

    train: interaction_errors.Errors
    validation: interaction_errors.Errors
    rule: Rule
    seen: tuple[np.ndarray, ...]  # features of user and item
    negatives: bool  # whether y = 0 are items that were not taken


class Made(NamedTuple):
    """What all draws of a task share."""

    whole: Ratings
    learner: Learner
    parts: Callable[[int], tuple[Samples, Samples, Samples]]  # (seed): negatives
    collect: Callable[[int], tuple[list[Drawn], list[cells.Cell]]]  # (seed) -> draws and cells at all clean ratios


def draw(task: RatingTask, config: Config, parts: Sequence[Samples], clean: float, seed: int) -> Drawn:
    """Errors drawn by ``seed`` in training and validation samples alike."""
    rule, key = task.shortcut(parts[0]), jax.random.key(seed)
    train, validation = (
        interaction_errors.inject(
            key, part, rule, options=interaction_errors.Options(clean=clean, share=config.share, size=size)
        )
        for part, size in zip(parts[:2], (config.train, config.validation), strict=True)
    )
    seen = rating_cells.features([train.samples, validation.samples])
    return Drawn(train, validation, rule, seen, task.liked is None)


def make_task(task: RatingTask, config: Config) -> Made:
    """The ratings of a task, its learner, and the function that makes its cells."""
    whole = task.load()
    options = {"last": config.last, "history": config.history, "liked": task.liked}
    parts = lambda seed: ratings.samples(whole, seed=seed, **options)
    learned = rating_cells.learner(config.network, whole, parts(0)[0], config.train)
    train = rating_cells.make_train(learned, **spread())

    def collect(seed):
        drawn = [draw(task, config, parts(seed), clean, seed) for clean in config.cleans]
        both = lambda d: (d.train.samples, d.validation.samples)
        examples = [tuple(learned.inputs(part, d.train.samples) for part in both(d)) for d in drawn]
        recorded = [d.train.samples.table for d in drawn]
        return drawn, train(jax.random.key(seed), examples, [d.seen for d in drawn], recorded)

    return Made(whole, learned, parts, collect)


def described(drawn: Drawn, cell: cells.Cell) -> dict[str, np.ndarray]:
    """Features for trees, flags, signals, and the minority of the rule as recorded, errors and all."""
    train, validation = drawn.train.samples, drawn.validation.samples
    return {
        "features": cells.features(cell, train.y, 2),
        "flags": drawn.train.flags,
        "signals": rating_cells.signals(cell, train, validation, drawn.seen[0]),
        "known": mixed_errors.minority(drawn.rule, train.table, train.y),
    }


class Lessons(NamedTuple):
    """What the teaching draws leave."""

    taught: Taught
    by_ratio: dict[float, tuple]  # best single scores and thresholds of each clean ratio alone


def teach(task: RatingTask, config: Config, results: Any, make: Callable[[], Made]) -> Lessons:
    """Trees and thresholds from the teaching draws, which are made where ``results`` does not have them yet."""
    names = ("train", "validation", "cleans", "share", "teaching", "last", "history", "network", "smoke")
    facts = {name: getattr(config, name) for name in names} | {"task": task.name, "cleans": list(config.cleans)}
    facts |= {"features": list(FEATURES), "signals": list(SIGNALS), "rule": task.rule}
    run_dir = runs.open_run(results, "recommendation_cells", facts)

    def unit(seed, progress):
        each = [described(*pair) for pair in zip(*make().collect(seed), strict=True)]
        progress(1)
        return {}, {name: np.stack([one[name] for one in each]) for name in each[0]}

    units = runs.run_units(run_dir, task.name, range(config.teaching), unit, models=1)
    arrays = {name: np.concatenate([a[name] for _, a in units]) for name in units[0][1]}  # [cells n ...]
    draws = np.repeat(np.arange(config.teaching), len(config.cleans))
    of_ratio = lambda k, name: np.concatenate(arrays[name][k :: len(config.cleans)])
    by_ratio = {
        clean: diagnoses.best_signals(SIGNALS, of_ratio(k, "signals"), of_ratio(k, "flags"))
        for k, clean in enumerate(config.cleans)
    }
    return Lessons(diagnoses.teach(arrays, draws, SIGNALS, rounds=config.rounds), by_ratio)


def training_sets(drawn: Drawn, correct: Any, probabilities: Any, claimed: Any, seed: int) -> dict[str, tuple]:
    """Labels and weights of every training set by name."""
    table, y, truth = drawn.train.samples.table, drawn.train.samples.y, drawn.train.flags
    ones = np.ones(len(y), np.float32)
    fix = partial(repair.repair, table, y, num_classes=2)
    only = lambda flags, *types: flags & np.isin(np.arange(3), types)[None]
    careful = repair.cautious(claimed, probabilities)
    keep = (~claimed.any(1)).astype(np.float32)
    recommended, _ = repair.recommended(table, y, only(claimed, 0, 2), probabilities, num_classes=2, correct=correct)
    sets = {
        "predicted, as published": fix(claimed),
        "predicted, labels": fix(only(claimed, 0)),
        "predicted, labels, cautious": fix(only(careful, 0)),
        "predicted, labels and groups of equal weight": fix(only(claimed, 0, 2), weigh=repair.equal_groups),
        RECOMMENDED: recommended,
        "oracle, as published": fix(truth),
        "oracle, labels": fix(only(truth, 0)),
        "oracle, groups of equal weight": fix(truth, weigh=repair.equal_groups),
    }
    made = {name: (one.labels, one.weights) for name, one in sets.items()}
    random = np.random.default_rng(seed).permutation(keep)
    chosen = y == 1 if drawn.negatives else np.ones(len(y), bool)
    balanced = rating_cells.balanced(seed, drawn.train.samples, drawn.seen[0], chosen)
    others = {"drop all detected": keep, "drop as many at random": random, PROPENSITY: balanced}
    return {DIRTY: (y, ones), **made, **{name: (y, weights) for name, weights in others.items()}}


def make_evaluate(config: Config, learned: Learner) -> Callable:
    """``(key, training examples, y [m n], weights [m n], test) -> log-odds [m r t]`` of ``retrains`` models each."""
    model, trainer, steps, _ = learned

    def log_odds(variables, test):
        logits = outputs.logits(model, variables, test.x)
        return logits[:, 1] - logits[:, 0]

    @jax.jit
    def train(key, split, labels, weights, test):
        repeated = lambda a: jnp.repeat(a, config.retrains, axis=0)
        keys = jnp.tile(jax.random.split(key, config.retrains), len(labels))  # sets differ in their data alone
        split = split._replace(y=repeated(labels))
        options = {"look": log_odds, "shared": (test,), **spread()}
        return ensemble.train_many(trainer, keys, split, repeated(weights), steps, **options)

    def evaluate(key, split, labels, weights, test):
        odds, losses = jax.device_get(train(key, split, labels, weights, test))
        ensemble.check_losses(losses, np.arange(len(losses)))
        return odds.reshape(len(labels), config.retrains, -1)

    return evaluate


def ranked(odds: np.ndarray, y: np.ndarray, group: np.ndarray, against: np.ndarray) -> dict[str, float]:
    """Of models ``[r t]`` on clean samples: AUC, log-loss, AUC of the worst group and among those against the rule."""
    area = lambda rows: np.mean([metrics.auc(one[rows], y[rows] == 1) for one in odds])
    loss = np.logaddexp(0, np.where(y == 1, -odds, odds)).mean()
    of_groups = min(area(group == g) for g in np.unique(group))
    values = {"auc": area(slice(None)), "log_loss": loss, "worst_group_auc": of_groups, "auc_against": area(against)}
    return {name: float(value) for name, value in values.items()}


def prepare(task: RatingTask, config: Config, results: Any) -> Callable[..., runs.Unit]:
    """``measure(seed, progress)``: diagnosis and repair of every clean ratio of one draw."""
    make = cache(partial(make_task, task, config))
    lessons = teach(task, config, results, make)
    others = [RATING_TASKS[name] for name in config.tasks if name != task.name]
    elsewhere = {
        f"trees taught on {other.name}": teach(other, config, results, partial(make_task, other, config))
        for other in others
    }
    elsewhere = {name: of_other.taught.trees[OURS] for name, of_other in elsewhere.items()}
    elsewhere["trees taught on tables"] = taught.shipped()[0]
    whole, learned, parts, collect = make()
    evaluate = make_evaluate(config, learned)

    def measure(seed, progress):
        train, _, test = parts(seed)
        group, popular = task.groups(train, test), ratings.popularity(whole, test)
        facts: dict[str, Any] = {}
        for clean, drawn, cell in zip(config.cleans, *collect(seed), strict=True):
            of = described(drawn, cell)
            claimed = diagnoses.diagnoses(of, lessons.taught, elsewhere, {KNOWING: of["known"]})
            best, thresholds = map(np.asarray, lessons.by_ratio[clean])
            ranks = of["signals"][:, best]
            claimed[KNOWING_RATIO] = ranks, ranks >= thresholds[None, best]
            measures = {name: measured(values, flags, of["flags"]) for name, (values, flags) in claimed.items()}
            dirty, before = drawn.train.samples, drawn.train.clean
            correct = cell.logits.argmax(1) == dirty.y
            sets = training_sets(drawn, correct, *claimed[OURS], seed)
            labels, weights = (np.stack([one[i] for one in sets.values()]) for i in (0, 1))
            key, of_test = jax.random.key(100 + seed), partial(learned.inputs, test)
            odds = list(evaluate(key, learned.inputs(dirty, dirty), labels, weights, of_test(dirty)))
            ones = np.ones((1, len(before.y)), np.float32)
            odds += list(evaluate(key, learned.inputs(before, before), before.y[None], ones, of_test(before)))
            against = mixed_errors.minority(drawn.rule, test.table, test.y)
            tested = partial(ranked, y=test.y, group=group, against=against)
            repaired = {name: tested(of_set) for name, of_set in zip([*sets, CLEAN], odds, strict=True)}
            floor = tested(popular[None].astype(np.float64))
            repaired[POPULARITY] = {name: value for name, value in floor.items() if name != "log_loss"}
            facts[str(clean)] = {"diagnosis": measures, "repair": repaired}
            progress(1)
        return facts, {}

    return measure


def describe(task: RatingTask, config: Config, units: Sequence[runs.Unit]) -> tuple[list[dict], dict[str, Section]]:
    """One row a method and clean ratio, of diagnosis and of repair; F1 by kind and AUC of training sets as figures."""
    rows, sections = [], {}
    for name, part, of_part in diagnoses.rows_of(task.name, config.cleans, units, KINDS):
        rows += of_part
        if part == "diagnosis":
            sizes = f"{config.train:,} training samples with planted errors, {config.validation} others."
            text = f"{task.about} {sizes} Rule: {task.rule}."
            verdicts = sentences.comparisons(of_part, PAIRS, metric="macro_f1", name="Macro-F1")
            sections[name] = Section(text, diagnoses.f1_figure(of_part), verdicts)
        else:
            both = lambda r: tuple(r["metrics"][metric]["per_seed"] for metric in ("auc", "auc_against"))
            points = {r["method"]: both(r) for r in of_part}
            figure = plots.tradeoff(points, xlabel="AUC", ylabel="AUC among samples against the rule")
            text = "Clean later samples, which do not follow the rule. The diagnoser was taught on other draws."
            pairs = [(RECOMMENDED, DIRTY), (RECOMMENDED, "drop as many at random"), (CLEAN, DIRTY)]
            verdicts = sentences.comparisons(of_part, pairs, metric="auc", name="AUC")
            sections[name] = Section(text, {"Both AUC of every training set.": figure}, verdicts)
    return rows, sections


STUDY = Study(
    "demix_recommendation",
    claim="Trees on influence vectors detect flipped clicks and broken records of users and items better than single "
    "scores; repair of labels helps where wrong ones harm, and harms where they weaken a shortcut.",
    config=Config(),
    tasks=RATING_TASKS,
    prepare=prepare,
    describe=describe,
    minutes=30,
    headline=("movielens, diagnosis, clean ratio 0.5", OURS, "macro_f1"),
    smoke=lambda config: replace(
        config,
        tasks=("movielens",),
        seeds=1,
        first_seed=2,
        teaching=2,
        train=300,
        validation=60,
        history=8,
        rounds=10,
        retrains=1,
    ),
    small=small,
    models=lambda config: len(config.cleans),
)
