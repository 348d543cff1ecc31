"""Cells: a table, the networks trained on it, its influence vectors, and the features of its rows.

A cell is one table with one model; its labels are classes, or standardised numbers. Cells of one shape are one compiled
program mapped over devices. Besides the tensor of `vectors` a cell has a few numbers a row (`EXTRAS`) that mean the
same for any table.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Key, Num, PyTree

from d3mjax.attribution import curvatures, outputs
from d3mjax.data import tables
from d3mjax.diagnosis import number_scores, oddity, relative, row_features, vectors
from d3mjax.linalg.products import LARGEST
from d3mjax.networks import dense, ft_transformer
from d3mjax.training import ensemble, objectives, sampling
from d3mjax.training.trainer import make_trainer
from d3mjax.types import AnyArray, Model, Objective, Split, Table, Trainer, is_regression

FOLDS = 3
MOST_ROWS = 16_384
"""Rows of a training step: the cost of a training does not grow with larger tables."""
EXTRAS = ("norm", "path", "left out", "left out margin", *oddity.NAMES)
FEATURES = row_features.feature_names(rows=EXTRAS)
"""Names of the features that trees read, in order."""
WIDE = (*FEATURES, *relative.NAMES)
"""The same, and those relative to the table, which need scikit-learn."""
NUMBER_EXTRAS = (*EXTRAS, *number_scores.NAMES)
STRANGE = {"far": 4.0, "surprise": 4.0, "left out, among its like": 4.0, "neighbours' labels": 1.5}
"""Extras whose share of rows above a number is a feature of every row: how dirty the table is."""
NUMBER_FEATURES = (
    *row_features.feature_names(rows=NUMBER_EXTRAS),
    *(f"share of rows with {name} above {most:g}" for name, most in STRANGE.items()),
)
"""The same where labels are numbers."""
BINS = 5  # of predictions: the loss of a row is ranked among rows of similar prediction, as among those of its class


class Outcome(NamedTuple):
    """What a network predicts, as losses and margins: classes or numbers."""

    objective: Objective
    loss: Callable  # (logits [C], y) -> loss of one row
    losses: Callable  # (logits [n C], y [n]) -> [n]
    margin: Callable  # the same; larger is better


CLASSES = Outcome(objectives.cross_entropy(), curvatures.cross_entropy, objectives.losses, outputs.soft_margin)
NUMBERS = Outcome(
    objectives.huber(1.0),  # wrong labels pull less than by squares
    curvatures.squared_error,
    objectives.squared_errors,
    outputs.negative_squared_error,
)


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
    extras: np.ndarray  # Float32[n r], in the order of `EXTRAS` or `NUMBER_EXTRAS`
    logits: np.ndarray  # Float32[n C]; the prediction where labels are numbers, C being 1
    left_out: np.ndarray  # Float32[n C], logits of models trained on the other folds
    by_class: (
        np.ndarray
    )  # Float16[n C t], the cosine of gradients, were the rows labelled so; positive: helpful; no C for numbers


def labelled(encoder: tables.Encoder, table: Table, labels: Num[AnyArray, "n"]) -> Split:
    """Encoded rows with their labels, classes or standardised numbers; groups are unknown."""
    y = np.asarray(labels, np.float32 if is_regression(labels) else np.int32)
    return Split(tables.encode(encoder, table), y, np.full(len(y), -1, np.int32), table.id)


def trainer_of(model: Model, network: Network, num_rows: int, *, objective: Objective = CLASSES.objective) -> Trainer:
    """The training of a network on ``num_rows`` weighted rows, at most `MOST_ROWS` a step."""
    batch = min(network.batch or num_rows, num_rows, MOST_ROWS)
    return make_trainer(model, objective, network.tx, sampling.shuffled(), batch_size=batch)


def trained_by_folds(
    key: Key[Array, ""],
    model: Model,
    trainer: Trainer,
    train: Split,
    steps: int,
    *,
    microbatch: int = LARGEST,
    attributed: Callable[[Model, PyTree], tuple[Model, PyTree]] = lambda model, variables: (model, variables),
    outcome: Outcome = CLASSES,
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
            logits = outputs.logits(model, state.variables, train.x, microbatch=microbatch)
            return state, outcome.margin(logits, train.y)

        state = trainer.init(start, jax.tree.map(lambda a: a[:1], train.x))
        state, margins = jax.lax.scan(quarter, state, length=4)
        return state.variables, margins, outputs.logits(model, state.variables, train.x, microbatch=microbatch)

    each = jax.lax.map(lambda one: fit(*one), (keys, jnp.arange(-1, FOLDS)))  # one compilation for all
    variables, margins, logits = jax.tree.map(lambda a: a[0], each)
    others = jnp.take_along_axis(each[2][1:], fold[None, :, None], axis=0)[0]
    extras = [
        vectors.norms(*attributed(model, variables), train, loss=outcome.loss, microbatch=microbatch),
        margins.mean(0),
    ]
    extras += [outcome.losses(others, train.y), outcome.margin(others, train.y)]
    return variables, jnp.stack(extras, 1), logits, others


def make_train(
    network: Network,
    columns: Sequence[slice],
    num_classes: int | None,
    num_rows: int,
    *,
    width: int = 1,
    mesh: Mesh | None,
) -> Callable[..., list[Cell]]:
    """``(key, [(train, validation)], [table]) -> [Cell]``: one compilation for all cells of one shape.

    ``num_classes`` None: labels are standardised numbers. ``columns`` are the features of each column
    (`tables.slices`); ``width`` and ``mesh`` as `ensemble.map_models`.
    """
    outcome = NUMBERS if num_classes is None else CLASSES
    model = network.make(columns, num_classes or 1)
    trainer = trainer_of(model, network, num_rows, objective=outcome.objective)

    def one(key, train: Split, validation: Split):
        variables, extras, logits, others = trained_by_folds(key, model, trainer, train, network.steps, outcome=outcome)
        tensor = vectors.tensor(model, variables, train, validation, loss=outcome.loss)
        if num_classes is None:
            return tensor, extras, logits, others, jnp.zeros((num_rows, 0, len(validation.y)), jnp.float16)
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
        for v, extras, logits, left_out, by_class, table, (part, _) in zip(*arrays, raw, splits, strict=True):
            rows = [extras, oddity.scores(table)]
            rows += [number_scores.columns(part.x, part.y, left_out[:, 0])] if num_classes is None else []
            cells.append(Cell(v, np.concatenate(rows, 1).astype(np.float32), logits, left_out, by_class))
        return cells

    return train


def features(
    cell: Cell, y: Num[AnyArray, "n"], num_classes: int | None, *, of_table: relative.Scores | None = None
) -> Float[np.ndarray, "n f"]:
    """The features of trees, in the order of `FEATURES`, of `WIDE` with ``of_table``, or of `NUMBER_FEATURES`.

    The last are for labels that are numbers: ``num_classes`` is None.
    """
    if num_classes is None:
        left_out = cell.left_out[:, 0]
        edges = np.quantile(left_out, np.arange(1, BINS) / BINS)
        bins = np.searchsorted(edges, left_out)
        own = np.asarray(row_features.order_statistics(cell.vectors, bins, BINS, rows=cell.extras))
        shares = [(cell.extras[:, NUMBER_EXTRAS.index(name)] > most).mean() for name, most in STRANGE.items()]
        return np.concatenate([own, np.broadcast_to(np.asarray(shares, np.float32), (len(own), len(shares)))], axis=1)
    own = np.asarray(row_features.order_statistics(cell.vectors, y, num_classes, rows=cell.extras))
    if of_table is None:
        return own
    left_out = np.asarray(jax.nn.softmax(cell.left_out, axis=1))
    return np.concatenate([own, relative.features(of_table, y, left_out)], axis=1)
