"""Influence functions by conjugate gradients with and without a preconditioner: steps, seconds, and the same scores."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from d3mjax.attribution import ekfac, influence, inverses
from d3mjax.attribution.curvatures import Inverse
from experiments import tasks
from experiments.bench.measuring import repeated, row
from experiments.tasks import Task


@dataclass(frozen=True)
class Solves:
    """Targets of a network trained by the recipe of a task, one direction each."""

    task: str
    directions: int = 16
    damping: float = 0.01  # of the sum of weights
    rtol: float = 1e-4
    max_steps: int = 1000
    repeats: int = 1

    @property
    def name(self) -> str:
        return f"influence of {self.directions} targets, {self.task}, damping {self.damping:g}"


TASKS = {task.name: task for task in (tasks.SMALL_PATCH, tasks.FASHION)}


def more_damped(inverse: Inverse, times: float) -> Inverse:
    """``inverse`` at as many times the damping of the problem."""
    return lambda problem: inverse(problem._replace(damping=times * problem.damping))


def inverses_of(solves: Solves) -> dict[str, Inverse]:
    """What is compared; CG without a preconditioner comes first."""
    by_cg = partial(inverses.by_cg, rtol=solves.rtol, max_steps=solves.max_steps)
    guesses = {
        "EK-FAC": ekfac.by_ekfac(),
        "EK-FAC at 100 times the damping": more_damped(ekfac.by_ekfac(), 100),
        **{f"Nystroem, {num} products": inverses.by_nystrom(num) for num in (20, 50)},
    }
    return {
        "CG": by_cg(),
        **{f"CG, preconditioned by {name}": by_cg(precondition=guess) for name, guess in guesses.items()},
        "EK-FAC alone": ekfac.by_ekfac(),
    }


def bench(*, smoke: bool) -> list[dict[str, Any]]:
    """Two tasks at a damping that predicts well, and one at a tenth of it, where the curvature is worse conditioned."""
    if smoke:
        small = replace(tasks.SMALL_PATCH, steps=20)
        return rows_of(small, Solves("patch", directions=3, damping=0.1, repeats=1), smoke=True)
    every = [Solves("patch"), Solves("patch", damping=0.001), Solves("fashion")]
    return [row for solves in every for row in rows_of(TASKS[solves.task], solves, smoke=False)]


def rows_of(task: Task, solves: Solves, *, smoke: bool) -> list[dict[str, Any]]:
    """One row an inverse: steps and residuals of its directions, seconds of all, distance from the scores of CG."""
    data, model, key = jax.tree.map(jnp.asarray, task.read(10, smoke=smoke)), task.network(), jax.random.key(0)
    target = jax.tree.map(lambda a: a[: solves.directions], data.target)
    train = jax.jit(lambda split: tasks.train_models(task, key[None], split, jnp.ones(len(split.y)), lambda v: v)[0])
    checkpoint, rows, reference = train(data.train), [], None
    for name, inverse in inverses_of(solves).items():
        options = influence.Options(damping=solves.damping, inverse=inverse, microbatch=1000)
        program = jax.jit(lambda *arrays, o=options: influence.scores(key, model, *arrays, options=o))
        runs = repeated(lambda run=program: run(checkpoint, data.train, target), solves.repeats)
        tau, info = jax.device_get(runs[0].value)
        reference = tau if reference is None else reference
        figures = {
            "steps": float(info.steps.mean()),
            "residual": float(info.residual.max()),
            "seconds": [run.seconds for run in runs],
            "cpu_seconds": [run.cpu_seconds for run in runs],
            "difference": float(np.linalg.norm(tau - reference) / np.linalg.norm(reference)),
        }
        rows.append(row(solves.name, name, figures, role="ours" if "CG" in name else "rival", settings=solves))
    return rows
