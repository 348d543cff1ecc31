"""Banks and their datamodels, and retraining under many masks or labels: shared by the experiments on datamodels.

A bank is made once a task and data seed, in ``results/banks/<task>-<seed>-<hash>``, and read by every experiment after
that; so are the datamodels fitted to it. Its targets are the task's, followed by near-duplicates of training examples
that `experiments.leakage` has to find; all other experiments leave those out.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from d3mjax.attribution import datamodels, outputs
from d3mjax.linalg import lasso
from d3mjax.runtime import bank, hosts, runs, store
from d3mjax.runtime.hosts import models_at_once
from d3mjax.runtime.sweep import shared_sweep
from d3mjax.training import ensemble, masks, sampling
from d3mjax.types import AnyArray, Data, Linear, Split
from experiments.tasks import Task

BANK, BASE, RETRAIN, DRAW = range(100, 104)  # families of keys
DUPLICATE_IDS = 1_000_000  # ids of planted near-duplicates start here


@dataclass(frozen=True)
class Recipe:
    """What a bank is made of; ``models`` can grow, the rest names another bank."""

    models: int = 6000
    min_share: float = 0.5  # a subset keeps a share of the training set drawn uniformly between the two
    max_share: float = 0.95
    duplicates: int = 80  # near-duplicates of training examples among the targets
    noise: float = 0.05  # of their pixels, in standard deviations
    lambdas: int = 30  # penalties tried, down to 1/100 of the one at which all weights are zero


SMOKE = Recipe(models=120, duplicates=10, lambdas=5)


@dataclass(frozen=True)
class Config:
    """What every experiment on a bank has."""

    tasks: tuple[str, ...] = ("patch", "fashion")
    seeds: int = 3
    first_seed: int = 10
    bank: Recipe = field(default_factory=Recipe)
    smoke: bool = False


class Found(NamedTuple):
    """A bank and what was fitted to its hard margins."""

    data: Data  # its targets end with the near-duplicates
    source: np.ndarray  # Int[duplicates], the training example behind each of them
    bank: bank.Bank  # outputs are hard margins [m t], then soft ones [m t]
    linear: Linear  # weight [t n] and bias [t], for hard margins
    halves: Callable[[], np.ndarray]  # weights [2 t n] of the task's own targets, from halves of the models
    facts: dict[str, Any]  # how well held-out models are predicted

    @property
    def real(self) -> Linear:
        """Datamodels of the task's own targets."""
        keep = slice(len(self.linear.bias) - len(self.source))
        return Linear(self.linear.weight[keep], self.linear.bias[keep])


def with_duplicates(data: Data, seed: int, recipe: Recipe) -> tuple[Data, np.ndarray]:
    """The data with noisy, brighter or darker copies of random training examples after its targets, and their index."""
    rng = np.random.default_rng((seed, BANK))
    index = rng.choice(len(data.train.y), recipe.duplicates, replace=False)
    copies = jax.tree.map(lambda a: np.asarray(a)[index], data.train)
    x = copies.x * rng.uniform(0.9, 1.1, (len(index), 1)) + recipe.noise * rng.standard_normal(copies.x.shape)
    copies = copies._replace(x=x.astype(np.float32), id=DUPLICATE_IDS + np.arange(len(index), dtype=np.int32))
    return data._replace(target=jax.tree.map(lambda a, b: np.concatenate([a, b]), data.target, copies)), index


