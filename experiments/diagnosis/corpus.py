"""A corpus of diagnosed rows: features, training-free signals and true errors of the rows of many planted cells.

A planted cell (`plan`) is one table, rule, clean ratio and seed. A unit is one table and seed: all rules at all clean
ratios, a share of the rows of each. Signals are scores that need no training, as ranks in the cell, larger being more
suspicious.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int

from d3mjax.attribution import outputs
from d3mjax.data import tables
from d3mjax.data.planted import mixed_errors
from d3mjax.data.planted.mixed_errors import Errors, Rule, minority
from d3mjax.data.sets.shortcut_tables import Parts, TableTask, divide
from d3mjax.diagnosis import baseline_scores
from d3mjax.diagnosis.cells import EXTRAS, FEATURES, MLP2, Cell, Network, features, labelled, make_train
from d3mjax.runtime import hosts, runs
from d3mjax.types import Split

LABEL = ("loss", "margin", "path of margins", "left-out loss", "neighbours' labels", "confident learning", "CNCI")
FEATURE = ("largest z", "PCID", "surprise", "far")
MINORITY = ("SC = y", "JTT error set", "self-influence", "left-out loss")
SIGNALS = tuple(
    f"{letter}: {name}" for letter, names in zip("LFS", (LABEL, FEATURE, MINORITY), strict=True) for name in names
)
"""Training-free scores, for label errors (L), feature errors (F) and the spurious minority (S)."""
BINARY = ("S: SC = y", "S: JTT error set")
BREAKS = ("outlier", "scale", "categories")
"""How features are broken; "categories" where no number is."""


class Planned(NamedTuple):
    """Planted errors in train and validation rows, and their features."""

    train: Errors
    validation: Errors
    splits: tuple[Split, Split]


class Stored(NamedTuple):
    """Rows of one cell."""

    task: str
    seed: int
    rule: int
    balanced: bool
    clean: float
    kind: str  # of feature errors, one of `BREAKS`
    features: np.ndarray  # Float32[r f]
    flags: np.ndarray  # Bool[r e]
    signals: np.ndarray = np.zeros((0, len(SIGNALS)), np.float32)  # Float32[r s], ranks in (0, 1)
    told: np.ndarray = np.zeros(0, bool)  # Bool[r], minority of the rule as recorded, errors and all
    in_cell: tuple[float, ...] = ()  # F1 by type of trees on the raw rows, fitted on the other half of the same cell


def plan(task: TableTask, parts: Parts, rule: Rule | None, clean: float, seed: int) -> Planned:
    """Errors drawn by ``seed``, in train and validation rows alike; the encoder is fitted on the dirty rows."""
    dirty, held = (
        mixed_errors.inject(
            jax.random.key(seed),
            *part,
            rule,
            num_classes=task.num_classes,
            options=mixed_errors.Options(clean=clean, size=size),
        )
        for part, size in ((parts.train, task.train), (parts.validation, task.validation))
    )
    encoder = tables.fit_encoder(dirty.table)
    train, validation = (labelled(encoder, errors.table, errors.labels) for errors in (dirty, held))
    return Planned(dirty, held, (train, validation))


def make_collect(
    task: TableTask, network: Network, cleans: Sequence[float], rows: int, *, width: int = 1, mesh: Mesh | None
) -> Callable[[int, Callable[[int], object]], tuple[dict[str, Any], dict[str, np.ndarray]]]:
    """``(seed, progress) -> facts, arrays`` of all cells of a table, ``rows`` of each; `read` makes cells of them."""
    parts = divide(task)
    columns = list(tables.slices(parts.train[0]).values())
    train = make_train(network, columns, task.num_classes, task.train, width=width, mesh=mesh)
    cells = [(k, clean) for k in range(len(task.rules)) for clean in cleans]

    def collect(seed, progress):
        # The draw of a rule is the same at all clean ratios, so that they can be compared.
        planned = [plan(task, parts, task.rules[k], clean, 100 * seed + k) for k, clean in cells]
        trained = train(jax.random.key(seed), [p.splits for p in planned], [p.train.table for p in planned])
        kept = np.random.default_rng(seed).permutation(task.train)[:rows]
        stored = [
            _arrays(task, k, p, Cell(*(a[kept] for a in cell)), kept)
            for (k, _), p, cell in zip(cells, planned, trained, strict=True)
        ]
        progress(len(cells))
        facts = {"kinds": list(map(kind_of, planned)), "rules": [k for k, _ in cells], "cleans": [c for _, c in cells]}
        return facts, {name: np.stack([arrays[name] for arrays in stored]) for name in stored[0]}

    return collect


def read(task: TableTask, seed: int, facts: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> list[Stored]:
    """The cells of a unit."""
    cells = []
    for i, (kind, rule, clean) in enumerate(zip(facts["kinds"], facts["rules"], facts["cleans"], strict=True)):
        fields: dict[str, Any] = {name: arrays[name][i] for name in ("features", "flags", "signals", "told", "in_cell")}
        fields["in_cell"] = tuple(fields["in_cell"].tolist())
        cells.append(Stored(task.name, seed, rule, task.rules[rule].balanced, clean, kind, **fields))
    return cells


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
    stored = {}
    for name, task in tasks.items():
        sizes = {"train": task.train, "validation": task.validation, "rules": [rule.name for rule in task.rules]}
        facts = {"task": name, **sizes, "network": network.name, "cleans": list(cleans), "rows": rows}
        facts |= {"features": list(FEATURES), "signals": list(SIGNALS)}  # a cell of other ones is another cell
        run_dir = runs.open_run(results, "demix_cells", facts, None)
        width, mesh = hosts.models_at_once(), hosts.local_mesh()
        collect = make_collect(task, network, cleans, rows, width=width, mesh=mesh)
        units = runs.run_units(run_dir, name, seeds, collect, models=len(task.rules) * len(cleans))
        stored[name] = [cell for seed, unit in zip(seeds, units, strict=True) for cell in read(task, seed, *unit)]
    return stored


def take(cell: Stored, rows: slice) -> Stored:
    """Some rows of a cell, whose order is random."""
    return cell._replace(**{name: getattr(cell, name)[rows] for name in ("features", "flags", "signals", "told")})


def kind_of(planned: Planned) -> str:
    """How numbers were broken, or "categories" where none was."""
    return kind_of_errors(planned.train)


def kind_of_errors(errors: Errors) -> str:
    """`kind_of` of the errors of the rows to train on."""
    before, after = errors.clean_table, errors.table
    for name, a in after.columns.items():
        changed = a != before.columns[name]
        if name not in after.levels and changed.any():
            return BREAKS[0] if len(np.unique(a[changed])) <= 2 else BREAKS[1]
    return BREAKS[2]


def _arrays(task: TableTask, rule: int, planned: Planned, cell: Cell, kept: Int[np.ndarray, "r"]):
    errors, held = planned.train, planned.validation
    y, x, flags = errors.labels[kept], planned.splits[0].x[kept], errors.flags[kept]
    return {
        "features": features(cell, y, task.num_classes),
        "flags": flags,
        "signals": _signals(task, planned, cell, y, x, held.labels),
        "told": minority(task.rules[rule], errors.table, errors.labels)[kept],
        "in_cell": np.array([_halves(x, y, flag) for flag in flags.T]),
    }


def _signals(task: TableTask, planned: Planned, cell: Cell, y, x, validation_y) -> Float[np.ndarray, "r s"]:
    """`SIGNALS` as ranks in the cell."""
    table = planned.train.table
    numbers = [x[:, span] for name, span in tables.slices(table).items() if name not in table.levels]
    flat = np.concatenate([np.zeros((len(y), 1), np.float32), *numbers], axis=1)
    softmax = np.asarray(jax.nn.softmax(cell.left_out, axis=1))
    of = lambda labels: np.take_along_axis(cell.by_class, np.asarray(labels)[:, None, None], 1)[:, 0].astype(np.float32)
    glitches = baseline_scores.glitches(of, y, validation_y, task.classes)
    extra = dict(zip(EXTRAS, cell.extras.T, strict=True))
    loss = cell.vectors[:, 3, 0].astype(np.float32)
    margin = outputs.hard_margin(jnp.asarray(cell.logits), y)
    label = (loss, -margin, -extra["path"], extra["left out"], baseline_scores.knn_disagreement(x, y))
    label = (*label, baseline_scores.confident_learning(softmax, y), glitches.cnci)
    feature = (baseline_scores.outliers(flat), glitches.pcid, extra["surprise"], extra["far"])
    rare = baseline_scores.rare_class(y, task.classes), baseline_scores.jtt_errors(cell.logits, y)
    scores = (*label, *feature, *rare, extra["norm"], extra["left out"])
    return np.stack([np.asarray(baseline_scores.loss_rank(np.asarray(a, np.float32))) for a in scores], 1)


def _halves(x, y, flag) -> float:
    """F1 at one half of trees on the encoded row and its label, fitted on flags of the other half of the cell."""
    from sklearn.ensemble import HistGradientBoostingClassifier
    from threadpoolctl import threadpool_limits

    both = np.concatenate([x, y[:, None]], axis=1)
    first = np.arange(len(y)) % 2 == 0
    if flag[first].sum() < 2 or flag[~first].sum() < 1:
        return float("nan")
    with threadpool_limits(1, user_api="openmp"):
        grown = HistGradientBoostingClassifier(max_iter=60, random_state=0).fit(both[first], flag[first])
    claimed = grown.predict(both[~first])
    return float(2 * (claimed & flag[~first]).sum() / max(claimed.sum() + flag[~first].sum(), 1))
