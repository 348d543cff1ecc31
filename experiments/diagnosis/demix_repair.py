"""Repair by kind of error: what it does to accuracy and to the worst group of the rule, beside plain controls.

Claim:    turning the labels that a diagnoser believes wrong recovers most of what wrong labels cost, and takes labels
          of the minority with it; turning only those far likelier wrong than rare, and giving groups equal weight
          where the guard warns, gains half of that or more in average and hardly costs the worst group.
Command:  python -m experiments.demix_repair            (`--config.smoke` takes half a minute)
Expected: the tables in experiments/README.md, which this command wrote.
Device:   two CPU cores, about 15 minutes beside the cells of demix_diagnose; any JAX device works.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax.sharding import Mesh

from d3mjax import metrics
from d3mjax.attribution import outputs
from d3mjax.data import tables
from d3mjax.data.planted import mixed_errors
from d3mjax.diagnosis import repair, trees
from d3mjax.diagnosis.repair import Repaired
from d3mjax.reports import page, plots
from d3mjax.reports.rows import WGA, Kind, row
from d3mjax.runtime import hosts, preemption, runs
from d3mjax.runtime.hosts import models_at_once
from d3mjax.training import ensemble
from experiments import study
from experiments.diagnosis import demix_corpus, demix_diagnose
from experiments.diagnosis.demix_cells import MLP2, Planned, features, labelled, make_vectors, plan, trainer_of
from experiments.diagnosis.demix_tables import TABLES, Labelled, TableTask, divide


@dataclass(frozen=True)
class Config:
    """What determines the numbers."""

    tasks: tuple[str, ...] = ("adult",)
    # Of each table, by number: two published rules and both balanced ones.
    rules: tuple[int, ...] = (0, 2, -2, -1)
    cleans: tuple[float, ...] = (0.5, 0.8)
    seeds: int = 5
    first_seed: int = 6
    # The cells that diagnosers are fitted on: those of `demix_diagnose`, less the rule in question.
    draws: int = 5
    rows: int = 2000
    fitted: int = 500
    rounds: int = 80
    test: int = 3000
    smoke: bool = False


LABELS = "predicted, labels alone, cautious"
WEIGHED = "predicted, labels and groups of equal weight, cautious"
RECOMMENDED = "recommended: labels, cautious; equal weights, too, where the guard warns"
"""Chosen on draws 0 to 4 of Adult, which is why other draws report; rules and test rows are the same."""
SHIPPED = "the same, broken rows imputed, as d3mjax-diagnose does"


KINDS = {
    "dirty": Kind("plain"),
    "oracle, as published": Kind("ceiling"),
    "oracle, labels and features": Kind("ceiling"),
    "oracle, labels, features, groups of equal weight": Kind("ceiling"),
    "drop all detected": Kind("rival"),
    "drop as many at random": Kind("control", controls="number"),
}
"""Kinds of training sets; ours elsewhere."""


def variants(planned: Planned, right: Any, probabilities: Any, claimed: Any, task: TableTask, seed: int):
    """Training sets by name, and the guard's risk of each predicted repair. The oracle knows the flags; ``right``: rows
    that the model of the dirty set gets right.
    """
    errors = planned.train
    table, y, truth = errors.table, errors.labels, errors.flags
    ones = np.ones(len(y), np.float32)
    rng = np.random.default_rng(seed)
    fix = partial(repair.repair, table, y, num_classes=task.num_classes)
    only = lambda flags, *types: flags & np.isin(np.arange(3), types)[None]
    careful = repair.cautious(claimed, probabilities)
    groups = {"restore": repair.impute, "weigh": repair.equal_groups}
    found = {
        "dirty": Repaired(table, y, ones),
        "predicted, as published": fix(claimed),
        "predicted, labels alone": fix(only(claimed, 0)),
        LABELS: fix(only(careful, 0)),
        "predicted, labels and groups of equal weight": fix(only(claimed, 0, 2), **groups),
        WEIGHED: fix(only(careful, 0, 2), **groups),
        "predicted, the same with imputation": fix(careful, **groups),
        "predicted, groups of equal weight alone": fix(only(claimed, 2), **groups),
        "oracle, as published": fix(truth),
        "oracle, labels and features": Repaired(errors.clean_table, errors.clean_labels, ones),
        "oracle, labels, features, groups of equal weight": Repaired(
            errors.clean_table, errors.clean_labels, repair.equal_groups(truth[:, 2], errors.clean_labels, ones > 0)
        ),
        "drop all detected": Repaired(table, y, (~claimed.any(1)).astype(np.float32)),
        "drop as many at random": Repaired(table, y, rng.permutation(~claimed.any(1)).astype(np.float32)),
    }
    risk = partial(repair.worst_group_risk, y, probabilities=probabilities, num_classes=task.num_classes, correct=right)
    risks = {name: risk(one) for name, one in found.items() if name.startswith("predicted")}
    options = {"num_classes": task.num_classes, "correct": right}
    found[RECOMMENDED], _ = repair.recommended(table, y, only(claimed, 0, 2), probabilities, **options)
    found[SHIPPED], _ = repair.recommended(table, y, claimed, probabilities, restore=repair.impute, **options)
    return found, {name: one.value for name, one in risks.items()}


def make_evaluate(task: TableTask, columns: Any, num_test: int, devices: Mesh) -> Callable:
    """``(key, [training set], test) -> accuracy [v], accuracy by group [v 4]``: one training of each."""
    model = MLP2.make(columns, task.num_classes)
    trainer = trainer_of(model, MLP2, task.train)

    def one(key, split, weights, x):
        state = trainer.init(key, split.x[:1])
        state, info = trainer.run(state, split, weights, MLP2.steps)
        return outputs.logits(model, state.variables, x).argmax(1), info.loss

    @jax.jit
    def compiled(key, splits, weights, x):
        keys = jnp.broadcast_to(key, weights.shape[:1])  # the same start for all: they differ in their data alone
        return ensemble.map_models(one, width=models_at_once(), mesh=devices)(keys, splits, weights, x)

    def evaluate(key, sets: list[Repaired], test: Labelled, group: np.ndarray):
        encoders = [tables.fit_encoder(s.table) for s in sets]
        splits = [labelled(e, s.table, s.labels) for e, s in zip(encoders, sets, strict=True)]
        x = np.stack([tables.encode(e, test[0]) for e in encoders])
        stacked = jax.tree.map(lambda *a: np.stack(a), *splits)
        predicted, losses = jax.device_get(compiled(key, stacked, np.stack([s.weights for s in sets]), x))
        ensemble.check_losses(losses, np.arange(len(sets)))
        right = (predicted == test[1][None]).astype(np.float32)
        return right.mean(1), np.stack([np.asarray(metrics.group_means(r, group, 4)) for r in right])

    return evaluate


def measure_table(
    task: TableTask, config: Config, corpus: list[demix_corpus.Stored], seed: int, progress
) -> study.Unit:
    """Every variant at every rule and clean ratio of one draw."""
    parts = divide(task)
    columns = list(tables.slices(parts.train[0]).values())
    chosen = demix_corpus.chosen(task, config.rules)
    cells = [(k, clean) for k in chosen for clean in config.cleans]
    planned = [plan(task, parts, task.rules[k], clean, 100 * seed + k) for k, clean in cells]
    make = make_vectors(MLP2, columns, task.num_classes, task.train, hosts.local_mesh())
    made = make(jax.random.key(seed), [p.splits for p in planned], [p.train.table for p in planned])
    evaluate = make_evaluate(task, columns, config.test, hosts.local_mesh())
    fitted = {
        k: demix_diagnose.fit(
            [c for c in corpus if c.rule != k and c.seed != seed],
            demix_diagnose.METHODS[demix_diagnose.OURS],
            rows=config.fitted,
            rounds=config.rounds,
            new=lambda c: f"rule {c.rule}",
        )
        for k in chosen
    }
    facts: dict[str, Any] = {}
    for (k, clean), p, cell in zip(cells, planned, made, strict=True):
        rule, key = task.rules[k], jax.random.key(100 * seed + k)
        index = mixed_errors.subset(key, *parts.test, rule, size=min(config.test, _most(parts.test, rule)))
        test = tables.take(parts.test[0], index), parts.test[1][index]
        group = 2 * np.asarray(rule.condition(test[0])).astype(int) + np.asarray(rule.label(test[1]))
        probabilities = np.asarray(trees.predict(fitted[k], features(cell, p.train.labels, task.num_classes)))
        claimed = np.asarray(trees.claim(fitted[k], probabilities))
        right = cell.logits.argmax(1) == p.train.labels
        sets, risks = variants(p, right, probabilities, claimed, task, seed)
        accuracy, by_group = evaluate(key, list(sets.values()), test, group)
        sort = "balanced" if rule.balanced else "published"
        figures = {
            name: {"accuracy": float(a), "worst group": float(np.nanmin(g)), "risk": risks.get(name)}
            for name, a, g in zip(sets, accuracy, by_group, strict=True)
        }
        facts.setdefault(f"{sort} rules, clean ratio {clean}", []).append(figures)
        progress(1)
    return facts, {}


def _most(test: Labelled, rule) -> int:
    return len(mixed_errors.subset(jax.random.key(0), *test, rule))


def rows_of(task: str, found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a sort of rule, clean ratio and training set; figures of a draw are means over its rules."""
    rows = []
    for part in found[0]:
        for name in found[0][part][0]:
            of = lambda figure, part=part, name=name: [[f[name][figure] for f in one[part]] for one in found]
            worst, dirty = (
                np.array([[f[n]["worst group"] for f in one[part]] for one in found]) for n in (name, "dirty")
            )
            per_seed = {
                WGA: worst.mean(1),
                "average_accuracy": np.mean(of("accuracy"), axis=1),
                "cells_where_the_worst_group_loses": (worst < dirty - 0.02).mean(1),
            }
            if None not in of("risk")[0]:
                per_seed["risk_by_the_guard"] = np.mean(of("risk"), axis=1)
            kind = KINDS.get(name, Kind("ours"))
            rows.append(row(f"{task}, {part}", name, per_seed, role=kind.role, settings=kind.settings()))
    return rows


