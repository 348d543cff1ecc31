"""Wrong rows of tables whose labels are numbers: found on tables left out, and what their repair does to the error.

Claim:    trees taught on other tables find label errors, feature errors and spurious minorities of a regression better
          than scores that need no training, and a repair by their claims lowers the test error where half of the rows
          are wrong.
Command:  python -m experiments demix_regression
Expected: mean over eight tables left out, clean ratio 0.5 / 0.8: macro-F1 of trees 0.70 / 0.68, of the best single
          scores 0.64 / 0.50; error after repair over that of the dirty table 0.42 / 0.64.
Device:   two CPU cores, 45 minutes; any JAX device works.

Errors are in the unit of the labels. Rows to test on are clean.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from d3mjax import metrics
from d3mjax.attribution import outputs
from d3mjax.data import label_scale, tables
from d3mjax.data.planted import mixed_errors
from d3mjax.data.sets import shortcut_tables
from d3mjax.data.sets.shortcut_tables import Labelled, TableTask
from d3mjax.diagnosis import claims, repair
from d3mjax.diagnosis.cells import MLP2, NUMBER_FEATURES, NUMBERS, labelled, trainer_of
from d3mjax.diagnosis.repair import LABEL, MINORITY, Repaired
from d3mjax.reports import plots, sentences
from d3mjax.reports.page import Section
from d3mjax.reports.rows import Kind, row
from d3mjax.runtime import runs
from d3mjax.training import ensemble, objectives
from experiments.diagnosis import diagnose
from experiments.diagnosis.corpus import Stored
from experiments.diagnosis.number_corpus import SIGNALS, Planned, gather, parts_of, plan, sampled
from experiments.number_tables import TABLES
from experiments.study import Study
from experiments.tasks import spread

OURS, OTHERS, BEST, ALL = "trees", "trees, without influence", "best single scores", "flag everything"
DIRTY, HUBER, CLEAN = "dirty", "dirty, Huber loss", "clean"
DROPPED, LABELS, RELABELLED = "predicted, dropped", "predicted, labels alone, dropped", "predicted, relabelled, imputed"
RIVAL, RANDOM, ORACLE = "largest left-out residuals dropped", "as many dropped at random", "oracle, dropped"
FEATURES = {
    OURS: np.ones(len(NUMBER_FEATURES), bool),
    OTHERS: np.array([not name.startswith("influence") for name in NUMBER_FEATURES]),
}
KINDS = {
    OURS: Kind("ours"),
    OTHERS: Kind("ours"),
    BEST: Kind("rival"),
    ALL: Kind("control", controls="number"),
    DIRTY: Kind("plain"),
    HUBER: Kind("rival"),
    DROPPED: Kind("ours"),
    LABELS: Kind("ours"),
    RELABELLED: Kind("ours"),
    RIVAL: Kind("rival"),
    RANDOM: Kind("control", controls="number"),
    ORACLE: Kind("ceiling"),
    CLEAN: Kind("ceiling"),
}
SPLITS = {
    "unseen table": "Fitted on all other tables.",
    "new draw": "The same table and rules, errors drawn anew.",
    "repair": "One network is trained on each set, by squared errors unless a method has another loss; claims are of "
    "trees fitted on all other tables. The worst group is the one of largest error of four, condition by label.",
}


@dataclass(frozen=True)
class Config:
    """What determines the numbers."""

    tasks: tuple[str, ...] = tuple(TABLES)
    # Shares of the rows without planted errors.
    cleans: tuple[float, ...] = (0.5, 0.8)
    # Draws of the errors.
    seeds: int = 5
    first_seed: int = 0
    # Rows of each cell that trees are fitted on, and trees for each kind of error.
    fitted: int = 200
    rounds: int = 60
    # Clean rows of each table to test on, at most.
    test: int = 1500
    smoke: bool = False


def smoke(config: Config) -> Config:
    """Two draws of few rows of two tables."""
    return replace(config, tasks=("computers", "houses"), cleans=(0.5,), seeds=2, fitted=60, rounds=5, test=200)


def small(task: TableTask) -> TableTask:
    """A table of few rows."""
    return shortcut_tables.small(task)._replace(train=150)


def results_of(
    train: Sequence[Stored], test: Sequence[Stored], config: Config, methods: Sequence[str], new: Callable
) -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    """Values and claims of every method on every test cell.

    Trees are fitted on ``config.fitted`` random rows of every training cell; cells that agree in ``new`` are held out
    together for thresholds. Thresholds of single scores are those of highest F1 on the training cells, and the best
    score of each kind is the best there.
    """
    few, options = [sampled(cell, config.fitted) for cell in train], (config.fitted, config.rounds, new)
    results = {name: diagnose.diagnosed(few, test, FEATURES[name], *options) for name in methods}
    return results | rivals(train, test) | {ALL: [(np.ones(c.flags.shape), np.ones(c.flags.shape, bool)) for c in test]}


def figures(results: dict, test: Sequence[Stored], seed: int) -> diagnose.Figures:
    """Figures by method and clean ratio: means over the test cells of a draw."""
    by_method: diagnose.Figures = {}
    for name, pairs in results.items():
        of_draw = [(c, pair) for c, pair in zip(test, pairs, strict=True) if c.seed == seed]
        for clean in sorted({cell.clean for cell, _ in of_draw}):
            each = [diagnose.measured(cell, *pair) for cell, pair in of_draw if cell.clean == clean]
            by_method.setdefault(name, {})[str(clean)] = _mean(each, name)
    return by_method


def rivals(train: Sequence[Stored], test: Sequence[Stored]) -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    """Values and claims on every test cell of the best single scores, and of each score at its kind."""
    signals, flags = np.concatenate([c.signals for c in train]), np.concatenate([c.flags for c in train])
    best, thresholds = [], np.zeros(len(SIGNALS), np.float32)
    for k, letter in enumerate("LFS"):
        own = [i for i, name in enumerate(SIGNALS) if name[0] == letter]
        each = np.repeat(flags[:, k : k + 1], len(own), axis=1)
        cuts = np.asarray(claims.best_thresholds(signals[:, own], each))
        f1 = np.asarray(claims.scores(signals[:, own] >= cuts[None], each).f1)
        thresholds[own] = cuts
        best.append(own[int(np.argmax(f1))])
    joined = lambda cell, at: (cell.signals[:, at], cell.signals[:, at] >= thresholds[None, at])
    results = {BEST: [joined(cell, best) for cell in test]}
    for i, name in enumerate(SIGNALS):
        at = list(best)
        at["LFS".index(name[0])] = i
        results[name] = [joined(cell, at) for cell in test]
    return results


def _mean(each: Sequence[dict[str, float]], name: str) -> dict[str, float]:
    keys = dict.fromkeys(key for values in each for key in values)
    mean = {key: float(np.nanmean([values[key] for values in each if key in values])) for key in keys}
    if name not in (OURS, OTHERS):
        mean.pop("calibration_error")  # these are not probabilities
    if name in SIGNALS:  # a score for one kind claims that kind alone
        kind = diagnose.TYPES["LFS".index(name[0])]
        mean = {key: value for key, value in mean.items() if key.startswith(kind)}
    return mean


def variants(planned: Planned, claimed: Any, left_out: Any, seed: int) -> dict[str, Repaired]:
    """Training sets by name. Minorities keep their weight: how the others change theirs is another question."""
    errors = planned.train
    table, y, truth = errors.table, errors.labels, errors.flags
    ones, rng = np.ones(len(y), np.float32), np.random.default_rng(seed)
    claimed, truth = (flags & (np.arange(3) != MINORITY)[None] for flags in (claimed, truth))
    dropped = claimed.any(1)
    ranked = np.argsort(np.argsort(-np.abs(left_out - y), kind="stable"), kind="stable")
    fix = lambda flags, **options: repair.repair(table, y, flags, num_classes=None, **options)
    return {
        DIRTY: Repaired(table, y, ones),
        DROPPED: fix(claimed),
        LABELS: fix(claimed & (np.arange(3) == LABEL)[None]),
        RELABELLED: fix(claimed, proposed=left_out.astype(y.dtype), restore=repair.impute),
        RIVAL: Repaired(table, y, (ranked >= dropped.sum()).astype(np.float32)),
        RANDOM: Repaired(table, y, rng.permutation(~dropped).astype(np.float32)),
        ORACLE: fix(truth),
        CLEAN: Repaired(errors.clean_table, errors.clean_labels, ones),
    }


def make_evaluate(task: TableTask, columns: Any) -> Callable[..., np.ndarray]:
    """``(key, [training set], test, huber) -> residuals [v u]`` in the unit of the labels: one training of each set."""
    model = MLP2.make(columns, 1)
    look = lambda variables, x: outputs.logits(model, variables, x)[:, 0]

    def trained(objective):
        trainer = trainer_of(model, MLP2, task.train, objective=objective)

        @jax.jit
        def train(key, splits, weights, x):
            keys = jnp.broadcast_to(key, weights.shape[:1])  # the same start for all: they differ in their data alone
            return ensemble.train_many(trainer, keys, splits, weights, MLP2.steps, look=look, each=(x,), **spread())

        return train

    programs = {False: trained(objectives.squared_error()), True: trained(NUMBERS.objective)}

    def evaluate(key, sets: Sequence[Repaired], test: Labelled, *, huber: bool = False) -> np.ndarray:
        encoders = [tables.fit_encoder(s.table) for s in sets]
        scales = [label_scale.fit(s.labels) for s in sets]
        splits = [
            labelled(e, s.table, label_scale.standardise(scale, s.labels))
            for e, s, scale in zip(encoders, sets, scales, strict=True)
        ]
        x = np.stack([tables.encode(e, test[0]) for e in encoders])
        stacked = jax.tree.map(lambda *a: np.stack(a), *splits)
        predicted, losses = jax.device_get(programs[huber](key, stacked, np.stack([s.weights for s in sets]), x))
        ensemble.check_losses(losses, np.arange(len(sets)))
        return test[1] - np.stack([label_scale.restore(scale, p) for scale, p in zip(scales, predicted, strict=True)])

    return evaluate


def errors_of(residuals: np.ndarray, group: np.ndarray) -> dict[str, float]:
    """Root mean square and mean absolute errors, and those of the worst group that has rows, in the label's unit."""
    float32 = residuals.astype(np.float32)
    rms, absolute = (fn(float32, group, 4) for fn in (metrics.group_rms_errors, metrics.group_absolute_errors))
    return {
        "rms_error": float(np.sqrt((residuals**2).mean())),
        "mean_absolute_error": float(np.abs(residuals).mean()),
        "worst_group_rms_error": float(np.nanmax(rms)),
        "worst_group_absolute_error": float(np.nanmax(absolute)),
    }


