"""Cells: a table with planted errors, the network trained on it, and its influence vectors.

A cell is one table, rule, clean ratio and seed. All cells of a table and seed have one shape, so they are one compiled
program mapped over devices. Besides the tensor of `vectors` a cell has a few numbers a row (`EXTRAS`), which mean the
same for any table.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float

from d3mjax.attribution import outputs
from d3mjax.data import tables
from d3mjax.data.planted import mixed_errors
from d3mjax.data.planted.corruptions import Break, outlier, scale
from d3mjax.data.planted.mixed_errors import Errors, Rule
from d3mjax.diagnosis import oddity, row_features, vectors
from d3mjax.networks import dense, ft_transformer
from d3mjax.runtime.hosts import models_at_once
from d3mjax.training import ensemble, objectives, sampling
from d3mjax.training.trainer import make_trainer
from d3mjax.types import Model, Split, Table, Trainer
from experiments.diagnosis.demix_tables import Parts, TableTask

FOLDS = 3
EXTRAS = ("norm", "path", "left out", "left out margin", *oddity.NAMES)


class Network(NamedTuple):
    """A task model and how it is trained; ``batch`` None is all rows at once."""

    name: str
    make: Callable[[Sequence[slice], int], Model]  # (columns, number of classes)
    tx: optax.GradientTransformation
    steps: int
    batch: int | None = None


def _mlp(*hidden: int) -> Callable:
    return lambda columns, num_classes: dense.mlp(hidden, num_classes)


MLP2 = Network("mlp 64-32", _mlp(64, 32), optax.adam(1e-3), 200)
MLP1 = Network("mlp 256-128-64", _mlp(256, 128, 64), optax.adam(1e-3), 200)
DEEP = Network("over-fitted mlp 128-128-128", _mlp(128, 128, 128), optax.adam(3e-3), 400)
FTT = Network("FT-transformer", ft_transformer.ft_transformer, optax.adamw(1e-3), 200, batch=256)
NETWORKS = {network.name: network for network in (MLP2, MLP1, DEEP, FTT)}


class Planned(NamedTuple):
    """Errors in the rows to train and to validate on, and their features; rows of zeros stand for no table."""

    train: Errors
    validation: Errors
    encoder: tables.Encoder
    splits: tuple[Split, Split]


class Cell(NamedTuple):
    """What a diagnoser is given."""

    vectors: np.ndarray  # Float16[n 4 t]
    extras: np.ndarray  # Float32[n r], in the order of `EXTRAS`
    logits: np.ndarray  # Float32[n C]
    left_out: np.ndarray  # Float32[n C], logits of models trained on the other folds
    by_class: np.ndarray  # Float16[n C t], the cosine of gradients, were the rows labelled so; positive: helpful


def plan(
    task: TableTask,
    parts: Parts,
    rule: Rule | None,
    clean: float,
    seed: int,
    *,
    kinds: tuple[Break, ...] = (outlier, scale),
    per_row: bool = False,
    share: float = 0.15,
) -> Planned:
    """Errors drawn by ``seed``, in train and validation rows alike; the encoder sees nothing but dirty rows."""
    key = jax.random.key(seed)
    options: dict[str, Any] = {"clean": clean, "num_classes": task.num_classes, "kinds": kinds, "per_row": per_row}
    dirty, held = (
        mixed_errors.inject(key, *part, rule, size=size, share=share, **options)
        for part, size in ((parts.train, task.train), (parts.validation, task.validation))
    )
    encoder = tables.fit_encoder(dirty.table)
    split = lambda errors: labelled(encoder, errors.table, errors.labels)
    return Planned(dirty, held, encoder, (split(dirty), split(held)))


def labelled(encoder: tables.Encoder, table: Table, labels: Any) -> Split:
    """Encoded rows and their labels."""
    return Split(
        tables.encode(encoder, table), np.asarray(labels, np.int32), np.full(len(labels), -1, np.int32), table.id
    )


def trainer_of(model: Model, network: Network, num_rows: int) -> Trainer:
    """Training as the network asks for it, under weights."""
    batch = min(network.batch or num_rows, num_rows)
    return make_trainer(model, objectives.cross_entropy(), network.tx, sampling.shuffled(), batch_size=batch)


def make_vectors(network: Network, columns: Sequence[slice], num_classes: int, num_rows: int, mesh: Mesh) -> Callable:
    """``(key, [(train, validation)], [table]) -> [Cell]``: trained side by side; one compilation for one shape."""
    model = network.make(columns, num_classes)
    trainer = trainer_of(model, network, num_rows)

    def one(key, train_split: Split, validation: Split):
        everything = jnp.ones(num_rows)
        state, margins = trainer.init(key, train_split.x[:1]), []
        for _ in range(4):
            state, _ = trainer.run(state, train_split, everything, network.steps // 4)
            margins.append(outputs.soft_margins(model, state.variables, train_split))
        logits = outputs.logits(model, state.variables, train_split.x)
        others = left_out(key, model, trainer, network.steps, train_split)
        extras = [vectors.norms(model, state.variables, train_split), jnp.stack(margins).mean(0)]
        extras += [objectives.losses(others, train_split.y), outputs.soft_margin(others, train_split.y)]
        found = vectors.tensor(model, state.variables, train_split, validation)
        labelled_as = lambda c: train_split._replace(y=jnp.full_like(train_split.y, c))
        product = lambda c: vectors.gram(model, state.variables, labelled_as(c), validation).astype(jnp.float16)
        by_class = jax.lax.map(product, jnp.arange(num_classes)).swapaxes(0, 1)
        return found, jnp.stack(extras, 1), logits, others, by_class

    @jax.jit
    def compiled(key, numbers, trains, validations):
        keys = ensemble.model_keys(key, numbers)
        return ensemble.map_models(one, width=models_at_once(), mesh=mesh)(keys, trains, validations)

    def cells(key, splits: Sequence[tuple[Split, Split]], raw: Sequence[Table]) -> list[Cell]:
        stacked = jax.tree.map(lambda *a: np.stack(a), *splits)
        found = jax.device_get(compiled(key, np.arange(len(splits)), *stacked))
        made = []
        for v, extras, *more, table in zip(*found, raw, strict=True):
            rows = np.concatenate([extras, oddity.scores(table)], 1).astype(np.float32)
            made.append(Cell(v, rows, *more))
        return made

    return cells


def features(cell: Cell, y: Any, num_classes: int) -> Float[np.ndarray, "n f"]:
    """What trees are given, in the order of `FEATURES`."""
    return np.asarray(row_features.order_statistics(cell.vectors, y, num_classes, rows=cell.extras))


FEATURES = row_features.feature_names(rows=EXTRAS)


def left_out(key, model: Model, trainer: Trainer, steps: int, split: Split) -> Float[Array, "n C"]:
    """Logits of each row under a model that was trained on the other folds."""
    fold = jax.random.permutation(jax.random.fold_in(key, 1), len(split.y)) % FOLDS

    def one(k):
        state = trainer.init(jax.random.fold_in(key, 2 + k), split.x[:1])
        state, _ = trainer.run(state, split, (fold != k).astype(jnp.float32), steps)
        return outputs.logits(model, state.variables, split.x)

    each = jax.lax.map(one, jnp.arange(FOLDS))
    return jnp.take_along_axis(each, fold[None, :, None], axis=0)[0]
