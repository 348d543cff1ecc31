"""Boosted trees that predict the errors of rows from features such as those of `row_features.order_statistics`.

One forest for each type of error. scikit-learn grows them; they are kept as arrays, so that a fitted `Trees` is saved
like any arrays, without pickles, and `predict` is traceable.

Probabilities are calibrated, and thresholds chosen, on predictions out of fold, with whole cells held out: a forest has
fitted the cells that it was grown on, and its probabilities there do not hold elsewhere.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from d3mjax.attribution.microbatches import map_microbatches
from d3mjax.diagnosis import claims
from d3mjax.types import AnyArray

SURE = 30.0
"""Log-odds of a type that always occurs; minus that if it never does."""


class Options(NamedTuple):
    """How forests are grown."""

    folds: int = 4  # forests for calibration and thresholds, each grown without some of the cells
    rounds: int = 100  # trees of a forest
    learning_rate: float = 0.1
    leaves: int = 31
    seed: int = 0


class Forest(NamedTuple):
    """Trees of up to ``m`` nodes: node 0 is the root, a leaf leads to itself."""

    feature: Int[AnyArray, "*e T m"]
    cut: Float[AnyArray, "*e T m"]  # left where ``feature <= cut``
    missing_left: Bool[AnyArray, "*e T m"]  # where NaN goes
    left: Int[AnyArray, "*e T m"]
    right: Int[AnyArray, "*e T m"]
    value: Float[AnyArray, "*e T m"]  # what a leaf adds to the log-odds
    base: Float[AnyArray, "*e"]  # log-odds before all trees


class Trees(NamedTuple):
    """One forest for each type of error, its calibration and the thresholds of the calibrated probabilities."""

    forest: Forest
    slope: Float[AnyArray, "e"]  # above 0, so that ranks stay: ``slope * log_odds + intercept``
    intercept: Float[AnyArray, "e"]
    thresholds: Float[AnyArray, "e"]  # claim where ``probability >= threshold``; NaN: chosen in every table


def fit(
    features: Float[AnyArray, "n f"],
    flags: Bool[AnyArray, "n e"],
    cells: Shaped[AnyArray, "n"],
    *,
    options: Options = Options(),
    odds: Float[AnyArray, "n e"] | None = None,
) -> Trees:
    """Forests grown on all rows, calibrated and with thresholds by ``folds`` more that each lack some of the cells.

    Rows of one entry of ``cells`` stay in one fold, so give ids of what will be new at use: tables, or rules, rather
    than draws. With fewer than three cells rows are split instead, which is optimistic. A type that no row has gets
    probability 0. Missing features are NaN. ``odds``: the result of `out_of_fold` with the same options, if known.
    scikit-learn takes all threads it may have: on a shared machine set OMP_NUM_THREADS.

    Raises:
      ValueError: if there are fewer than two folds, or a feature is infinite.
    """
    grow, features, flags = _checked(features, flags, options)
    if odds is None:
        odds = out_of_fold(features, flags, cells, options=options)
    calibration, thresholds = calibrate(odds, flags)
    return Trees(grow(np.ones(len(flags), bool)), *calibration, thresholds)


def out_of_fold(
    features: Float[AnyArray, "n f"],
    flags: Bool[AnyArray, "n e"],
    cells: Shaped[AnyArray, "n"],
    *,
    options: Options = Options(),
    grown: Bool[AnyArray, "n"] | None = None,
) -> Float[np.ndarray, "n e"]:
    """Log-odds of every row, not calibrated, by forests that were grown without its cell; raises as `fit`.

    ``grown``: rows that forests are grown on, where these are enough; None is all.
    """
    grow, features, flags = _checked(features, flags, options)
    among = np.ones(len(flags), bool) if grown is None else np.asarray(grown)
    fold, odds = _folds(np.asarray(cells), options.folds, options.seed), np.zeros(flags.shape, np.float32)
    for held_out in np.unique(fold):
        odds[fold == held_out] = _log_odds(grow((fold != held_out) & among), features[fold == held_out])
    return np.clip(odds, -SURE / 3, SURE / 3)  # a fold without a type cannot know that there is none elsewhere


def calibrate(
    odds: Float[AnyArray, "n e"], flags: Bool[AnyArray, "n e"]
) -> tuple[claims.Calibration, Float[np.ndarray, "e"]]:
    """Platt's calibration of each type, and thresholds of highest F1, from rows whose forests have not seen them."""
    odds, flags = np.asarray(odds, np.float32), np.asarray(flags, bool)
    calibration = claims.platt(odds, flags)
    return calibration, np.asarray(claims.best_thresholds(claims.calibrated(odds, calibration), flags))


def predict(trees: Trees, features: Float[AnyArray, "n f"], *, microbatch: int | None = 8192) -> Float[Array, "n e"]:
    """Calibrated probability of each type of error, ``microbatch`` rows at a time."""
    odds = _log_odds(trees.forest, features, microbatch=microbatch)
    return claims.calibrated(odds, claims.Calibration(trees.slope, trees.intercept))


def thresholds(trees: Trees, probabilities: Float[AnyArray, "n e"]) -> Float[np.ndarray, "e"]:
    """The threshold of each type: that of the trees, or of the highest expected F1 in this table where that is NaN."""
    fixed = np.asarray(trees.thresholds)
    return (
        np.where(np.isnan(fixed), claims.expected_thresholds(probabilities), fixed) if np.isnan(fixed).any() else fixed
    )