def make_datamodels(task: Task, recipe: Recipe, banks: Path, *, smoke: bool) -> Callable[..., Found]:
    """``datamodels_of(seed, progress) -> Found``, compiled once a task; ``banks`` is where they are kept."""
    train = _trained(task)
    options = lasso.Options(num_lambdas=recipe.lambdas, smallest=0.01, step_dtype=jnp.bfloat16, tolerance=1e-3)
    fit = jax.jit(partial(datamodels.fit_lasso, options=options))
    # With hardly more models than examples the last digits take thousands of steps, and noise drowns them.
    fit_half = jax.jit(partial(datamodels.fit_lasso, options=options._replace(max_steps=100)))

    @jax.jit
    def run(data: Data, keys, subsets):
        def one(data, key, subset):
            logits, losses = train(data.train, data.target, key, subset.astype(jnp.float32), data.train.y)
            both = [margin(logits, data.target.y) for margin in (outputs.hard_margin, outputs.soft_margin)]
            return jnp.concatenate(both), losses

        return ensemble.map_models(one, width=models_at_once(), mesh=hosts.local_mesh(), shared=(data,))(keys, subsets)

    def datamodels_of(seed: int, progress: Callable) -> Found:
        data, source = with_duplicates(task.read(seed, smoke=smoke), seed, recipe)
        key, n, t = jax.random.fold_in(jax.random.key(seed), BANK), len(data.train.y), len(data.target.y)
        sizes = (int(recipe.min_share * n), int(recipe.max_share * n))
        subsets = jax.jit(lambda ids: masks.mixed_sizes(jax.random.fold_in(key, 0), ids, n, *sizes))
        inputs = {"train": data.train, "target": data.target}
        manifest = bank.manifest(key, subsets, inputs, _described(task, recipe), num_targets=2 * t)
        directory = directory_of(banks, task, seed, manifest)

        here = hosts.place(data, hosts.local_mesh())  # once for all blocks

        def trained(ids, chosen):
            return run(here, ensemble.model_keys(jax.random.fold_in(key, 1), ids), chosen)

        ids, block = np.arange(recipe.models), min(250, recipe.models)
        filled = bank.fill(directory, manifest, subsets, trained, ids, block=block, progress=progress)

        def regress(name: str, ids: np.ndarray, fit: Callable = fit):
            def compute():
                heldout = np.arange(len(ids) // 10)
                some = bank.masks(filled)[ids], bank.outputs(filled)[ids, :t]
                linear, info = jax.device_get(fit(*some, heldout))
                facts = {name: float(np.nanmean(getattr(info, name))) for name in ("r2", "correlation", "support")}
                return facts, linear._asdict()

            fits = directory.with_name(f"{directory.name}-datamodels")
            return runs.unit(fits, f"lasso-{recipe.models}-{recipe.lambdas}{name}", compute)

        def halves():
            parts = [regress(f"-{i}", ids[i::2], fit_half)[1]["weight"] for i in range(2)]
            return np.stack(parts)[:, : t - len(source)]

        facts, arrays = regress("", ids)
        return Found(data, source, filled, Linear(**jax.tree.map(jnp.asarray, arrays)), halves, facts)

    return datamodels_of


def make_retrain(task: Task) -> Callable[..., np.ndarray]:
    """``retrain(data, key, weights [j n], repeats=r, labels=[j n]) -> logits [j r t C]`` of models trained anew.

    Model ``r`` of every job has the same key: what differs between jobs is their weights and labels alone. Where there
    are several hosts all call this, and each trains its share.
    """
    train = _trained(task)

    @jax.jit
    def run(data: Data, keys, weights, labels):
        shared = (data.train, data.target)
        return ensemble.map_models(train, width=models_at_once(), mesh=hosts.local_mesh(), shared=shared)(
            keys, weights, labels
        )

    def retrain(data: Data, key, weights, *, repeats: int, labels=None, progress=lambda count: None) -> np.ndarray:
        here, weights = hosts.place(data, hosts.local_mesh()), np.asarray(weights)
        labels = np.broadcast_to(data.train.y, weights.shape) if labels is None else np.asarray(labels)

        def block(ids):
            job, keys = ids // repeats, ensemble.model_keys(key, ids % repeats)
            return run(here, keys, jnp.asarray(weights[job], jnp.float32), jnp.asarray(labels[job]))

        ids = np.arange(len(weights) * repeats)
        found = shared_sweep(block, ids, block=min(len(ids), 250), progress=progress)
        return found.reshape(len(weights), repeats, *found.shape[1:])

    return retrain


def margins_of(logits: np.ndarray, y: AnyArray) -> np.ndarray:
    """Hard margins ``[... t]`` of logits ``[... t C]``."""
    return np.asarray(outputs.hard_margin(jnp.asarray(logits), np.broadcast_to(y, logits.shape[:-1])))


def without_duplicates(data: Data, found: Found) -> Data:
    """The data with the task's own targets only."""
    keep = len(data.target.y) - len(found.source)
    return data._replace(target=jax.tree.map(lambda a: a[:keep], data.target))


def cosines(target: Split, train: Split) -> np.ndarray:
    """Similarity of pixels ``[t n]``: what finds look-alikes without any training."""
    a, b = (np.asarray(split.x) / np.linalg.norm(split.x, axis=1, keepdims=True) for split in (target, train))
    return a @ b.T


def _trained(task: Task) -> Callable:
    """``(train, target, key, weight [n], y [n]) -> (logits [t C], losses [s])`` of one model."""
    model, run = task.network(), task.trainer(task.steps, sampling.shuffled())

    def one(train: Split, target: Split, key, weight, y):
        state, info = run.run(run.init(key, train.x[:1]), train._replace(y=y), weight, task.steps)
        return outputs.logits(model, state.variables, target.x), info.loss

    return one


def recipe_of(task: Task) -> dict[str, Any]:
    """How a task trains its models."""
    return {name: getattr(task, name) for name in ("hidden", "steps", "batch", "rate", "momentum", "decay")}


def directory_of(banks: Path, task: Task, seed: int, manifest: Mapping[str, Any]) -> Path:
    """Where a bank is kept: another manifest, another place."""
    text = store.json_text(manifest, sort_keys=True)
    return banks / f"{task.name}-{seed}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"


def _described(task: Task, recipe: Recipe) -> dict[str, Any]:
    """What a bank depends on besides its data; not how many models there are, nor how they are fitted."""
    sampled = {name: value for name, value in asdict(recipe).items() if name not in ("models", "lambdas")}
    return {**sampled, **recipe_of(task)}
