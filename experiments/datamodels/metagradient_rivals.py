"""Rivals of metagradients on one axis of trainings and one of seconds: from checkpoints, and from banks of models.

From checkpoints trained on everything: TRAK without and with curvature, influence functions (the GGN by preconditioned
CG), EK-FAC, and nearest neighbours by the features of the last layer. From models trained on half subsets, the bank of
`lds_datamodels`: ridge and LASSO. Seconds contain trainings, each as long as one on everything, and no compilation.
"""

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from d3mjax import keys
from d3mjax.attribution import datamodels, ekfac, influence, inverses, trak
from d3mjax.debiasing import last_layer
from d3mjax.linalg import iterative
from d3mjax.linalg.products import dot
from d3mjax.runtime import bank
from d3mjax.types import Data
from experiments.datamodels import banks, common, lds_datamodels, lds_trak
from experiments.tasks import Task

TRAK, CURVATURE, INFLUENCE, EKFAC, NEIGHBOURS = "TRAK", "TRAK with curvature", "influence", "EK-FAC", "kNN"
RIDGE, LASSO = "ridge", "LASSO"


class Rival(NamedTuple):
    """One attribution by checkpoints."""

    counts: tuple[int, ...]  # of checkpoints at which it is read
    attribute: Callable  # (data, keys [c], variables [c]) -> (kernel [c t n], factor [c n], info), compiled
    check: Callable[..., None]  # (info), raises where values are not finite or solves fell short
    at_once: int  # checkpoints


def of_checkpoints(task: Task, config: Any) -> dict[str, Rival]:
    """Every rival of a task that starts from checkpoints."""
    setting = lds_trak.Setting(config.size, 0.1)
    settings = {TRAK: setting, CURVATURE: setting._replace(curvature=True)}
    by_cg = inverses.by_cg(precondition=inverses.by_nystrom(config.products))
    solved = lambda info: iterative.check(info.residual, info.steps, rtol=1e-3)
    unchecked = lambda info: None  # EK-FAC approximates the solution: its residual is large
    kernels = {name: lds_trak.make_kernels(task, setting) for name, setting in settings.items()}
    exact, block_wise = (make_influence(task, inverse, config.damping) for inverse in (by_cg, ekfac.by_ekfac()))
    return {
        **{name: Rival(config.checkpoints, kernel, trak.check, 10) for name, kernel in kernels.items()},
        INFLUENCE: Rival(config.solves, exact, solved, 1),
        EKFAC: Rival(config.checkpoints, block_wise, unchecked, 10),
        NEIGHBOURS: Rival(config.checkpoints, make_neighbours(task, config.neighbours), unchecked, 10),
    }


def make_influence(task: Task, inverse: Callable, damping: float) -> Callable:
    """``(data, keys [c], variables [c]) -> (tau [c t n], 1 [c n], info)``."""
    model, options = task.network(), influence.Options(damping=damping, inverse=inverse, microbatch=1000)

    def one(data: Data, key, variables):
        stacked = jax.tree.map(lambda a: a[None], variables)
        tau, info = influence.scores(key, model, stacked, data.train, data.target, options=options)
        return tau, jnp.ones(len(data.train.y)), jax.tree.map(lambda a: a[0], info)

    return common.over_models(one)


def make_neighbours(task: Task, num: int) -> Callable:
    """``(data, keys [c], variables [c]) -> (tau [c t n], 1 [c n], none)``.

    The ``num`` nearest train examples of a target by the features of the last layer have 1 if their label is that of
    the target, and -1 if not; all others have 0.
    """
    model = task.network()

    def one(data: Data, key, variables):
        del key
        path = last_layer.find(variables["params"], len(task.class_names))
        of = partial(last_layer.features, model, variables, path=path)
        train, target = of(data.train.x), of(data.target.x)
        squares = (train**2).sum(1)[None] - 2 * dot(target, train.T)
        _, near = jax.lax.top_k(-squares, num)
        same = jnp.where(data.target.y[:, None] == data.train.y[None], 1.0, -1.0)
        chosen = jnp.zeros_like(same).at[jnp.arange(len(near))[:, None], near].set(1.0)
        return same * chosen, jnp.ones(len(data.train.y)), ()

    return common.over_models(one)


def scored(
    rivals: dict[str, Rival], checkpoints: Callable, data: Data, root, score: Callable
) -> tuple[dict[str, Any], float]:
    """``score(tau)`` and seconds of every rival and number of checkpoints; and the seconds of one training."""
    most = max(max(rival.counts) for rival in rivals.values())
    model_keys, own = (keys.members(root, f, count=most) for f in (keys.Lds.CHECKPOINTS, keys.Lds.PROJECTIONS))
    jax.block_until_ready(checkpoints(data, model_keys))  # compiles
    begin = time.perf_counter()
    variables = jax.block_until_ready(checkpoints(data, model_keys))
    training, facts = (time.perf_counter() - begin) / most, {}
    for name, rival in rivals.items():
        kernel, factor, seconds = 0, 0, 0.0
        for count, one in enumerate(one_by_one(rival, data, own, variables), 1):
            kernel, factor, seconds = kernel + one[0], factor + one[1], seconds + one[2]
            if count in rival.counts:
                tau = (kernel / count * (factor / count)).astype(np.float32)
                facts[named(name, count)] = score(tau) | {"seconds": seconds + count * training}
    return facts, training


def one_by_one(rival: Rival, data: Data, own, variables) -> Iterator[tuple[np.ndarray, np.ndarray, float]]:
    """Kernel, factor and seconds of each checkpoint, some of them computed at a time."""
    most = max(rival.counts)
    parts = [slice(first, min(first + rival.at_once, most)) for first in range(0, most, rival.at_once)]
    compute = lambda part: jax.device_get(rival.attribute(data, *jax.tree.map(lambda a: a[part], (own, variables))))
    for size in {part.stop - part.start for part in parts}:
        compute(slice(size))  # compiles
    for part in parts:
        begin = time.perf_counter()
        kernel, factor, info = compute(part)
        rival.check(info)
        seconds = (time.perf_counter() - begin) / len(kernel)
        yield from ((one, of_train, seconds) for one, of_train in zip(kernel, factor, strict=True))


def make_datamodels(task: Task, smoke: bool, results: Path) -> Callable[..., Iterator[tuple[str, np.ndarray, float]]]:
    """``fitted(data, seed, root, models, progress)`` yields method, tau and seconds of the fit, from half subsets."""
    fill = banks.make_bank(task, results / "banks", banks.both_margins)
    methods = {name: jax.jit(lds_datamodels.METHODS[name], static_argnums=3) for name in (RIDGE, LASSO)}
    study = lds_datamodels.STUDY
    options = lds_datamodels.options(study.smoke(study.config) if smoke else study.config)

    def fitted(data: Data, seed: int, root, models: int, progress: Callable):
        subsets = banks.Subsets(0.5)
        design = subsets.design(len(data.train.y))
        filled, _ = fill(data, seed, subsets.key(root), design, models, progress)
        x, (_, y) = bank.masks(filled), banks.hard_and_soft(bank.outputs(filled))
        heldout = lds_datamodels.heldout(models)
        datamodels.check_masks(x, y, num_fit=models - len(heldout))
        for method, fit in methods.items():
            jax.block_until_ready(fit(x, y, heldout, options))  # compiles
            begin = time.perf_counter()
            tau = np.asarray(fit(x, y, heldout, options))
            yield method, tau, time.perf_counter() - begin

    return fitted


def named(method: str, models: int) -> str:
    """A method with its number of trained models."""
    return f"{method}, {models:,} training{'s' * (models > 1)}"
