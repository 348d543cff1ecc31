"""Repair on tables that a diagnoser has not seen: the recommended one against the dirty table, on 43 tables.

Claim:    rows that weigh by their probability to be sound make networks better than the dirty table does, on most
          tables at all clean ratios; changes of claimed labels and values gain more at 0.5, and lose on half at 0.95.
Command:  python -m experiments demix_tables_repair
Expected: tables that report, clean ratio 0.5, 0.8 and 0.95: average accuracy above that of the dirty table on 90, 90
          and 81 % of them, of the changes on 95, 67 and 52 %; at 0.95 within one point on 100 %, and on 71 %.
Device:   two CPU cores, 4 minutes after demix_tables_pretrain, whose cells it reads.

Probabilities are of forests, calibration and thresholds that have not seen the table. Weights were chosen among some
nineteen repairs, in three sweeps on five to twelve tables of one half; the other half reports.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from d3mjax.attribution import outputs
from d3mjax.data import tables
from d3mjax.data.planted import mixed_errors
from d3mjax.data.planted.mixed_errors import Errors
from d3mjax.data.sets.shortcut_tables import Labelled, TableTask, divide
from d3mjax.diagnosis import claims, repair
from d3mjax.diagnosis.cells import MLP2, labelled, trainer_of
from d3mjax.diagnosis.repair import Repaired
from d3mjax.reports import page, plots, sentences
from d3mjax.reports.rows import WGA, Kind, row
from d3mjax.runtime import hosts, preemption, runs
from d3mjax.training import ensemble
from experiments.diagnosis import travel, travel_cells
from experiments.diagnosis.many_tables import TASKS
from experiments.diagnosis.travel_cells import Small
from experiments.study import Study
from experiments.tasks import spread

DIRTY, CLEAN = "dirty", "clean"
RECOMMENDED = "rows weigh by their probability to be sound, as d3mjax-diagnose does"
LIFTED = "likely minority rows weigh up to 1.8 times as much"
CHANGED = "claimed labels and values changed, cautious, equal weights where the guard warns"
DROPPED = "claimed rows dropped"
KINDS = {DIRTY: Kind("plain"), CLEAN: Kind("ceiling"), DROPPED: Kind("rival")}
MULTIPLE = 32  # of encoded columns, so that draws share programs


@dataclass(frozen=True)
class Config:
    """What determines the numbers."""

    # The cells, and the probabilities on tables left out.
    judged: travel.Config = field(default_factory=lambda: travel.Config(seeds=2, fitted=150))
    tasks: tuple[str, ...] = tuple(TASKS)
    cleans: tuple[float, ...] = (0.5, 0.8, 0.95)
    # Draws of errors whose tables are repaired, and networks trained on every set.
    seeds: int = 2
    first_seed: int = 0
    networks: int = 3
    test: int = 2000
    smoke: bool = False


def make_evaluate(task: TableTask, networks: int) -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    """``(key, sets, x_test [s t d]) -> predicted classes of the test rows [s m t] and of their own rows [s m n]``."""
    model = MLP2.make([], task.classes)
    trainer = trainer_of(model, MLP2, task.train)

    def look(variables, *x):
        return tuple(outputs.logits(model, variables, part).argmax(1) for part in x)

    @jax.jit
    def train(keys, splits, weights, x):
        return ensemble.train_many(
            trainer, keys, splits, weights, MLP2.steps, look=look, each=(x, splits.x), **spread()
        )

    def evaluate(key, sets: Sequence[Repaired], rows: Labelled):
        encoders = [tables.fit_encoder(each.table) for each in sets]
        splits = [labelled(encoder, s.table, s.labels) for encoder, s in zip(encoders, sets, strict=True)]
        # Misspelt levels come after all others, so that rows without them keep their positions.
        tested = [rows[0]._replace(levels=each.table.levels) for each in sets]
        x = [tables.encode(encoder, table) for encoder, table in zip(encoders, tested, strict=True)]
        width = -(-max(a.shape[1] for a in x) // MULTIPLE) * MULTIPLE
        wide = lambda a: np.pad(a, ((0, 0), (0, width - a.shape[1])))
        splits = [split._replace(x=wide(split.x)) for split in splits]
        times = lambda a: np.repeat(a, networks, axis=0)
        stacked = jax.tree.map(lambda *a: times(np.stack(a)), *splits)
        # The same starts for all sets: they differ in their data alone.
        keys = jnp.tile(ensemble.model_keys(key, np.arange(networks)), len(sets))
        weights = times(np.stack([s.weights for s in sets]))
        predicted, losses = jax.device_get(train(keys, stacked, weights, times(np.stack([wide(a) for a in x]))))
        ensemble.check_losses(losses, np.arange(len(losses)))
        return tuple(a.reshape(len(sets), networks, -1) for a in predicted)

    return evaluate


def predicted(
    errors: Errors, cell: Small, p: Float[np.ndarray, "n e"], correct: np.ndarray, num_classes: int
) -> dict[str, Repaired]:
    """Weights, and changes by the claims of the highest expected F1."""
    others = np.where(np.arange(num_classes)[None] == cell.y[:, None], -1, (cell.left_out + cell.forest) / 2)
    options: Any = {"num_classes": num_classes, "correct": correct}
    proposed, claimed = others.argmax(1).astype(cell.y.dtype), claims.expected_best(p)
    change = partial(repair.recommended, errors.table, errors.labels, claimed, p, proposed=proposed, **options)
    return {
        RECOMMENDED: repair.weighed(errors.table, errors.labels, p, **options)[0],
        LIFTED: repair.weighed(errors.table, errors.labels, p, **options, lift=0.25)[0],
        CHANGED: change(restore=repair.impute)[0],
        DROPPED: Repaired(errors.table, errors.labels, np.where(claimed[:, :2].any(1), np.float32(0), np.float32(1))),
    }


def make_measure(
    task: TableTask,
    config: Config,
    cleans: Sequence[float],
    cells: Mapping[tuple[int, float], tuple[Small, np.ndarray]],
    *,
    variants: Callable[..., dict[str, Repaired]] = predicted,
) -> Callable[[int, Callable[[int], object]], runs.Unit]:
    """``(seed, progress) -> facts, arrays``: accuracies of every network on every set, at all clean ratios.

    ``cells`` of the table with their probabilities, by seed and clean ratio, made at the ratios ``cleans`` together.
    """
    parts, used = divide(task), config.cleans
    size = min(config.test, *(mixed_errors.most_rows(*parts.test, rule) - 4 for rule in task.rules))
    evaluate = make_evaluate(task, config.networks)

    def measure(seed, progress):
        _, pairs = travel_cells.planted(task, parts, cleans, seed)
        errors = {clean: train for clean, (train, _) in zip(cleans, pairs, strict=True)}
        rule, key = task.rules[seed % len(task.rules)], jax.random.key(seed)
        index = mixed_errors.subset(jax.random.fold_in(key, 7), *parts.test, rule, size=size)
        test = tables.take(parts.test[0], index), parts.test[1][index]
        group = 2 * np.asarray(rule.condition(test[0])).astype(int) + np.asarray(rule.label(test[1]))
        ones = np.ones(task.train, np.float32)
        sets = {(c, DIRTY): Repaired(errors[c].table, errors[c].labels, ones) for c in used}
        sets |= {(c, CLEAN): Repaired(errors[c].clean_table, errors[c].clean_labels, ones) for c in used}
        of_test, own = evaluate(key, list(sets.values()), test)
        classes, together = dict(zip(sets, of_test, strict=True)), len(sets)
        repaired: dict[tuple[float, str], Repaired] = {}
        for i, clean in enumerate(used):
            cell, p = cells[seed, clean]
            np.testing.assert_array_equal(errors[clean].labels, cell.y)
            correct = (own[i] == cell.y[None]).mean(0) > 0.5
            made = variants(errors[clean], cell, p, correct, task.classes)
            repaired |= {(clean, name): one for name, one in made.items()}
        names, some = list(repaired), list(repaired.values())
        for first in range(0, len(some), together):  # as many at once as above: one program for all
            part = some[first : first + together]
            of_test, _ = evaluate(key, [*part, *[part[0]] * (together - len(part))], test)
            classes |= dict(zip(names[first : first + together], of_test, strict=False))
        progress(1)
        facts: dict[str, Any] = {str(clean): {} for clean in used}
        for (clean, name), predicted_classes in classes.items():
            facts[str(clean)][name] = accuracies(predicted_classes, test[1], group)
        return facts, {}

    return measure


def accuracies(predicted: np.ndarray, y: np.ndarray, group: np.ndarray) -> dict[str, list[float]]:
    """Of every network: accuracy of all rows, and of the worst group of condition and label."""
    right = predicted == y[None]
    worst = [min(r[group == g].mean() for g in np.unique(group)) for r in right]
    return {"accuracy": right.mean(1).tolist(), "worst group": [float(w) for w in worst]}


def work(config: Config, results: Path, run: str | None) -> Path:
    """Read cells and probabilities, train on every set of every table and draw, and write the run."""
    begin = time.perf_counter()
    hosts.start()
    with preemption.at_once():
        seeds = range(config.first_seed, config.first_seed + config.seeds)
        run_dir = runs.open_run(results, "demix_tables_repair", asdict(config), run)
        tasks, cells = travel.tasks_of(config.judged), travel.cells_of(config.judged, results)
        p = travel.by_cell(travel.judged(config.judged, results, cells)["probabilities"], cells)
        units = {}
        for name in config.tasks:
            of_table = {(c.seed, c.clean): (c, q) for c, q in zip(cells, p, strict=True) if c.task == name}
            measure = make_measure(tasks[name], config, config.judged.cleans, of_table)
            units[name] = [facts for facts, _ in runs.run_units(run_dir, name, seeds, measure, models=1)]
        rows = rows_of(units, config)
        about = (
            f"{len(units)} tables, {config.seeds} draws of errors, {config.networks} networks on every training set; "
            "means over tables, spread over draws. The diagnoser has not seen the table."
        )
        title = f"all tables, clean ratio {config.cleans[0]}"
        of_row = lambda one, metric: one["metrics"][metric]["per_seed"]
        points = {
            one["method"]: (of_row(one, "average_accuracy"), of_row(one, WGA)) for one in rows if one["task"] == title
        }
        figure = plots.tradeoff(points, xlabel="average accuracy", ylabel="accuracy of the worst group")
        caption, sections = f"Both accuracies of every training set, clean ratio {config.cleans[0]}.", {}
        pairs = [(RECOMMENDED, DIRTY), (RECOMMENDED, CHANGED)]
        for task in dict.fromkeys(one["task"] for one in rows):
            of_task = [one for one in rows if one["task"] == task]
            findings = sentences.comparisons(of_task, pairs, metric="average_accuracy", name="Average accuracy, %")
            sections[task] = page.Section(about, {caption: figure} if task == title else {}, findings)
        page.finish(run_dir, STUDY.name, asdict(config), rows, sections, time.perf_counter() - begin)
    return run_dir


def rows_of(units: Mapping[str, Sequence[Mapping[str, Any]]], config: Config) -> list[dict[str, Any]]:
    """Rows by clean ratio, of all tables and of the half that reports: accuracies, and shares of the tables."""
    names = sorted(units)
    halves = {"all tables": names, "tables that chose the guard": names[::2], "tables that report": names[1::2]}
    rows = []
    for half, chosen in halves.items():
        for clean in map(str, config.cleans):
            of = lambda method, figure, clean=clean, chosen=chosen: np.array(
                [[facts[clean][method][figure] for facts in units[name]] for name in chosen]
            )  # [tables draws networks]
            plain, worst = of(DIRTY, "accuracy"), of(DIRTY, "worst group")
            for method in units[names[0]][0][clean]:
                gain, change = of(method, "accuracy") - plain, of(method, "worst group") - worst
                metrics = {
                    "average_accuracy": of(method, "accuracy").mean((0, 2)).tolist(),
                    WGA: of(method, "worst group").mean((0, 2)).tolist(),
                }
                if method != DIRTY:
                    metrics |= {name: [value] for name, value in shares(gain, change, worst).items()}
                kind = KINDS.get(method, Kind("ours"))
                rows.append(
                    row(f"{half}, clean ratio {clean}", method, metrics, role=kind.role, settings=kind.settings())
                )
    return rows


def shares(
    gain: Float[np.ndarray, "k s m"], change: Float[np.ndarray, "k s m"], worst: Float[np.ndarray, "k s m"]
) -> dict[str, float]:
    """Shares of ``k`` tables: gain above 0, gain above -0.01, and change of the worst group above minus its deviation.

    Means over draws and networks. The deviation is that of ``worst``, of the dirty table, over draws and networks.
    """
    gains, changes = gain.mean((1, 2)), change.mean((1, 2))
    return {
        "tables_above_dirty": float((gains > 0).mean()),
        "tables_within_.01_of_dirty": float((gains >= -0.01).mean()),
        "tables_where_the_worst_group_stays_within_its_spread": float((changes >= -worst.std((1, 2), ddof=1)).mean()),
    }


def smoke(config: Config) -> Config:
    """The tables of a smoke run of `demix_tables`."""
    judged = travel.smoke(config.judged)
    return replace(config, judged=judged, tasks=judged.tasks, cleans=judged.cleans, networks=1, test=100)


STUDY = Study(
    "demix_tables_repair",
    claim="Rows that weigh by their probability to be sound make networks better than the dirty table does on most "
    "tables, at all clean ratios.",
    config=Config(),
    tasks=TASKS,
    work=work,
    minutes=4,
    headline=("tables that report, clean ratio 0.5", RECOMMENDED, "average_accuracy"),
    smoke=smoke,
)
