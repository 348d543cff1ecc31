"""The diagnoser that d3mjax ships for numbers as labels: trees taught on eight tables with planted errors.

Claim:    trees taught on tables of regressions find label errors and feature errors of tables that were left out.
Command:  python -m experiments demix_number_pretrain
          cp results/demix_number_pretrain/RUN/diagnoser.npz d3mjax/diagnosis/shipped/diagnoser_numbers.npz
Device:   two CPU cores, 4 minutes after demix_regression, whose cells it reads, half an hour without.
"""

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from d3mjax.diagnosis import trees
from d3mjax.diagnosis.cells import NUMBER_FEATURES
from d3mjax.runtime import hosts, preemption, runs
from experiments.diagnosis import number_corpus, pretrain, regression
from experiments.diagnosis.pretrain import Sort
from experiments.number_tables import TABLES
from experiments.study import Study

SORT = Sort(
    "demix_number_pretrain",
    tuple(NUMBER_FEATURES),
    number_corpus.SIGNALS,
    {"L: loss": "the largest losses", "F: largest z": "the largest z-scores", "S: far label": "the farthest labels"},
)


@dataclass(frozen=True)
class Config:
    """What determines the diagnoser."""

    tasks: tuple[str, ...] = tuple(TABLES)
    # Shares of the rows without planted errors.
    cleans: tuple[float, ...] = (0.5, 0.8)
    # Rows of each cell that trees are fitted on.
    fitted: int = 200
    # Draws of the errors.
    seeds: int = 5
    first_seed: int = 0
    # Trees for each kind of error.
    rounds: int = 60
    smoke: bool = False


def smoke(config: Config) -> Config:
    """Seconds, and a diagnoser of no use."""
    return replace(config, tasks=("computers", "houses"), cleans=(0.5,), fitted=60, seeds=2, rounds=5)


def teach(config: Config, results: Path, *, run: str | None = None) -> Path:
    """Make cells, fit, evaluate, save ``RESULTS/demix_number_pretrain/RUN/diagnoser.npz``; returns the run."""
    begin = time.perf_counter()
    hosts.start()
    directory = runs.open_run(results, SORT.study, asdict(config) | {"features": NUMBER_FEATURES}, run)
    path = directory / "diagnoser.npz"
    if pretrain.finished(path):
        return directory
    with preemption.at_once():
        small = regression.small if config.smoke else lambda task: task
        chosen = {name: small(TABLES[name]) for name in config.tasks}
        seeds = range(config.first_seed, config.first_seed + config.seeds)
        every = number_corpus.gather(results, chosen, config.cleans, seeds)
        cells = [number_corpus.sampled(cell, config.fitted) for each in every.values() for cell, _ in each]
        options = trees.Options(folds=len(config.tasks), rounds=config.rounds, leaves=15)
        pretrain.write(path, SORT, config, cells, options, begin)
    print(f"diagnoser: {path}")
    return directory


STUDY = Study(
    "demix_number_pretrain",
    claim="Trees taught on tables of regressions find label errors and feature errors of tables that were left out.",
    config=Config(),
    tasks=TABLES,
    # The tables are calibrated by each other, so they are one unit.
    work=lambda config, results, run: teach(config, results, run=run),
    minutes=5,
    headline=(pretrain.ALL, "diagnoser", "label error precision"),
    smoke=smoke,
)
