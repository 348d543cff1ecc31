"""Banks of subset models and the datamodels fitted to them: made once, read by every study after that.

A bank is a directory ``results/banks/<task>-<seed>-<hash>``; its datamodels are stored beside it. The targets of
`make_datamodels` are the task's, followed by near-duplicates of training examples for the study of leakage; all other
studies leave those out.
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
from jaxtyping import PyTree

from d3mjax import keys
from d3mjax.attribution import datamodels, outputs
from d3mjax.linalg import lasso
from d3mjax.runtime import bank, hosts, runs, store
from d3mjax.training import masks
from d3mjax.training.ensemble import model_keys
from d3mjax.types import AnyArray, Data, Linear, Model, Split
from experiments import tasks
from experiments.cifar_tasks import LDS_TASKS
from experiments.datamodels import common
from experiments.study import Study
from experiments.tasks import Task

DUPLICATE_IDS = 1_000_000  # ids of planted near-duplicates start here


@dataclass(frozen=True)
class Recipe:
    """How a bank is made; ``models`` can grow, the rest names another bank."""

    models: int = 6000
    min_share: float = 0.5  # a subset keeps a share of the training set drawn uniformly between the two
    max_share: float = 0.95
    duplicates: int = 80  # near-duplicates of training examples among the targets
    noise: float = 0.05  # of their pixels, in standard deviations
    lambdas: int = 30  # penalties tried, down to 1/100 of the one at which all weights are zero


SMOKE = Recipe(models=120, duplicates=10, lambdas=5)


@dataclass(frozen=True)
class Config(common.Config):
    """Fields that every study on a bank has."""

    bank: Recipe = field(default_factory=Recipe)


class FittedBank(NamedTuple):
    """Datamodels of hard margins, fitted to a bank."""

    data: Data  # its targets end with the near-duplicates
    source: np.ndarray  # Int[duplicates], the training example behind each of them
    linear: Linear  # weight [t n] and bias [t]
    halves: Callable[[], np.ndarray]  # weights [2 t n] of the task's own targets, from halves of the models
    facts: dict[str, Any]  # how well held-out models are predicted

    def without_duplicates(self) -> tuple[Data, AnyArray]:
        """The data with the task's own targets only, and the weights ``[t n]`` of those."""
        originals = slice(len(self.linear.bias) - len(self.source))
        target = jax.tree.map(lambda a: a[originals], self.data.target)
        return self.data._replace(target=target), self.linear.weight[originals]


class Design(NamedTuple):
    """Masks and outputs of a bank."""

    draw: Callable  # (key, ids [b], n) -> masks [b n]
    facts: dict[str, Any]  # what determines the masks, as JSON
    repeats: int = 1  # models of each mask
    outputs: int = 1  # of each target


class Subsets(NamedTuple):
    """Masks of one size, a bank of which several studies read."""

    share: float  # of the training set that each keeps
    repeats: int = 1  # models trained on each

    def design(self, n: int) -> Design:
        """Masks of n examples; `both_margins` of every target."""
        draw = partial(masks.fixed_size, num_keep=int(self.share * n))
        return Design(draw, self._asdict(), repeats=self.repeats, outputs=2)

    def key(self, root) -> jax.Array:
        """Of the bank, on one data seed."""
        return jax.random.fold_in(jax.random.fold_in(root, keys.LdsDatamodels.BANKS), self.repeats)


def make_bank(task: Task, banks: Path, look: Callable) -> Callable[..., tuple[bank.Bank, Path]]:
    """``fill(data, seed, key, design, models, progress) -> (bank, its directory)``, compiled once a shape.

    ``look(model, variables, target)`` are the outputs of one model.
    """
    train = common.make_training(task, look)
    recipe = {name: getattr(task, name) for name in ("hidden", "steps", "batch", "rate", "decay")} | {"momentum": 0.9}
    for name, maker in (("optimizer", task.optimizer), ("trainer", task.make_trainer)):
        if maker not in (tasks.sgd, None):
            recipe[name] = _name_of(maker, f"{task.name}.{name}")

    def fill(data: Data, seed: int, key, design: Design, models: int, progress: Callable) -> tuple[bank.Bank, Path]:
        n, num_outputs = len(data.train.y), design.outputs * len(data.target.y)
        subsets = jax.jit(lambda ids: design.draw(jax.random.fold_in(key, 0), ids, n))
        inputs, facts = {"train": data.train, "target": data.target}, {**design.facts, **recipe}
        if task.make_model is not None:
            facts["network"] = shapes(task.network(), data.train.x)
        manifest = bank.manifest(key, subsets, inputs, facts, num_targets=num_outputs, repeats=design.repeats)
        digest = hashlib.sha256(store.json_text(manifest, sort_keys=True).encode()).hexdigest()[:10]
        directory, data_on_devices = banks / f"{task.name}-{seed}-{digest}", hosts.place(data, hosts.local_mesh())

        def trained(ids, chosen):
            return train(data_on_devices, model_keys(jax.random.fold_in(key, 1), ids), chosen)

        ids, block = np.arange(models), min(250, models)
        return bank.fill(directory, manifest, subsets, trained, ids, block=block, progress=progress), directory

    return fill


def _name_of(maker: Callable, argument: str) -> str:
    name = getattr(maker, "__name__", "<none>")
    if "<" in name:
        raise ValueError(f"{argument}: found {maker!r}, expected a function with a name, which tells banks apart")
    return name