@lru_cache(maxsize=1)
def gathered(config: Config, results: Any) -> dict[str, list[tuple[Stored, np.ndarray]]]:
    """The cells of all tables, read once for all tasks of a run."""
    chosen = {name: small(TABLES[name]) if config.smoke else TABLES[name] for name in config.tasks}
    return gather(results, chosen, config.cleans, range(config.first_seed, config.first_seed + config.seeds))


def prepare(task: TableTask, config: Config, results: Any) -> Callable[..., runs.Unit]:
    """``measure(seed, progress)``: figures of both splits, and errors after every repair, of one draw."""
    parts = parts_of(task)
    evaluate = make_evaluate(task, list(tables.slices(parts.train[0]).values()))

    @cache
    def unseen():
        """The cells of the table, with their predictions, and results of what was fitted on all other tables."""
        every = gathered(config, results)
        own, others = every[task.name], [c for name, each in every.items() if name != task.name for c, _ in each]
        return own, results_of(others, [c for c, _ in own], config, (OURS, OTHERS), lambda c: c.task)

    def measure(seed, progress):
        own, elsewhere = unseen()
        test = [c for c, _ in own]
        draw = [c for c in test if c.seed == seed]
        drawn = results_of([c for c in test if c.seed != seed], draw, config, (OURS,), diagnose.by_draw)
        facts: dict[str, Any] = {"unseen table": figures(elsewhere, test, seed), "new draw": figures(drawn, draw, seed)}
        repaired: dict[str, Any] = {}
        for (cell, left_out), (_, claimed) in zip(own, elsewhere[OURS], strict=True):
            if cell.seed != seed:
                continue
            rule, key = task.rules[cell.rule], jax.random.key(100 * seed + cell.rule)
            most = len(mixed_errors.subset(jax.random.key(0), *parts.test, rule))
            index = mixed_errors.subset(key, *parts.test, rule, size=min(config.test, most))
            held = tables.take(parts.test[0], index), parts.test[1][index]
            group = 2 * np.asarray(rule.condition(held[0])).astype(int) + np.asarray(rule.label(held[1]))
            sets = variants(plan(task, parts, cell.rule, cell.clean, seed), claimed, left_out, seed)
            residuals = dict(zip(sets, evaluate(key, list(sets.values()), held), strict=True))
            (residuals[HUBER],) = evaluate(key, [sets[DIRTY]], held, huber=True)
            for name, each in residuals.items():
                repaired.setdefault(name, {}).setdefault(str(cell.clean), []).append(errors_of(each, group))
            progress(1)
        mean = lambda of: {clean: {k: float(np.mean([e[k] for e in v])) for k in v[0]} for clean, v in of.items()}
        facts["repair"] = {name: mean(of) for name, of in repaired.items()}
        return facts, {}

    return measure


