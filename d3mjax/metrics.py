"""Metrics of reports: group accuracies and errors, rank correlation, LDS, and intervals over seeds and masks.

All functions are pure JAX and take batches as leading axes or through `vmap`. Accuracies and shares
are fractions in [0, 1]. The value of an empty group or a constant column is NaN, never 0.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, Num

from d3mjax.linalg.products import dot
from d3mjax.types import AnyArray


def group_means(
    values: Bool[AnyArray, " t"] | Float[AnyArray, " t"], group: Int[AnyArray, " t"], num_groups: int
) -> Float[Array, " {num_groups}"]:
    """Mean of ``values`` (correct answers, losses, margins) over each group; NaN for an empty group.

    Examples of group -1 (unknown) count in no mean.

    >>> import numpy as np
    >>> from d3mjax import metrics
    >>> metrics.group_means(np.array([True, False, True]), np.array([0, 0, 1]), 2).tolist()
    [0.5, 1.0]
    """
    member = jax.nn.one_hot(group, num_groups, axis=0)  # [G t]; a row of -1 is all zero
    total = dot(member, jnp.asarray(values, member.dtype))
    return total / member.sum(1)


def worst_group_accuracy(accuracies: Float[AnyArray, "*b G"]) -> Float[Array, "*b"]:
    """Smallest group accuracy; NaN if any group has none, because an empty group must not count as good."""
    return jnp.min(accuracies, axis=-1)


def group_absolute_errors(
    residuals: Float[AnyArray, " t"], group: Int[AnyArray, " t"], num_groups: int
) -> Float[Array, " {num_groups}"]:
    """Mean absolute residual of each group, in the label's unit; NaN for an empty group."""
    return group_means(jnp.abs(jnp.asarray(residuals)), group, num_groups)


def group_rms_errors(
    residuals: Float[AnyArray, " t"], group: Int[AnyArray, " t"], num_groups: int
) -> Float[Array, " {num_groups}"]:
    """Root mean square residual of each group, in the label's unit; NaN for an empty group.

    >>> import numpy as np
    >>> from d3mjax import metrics
    >>> metrics.group_rms_errors(np.array([3.0, -3.0, 1.0]), np.array([0, 0, 1]), 2).tolist()
    [3.0, 1.0]
    """
    return jnp.sqrt(group_means(jnp.asarray(residuals) ** 2, group, num_groups))


def worst_group_error(errors: Float[AnyArray, "*b G"]) -> Float[Array, "*b"]:
    """Largest group error; NaN if any group has none, because an empty group must not count as good."""
    return jnp.max(errors, axis=-1)


def worst_group_influence(
    right: Bool[AnyArray, "m t"], group: Int[AnyArray, " t"], num_groups: int
) -> Float[Array, " t"]:
    """Influence of each example on the worst-group accuracy, mean over m models: ``(right - accuracy) / size``.

    It is 0 outside the worst group of a model; empty groups count in none. Over random draws of the examples, the
    standard error of the accuracy is the root of the sum of squares. That of the difference of two sets of models,
    paired by example, is the root of the sum of squares of the difference of their influences.

    >>> import numpy as np
    >>> from d3mjax import metrics
    >>> right = np.array([[True, False, True, True]])
    >>> metrics.worst_group_influence(right, np.array([0, 0, 1, 1]), 2).tolist()
    [0.25, -0.25, 0.0, 0.0]
    """
    member = jax.nn.one_hot(group, num_groups)  # [t G]
    sizes = member.sum(0)
    accuracies = dot(jnp.asarray(right, member.dtype), member) / sizes[None]  # [m G]
    worst = jnp.nanargmin(accuracies, axis=-1)
    inside = (jnp.asarray(group)[None] == worst[:, None]) / sizes[worst][:, None]
    return ((right - jnp.nanmin(accuracies, axis=-1, keepdims=True)) * inside).mean(0)


def worst_group_error_influence(
    residuals: Float[AnyArray, "m t"], group: Int[AnyArray, " t"], num_groups: int
) -> Float[Array, " t"]:
    """Influence of each example on the largest root mean square error of a group, mean over m models.

    ``(residual^2 - error^2) / (2 error size)`` in the worst group of a model, the derivative of the root, and 0 outside
    it; otherwise as `worst_group_influence`. In the label's unit.

    >>> import numpy as np
    >>> from d3mjax import metrics
    >>> residuals = np.array([[1.0, 7.0, 1.0, 1.0]])  # an error of 5 in group 0: (1 - 25) / (2 * 5 * 2)
    >>> influence = metrics.worst_group_error_influence(residuals, np.array([0, 0, 1, 1]), 2)
    >>> bool(np.allclose(influence, [-1.2, 1.2, 0.0, 0.0]))
    True
    """
    member = jax.nn.one_hot(group, num_groups)  # [t G]
    sizes = member.sum(0)
    squares = jnp.asarray(residuals, member.dtype) ** 2
    errors = dot(squares, member) / sizes[None]  # [m G], squared
    worst, square = jnp.nanargmax(errors, axis=-1), jnp.nanmax(errors, axis=-1, keepdims=True)
    inside = (jnp.asarray(group)[None] == worst[:, None]) / (2 * sizes[worst][:, None] * jnp.sqrt(square))
    return jnp.where(square > 0, (squares - square) * inside, 0).mean(0)


