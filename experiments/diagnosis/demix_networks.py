"""Does a diagnoser find wrong rows from the influences of a task network that it has never seen?

Claim:    trees that have seen the other task networks do as well on a new one as trees that have seen it.
Command:  python -m experiments.demix_networks          (`--config.smoke` takes a quarter of a minute)
Expected: the table in experiments/README.md, which this command wrote.
Device:   two CPU cores, about 20 minutes, 13 of them the FT-transformer's; any JAX device works.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter

import numpy as np
import tyro

from d3mjax.reports import page, plots
from d3mjax.runtime import hosts, preemption, runs
from experiments import study
from experiments.diagnosis import demix_corpus, demix_diagnose, demix_report
from experiments.diagnosis.demix_cells import NETWORKS
from experiments.diagnosis.demix_corpus import Stored
from experiments.diagnosis.demix_tables import TABLES

SPLITS = {
    "seen alone": "Fitted on this network's cells of other draws.",
    "seen among others": "Fitted on all networks' cells of other draws.",
    "unseen": "Fitted on the other networks' cells of other draws.",
}
METHODS = (demix_diagnose.OURS, "trees, published channels")


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


def splits_of(config: Config, corpus: dict[str, list[Stored]], seed: int, progress: Callable) -> study.Unit:
    """``network -> split -> method -> clean ratio -> figures`` at one draw, fitted on the others."""
    options = demix_diagnose.Config(cleans=config.cleans, fitted=config.fitted, rounds=config.rounds)
    figures = partial(demix_diagnose.split_figures, config=options, methods=METHODS)
    by_seed = lambda cell: str(cell.seed)  # all networks have the same rows and errors at one draw
    cells = [cell for of_network in corpus.values() for cell in of_network if cell.seed != seed]
    found = {}
    for name, own in corpus.items():
        test = [cell for cell in own if cell.seed == seed]
        seen, others = ([c for c in cells if (c.task == test[0].task) == same] for same in (True, False))
        found[name] = {
            split: figures(train, test, with_rivals=train is seen, new=by_seed)
            for split, train in zip(SPLITS, (seen, cells, others), strict=True)
        }
    progress(1)
    return found, {}


def gather(config: Config, results: Path, seeds: range) -> dict[str, list[Stored]]:
    """Cells of each task network, which is named in their task."""
    task = demix_corpus.small(TABLES[config.task], smoke=config.smoke)
    rules = tuple(task.rules[k] for k in demix_corpus.chosen(task, config.rules))
    task = task._replace(rules=rules, train=min(config.train, task.train), validation=config.validation)
    corpus = {}
    for name in config.networks:
        options = {"network": NETWORKS[name]}
        made = demix_corpus.gather(results, {config.task: task}, config.cleans, config.rows, seeds, **options)
        corpus[name] = [cell._replace(task=f"{config.task}, {name}") for cell in made[config.task]]
    return corpus


def sections_of(config: Config, rows: Sequence[dict]) -> dict[str, page.Section]:
    """What the page says of each table, and macro-F1 of all with the first of each clean ratio."""
    of = {row["task"]: row["metrics"]["macro_f1"]["per_seed"] for row in rows if row["method"] == METHODS[0]}
    made = {}
    for clean in config.cleans:
        table = lambda network, split, clean=clean: f"{config.task}, {network}, {split}, clean ratio {clean}"
        shown = {split: np.transpose([of[table(network, split)] for network in config.networks]) for split in SPLITS}
        names = [network.replace("mlp ", "mlp, ") for network in config.networks]  # a line each
        figure = plots.bar_groups(shown, names, ylabel="macro-F1 of trees")
        figures = {f"All task networks, clean ratio {clean}.": figure}
        for network in config.networks:
            for split, text in SPLITS.items():
                made[table(network, split)] = page.Section(text, figures)
                figures = {}
    return made


def main(config: Config, results: Path = Path("results"), run: str | None = None) -> Path:
    """Run or resume; returns the directory of results."""
    if config.smoke:
        config = replace(config, task="digits", networks=config.networks[:2], rules=(0, 1), seeds=3)
        config = replace(config, train=200, validation=64, rows=150, fitted=60, rounds=5)
    if config.task not in TABLES:
        raise ValueError(f"task: found {config.task!r}, expected one of {sorted(TABLES)}")
    if len(config.networks) < 2 or not set(config.networks) <= NETWORKS.keys():
        raise ValueError(f"networks: found {list(config.networks)}, expected two at least of {sorted(NETWORKS)}")
    if config.seeds < 3:
        raise ValueError(f"seeds: found {config.seeds}, expected at least 3: one to try on, others to fit on")
    begin = perf_counter()
    hosts.start()
    seeds = range(config.first_seed, config.first_seed + config.seeds)
    with preemption.at_once():
        directory = runs.open_run(results, "demix_networks", asdict(config), run)
        corpus = gather(config, results, seeds)
        found = study.run_units(directory, config.task, seeds, partial(splits_of, config, corpus), models=1)
        rows = [
            row
            for name in config.networks
            for row in demix_report.rows_of(f"{config.task}, {name}", [facts[name] for facts, _ in found])
        ]
        page.finish(
            directory, "demix_networks", asdict(config), rows, sections_of(config, rows), perf_counter() - begin
        )
    return directory


if __name__ == "__main__":
    tyro.cli(main)