def main(config: Config, results: Path = Path("results"), run: str | None = None) -> Path:
    """Run or resume; returns the directory of results."""
    if config.smoke:
        config = replace(
            config,
            tasks=("digits",),
            rules=(0, 1),
            seeds=1,
            first_seed=0,
            draws=3,
            rows=150,
            fitted=60,
            rounds=5,
            test=200,
        )
    if unknown := set(config.tasks) - TABLES.keys():
        raise ValueError(f"tasks: found {sorted(unknown)}, expected names among {sorted(TABLES)}")
    begin = perf_counter()
    hosts.start()
    tasks = {name: demix_corpus.small(TABLES[name], smoke=config.smoke) for name in config.tasks}
    with preemption.at_once():
        directory = runs.open_run(results, "demix_repair", asdict(config), run)
        corpus = demix_corpus.gather(results, tasks, config.cleans, config.rows, range(config.draws))
        seeds = range(config.first_seed, config.first_seed + config.seeds)
        rows, sections = [], {}
        for name, task in tasks.items():
            count = len(demix_corpus.chosen(task, config.rules)) * len(config.cleans)
            measure = partial(measure_table, task, config, corpus[name])
            found = [facts for facts, _ in study.run_units(directory, name, seeds, measure, models=count)]
            own = rows_of(name, found)
            rows += own
            for part in dict.fromkeys(row["task"] for row in own):
                shown = [row for row in own if row["task"] == part]
                of = lambda row, metric: row["metrics"][metric]["per_seed"]
                points = {r["method"]: (of(r, "average_accuracy"), of(r, WGA)) for r in shown}
                figure = plots.tradeoff(points, xlabel="average accuracy", ylabel="accuracy of the worst group")
                text = "Means over rules and draws. The diagnoser has seen neither the rule nor the draw."
                sections[part] = page.Section(text, {"Both accuracies of every training set.": figure})
        page.finish(directory, "demix_repair", asdict(config), rows, sections, perf_counter() - begin)
    return directory


if __name__ == "__main__":
    tyro.cli(main)