def average_accuracy(correct: Bool[AnyArray, "*b t"] | Float[AnyArray, "*b t"]) -> Float[Array, "*b"]:
    """Mean over all examples."""
    return jnp.mean(jnp.asarray(correct, jnp.result_type(float)), axis=-1)


def weighted_accuracy(accuracies: Float[AnyArray, "*b G"], shares: Num[AnyArray, " G"]) -> Float[Array, "*b"]:
    """Mean of group accuracies weighted by ``shares`` (fractions or counts), such as the training mix.

    A group of share 0 may be empty; an empty group that has a share makes the mean NaN.
    """
    accuracies = jnp.asarray(accuracies)
    weights = jnp.broadcast_to(jnp.asarray(shares / shares.sum(), accuracies.dtype), accuracies.shape)
    return jnp.where(weights > 0, accuracies * weights, 0).sum(-1)


def rank(x: Num[AnyArray, "*b m"]) -> Float[Array, "*b m"]:
    """Ranks 1..m along the last axis, ties share their average rank; all NaN where a row holds a NaN."""
    x = jnp.asarray(x)
    _, first, last = _tie_runs(x)
    ranks = (first + last) / 2 + 1
    return jnp.where(_any_nan(x), jnp.nan, ranks)


def auc(scores: Num[AnyArray, " t"], truth: Bool[AnyArray, " t"]) -> Float[Array, ""]:
    """Area under the ROC curve: how often a true example has the larger score, ties counting half; NaN for one kind.

    >>> import numpy as np
    >>> from d3mjax import metrics
    >>> float(metrics.auc(np.array([0.1, 0.4, 0.4, 0.9]), np.array([False, True, False, True])))
    0.875
    """
    truth = jnp.asarray(truth)
    ones, zeros = truth.sum(), (~truth).sum()
    return (jnp.where(truth, rank(scores), 0).sum() - ones * (ones + 1) / 2) / (ones * zeros)


def spearman(x: Num[AnyArray, "*b m"], y: Num[AnyArray, "*b m"]) -> Float[Array, "*b"]:
    """Rank correlation along the last axis, with ties as in SciPy; NaN where x or y is constant or holds a NaN."""
    middle = (x.shape[-1] + 1) / 2  # the mean rank, whatever the ties
    return _cosine(rank(x) - middle, rank(y) - middle)


def subset_predictions(
    tau: Float[AnyArray, "t n"], masks: Bool[AnyArray, "m n"] | Float[AnyArray, "m n"]
) -> Float[Array, "m t"]:
    """Outputs that an attribution predicts for models trained under ``masks``, up to a constant per target."""
    tau = jnp.asarray(tau)
    return dot(jnp.asarray(masks, tau.dtype), tau.T)


def lds(
    tau: Float[AnyArray, "t n"],
    masks: Bool[AnyArray, "m n"] | Float[AnyArray, "m n"],
    outputs: Float[AnyArray, "m t"],
) -> Float[Array, " t"]:
    """Linear datamodelling score of every target: over masks, the rank correlation of true and predicted outputs.

    The masks must be fresh: used neither to fit ``tau`` nor to choose anything. Average ``outputs`` over training seeds
    first. A target whose outputs or predictions are constant gets NaN: count and report those. Source: Park et al.,
    2023.

    >>> import numpy as np
    >>> from d3mjax import metrics
    >>> tau, masks = np.array([[1.0, 2.0, 4.0]]), np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1]], bool)
    >>> round(float(metrics.lds(tau, masks, np.array([[0.1], [0.2], [0.9]]))[0]), 3)
    1.0
    """
    return spearman(subset_predictions(tau, masks).T, jnp.asarray(outputs).T)


def klom(
    oracle: Float[AnyArray, "r t"], unlearned: Float[AnyArray, "m t"], *, bins: int = 20, floor: float = 1e-5
) -> Float[Array, " t"]:
    """KL divergence of margins, of every target, in nats: how far unlearned models are from retrained ones.

    ``sum_b p_b log(p_b / max(q_b, floor))`` over equal bins between the smallest and the largest margin of both, p
    being the shares of the retrained models (``oracle``) and q those of the unlearned. 0 is best; what another ensemble
    of retrained models reaches is the level of noise, which falls with r and m. At most ``-log(floor)``, 11.5.
    Source: Georgiev et al., "Attribute-to-delete: machine unlearning via datamodel matching", 2024 (arXiv 2410.23232).

    >>> import numpy as np
    >>> from d3mjax import metrics
    >>> oracle = np.array([[0.0], [0.0], [1.0], [1.0]])
    >>> metrics.klom(oracle, oracle).tolist(), round(float(metrics.klom(oracle, oracle[:2])[0]), 3)
    ([0.0], 5.063)
    """
    p, q = jnp.asarray(oracle), jnp.asarray(unlearned)
    low, high = jnp.minimum(p.min(0), q.min(0)), jnp.maximum(p.max(0), q.max(0))
    width = jnp.where(high > low, high - low, 1) / bins

    def shares(margins):
        at = jnp.clip(((margins - low[None]) / width[None]).astype(jnp.int32), 0, bins - 1)
        return jax.nn.one_hot(at, bins).mean(0)

    p, q = shares(p), jnp.maximum(shares(q), floor)
    return jnp.where(p > 0, p * jnp.log(jnp.where(p > 0, p, 1) / q), 0).sum(-1)


