"""FMD on Coloured Fashion-MNIST: ten classes, each mostly in a colour of its own.

Claim:    steps on pairs help, the more of them the better until they overshoot; their sign flipped hurts, random signs
          do nothing; fine-tuning the last layer on the same pairs helps more, training on the pairs alone more still,
          and training without colour most.
Command:  python -m experiments.fmd_coloured        (`--config.smoke` takes seconds)
Expected: the table in experiments/README.md, which this command wrote.
Device:   two CPU cores, about three minutes a task and seed; any JAX device works.
"""

from dataclasses import dataclass
from pathlib import Path

import tyro

from experiments import bias_tasks
from experiments.bias import fmd

TASKS = bias_tasks.FASHION


@dataclass(frozen=True)
class Config(fmd.Config):
    """What determines the numbers."""

    tasks: tuple[str, ...] = tuple(TASKS)
    etas: tuple[float, ...] = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)
    newton_rounds: int = 8
    newton_eta: float = 0.003
    whole_eta: float = 0.03


def main(config: Config, results: Path = Path("results"), run: str | None = None) -> Path:
    """Measure all methods, print a table for each task, and write ``results/fmd_coloured/<run>``; rerun to resume."""
    return fmd.run("fmd_coloured", TASKS, config, results=results, run=run)


if __name__ == "__main__":
    tyro.cli(main)