def shapes(model: Model, x: PyTree) -> dict[str, list[int]]:
    """The shape of every variable by its path, which tells networks apart."""
    variables = jax.eval_shape(model.init, jax.random.key(0), jax.tree.map(lambda a: a[:1], x))
    name = partial(jax.tree_util.keystr, simple=True, separator="/")
    return {name(path): list(leaf.shape) for path, leaf in jax.tree.leaves_with_path(variables)}


def both_margins(model, variables, target: Split) -> jax.Array:
    """Hard margins, then soft margins: one row ``[2 t]`` of a bank."""
    logits = outputs.logits(model, variables, target.x)
    return jnp.concatenate([outputs.hard_margin(logits, target.y), outputs.soft_margin(logits, target.y)])


def hard_and_soft(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Hard margins ``[m t]`` and soft margins ``[m t]`` of the rows ``[m 2t]`` of a bank."""
    hard, soft = np.split(rows, 2, axis=1)
    return hard, soft


def with_duplicates(data: Data, seed: int, recipe: Recipe) -> tuple[Data, np.ndarray]:
    """The data with noisy, brighter or darker copies of random training examples after its targets, and their index."""
    rng = np.random.default_rng((seed, keys.Bank.BANK))
    index = rng.choice(len(data.train.y), recipe.duplicates, replace=False)
    copies = jax.tree.map(lambda a: np.asarray(a)[index], data.train)
    x = copies.x * rng.uniform(0.9, 1.1, (len(index), 1)) + recipe.noise * rng.standard_normal(copies.x.shape)
    copies = copies._replace(x=x.astype(np.float32), id=DUPLICATE_IDS + np.arange(len(index), dtype=np.int32))
    return data._replace(target=jax.tree.map(lambda a, b: np.concatenate([a, b]), data.target, copies)), index


def make_datamodels(task: Task, config: Config, results: Path) -> Callable[..., FittedBank]:
    """``fitted(seed, progress) -> FittedBank``, compiled once a task; kept in ``results/banks``."""
    recipe, fill = config.bank, make_bank(task, results / "banks", both_margins)
    options = lasso.Options(num_lambdas=recipe.lambdas, smallest=0.01, step_dtype=jnp.bfloat16, tolerance=1e-3)
    fit = jax.jit(partial(datamodels.fit_lasso, options=options))
    # With hardly more models than examples the last digits take thousands of steps, and noise drowns them.
    fit_half = jax.jit(partial(datamodels.fit_lasso, options=options._replace(max_steps=100)))
    described = {name: value for name, value in asdict(recipe).items() if name not in ("models", "lambdas")}

    def fitted(seed: int, progress: Callable) -> FittedBank:
        data, source = with_duplicates(task.read(seed, smoke=config.smoke), seed, recipe)
        root, n = jax.random.key(seed), len(data.train.y)
        if recipe.min_share < recipe.max_share:
            sizes = {"min_keep": int(recipe.min_share * n), "max_keep": int(recipe.max_share * n)}
            key = jax.random.fold_in(root, keys.Bank.BANK)
            design = Design(partial(masks.mixed_sizes, **sizes), described, outputs=2)
        else:  # subsets of one size: the bank of `lds_datamodels`, if no duplicates are planted
            subsets = Subsets(recipe.max_share)
            key, design = subsets.key(root), subsets.design(n)
        filled, directory = fill(data, seed, key, design, recipe.models, progress)
        fits, ids = directory.with_name(f"{directory.name}-datamodels"), np.arange(recipe.models)

        def regress(name: str, ids: np.ndarray, fit: Callable):
            def compute():
                heldout = np.arange(len(ids) // 10)
                x, (margins, _) = bank.masks(filled)[ids], hard_and_soft(bank.outputs(filled)[ids])
                datamodels.check_masks(x, margins, num_fit=len(ids) - len(heldout))
                linear, info = jax.device_get(fit(x, margins, heldout))
                facts = {name: float(np.nanmean(getattr(info, name))) for name in ("r2", "correlation", "support")}
                return facts, linear._asdict()

            return runs.unit(fits, f"lasso-{recipe.models}-{recipe.lambdas}{name}", compute)

        def halves():
            weights = [regress(f"-{i}", ids[i::2], fit_half)[1]["weight"] for i in range(2)]
            return np.stack(weights)[:, : len(data.target.y) - len(source)]

        facts, arrays = regress("", ids, fit)
        return FittedBank(data, source, Linear(**jax.tree.map(jnp.asarray, arrays)), halves, facts)

    return fitted


def cosines(target: Split, train: Split) -> np.ndarray:
    """Similarity of pixels ``[t n]``, which finds look-alikes without any training."""
    a, b = (np.asarray(split.x) / np.linalg.norm(split.x, axis=1, keepdims=True) for split in (target, train))
    return a @ b.T


def study(
    name: str,
    measure: Callable,
    describe: Callable,
    *,
    few: Mapping[str, Any] = {},
    retrainings: Callable[[Any], int] = lambda config: 0,
    **fields: Any,
) -> Study:
    """A study of banks: ``measure(task, config, fitted, retrain, seed, progress)``, with programs made once a task.

    ``few``: fields of its smoke run; ``retrainings(config)``: models trained beside those of the bank.
    """

    def prepare(task: Task, config: Config, results: Path) -> Callable:
        return partial(measure, task, config, make_datamodels(task, config, results), common.make_retrain(task))

    return common.study(
        name,
        tasks=LDS_TASKS,
        prepare=prepare,
        describe=describe,
        few={"seeds": 1, "bank": SMOKE, **few},
        models=lambda config: config.bank.models + retrainings(config),
        together=True,
        **fields,
    )