def bootstrap_interval(
    key: Key[Array, ""],
    values: Float[AnyArray, " s"],
    *,
    statistic: Callable[[Array], Array] = jnp.mean,
    num_resamples: int = 1000,
    level: float = 0.95,
) -> Float[Array, "2"]:
    """Percentile interval of ``statistic`` (a scalar of an array ``[s]``) over resampled seeds."""
    values = jnp.asarray(values)
    index = jax.random.randint(key, (num_resamples, values.size), 0, values.size)
    return jnp.quantile(jax.lax.map(statistic, values[index]), _tails(level))


def lds_interval(
    key: Key[Array, ""],
    predictions: Float[AnyArray, "m t"],
    outputs: Float[AnyArray, "m t"],
    *,
    num_resamples: int = 1000,
    level: float = 0.95,
) -> Float[Array, "2"]:
    """Percentile interval of the mean LDS, with masks and targets both resampled.

    ``predictions`` come from `subset_predictions`. All targets share the masks, so resampling targets alone would be
    too narrow. Targets that have no LDS (NaN) are left out of each mean. Sorts once: a resample is a vector of counts.
    """
    x, y = jnp.asarray(predictions).T, jnp.asarray(outputs).T  # [t m]
    num_targets, num_masks = x.shape
    runs_x, runs_y = _tie_runs(x), _tie_runs(y)
    broken = (_any_nan(x) | _any_nan(y))[:, 0]

    def resampled_mean(key):
        mask_key, target_key = jax.random.split(key)
        masks = jax.random.randint(mask_key, (num_masks,), 0, num_masks)
        targets = jax.random.randint(target_key, (num_targets,), 0, num_targets)
        counts = jnp.zeros(num_masks, jnp.int32).at[masks].add(1)
        root = jnp.broadcast_to(jnp.sqrt(counts), x.shape)
        middle = (num_masks + 1) / 2
        score = _cosine(
            root * (_counted_rank(runs_x, counts) - middle), root * (_counted_rank(runs_y, counts) - middle)
        )
        return jnp.nanmean(jnp.where(broken, jnp.nan, score)[targets])

    draws = jax.lax.map(resampled_mean, jax.random.split(key, num_resamples))
    return jnp.nanquantile(draws, _tails(level))  # a draw is NaN when it holds no target that has an LDS


def _tie_runs(x):
    """The sorting order of the last axis and, for every entry, the first and last sorted position of its equals."""
    order = jnp.argsort(x, axis=-1)
    ordered = jnp.take_along_axis(x, order, axis=-1)
    changes = ordered[..., 1:] != ordered[..., :-1]
    edge = jnp.ones_like(changes, shape=(*x.shape[:-1], 1))
    position = jnp.broadcast_to(jnp.arange(x.shape[-1]), x.shape)
    starts, ends = jnp.concatenate([edge, changes], -1), jnp.concatenate([changes, edge], -1)
    axis = x.ndim - 1
    first = jax.lax.cummax(jnp.where(starts, position, 0), axis=axis)
    last = jax.lax.cummin(jnp.where(ends, position, x.shape[-1]), axis=axis, reverse=True)
    back = jnp.argsort(order, axis=-1)
    return order, jnp.take_along_axis(first, back, axis=-1), jnp.take_along_axis(last, back, axis=-1)


def _counted_rank(runs, counts):
    """Average-tie ranks in the sample that holds entry j ``counts[j]`` times."""
    order, first, last = runs
    upto = jnp.pad(jnp.cumsum(counts[order], axis=-1), ((0, 0), (1, 0)))  # [t m+1] entries before each position
    before, through = (jnp.take_along_axis(upto, i, axis=-1) for i in (first, last + 1))
    return (before + through + 1) / 2


def _cosine(x, y):
    return (x * y).sum(-1) / jnp.sqrt((x * x).sum(-1) * (y * y).sum(-1))  # 0 / 0 = NaN where one is constant


def _any_nan(x):
    return jnp.isnan(x).any(-1, keepdims=True)


def _tails(level):
    return jnp.array([(1 - level) / 2, (1 + level) / 2])
