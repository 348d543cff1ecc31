"""Which rows of a table are probably wrong, and how: networks, influence vectors and a taught diagnoser in one call."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Key, Num

from d3mjax.data import label_scale, tables
from d3mjax.data.splits import check_numbers
from d3mjax.diagnosis import relative, taught, trees
from d3mjax.diagnosis.cells import FEATURES, MLP2, Cell, Network, features, labelled, make_train
from d3mjax.types import AnyArray, Table, is_regression


class Look(NamedTuple):
    """The probabilities by one network."""

    probabilities: Float[np.ndarray, "n e"]  # of each type of error
    left_out: Float[np.ndarray, "n C"]  # class probabilities, or standardised numbers, by models that lack the row
    fitted: Float[np.ndarray, "n C"]  # the same by the network trained on all rows


class Info(NamedTuple):
    """Further inputs of a repair, and the spread between networks."""

    proposed: Num[np.ndarray, "n"]  # the likeliest other class, or number, by models that have not seen the row
    correct: Bool[np.ndarray, "n"] | None  # whether the networks trained on all rows predict the class; None of numbers
    claimed: Float[np.ndarray, "m e"]  # share of the rows that each network alone claims


class Diagnosis(NamedTuple):
    """Errors of every row: wrong label, broken features, minority of a shortcut (the order of `mixed_errors.KINDS`)."""

    probabilities: Float[np.ndarray, "n e"]  # calibrated, means over networks
    claims: Bool[np.ndarray, "n e"]  # probability at or above the threshold of its type in this table
    info: Info


def diagnose(
    key: Key[Array, ""],
    table: Table,
    y: Num[AnyArray, "n"],
    validation: Table,
    validation_y: Num[AnyArray, "t"],
    *,
    diagnoser: trees.Trees | None = None,
    networks: int = 3,
    network: Network = MLP2,
    width: int = 1,
    mesh: Mesh | None = None,
) -> Diagnosis:
    """Probable errors of every row of ``table``: wrong label, broken features, or minority of a shortcut.

    Trains ``networks`` small networks on the table, describes each row by its influence on the rows of ``validation``
    (64 or more that nothing is trained on; they may have errors of their own) and relative to the rest of the table
    (`relative`), and applies ``diagnoser``, trees taught on other tables; if None, those that ship with d3mjax
    (`taught.shipped`), which need scikit-learn: ``pip install 'd3mjax[commands]'``. Both tables have the same columns
    and levels, see `tables.from_columns`; classes are 0..C-1, and floats are numbers to predict, in any unit. Pass the
    result on to `repair.weighed`. ``width`` and ``mesh`` are those of `ensemble.map_models`.

    >>> import jax, numpy as np, d3mjax
    >>> from d3mjax.data import tables
    >>> rng = np.random.default_rng(0)
    >>> y, held_y = rng.integers(0, 2, 80), rng.integers(0, 2, 64)
    >>> table, validation = (tables.from_columns({"a": 4.0 * c + rng.normal(size=len(c))}) for c in (y, held_y))
    >>> y[:4] = 1 - y[:4]  # wrong labels
    >>> result = d3mjax.diagnose(jax.random.key(0), table, y, validation, held_y, networks=1)
    >>> result.claims.shape, bool(result.claims[:4, 0].all()), bool(result.claims[4:, 0].mean() < 0.2)
    ((80, 3), True, True)

    Raises:
      ValueError: if the columns of the tables differ, classes of ``validation_y`` do not occur in ``y``, or numbers
        have fewer than three values or are not finite.
      ImportError: without scikit-learn, if ``diagnoser`` needs it.
      FloatingPointError: if the training of a network diverges.
    """
    y, validation_y = np.asarray(y), np.asarray(validation_y)
    diagnoser = taught.shipped(numbers=is_regression(y))[0] if diagnoser is None else diagnoser
    if is_regression(y):
        check_numbers(y, name="y")
        num_classes, (train_y, held_y) = None, standardised(y, y, validation_y)
    else:
        if unknown := set(validation_y.tolist()) - set(y.tolist()):
            raise ValueError(f"validation_y: found classes {sorted(unknown)}, expected those of y")
        num_classes, train_y, held_y = int(y.max()) + 1, y, validation_y
    encoder, columns = tables.fit_encoder(table), list(tables.slices(table).values())
    splits = labelled(encoder, table, train_y), labelled(encoder, validation, held_y)
    train = make_train(network, columns, num_classes, len(y), width=width, mesh=mesh)
    of_table = scores_of(diagnoser, table, y, num_classes)
    cells = train(key, [splits] * networks, [table] * networks)
    looks = [look(diagnoser, cell, train_y, num_classes, of_table=of_table) for cell in cells]
    return combine(looks, table, y, diagnoser)


def scores_of(
    diagnoser: trees.Trees, table: Table, y: Num[AnyArray, "n"], num_classes: int | None
) -> relative.Scores | None:
    """The scores of a table that all its networks share; None of numbers, or if ``diagnoser`` reads none of them."""
    if num_classes is None or trees.width(diagnoser) <= len(FEATURES):
        return None
    return relative.scores(table, y, num_classes)


def standardised(y: Float[AnyArray, "n"], *labels: Float[AnyArray, "_"]) -> list[Float[np.ndarray, "_"]]:
    """``labels`` by the mean and deviation of ``y``."""
    scale = label_scale.fit(y)
    return [label_scale.standardise(scale, each) for each in labels]


def look(
    diagnoser: trees.Trees,
    cell: Cell,
    y: Num[AnyArray, "n"],
    num_classes: int | None,
    *,
    of_table: relative.Scores | None = None,
) -> Look:
    """The probabilities by one network's cell and `scores_of` the table.

    Raises FloatingPointError if the training of the network diverged.
    """
    if not np.isfinite(cell.vectors).all():
        raise FloatingPointError("influence is not finite, training diverged")
    p = np.asarray(trees.predict(diagnoser, features(cell, y, num_classes, of_table=of_table)))
    if num_classes is None:
        return Look(p, cell.left_out, cell.logits)
    left_out, fitted = (np.asarray(jax.nn.softmax(logits)) for logits in (cell.left_out, cell.logits))
    return Look(p, left_out if of_table is None else (left_out + of_table.forest) / 2, fitted)


def combine(looks: Sequence[Look], table: Table, y: Num[AnyArray, "n"], diagnoser: trees.Trees) -> Diagnosis:
    """Claims by the mean probabilities of all networks, of `possible` errors alone; numbers ``y`` are in their unit."""
    y, able = np.asarray(y), possible(table, y)
    probabilities, left_out, fitted = (np.mean(arrays, axis=0) for arrays in zip(*looks, strict=True))
    probabilities = probabilities * able
    claimed = np.stack([(trees.claim(diagnoser, one.probabilities) & able).mean(0) for one in looks])
    if is_regression(y):
        info = Info(label_scale.restore(label_scale.fit(y), left_out[:, 0]).astype(y.dtype), None, claimed)
    else:
        others = np.where(np.arange(left_out.shape[1])[None] == y[:, None], -1, left_out)
        info = Info(others.argmax(1).astype(y.dtype), fitted.argmax(1) == y, claimed)
    return Diagnosis(probabilities, np.asarray(trees.claim(diagnoser, probabilities)) & able, info)


def possible(table: Table, y: Num[AnyArray, "n"]) -> Bool[np.ndarray, "e"]:
    """Which types of error the table can have: two labels or more, columns that vary, and both for a shortcut."""
    labels = len(np.unique(np.asarray(y))) > 1
    varying = any(len(np.unique(a, equal_nan=True)) > 1 for a in table.columns.values())
    return np.array([labels, varying, labels and varying])
