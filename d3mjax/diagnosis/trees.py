"""Boosted trees that tell which rows are wrong, and in which way, from features such as `statistics.order_statistics`.

One forest for each type of error. scikit-learn (the extra ``diagnosis``) grows them; they are kept as arrays, so that a
fitted `Trees` is saved as arrays are, without pickles, and `predict` is traceable.

Probabilities are calibrated, and thresholds chosen, on predictions out of fold, with whole cells held out: a forest
knows the cells that it was grown on, and what it promises there it does not keep elsewhere.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from d3mjax.attribution.outputs import map_microbatches
from d3mjax.diagnosis import claim_metrics
from d3mjax.types import AnyArray

SURE = 30.0
"""Log-odds of what never happens, or always."""


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
    thresholds: Float[AnyArray, "e"]  # claim where ``probability >= threshold``


def fit(
    features: Float[AnyArray, "n f"],
    flags: Bool[AnyArray, "n e"],
    cells: Shaped[AnyArray, "n"],
    *,
    folds: int = 4,
    rounds: int = 100,
    learning_rate: float = 0.1,
    leaves: int = 31,
    seed: int = 0,
    odds: Float[AnyArray, "n e"] | None = None,
) -> Trees:
    """Forests grown on all rows, calibrated and with thresholds by ``folds`` more that each lack some of the cells.

    Rows of one entry of ``cells`` are never parted, so give ids of what will be new at use: tables, or rules, rather
    than draws. With fewer than three cells rows are parted instead, which promises too much. See `calibrate`. A type
    that no row has gets probability 0. Missing features are NaN. ``odds``: what `out_of_fold` gave with the same
    options, where it has been called already. scikit-learn takes all threads it may have: on a shared machine set
    OMP_NUM_THREADS, as waiting for each other costs more than it brings.

    Raises:
      ValueError: if there are fewer than two folds, or a feature is infinite.
    """
    options = {"rounds": rounds, "learning_rate": learning_rate, "leaves": leaves, "seed": seed}
    grow, features, flags = _checked(features, flags, folds, options)
    if odds is None:
        odds = out_of_fold(features, flags, cells, folds=folds, **options)
    return Trees(grow(np.ones(len(flags), bool)), *calibrate(odds, flags))


def out_of_fold(
    features: Float[AnyArray, "n f"],
    flags: Bool[AnyArray, "n e"],
    cells: Shaped[AnyArray, "n"],
    *,
    folds: int = 4,
    rounds: int = 100,
    learning_rate: float = 0.1,
    leaves: int = 31,
    seed: int = 0,
) -> Float[np.ndarray, "n e"]:
    """Log-odds of every row, not calibrated, by forests that were grown without its cell. Options as those of `fit`."""
    options = {"rounds": rounds, "learning_rate": learning_rate, "leaves": leaves, "seed": seed}
    grow, features, flags = _checked(features, flags, folds, options)
    fold, odds = _folds(np.asarray(cells), folds, seed), np.zeros(flags.shape, np.float32)
    for held_out in np.unique(fold):
        odds[fold == held_out] = _log_odds(grow(fold != held_out), features[fold == held_out])
    return np.clip(odds, -SURE / 3, SURE / 3)  # a fold without a type is sure of what it cannot know


def calibrate(
    odds: Float[AnyArray, "n e"], flags: Bool[AnyArray, "n e"]
) -> tuple[Float[np.ndarray, "e"], Float[np.ndarray, "e"], Float[np.ndarray, "e"]]:
    """Slopes, intercepts and thresholds of each type, from rows whose forests have not seen them.

    Calibration is Platt's, ``sigmoid(slope * log_odds + intercept)``; thresholds have the highest F1 of 0.05, 0.10,
    ..., 0.95.
    """
    odds, flags = np.asarray(odds, np.float32), np.asarray(flags, bool)
    slope, intercept = np.array([_platt(o, flag) for o, flag in zip(odds.T, flags.T, strict=True)], np.float32).T
    return slope, intercept, np.asarray(claim_metrics.best_thresholds(calibrated(odds, slope, intercept), flags))


def predict(trees: Trees, features: Float[AnyArray, "n f"], *, microbatch: int | None = 8192) -> Float[Array, "n e"]:
    """Calibrated probability of each type of error, ``microbatch`` rows at a time."""
    odds = _log_odds(trees.forest, features, microbatch=microbatch)
    return calibrated(odds, trees.slope, trees.intercept)


def claim(trees: Trees, probabilities: Float[AnyArray, "n e"]) -> Bool[Array, "n e"]:
    """Flags where the probability reaches the threshold of its type."""
    return claim_metrics.flag(probabilities, trees.thresholds)


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


def calibrated(
    odds: Float[AnyArray, "n e"], slope: Float[AnyArray, "e"], intercept: Float[AnyArray, "e"]
) -> Float[Array, "n e"]:
    """Probabilities of log-odds, by what `calibrate` gave."""
    return jax.nn.sigmoid(jnp.asarray(slope)[None] * jnp.asarray(odds) + jnp.asarray(intercept)[None])


def _checked(features, flags, folds: int, options: dict):
    """``rows -> Forest`` grown on these rows, and the arrays."""
    features, flags = np.asarray(features, np.float32), np.asarray(flags, bool)
    if folds < 2:
        raise ValueError(f"folds: found {folds}, expected at least 2")
    if np.isinf(features).any():
        raise ValueError("features: found infinite ones, expected numbers, or NaN where there is none")
    named = {"rounds": "max_iter", "leaves": "max_leaf_nodes", "seed": "random_state"}
    options = {named.get(name, name): value for name, value in options.items()} | {"early_stopping": False}
    return lambda rows: _grow(features[rows], flags[rows], options), features, flags


def _folds(cells, folds: int, seed: int) -> Int[np.ndarray, "n"]:
    """The fold that each row is held out in."""
    ids, cell = np.unique(cells, return_inverse=True)
    units = len(ids) if len(ids) >= 3 else len(cells)
    place = np.random.default_rng(seed).permutation(units) % min(folds, units)
    return place[cell] if len(ids) >= 3 else place


def _grow(features, flags, options) -> Forest:
    """A forest for each type."""
    # On fewer rows threads wait for each other, where other programs run as well many times longer than they work.
    with threadpool_limits(max(1, len(features) // 50_000), user_api="openmp"):
        forests = [_grow_one(features, flag, options) for flag in flags.T]
    size = max(forest.feature.shape[1] for forest in forests)
    count = max(forest.feature.shape[0] for forest in forests)
    pad = lambda a: np.pad(a, ((0, count - a.shape[0]), (0, size - a.shape[1]))) if a.ndim else a
    return jax.tree.map(lambda *a: np.stack([pad(b) for b in a]), *forests)


def _grow_one(features, flag, options) -> Forest:
    if flag.all() or not flag.any():
        return _arrays([np.zeros(1, _LEAF)], SURE if flag.all() else -SURE)
    grown = HistGradientBoostingClassifier(**options).fit(features, flag)
    trees = [trees[0].nodes for trees in grown._predictors]  # no public way to them; a test compares the predictions
    return _arrays(trees, grown._baseline_prediction.item())


_LEAF = [
    *(("feature_idx", "i8"), ("num_threshold", "f8"), ("missing_go_to_left", "?")),
    *(("left", "u4"), ("right", "u4"), ("value", "f8"), ("is_leaf", "?")),
]


def _arrays(trees, base: float) -> Forest:
    """Nodes of scikit-learn's trees, padded to the largest, in single precision."""
    size = max(map(len, trees))
    padded = lambda name: np.stack([np.pad(nodes[name], (0, size - len(nodes))) for nodes in trees])
    leaf, here = padded("is_leaf"), np.arange(size)[None]
    cut = padded("num_threshold")
    single = cut.astype(np.float32)  # rounded down: numbers in single precision stay on their side
    single = np.where(single > cut, np.nextafter(single, np.float32(-np.inf)), single)
    left, right = (np.where(leaf, here, padded(side)).astype(np.int32) for side in ("left", "right"))
    value = np.where(leaf, padded("value"), 0).astype(np.float32)
    feature, missing_left = padded("feature_idx").astype(np.int32), padded("missing_go_to_left").astype(bool)
    return Forest(feature, single, missing_left, left, right, value, np.asarray(base, np.float32))


def _platt(odds, flag) -> tuple[float, float]:
    """Slope and intercept of the log-odds; a ranking that is worse than chance is flattened, not turned over."""
    share = flag.mean()
    if share in (0, 1):
        return 1.0, 0.0
    fitted = LogisticRegression(C=1e6).fit(odds[:, None], flag)  # two numbers need no penalty
    if fitted.coef_.item() > 1e-3:
        return fitted.coef_.item(), fitted.intercept_.item()
    return 1e-3, float(np.log(share / (1 - share)))