def describe(task: TableTask, config: Config, units: Sequence[runs.Unit]) -> tuple[list[dict], dict[str, Section]]:
    """Rows of every split, clean ratio and method, and the errors after repair over those of the dirty set."""
    rows = diagnose.rows_of(task.name, [facts for facts, _ in units], lambda m: KINDS.get(m, Kind("rival")))
    relative(rows)
    about = f"{task.description} Errors are in {task.unit}. {task.train:,} rows with planted errors."
    sections = {name: Section(f"{about}\n{SPLITS[name.split(', ')[1]]}", {}) for name in (r["task"] for r in rows)}
    for clean in config.cleans:
        name = f"{task.name}, repair, clean ratio {clean}"
        shown = {
            r["method"]: np.array(r["metrics"]["rms_error"]["per_seed"])[:, None] for r in rows if r["task"] == name
        }
        figure = plots.bar_groups(shown, [task.name], ylabel=f"root mean square error, {task.unit}", share=False)
        sections[name] = sections[name]._replace(figures={"Test error by training set.": figure})
    for name, section in sections.items():
        if ", new draw," in name:
            continue
        repaired = ", repair," in name
        metric, title = ("rms_error", f"Root mean square error, {task.unit}") if repaired else ("macro_f1", "Macro-F1")
        pairs = [(DROPPED, DIRTY), (DROPPED, RANDOM)] if repaired else [(OURS, BEST)]
        of_section = [each for each in rows if each["task"] == name]
        sections[name] = section._replace(findings=sentences.comparisons(of_section, pairs, metric=metric, name=title))
    return rows, sections


def relative(rows: Sequence[dict[str, Any]]) -> None:
    """Add ``error_over_dirty`` to rows of repair, by seed: below 1 the error is smaller than without repair."""
    dirty = {r["task"]: r["metrics"]["rms_error"]["per_seed"] for r in rows if r["method"] == DIRTY}
    for each in rows:
        if "rms_error" in each["metrics"]:
            ratio = np.array(each["metrics"]["rms_error"]["per_seed"]) / np.array(dirty[each["task"]])
            made = row(
                each["task"], each["method"], {"error_over_dirty": ratio}, role=each["role"], settings=each["settings"]
            )
            each["metrics"] |= made["metrics"]


STUDY = Study(
    "demix_regression",
    claim="Trees taught on other tables find wrong rows of a regression better than scores that need no training, and "
    "a repair by their claims lowers the test error where half of the rows are wrong.",
    config=Config(),
    tasks=TABLES,
    prepare=prepare,
    describe=describe,
    minutes=40,
    headline=("bike, unseen table, clean ratio 0.5", OURS, "macro_f1"),
    smoke=smoke,
    small=small,
    models=lambda config: 2 * len(config.cleans),
)
