"""FMD on Adult: does the predicted income depend on the sex, or the race, in the row?

Claim:    one step on pairs takes away the one-sided part of the bias at no cost; steps down the gradient of the bias
          itself take away most of it; averaging over the attribute takes away all, without training.
Command:  python -m experiments.fmd_adult        (`--config.smoke` takes seconds)
Expected: the tables in experiments/README.md, by `--config.tasks` of one task each; that by race is an older one.
Device:   two CPU cores, about a minute a task and seed; any JAX device works.
"""

from dataclasses import dataclass
from pathlib import Path

import tyro

from experiments import bias_tasks
from experiments.bias import fmd

TASKS = {task.name: task for task in (bias_tasks.ADULT_SEX, bias_tasks.ADULT_RACE)}


@dataclass(frozen=True)
class Config(fmd.Config):
    """What determines the numbers."""

    tasks: tuple[str, ...] = tuple(TASKS)


def main(config: Config, results: Path = Path("results"), run: str | None = None) -> Path:
    """Measure all methods, print a table for each task, and write ``results/fmd_adult/<run>``; rerun to resume."""
    return fmd.run("fmd_adult", TASKS, config, results=results, run=run)


if __name__ == "__main__":
    tyro.cli(main)
