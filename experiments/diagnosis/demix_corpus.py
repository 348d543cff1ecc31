"""What diagnosers learn from and are tried on: the features, signals and flags of many cells, stored as units.

A unit is one table and seed: all rules at all clean ratios, a share of the rows of each. Features are those of the
trees; signals are scores that need no training, as ranks in the cell, larger being more suspicious.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int
from sklearn.ensemble import HistGradientBoostingClassifier
from threadpoolctl import threadpool_limits

from d3mjax.attribution import outputs
from d3mjax.data import tables
from d3mjax.data.planted.mixed_errors import minority
from d3mjax.diagnosis import baseline_scores
from d3mjax.runtime import hosts, runs
from experiments import study
from experiments.diagnosis.demix_cells import (
    EXTRAS,
    FEATURES,
    MLP2,
    Cell,
    Network,
    Planned,
    features,
    make_vectors,
    plan,
)
from experiments.diagnosis.demix_tables import TableTask, divide

LABEL = ("loss", "margin", "path of margins", "left-out loss", "neighbours' labels", "confident learning", "CNCI")
FEATURE = ("largest z", "PCID", "surprise", "far")
MINORITY = ("SC = y", "JTT error set", "self-influence", "left-out loss")
SIGNALS = tuple(
    f"{kind}: {name}" for kind, names in zip("LFS", (LABEL, FEATURE, MINORITY), strict=True) for name in names
)
"""Training-free scores, for label errors, feature errors and minority."""
BINARY = ("S: SC = y", "S: JTT error set")
BREAKS = ("outlier", "scale", "categories")
"""How features are broken; "categories" where no number is."""


class Stored(NamedTuple):
    """Rows of one cell."""

    task: str
    seed: int
    rule: int
    balanced: bool
    clean: float
    kind: str  # of `BREAKS`: which feature errors it has
    features: np.ndarray  # Float32[r f]
    flags: np.ndarray  # Bool[r 3]
    signals: np.ndarray = np.zeros((0, len(SIGNALS)), np.float32)  # Float32[r s], ranks in (0, 1)
    told: np.ndarray = np.zeros(0, bool)  # Bool[r], minority of the rule that one is told, seen through the errors
    in_cell: tuple[float, ...] = ()  # F1 by type of trees on the raw rows, fitted on the other half of the same cell


def gather(
    results: Path,
    tasks: Mapping[str, TableTask],
    cleans: Sequence[float],
    rows: int,
    seeds: range,
    *,
    network: Network = MLP2,
) -> dict[str, list[Stored]]:
    """The cells of all tables and draws, made where ``results/demix_cells`` does not have them yet.

    Raises:
      ValueError: on several hosts.
    """
    if jax.process_count() > 1:
        raise ValueError(f"found {jax.process_count()} processes, expected one: diagnosis runs on one host")
    corpus = {}
    for name, task in tasks.items():
        sizes = {"train": task.train, "validation": task.validation, "rules": [rule.name for rule in task.rules]}
        facts = {"task": name, **sizes, "network": network.name, "cleans": list(cleans), "rows": rows}
        facts |= {"features": list(FEATURES), "signals": list(SIGNALS)}  # a cell of other ones is another cell
        directory = runs.open_run(results, "demix_cells", facts, None)
        measure = collect(task, network, cleans, rows, hosts.local_mesh())
        found = study.run_units(directory, name, seeds, measure, models=len(task.rules) * len(cleans))
        corpus[name] = [cell for seed, unit in zip(seeds, found, strict=True) for cell in read(task, seed, unit)]
    return corpus


def take(cell: Stored, rows: slice) -> Stored:
    """Some rows of a cell, whose order is random."""
    return cell._replace(**{name: getattr(cell, name)[rows] for name in ("features", "flags", "signals", "told")})


def chosen(task: TableTask, rules: Sequence[int]) -> list[int]:
    """Numbers of rules, negative ones from the end, each once."""
    return sorted({rule % len(task.rules) for rule in rules})


def small(task: TableTask, *, smoke: bool) -> TableTask:
    """The table as it is, or with few rows and one rule of each sort."""
    if not smoke:
        return task
    rules = (task.rules[0], next(rule for rule in task.rules if rule.balanced))
    return task._replace(rules=rules, train=min(task.train, 200), validation=64)


def collect(
    task: TableTask, network: Network, cleans: Sequence[float], rows: int, devices: Mesh
) -> Callable[[int, Callable[[int], object]], study.Unit]:
    """``(seed, progress) -> unit`` of a table."""
    parts = divide(task)
    columns = list(tables.slices(parts.train[0]).values())
    make = make_vectors(network, columns, task.num_classes, task.train, devices)
    cells = [(k, clean) for k in range(len(task.rules)) for clean in cleans]

    def measure(seed: int, progress: Callable[[int], object]) -> study.Unit:
        # The draw of a rule is the same at all clean ratios, so that they can be compared.
        planned = [plan(task, parts, task.rules[k], clean, 100 * seed + k) for k, clean in cells]
        made = make(jax.random.key(seed), [p.splits for p in planned], [p.train.table for p in planned])
        kept = np.random.default_rng(seed).permutation(task.train)[:rows]
        found = [
            _stored(task, k, p, Cell(*(a[kept] for a in cell)), kept)
            for (k, _), p, cell in zip(cells, planned, made, strict=True)
        ]
        progress(len(cells))
        facts = {"kinds": [kind for kind, _ in found], "rules": [k for k, _ in cells], "cleans": [c for _, c in cells]}
        arrays = {name: np.stack([cell[name] for _, cell in found]) for name in found[0][1]}
        return facts, arrays

    return measure


def read(task: TableTask, seed: int, unit: study.Unit) -> list[Stored]:
    """The cells of a unit."""
    facts, arrays = unit
    cells = []
    for i, (kind, rule, clean) in enumerate(zip(facts["kinds"], facts["rules"], facts["cleans"], strict=True)):
        own = {name: arrays[name][i] for name in ("features", "flags", "signals", "told", "in_cell")}
        own["in_cell"] = tuple(own["in_cell"].tolist())
        cells.append(Stored(task.name, seed, rule, task.rules[rule].balanced, clean, kind, **own))
    return cells


def _stored(task: TableTask, rule: int, planned: Planned, cell: Cell, kept: Int[np.ndarray, " r"]):
    """Kind of feature errors, and arrays of a cell."""
    errors, held = planned.train, planned.validation
    y, x, flags = errors.labels[kept], planned.splits[0].x[kept], errors.flags[kept]
    told = minority(task.rules[rule], errors.table, errors.labels)[kept]
    arrays = {
        "features": features(cell, y, task.num_classes),
        "flags": flags,
        "signals": signals(task, planned, cell, y, x, held.labels),
        "told": told,
        "in_cell": np.array([_halves(x, y, flag) for flag in flags.T]),
    }
    return kind_of(planned), arrays


def kind_of(planned: Planned) -> str:
    """How numbers were broken, or "categories" where none was."""
    before, after = planned.train.clean_table, planned.train.table
    for name, a in after.columns.items():
        changed = a != before.columns[name]
        if name not in after.levels and changed.any():
            return BREAKS[0] if len(np.unique(a[changed])) <= 2 else BREAKS[1]
    return BREAKS[2]


def signals(task: TableTask, planned: Planned, cell: Cell, y, x, validation_y) -> Float[np.ndarray, "r s"]:
    """`SIGNALS` as ranks in the cell."""
    numbers = [
        span for name, span in tables.slices(planned.train.table).items() if name not in planned.train.table.levels
    ]
    flat = np.concatenate([np.zeros((len(y), 1), np.float32), *(x[:, span] for span in numbers)], axis=1)
    softmax = np.asarray(jax.nn.softmax(cell.left_out, axis=1))
    of = lambda labels: np.take_along_axis(cell.by_class, np.asarray(labels)[:, None, None], 1)[:, 0].astype(np.float32)
    glitches = baseline_scores.glitches(of, y, validation_y, task.num_classes)
    extra = dict(zip(EXTRAS, cell.extras.T, strict=True))
    loss = cell.vectors[:, 3, 0].astype(np.float32)
    margin = outputs.hard_margin(jnp.asarray(cell.logits), y)
    label = (loss, -margin, -extra["path"], extra["left out"], baseline_scores.knn_disagreement(x, y))
    label = (*label, baseline_scores.confident_learning(softmax, y), glitches.cnci)
    feature = (baseline_scores.outliers(flat), glitches.pcid, extra["surprise"], extra["far"])
    rare = (
        baseline_scores.rare_class(y, task.num_classes),
        baseline_scores.jtt_errors(cell.logits, y),
        extra["norm"],
        extra["left out"],
    )
    return np.stack(
        [np.asarray(baseline_scores.loss_rank(np.asarray(a, np.float32))) for a in (*label, *feature, *rare)], 1
    )


def _halves(x, y, flag) -> float:
    """F1 at one half of trees on the encoded row and its label: what flags of the same cell are worth."""
    both = np.concatenate([x, y[:, None]], axis=1)
    first = np.arange(len(y)) % 2 == 0
    if flag[first].sum() < 2 or flag[~first].sum() < 1:
        return float("nan")
    with threadpool_limits(1, user_api="openmp"):
        grown = HistGradientBoostingClassifier(max_iter=60, random_state=0).fit(both[first], flag[first])
    claimed = grown.predict(both[~first])
    return float(2 * (claimed & flag[~first]).sum() / max(claimed.sum() + flag[~first].sum(), 1))
