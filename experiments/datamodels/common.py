"""Shared by the studies of datamodels: training of many models with something read from each, and rows of results."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from d3mjax.attribution import outputs
from d3mjax.reports import plots
from d3mjax.reports.rows import Kind, row
from d3mjax.runtime import hosts
from d3mjax.runtime.sweep import shared_sweep
from d3mjax.training.ensemble import map_models, model_keys
from d3mjax.types import AnyArray, Data
from experiments.study import Study
from experiments.tasks import Task, spread, train_models


@dataclass(frozen=True)
class Config:
    """Fields that every study of datamodels has."""

    tasks: tuple[str, ...] = ("patch", "fashion")
    seeds: int = 3
    first_seed: int = 10
    smoke: bool = False


def study(name: str, *, few: Mapping[str, Any], shipped: tuple[str, ...] = ("patch",), **fields: Any) -> Study:
    """A study whose smoke run has the fields ``few``, and of the default tasks those that ship with the package."""

    def smoke(config):
        tasks = shipped if config.tasks == type(config).tasks else config.tasks
        return replace(config, tasks=tasks, **few)

    def small(task):  # a network of its own takes longer a step than the MLP
        return replace(task, steps=min(task.steps, 40)) if getattr(task, "make_model", None) else task

    return Study(name, smoke=smoke, small=small, **fields)


def step_dtype() -> Any:
    """Of the products inside LASSO: bfloat16 where hardware multiplies such matrices; elsewhere float32 is faster."""
    amx = Path("/proc/cpuinfo").exists() and "amx_bf16" in Path("/proc/cpuinfo").read_text()
    return jnp.bfloat16 if amx or jax.default_backend() != "cpu" else None


def make_training(task: Task, look: Callable) -> Callable:
    """``train(data, keys [m], weights [m n], y=None) -> (look of each model, losses [m s])``, compiled once a shape.

    ``look(model, variables, data.target)``. Labels ``y`` are ``[n]`` or ``[m n]``; None: those of the data. Data are
    copied to every device, unless they are there already.
    """
    look = partial(look, task.network())

    @jax.jit
    def compiled(data: Data, keys, weights, y):
        train, weights = data.train._replace(y=y), jnp.asarray(weights, jnp.float32)
        return train_models(task, keys, train, weights, look, shared=(data.target,))

    def train(data: Data, keys, weights, y=None):
        return compiled(hosts.place(data, hosts.local_mesh()), keys, weights, data.train.y if y is None else y)

    return train


def make_checkpoints(task: Task) -> Callable:
    """``checkpoints(data, keys [c]) -> variables`` with a leading axis, trained on all of the training set."""
    train = make_training(task, lambda model, variables, target: variables)
    return lambda data, keys: train(data, keys, np.ones(len(data.train.y), np.float32))[0]


def over_models(fn: Callable) -> Callable:
    """``fn(data, *arguments)`` of one model as a compiled function of arguments with a leading model axis."""
    compiled = jax.jit(lambda data, *a: map_models(fn, shared=(data,), **spread())(*a))
    return lambda data, *arguments: compiled(hosts.place(data, hosts.local_mesh()), *arguments)


def make_retrain(task: Task) -> Callable[..., np.ndarray]:
    """``retrain(data, key, weights [j n], repeats=r, labels=[j n]) -> logits [j r t C]`` of models trained anew.

    Model ``r`` of every job has the same key: jobs differ in their weights and labels alone. Where there are several
    hosts all call this, and each trains its share.
    """
    train = make_training(task, lambda model, variables, target: outputs.logits(model, variables, target.x))

    def retrain(data: Data, key, weights, *, repeats: int, labels=None, progress=lambda count: None) -> np.ndarray:
        data_on_devices, weights = hosts.place(data, hosts.local_mesh()), np.asarray(weights, np.float32)
        labels = np.broadcast_to(data.train.y, weights.shape) if labels is None else np.asarray(labels)

        def block(ids):
            job = ids // repeats
            return train(data_on_devices, model_keys(key, ids % repeats), weights[job], labels[job])

        ids = np.arange(len(weights) * repeats)
        logits = shared_sweep(block, ids, block=min(len(ids), 250), progress=progress)
        return logits.reshape(len(weights), repeats, *logits.shape[1:])

    return retrain


def hard_margins(logits: np.ndarray, y: AnyArray) -> np.ndarray:
    """Hard margins ``[... t]`` of logits ``[... t C]``."""
    return np.asarray(outputs.hard_margin(jnp.asarray(logits), np.broadcast_to(y, logits.shape[:-1])))


def rows_of(task: Task, facts: Sequence[Mapping[str, Any]], kinds: Mapping[str, Kind]) -> list[dict[str, Any]]:
    """One row for each name in ``kinds``, from ``facts[seed][name][metric]``."""
    return [
        row(
            task.name,
            name,
            {metric: [f[name][metric] for f in facts] for metric in facts[0][name]},
            role=kind.role,
            settings=kind.settings(),
        )
        for name, kind in kinds.items()
    ]


def image_rows(task: Task, images: np.ndarray, classes: np.ndarray, signs: Sequence[str]):
    """A grid of images ``[r k h w ...]``, each under its sign ``[k]`` and the name of its class ``[r k]``."""
    titles = [f"{sign}{task.class_names[c]}" for row in classes for sign, c in zip(signs, row, strict=True)]
    return plots.image_grid(images.reshape(-1, *images.shape[2:]), titles, columns=len(signs))
