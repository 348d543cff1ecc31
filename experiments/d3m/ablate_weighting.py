"""How D3M weighs groups, and which output of the targets it attributes.

Claim:    softmax weights of the losses with beta near 1 are safe; a large beta, or the worst group alone, is not
          better; the margin is the better output.
Command:  python -m experiments.ablate_weighting            (`--config.smoke` takes seconds)
Expected: the table in experiments/README.md, which this command wrote.
Device:   two CPU cores, some seven seconds a task and seed; any JAX device works.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import tyro

from d3mjax.attribution import gradients, per_checkpoint
from d3mjax.debiasing import group_weighting
from d3mjax.reports import plots
from experiments.d3m import ablations
from experiments.d3m.ablations import Variant
from experiments.tasks import Task

OUTPUTS = {"margin": gradients.margin_output, "minus loss": gradients.negative_loss_output}
OTHERS = {
    "uniform": group_weighting.uniform_weights,
    "losses": group_weighting.loss_weights,
    "worst group": group_weighting.worst_weights,
}


@dataclass(frozen=True)
class Config(ablations.Config):
    """What determines the numbers."""

    betas: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 4.0)


def named(weighting: str, output: str) -> str:
    """What the table calls it."""
    return f"D3M, {weighting}, {output}"


def make(task: Task, config: Config) -> Callable:
    """The same checkpoints, with every weighting of the groups and both outputs of the targets."""
    train = ablations.make_checkpoints(task)
    programs = {name: ablations.make_columns(task, config.source, target_output=o) for name, o in OUTPUTS.items()}

    def variants(data, seed, progress):
        found = train(data, ablations.keys(seed, config.source.models))
        keys, losses = ablations.keys(seed, config.source.models, ablations.COLUMNS), found.losses.mean(0)
        weights = {f"beta = {beta:g}": group_weighting.softmax_weights(losses, beta=beta) for beta in config.betas}
        weights |= {name: weigh(losses) for name, weigh in OTHERS.items()}
        keep = {}
        for output, columns in programs.items():
            mean = per_checkpoint.combine(*map(jnp.asarray, columns(data, keys, found.variables)))
            for name, group_weights in weights.items():
                keep[named(name, output)] = Variant(ablations.keep(task, data, mean, losses, weights=group_weights))
        progress(config.source.models)
        return keep

    return variants


def figures(task: Task, config: Config, found) -> dict:
    """Worst-group accuracy against beta."""
    lines = {
        f"D3M, {output}": ablations.curve(found, {b: named(f"beta = {b:g}", output) for b in config.betas})
        for output in OUTPUTS
    }
    lines |= ablations.yardsticks(found, config.betas)
    drawn = plots.curves(lines, xlabel="beta", ylabel="worst-group test accuracy")
    return {"Worst group against the sharpness of the group weights.": drawn}


def main(config: Config, results: Path = Path("results"), run: str | None = None) -> Path:
    """Run all tasks, print a table for each, and leave everything in ``results/ablate_weighting/<run>``."""
    config = ablations.small(config, betas=(1.0, 2.0))
    about = "Group columns of the margin or of minus the loss, weighed by the groups' losses in several ways."
    return ablations.run("ablate_weighting", config, make, figures, about=about, results=results, run=run)


if __name__ == "__main__":
    tyro.cli(main)
