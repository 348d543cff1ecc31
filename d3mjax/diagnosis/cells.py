"""Cells: a table, the networks trained on it, its influence vectors, and the features of its rows.

A cell is one table with one model. Cells of one shape are one compiled program mapped over devices. Besides the tensor
of `vectors` a cell has a few numbers a row (`EXTRAS`) that mean the same for any table.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key, PyTree

from d3mjax.attribution import outputs
from d3mjax.data import tables
from d3mjax.diagnosis import oddity, row_features, vectors
from d3mjax.linalg.products import LARGEST
from d3mjax.networks import dense, ft_transformer
from d3mjax.training import ensemble, objectives, sampling
from d3mjax.training.trainer import make_trainer
from d3mjax.types import AnyArray, Model, Split, Table, Trainer

FOLDS = 3
EXTRAS = ("norm", "path", "left out", "left out margin", *oddity.NAMES)
FEATURES = row_features.feature_names(rows=EXTRAS)
"""Names of the features that trees read, in order."""


class Network(NamedTuple):
    """A task network and its training; ``batch`` None is all rows at once."""

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


class Cell(NamedTuple):
    """The input of a diagnoser."""

    vectors: np.ndarray  # Float16[n 4 t]
    extras: np.ndarray  # Float32[n r], in the order of `EXTRAS`
    logits: np.ndarray  # Float32[n C]
    left_out: np.ndarray  # Float32[n C], logits of models trained on the other folds
    by_class: np.ndarray  # Float16[n C t], the cosine of gradients, were the rows labelled so; positive: helpful


def labelled(encoder: tables.Encoder, table: Table, labels: Int[AnyArray, "n"]) -> Split:
    """Encoded rows with their labels; groups are unknown."""
    y = np.asarray(labels, np.int32)
    return Split(tables.encode(encoder, table), y, np.full(len(y), -1, np.int32), table.id)


def trainer_of(model: Model, network: Network, num_rows: int) -> Trainer:
    """The training of a network on ``num_rows`` weighted rows."""
    batch = min(network.batch or num_rows, num_rows)
    return make_trainer(model, objectives.cross_entropy(), network.tx, sampling.shuffled(), batch_size=batch)


def trained_by_folds(
    key: Key[Array, ""],
    model: Model,
    trainer: Trainer,
    train: Split,
    steps: int,
    *,
    microbatch: int = LARGEST,
    attributed: Callable[[Model, PyTree], tuple[Model, PyTree]] = lambda model, variables: (model, variables),
) -> tuple[PyTree, Float[Array, "n 4"], Float[Array, "n C"], Float[Array, "n C"]]:
    """A training on all rows and one without each of `FOLDS` random folds; ``steps`` is a multiple of 4.

    Returns the variables of the first; the norm of each gradient, the mean margin over quarters of the training, and
    the loss and margin by the training without the row; logits; and logits without the row. Gradients are of
    ``attributed(model, variables)``, which may have fewer parameters (`din.without_embeddings`).
    """
    num_rows = len(train.y)
    fold = jax.random.permutation(jax.random.fold_in(key, 1), num_rows) % FOLDS
    keys = jnp.stack([key, *(jax.random.fold_in(key, 2 + k) for k in range(FOLDS))])

    def fit(start, without):  # the fold that is left out; -1 is none
        weights = (fold != without).astype(jnp.float32)

        def quarter(state, _):
            state, _ = trainer.run(state, train, weights, steps // 4)
            return state, outputs.soft_margins(model, state.variables, train, microbatch=microbatch)

        state = trainer.init(start, jax.tree.map(lambda a: a[:1], train.x))
        state, margins = jax.lax.scan(quarter, state, length=4)
        return state.variables, margins, outputs.logits(model, state.variables, train.x, microbatch=microbatch)

    each = jax.lax.map(lambda one: fit(*one), (keys, jnp.arange(-1, FOLDS)))  # one compilation for all
    variables, margins, logits = jax.tree.map(lambda a: a[0], each)
    others = jnp.take_along_axis(each[2][1:], fold[None, :, None], axis=0)[0]
    extras = [vectors.norms(*attributed(model, variables), train, microbatch=microbatch), margins.mean(0)]
    extras += [objectives.losses(others, train.y), outputs.soft_margin(others, train.y)]
    return variables, jnp.stack(extras, 1), logits, others


def make_train(
    network: Network, columns: Sequence[slice], num_classes: int, num_rows: int, *, width: int = 1, mesh: Mesh | None
) -> Callable[..., list[Cell]]:
    """``(key, [(train, validation)], [table]) -> [Cell]``: one compilation for all cells of one shape.

    ``columns`` are the features of each column (`tables.slices`); ``width`` and ``mesh`` as `ensemble.map_models`.
    """
    model = network.make(columns, num_classes)
    trainer = trainer_of(model, network, num_rows)

    def one(key, train: Split, validation: Split):
        variables, extras, logits, others = trained_by_folds(key, model, trainer, train, network.steps)
        tensor = vectors.tensor(model, variables, train, validation)
        labelled_as = lambda c: train._replace(y=jnp.full_like(train.y, c))
        product = lambda c: vectors.gram(model, variables, labelled_as(c), validation).astype(jnp.float16)
        by_class = jax.lax.map(product, jnp.arange(num_classes)).swapaxes(0, 1)
        return tensor, extras, logits, others, by_class

    @jax.jit
    def compiled(key, numbers, trains, validations):
        keys = ensemble.model_keys(key, numbers)
        return ensemble.map_models(one, width=width, mesh=mesh)(keys, trains, validations)

    def train(key, splits: Sequence[tuple[Split, Split]], raw: Sequence[Table]) -> list[Cell]:
        stacked = jax.tree.map(lambda *a: np.stack(a), *splits)
        arrays = jax.device_get(compiled(key, np.arange(len(splits)), *stacked))
        cells = []
        for v, extras, *more, table in zip(*arrays, raw, strict=True):
            rows = np.concatenate([extras, oddity.scores(table)], 1).astype(np.float32)
            cells.append(Cell(v, rows, *more))
        return cells

    return train


def features(cell: Cell, y: Int[AnyArray, "n"], num_classes: int) -> Float[np.ndarray, "n f"]:
    """The features of trees, in the order of `FEATURES`."""
    return np.asarray(row_features.order_statistics(cell.vectors, y, num_classes, rows=cell.extras))