def claim(trees: Trees, probabilities: Float[AnyArray, "n e"]) -> Bool[AnyArray, "n e"]:
    """Flags where the probability reaches the threshold of its type; give all rows of a table."""
    return np.asarray(probabilities) >= thresholds(trees, probabilities)[None]


def width(trees: Trees) -> int:
    """Number of features that the trees read: those after these change nothing."""
    return int(np.max(trees.forest.feature)) + 1


@partial(jax.jit, static_argnames="microbatch")
def _log_odds(forest, features, *, microbatch=8192) -> Float[Array, "n e"]:
    num_types, num_trees, _ = forest.feature.shape
    nodes = [jnp.asarray(a).reshape(num_types * num_trees, -1) for a in forest[:-1]]
    feature, cut, missing_left, left, right, value = nodes
    tree = jnp.arange(num_types * num_trees)[None]

    def rows(x):
        row = jnp.arange(x.shape[0])[:, None]

        def step(state):
            node, _ = state
            seen = x[row, feature[tree, node]]
            go_left = jnp.where(jnp.isnan(seen), missing_left[tree, node], seen <= cut[tree, node])
            following = jnp.where(go_left, left[tree, node], right[tree, node])
            return following, (following != node).any()

        start = jnp.zeros((x.shape[0], tree.shape[1]), left.dtype), jnp.array(True)
        node, _ = jax.lax.while_loop(lambda state: state[1], step, start)
        return value[tree, node].reshape(-1, num_types, num_trees).sum(2) + jnp.asarray(forest.base)[None]

    return map_microbatches(rows, jnp.asarray(features, jnp.float32), microbatch=microbatch)


def _checked(features, flags, options: Options):
    """``rows -> Forest`` grown on these rows, and the arrays."""
    features, flags = np.asarray(features, np.float32), np.asarray(flags, bool)
    if options.folds < 2:
        raise ValueError(f"folds: found {options.folds}, expected at least 2")
    if np.isinf(features).any():
        raise ValueError("features: found infinite ones, expected numbers, or NaN where there is none")
    _, rounds, learning_rate, leaves, seed = options
    settings: dict[str, Any] = {
        "early_stopping": False,
        "max_iter": rounds,
        "learning_rate": learning_rate,
        "max_leaf_nodes": leaves,
        "random_state": seed,
    }
    return lambda rows: _grow(features[rows], flags[rows], settings), features, flags


def _folds(cells, folds: int, seed: int) -> Int[np.ndarray, "n"]:
    """The fold that each row is held out in."""
    ids, cell = np.unique(cells, return_inverse=True)
    units = len(ids) if len(ids) >= 3 else len(cells)
    fold = np.random.default_rng(seed).permutation(units) % min(folds, units)
    return fold[cell] if len(ids) >= 3 else fold


def _grow(features, flags, settings) -> Forest:
    """A forest for each type."""
    from threadpoolctl import threadpool_limits

    # On fewer rows threads wait for each other; beside other programs many times longer than they work.
    with threadpool_limits(max(1, len(features) // 50_000), user_api="openmp"):
        forests = [_grow_one(features, flag, settings) for flag in flags.T]
    size = max(forest.feature.shape[1] for forest in forests)
    count = max(forest.feature.shape[0] for forest in forests)
    pad = lambda a: np.pad(a, ((0, count - a.shape[0]), (0, size - a.shape[1]))) if a.ndim else a
    return jax.tree.map(lambda *a: np.stack([pad(b) for b in a]), *forests)


def _grow_one(features, flag, settings) -> Forest:
    from sklearn.ensemble import HistGradientBoostingClassifier

    if flag.all() or not flag.any():
        return _arrays([np.zeros(1, _LEAF)], SURE if flag.all() else -SURE)
    grown = HistGradientBoostingClassifier(**settings).fit(features, flag)
    trees = [trees[0].nodes for trees in grown._predictors]  # not public; a test compares the predictions
    return _arrays(trees, grown._baseline_prediction.item())


_LEAF = [
    *(("feature_idx", "i8"), ("num_threshold", "f8"), ("missing_go_to_left", "?")),
    *(("left", "u4"), ("right", "u4"), ("value", "f8"), ("is_leaf", "?")),
]


def _arrays(trees, base: float) -> Forest:
    """Nodes of scikit-learn's trees, padded to the largest, in single precision."""
    size = max(map(len, trees))
    padded = lambda name: np.stack([np.pad(nodes[name], (0, size - len(nodes))) for nodes in trees])
    leaf, node = padded("is_leaf"), np.arange(size)[None]
    cut = padded("num_threshold")
    single = cut.astype(np.float32)  # rounded down: numbers in single precision stay on their side
    single = np.where(single > cut, np.nextafter(single, np.float32(-np.inf)), single)
    left, right = (np.where(leaf, node, padded(side)).astype(np.int32) for side in ("left", "right"))
    value = np.where(leaf, padded("value"), 0).astype(np.float32)
    feature, missing_left = padded("feature_idx").astype(np.int32), padded("missing_go_to_left").astype(bool)
    return Forest(feature, single, missing_left, left, right, value, np.asarray(base, np.float32))
