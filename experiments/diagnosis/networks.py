"""Does a diagnoser find wrong rows from the influences of a task network that it has never seen?

Claim:    trees that have seen the other task networks do as well on a new one as trees that have seen it.
Command:  python -m experiments demix_networks
Expected: macro-F1 of trees on Adult, MLP 64-32, clean ratio 0.5: seen alone 0.615 ± 0.021, unseen 0.610 ± 0.025.
Device:   two CPU cores, about 20 minutes, 13 of them the FT-transformer's; any JAX device works.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from d3mjax.data.sets import shortcut_tables
from d3mjax.data.sets.shortcut_tables import TABLES, TableTask, select_rules
from d3mjax.diagnosis.cells import NETWORKS
from d3mjax.reports import plots
from d3mjax.reports.page import Section
from d3mjax.reports.rows import Kind
from d3mjax.runtime import runs
from experiments.diagnosis import diagnose
from experiments.diagnosis.corpus import Stored, gather
from experiments.study import Study

SPLITS = {
    "seen alone": "Fitted on this network's cells of other draws.",
    "seen among others": "Fitted on all networks' cells of other draws.",
    "unseen": "Fitted on the other networks' cells of other draws.",
}
METHODS = (diagnose.OURS, "trees, published channels")


@dataclass(frozen=True)
class Config:
    """What determines the numbers."""

    task: str = "adult"
    # Each left out in turn.
    networks: tuple[str, ...] = tuple(NETWORKS)
    # Two published rules and both balanced ones.
    rules: tuple[int, ...] = (0, 2, -2, -1)
    cleans: tuple[float, ...] = (0.5, 0.8)
    seeds: int = 5
    first_seed: int = 0
    # Rows of each cell, and rows to validate on.
    train: int = 1000
    validation: int = 256
    # Rows stored of each cell, those that trees are fitted on, and how many trees.
    rows: int = 1000
    fitted: int = 100
    rounds: int = 60
    smoke: bool = False

    def __post_init__(self) -> None:
        if len(self.networks) < 2 or not set(self.networks) <= NETWORKS.keys():
            raise ValueError(f"networks: found {list(self.networks)}, expected two at least of {sorted(NETWORKS)}")
        diagnose.check_seeds(self.seeds)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The one table, as `study.run` reads it."""
        return (self.task,)


def smoke(config: Config) -> Config:
    """Two networks and few rows of digits."""
    config = replace(config, task="digits", networks=config.networks[:2], rules=(0, 1), seeds=3)
    return replace(config, train=200, validation=64, rows=150, fitted=60, rounds=5)


def splits_of(config: Config, cells: dict[str, list[Stored]], seed: int) -> dict[str, dict[str, diagnose.Figures]]:
    """``network -> split -> figures`` at one draw, fitted on the others."""
    figures = partial(diagnose.split_figures, config=config, methods=METHODS)
    by_seed = lambda cell: str(cell.seed)  # all networks have the same rows and errors at one draw
    train = [cell for of_network in cells.values() for cell in of_network if cell.seed != seed]
    results = {}
    for name, of_network in cells.items():
        test = [cell for cell in of_network if cell.seed == seed]
        seen, others = ([c for c in train if (c.task == test[0].task) == same] for same in (True, False))
        results[name] = {
            split: figures(part, test, with_rivals=part is seen, new=by_seed)
            for split, part in zip(SPLITS, (seen, train, others), strict=True)
        }
    return results


def prepare(task: TableTask, config: Config, results: Any) -> Callable[..., runs.Unit]:
    """``measure(seed, progress)``; the cells of each task network are named in their task."""
    rules = tuple(task.rules[k] for k in select_rules(task, config.rules))
    task = task._replace(rules=rules, train=min(config.train, task.train), validation=config.validation)
    seeds = range(config.first_seed, config.first_seed + config.seeds)
    cells = {}
    for name in config.networks:
        of_network = gather(results, {task.name: task}, config.cleans, config.rows, seeds, network=NETWORKS[name])
        cells[name] = [cell._replace(task=f"{task.name}, {name}") for cell in of_network[task.name]]

    def measure(seed, progress):
        figures = splits_of(config, cells, seed)
        progress(1)
        return figures, {}

    return measure


def describe(task: TableTask, config: Config, units: Sequence[runs.Unit]) -> tuple[list[dict], dict[str, Section]]:
    """Rows, and a section for each table; macro-F1 of all networks with the first of each clean ratio."""
    draws = [facts for facts, _ in units]
    kind_of = lambda method: Kind("ours") if method in METHODS else diagnose.KINDS.get(method, Kind("rival"))
    of_network = lambda name: diagnose.rows_of(f"{task.name}, {name}", [facts[name] for facts in draws], kind_of)
    rows = [row for name in config.networks for row in of_network(name)]
    macro = {row["task"]: row["metrics"]["macro_f1"]["per_seed"] for row in rows if row["method"] == METHODS[0]}
    sections = {}
    for clean in config.cleans:
        table = lambda network, split, clean=clean: f"{task.name}, {network}, {split}, clean ratio {clean}"
        shown = {split: np.transpose([macro[table(name, split)] for name in config.networks]) for split in SPLITS}
        names = [network.replace("mlp ", "mlp, ") for network in config.networks]  # a line each
        figure = plots.bar_groups(shown, names, ylabel="macro-F1 of trees")
        figures = {f"All task networks, clean ratio {clean}.": figure}
        for network in config.networks:
            for split, text in SPLITS.items():
                sections[table(network, split)] = Section(text, figures)
                figures = {}
    return rows, sections


STUDY = Study(
    "demix_networks",
    claim="Trees that have seen other task networks find wrong rows by a new one as well as trees that have seen it.",
    config=Config(),
    tasks=TABLES,
    prepare=prepare,
    describe=describe,
    minutes=20,
    headline=("adult, mlp 64-32, unseen, clean ratio 0.5", diagnose.OURS, "macro_f1"),
    smoke=smoke,
    small=shortcut_tables.small,
)
